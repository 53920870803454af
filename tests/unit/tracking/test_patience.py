"""A command's waits for tracking are bounded, and nothing is lost: mute servers, full disks, closed folders."""

import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from ray_distill.errors import PromotionError
from ray_distill.tracking.base import Dataset
from ray_distill.tracking.delivery.connect import import_mlflow
from ray_distill.tracking.delivery.patience import Clock, Patience
from ray_distill.tracking.mlflow_registry import MlflowRegistry
from ray_distill.tracking.mlflow_tracker import MlflowTracker

SHORT = Patience(call=0.2, work=0.4, end=0.4, retry=0.1)


@contextmanager
def _mute_server(*, drips: bool) -> Iterator[str]:
    """Accept connections and never answer, or answer one byte after another without an end."""
    listener, gone = socket.create_server(("127.0.0.1", 0)), threading.Event()
    connections: list[socket.socket] = []

    def accept() -> None:
        while not gone.is_set():
            try:
                connections.append(listener.accept()[0])
            except OSError:
                return

    def drip() -> None:
        while not gone.wait(0.02):
            for connection in list(connections):
                try:
                    connection.send(b"HTTP/1.1 200 OK\r\nX-Slow: "[:1] if drips else b"")
                except OSError:
                    connections.remove(connection)

    threads = [threading.Thread(target=accept), threading.Thread(target=drip)]
    for thread in threads:
        thread.start()
    try:
        yield f"http://me:hunter2@127.0.0.1:{listener.getsockname()[1]}"
    finally:
        gone.set()
        listener.shutdown(socket.SHUT_RDWR)
        for one in (listener, *connections):
            one.close()
        for thread in threads:
            thread.join()


def _runs(uri: str) -> dict[str, Any]:
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=uri)
    found = client.search_runs([client.get_experiment_by_name("campaign").experiment_id])
    assert len({run.info.run_name for run in found}) == len(found)
    return {run.info.run_name: run for run in found}


@pytest.mark.parametrize("drips", [False, True])
def test_a_server_that_never_answers_costs_seconds_and_no_record(
    db: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, drips: bool
) -> None:
    """Whatever a command records, it waits for its patience at most; the next one with a server delivers all."""
    import_mlflow()  # its seconds are not the server's
    began = time.monotonic()
    with _mute_server(drips=drips) as uri:
        tracker = MlflowTracker(uri, "campaign", tmp_path / "spool", patience=SHORT)
        with tracker.run("campaign") as top, tracker.run("train", parent=top.run_id) as run:
            for step in range(50):
                run.tags({"step": str(step)})
                run.metrics({"loss": float(step)}, step=step)
            run.dataset(Dataset(name="d", digest="00", source="x", context="training", profile={}))
            (tmp_path / "report.html").write_text("report")
            run.artifact(tmp_path / "report.html")
            assert tracker.review_url() == uri
        assert tracker.flush() > 50
        assert time.monotonic() - began < 4
    assert caplog.text.count("work continues") == 1 and "hunter2" not in caplog.text
    back = MlflowTracker(db, "campaign", tmp_path / "spool")
    assert back.flush() == 0
    found = _runs(db)["train"]
    assert (found.data.tags["step"], found.info.status, found.data.metrics["loss"]) == ("49", "FINISHED", 49.0)
    assert found.data.tags["mlflow.parentRunId"] == _runs(db)["campaign"].info.run_id


@pytest.mark.parametrize("drips", [False, True])
def test_a_registry_that_never_answers_is_an_error_in_time(drips: bool) -> None:
    """A promotion fails with the reason, within its patience, and without the password."""
    import_mlflow()  # its seconds are not the server's
    began = time.monotonic()
    with _mute_server(drips=drips) as uri:
        registry = MlflowRegistry(uri, patience=SHORT)
        for call in (lambda: registry.alias("m", "champion"), lambda: registry.set_alias("m", "champion", "1")):
            with pytest.raises(PromotionError, match="no answer within") as found:
                call()
            assert "hunter2" not in str(found.value)
    assert time.monotonic() - began < 4


