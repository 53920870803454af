"""What happens when the tracking server is away, slow, broken or choosy; every server here is a real one."""

import json
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from ray_distill.tracking.delivery.delivery import MAX_ATTEMPTS
from ray_distill.tracking.delivery.patience import DATABASE
from ray_distill.tracking.mlflow_tracker import MlflowTracker


class _Answers(BaseHTTPRequestHandler):
    """Answers each path from the server's table (status, JSON); 503 for all others."""

    def _answer(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        path = self.path.partition("?")[0].rpartition("/mlflow/")[2]
        status, body = self.server.table.get(path, (503, {}))  # type: ignore[attr-defined]
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    do_GET = do_POST = _answer

    def log_message(self, format: str, *args: Any) -> None:
        """Keep the test's output clean."""


@contextmanager
def _server(table: dict[str, tuple[int, Any]]) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Answers)
    server.table = table  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_an_outage_is_said_once_and_costs_little_time(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Hundreds of records during an outage give one warning, and no wait but that of the first."""
    with _server({}) as uri:
        tracker = MlflowTracker(uri, "campaign", tmp_path)
        with tracker.run("train") as run:
            started = time.monotonic()
            for step in range(300):
                run.tags({"step": str(step)})
            assert time.monotonic() - started < 5
        assert run.run_id.startswith("spooled-")
    assert caplog.text.count("work continues") == 1
    assert tracker.flush() == 302
    assert caplog.text.count("work continues") == 1


def test_a_missing_permission_waits_for_its_mending(tmp_path: Path) -> None:
    """A token or a host list that is refused (403) keeps the records in the spool; none is rejected."""
    refused = (403, {"error_code": "PERMISSION_DENIED", "message": "no"})
    with _server({"experiments/get-by-name": refused, "experiments/search": refused}) as uri:
        tracker = MlflowTracker(uri, "campaign", tmp_path, patience=DATABASE)
        with tracker.run("train"):
            pass
        assert tracker.flush() == 2
    assert not (tmp_path / "rejected.jsonl").exists()


def test_a_record_that_breaks_a_living_server_does_not_block_the_rest(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A record that gives 500 again and again while the server answers other questions is put aside."""
    experiment = {"experiment_id": "1", "name": "campaign", "lifecycle_stage": "active"}
    with _server(
        {
            "experiments/search": (200, {"experiments": [experiment]}),
            "experiments/get-by-name": (200, {"experiment": experiment}),
            "experiments/set-experiment-tag": (200, {}),
            "runs/create": (200, {"run": {"info": {"run_id": "abc", "run_uuid": "abc"}, "data": {}}}),
            "runs/update": (200, {"run_info": {"run_id": "abc", "run_uuid": "abc"}}),
        }
    ) as uri:
        tracker = MlflowTracker(uri, "campaign", tmp_path, patience=DATABASE)
        with tracker.run("train") as run:
            assert run.run_id == "abc"
            run.tags({"breaks": "it"})
        waiting = [tracker.flush() for _ in range(MAX_ATTEMPTS)]
    assert waiting[-1] == 0 and waiting[0] > 0
    (rejected,) = [json.loads(line) for line in (tmp_path / "rejected.jsonl").read_text().splitlines()]
    assert rejected["tags"] == {"breaks": "it"}
    assert "refused a record (tags)" in caplog.text


@contextmanager
def _mlflow_server(folder: Path, port: int) -> Iterator[str]:
    """A real ``mlflow server`` that keeps artifacts itself, killed at the end of the block."""
    log = (folder / "server.log").open("ab")
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "mlflow",
            "server",
            "--host",
            "127.0.0.1",
            "--port",
            str(port),
            "--workers",
            "1",
            "--backend-store-uri",
            f"sqlite:///{folder / 'mlflow.db'}",
            "--artifacts-destination",
            str(folder / "artifacts"),
        ],
        stdout=log,
        stderr=log,
        start_new_session=True,
        env={**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true"},
    )
    uri = f"http://127.0.0.1:{port}"
    try:
        _wait_for(f"{uri}/health", process)
        yield uri
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        log.close()


def _wait_for(url: str, process: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + 180
    while time.monotonic() < deadline:
        assert process.poll() is None, "the server died"
        try:
            with urllib.request.urlopen(url, timeout=1):
                return
        except OSError:
            threading.Event().wait(0.2)
    raise AssertionError("the server did not start in three minutes")


@pytest.mark.crash
def test_a_server_that_dies_and_comes_back_has_everything_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """SIGKILL of the server midway through a run: the run goes on, and all of it is there when the server is back."""
    from mlflow import MlflowClient

    caplog.set_level(logging.WARNING)
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    (tmp_path / "report.html").write_text("<p>report</p>")
    tracker = MlflowTracker(f"http://127.0.0.1:{port}", "campaign", tmp_path / "spool", patience=DATABASE)
    with tracker.run("campaign") as parent:
        with _mlflow_server(tmp_path, port):
            assert tracker.flush() == 0
            with tracker.run("label", parent=parent.run_id) as label:
                label.metrics({"rows": 10.0})
            online = tracker.run("train", parent=parent.run_id)
            train = online.__enter__()
            train.metrics({"loss": 3.0}, step=0)
            assert tracker.flush() == 0
        for step in range(1, 300):
            train.metrics({"loss": 3.0 / step}, step=step)
        train.artifact(tmp_path / "report.html")
        online.__exit__(None, None, None)
        with tracker.run("evaluate", parent=parent.run_id) as evaluate:
            evaluate.params({"bins": 15})
            evaluate.tags({"verdict": "HOLD"})
        assert evaluate.run_id.startswith("spooled-") and not train.run_id.startswith("spooled-")
    with _mlflow_server(tmp_path, port) as uri:
        assert tracker.flush() == 0
        client = MlflowClient(tracking_uri=uri)
        runs = {
            run.info.run_name: run
            for run in client.search_runs([client.get_experiment_by_name("campaign").experiment_id])
        }
        assert set(runs) == {"campaign", "label", "train", "evaluate"}
        assert {run.info.status for run in runs.values()} == {"FINISHED"}
        top = runs["campaign"].info.run_id
        assert {runs[name].data.tags["mlflow.parentRunId"] for name in ("label", "train", "evaluate")} == {top}
        history = client.get_metric_history(runs["train"].info.run_id, "loss")
        assert [point.step for point in history] == list(range(300))
        assert [item.path for item in client.list_artifacts(runs["train"].info.run_id)] == ["report.html"]
        assert runs["evaluate"].data.tags["verdict"] == "HOLD" and runs["evaluate"].data.params == {"bins": "15"}
    assert caplog.text.count("work continues") == 2 == caplog.text.count("is available again: wrote")
    assert not (tmp_path / "spool" / "rejected.jsonl").exists()