def test_a_model_that_is_not_logged_in_time_has_no_address(tmp_path: Path) -> None:
    """A promotion learns it and fails; the copy of the model waits."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model.safetensors").write_bytes(b"weights")
    with _mute_server(drips=False) as uri:
        tracker = MlflowTracker(uri, "campaign", tmp_path / "spool", patience=SHORT)
        with tracker.run("train") as run:
            began = time.monotonic()
            assert run.model(tmp_path / "model", name="m", task="text_classification", example="x", metrics={}) is None
            assert time.monotonic() - began < 2
        assert tracker.flush() == 3


def test_all_waits_of_a_command_are_counted() -> None:
    """One answer has its limit, and all together theirs."""
    clock = Clock(Patience(call=10.0, work=0.03))
    assert 0 < clock.left() <= 0.04
    with clock.waiting():
        threading.Event().wait(0.05)
    assert clock.left() == 0


def test_a_path_that_cannot_be_written_waits_for_its_mending(
    db: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A database whose folder is a file: work continues, one warning, and the next command delivers."""
    (tmp_path / "store").write_text("a file")
    uri = f"sqlite:///{tmp_path}/store/mlflow.db"
    tracker = MlflowTracker(uri, "campaign", tmp_path / "spool", patience=SHORT)
    with tracker.run("train") as run:
        run.params({"epochs": 3})
    assert tracker.flush() == 3 and caplog.text.count("work continues") == 1
    (tmp_path / "store").unlink()
    (tmp_path / "store").mkdir()
    (tmp_path / "mlflow.db").rename(tmp_path / "store" / "mlflow.db")
    assert MlflowTracker(uri, "campaign", tmp_path / "spool").flush() == 0
    assert _runs(uri)["train"].data.params == {"epochs": "3"}
    assert not (tmp_path / "spool" / "rejected.jsonl").exists()


def test_a_missing_driver_waits_and_no_warning_has_the_password(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Installing it and running the next command delivers the records."""
    uri = "mssql+nodriver://me:hunter2@db/mlflow?pwd=hunter2"
    tracker = MlflowTracker(uri, "campaign", tmp_path, patience=SHORT)
    with tracker.run("train", run_id="f" * 32) as run:
        run.params({"epochs": 3})
    assert tracker.flush() == 3
    assert "work continues" in caplog.text and "hunter2" not in caplog.text


def test_files_that_cannot_be_stored_let_other_records_pass(
    db: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A broken artifact store costs files alone, and those only until it is mended; their order stays."""
    (tmp_path / "mlartifacts").write_text("a file")
    report = tmp_path / "report.html"
    tracker = MlflowTracker(db, "campaign", tmp_path / "spool")
    with tracker.run("train") as run:
        for text in ("first", "second"):
            report.write_text(text)
            run.artifact(report)
        report.unlink()
        run.tags({"verdict": "HOLD"})
    for _ in range(5):
        assert tracker.flush() == 2
    assert (_runs(db)["train"].data.tags["verdict"], _runs(db)["train"].info.status) == ("HOLD", "FINISHED")
    assert caplog.text.count("is tried again") == 1
    (tmp_path / "mlartifacts").unlink()
    back = MlflowTracker(db, "campaign", tmp_path / "spool")
    assert back.flush() == 0
    stored = tmp_path / "mlartifacts" / _runs(db)["train"].info.run_id / "artifacts" / "report.html"
    assert stored.read_text() == "second"
    assert not (tmp_path / "spool" / "rejected.jsonl").exists()


def test_a_spool_without_room_waits_in_memory(db: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Neither the server nor the disk takes a record: all are kept in order until one of them does."""
    (tmp_path / "spool").mkdir()
    (tmp_path / "spool" / "spool.db").mkdir()
    with _mute_server(drips=False) as uri:
        tracker = MlflowTracker(uri, "campaign", tmp_path / "spool", patience=SHORT)
        with tracker.run("train") as run:
            for step in range(20):
                run.tags({"step": str(step)})
            assert caplog.text.count("wait in memory") == 1
            (tmp_path / "spool" / "spool.db").rmdir()
        assert tracker.flush() == 22
    assert MlflowTracker(db, "campaign", tmp_path / "spool").flush() == 0
    assert (_runs(db)["train"].data.tags["step"], _runs(db)["train"].info.status) == ("19", "FINISHED")


def test_a_record_that_is_refused_is_kept_with_its_file_and_without_secrets(tmp_path: Path, db: str) -> None:
    """What is set aside can be looked at: its file stays, and its reason has no password."""
    away = MlflowTracker("http://me:hunter2@127.0.0.1:9", "campaign", tmp_path / "spool", patience=SHORT)
    (tmp_path / "report.html").write_text("report")
    with away.run("train", run_id="f" * 32) as run:
        run.artifact(tmp_path / "report.html")
    assert MlflowTracker(db, "campaign", tmp_path / "spool").flush() == 0
    text = (tmp_path / "spool" / "rejected.jsonl").read_text()
    (path,) = [one["path"] for line in text.splitlines() if (one := json.loads(line))["op"] == "artifact"]
    assert Path(path).read_text() == "report" and "hunter2" not in text
