"""Try to lose what tracking records, or to hold a command up with it (point 4).

Each try lets `promote` work on a campaign that is evaluated, while its tracking is disturbed. Most mend it afterwards,
run the command again, and compare what MLflow has with what a campaign without any trouble leaves there.
"""

import multiprocessing
import os
import shutil
import socket
import sqlite3
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import yaml

from ray_distill.tracking.client import ABANDONED
from ray_distill.tracking.delivery.drivers import Driver, OpenRun
from ray_distill.tracking.delivery.spool import Spool
from ray_distill.tracking.delivery.worker import Job, Worker
from ray_distill.tracking.mlflow_tracker import MlflowTracker
from ray_distill.tracking.operations import SetTags
from tests.labs.hostile.ground import PRELOADED, Ran, Site, run
from tests.labs.hostile.tries import DECIDED, PATIENCE, Try

PROMOTE = ("promote", "{config}")
PASSWORD = "hunter2"
REPAIR = r"run the command again to repair it"
Handler = BaseHTTPRequestHandler


def _answer(status: int, body: bytes = b"{}", **headers: str) -> Callable[[Handler], None]:
    def answer(request: Handler) -> None:
        request.send_response(status)
        for name, value in headers.items():
            request.send_header(name.replace("_", "-"), value)
        request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        request.wfile.write(body)

    return answer


def _reset(request: Handler) -> None:
    request.connection.close()


def _redirect(request: Handler) -> None:
    _answer(302, b"", Location=request.path)(request)


def _half(request: Handler) -> None:
    request.send_response(200)
    request.send_header("Content-Length", "1000")
    request.end_headers()
    request.wfile.write(b"{")
    request.wfile.flush()
    time.sleep(60)


def _endless(request: Handler) -> None:
    request.send_response(200)
    request.send_header("Transfer-Encoding", "chunked")
    request.end_headers()
    while True:
        request.wfile.write(b"1\r\n \r\n")
        request.wfile.flush()
        time.sleep(0.1)


SERVERS: dict[str, Callable[[Handler], None]] = {
    "demands an hour of patience": _answer(503, Retry_After="3600"),
    "limits the rate": _answer(429, Retry_After="3600"),
    "answers with a page to log in": _answer(200, b"<html>log in</html>"),
    "answers with nothing in it": _answer(200),
    "answers with a list": _answer(200, b"[]"),
    "closes every connection": _reset,
    "redirects for ever": _redirect,
    "refuses the password": _answer(401),
    "refuses the host": _answer(403, b"Invalid Host header"),
    "has another prefix": _answer(404, b"nginx"),
    "takes no body": _answer(413),
    "has no tables": _answer(500, b'{"error_code":"INTERNAL_ERROR","message":"no such table"}'),
    "is a gateway without a server": _answer(502, b"Bad Gateway"),
    "stops in the middle of its answer": _half,
    "never ends its answer": _endless,
}


def _serve(answer: Callable[[Handler], None]) -> str:
    """Start a server, which ends with this process; return its URI."""

    class Answers(BaseHTTPRequestHandler):
        def do(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            answer(self)

        do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = do

        def log_message(self, format: str, *args: Any) -> None:
            """Keep the output clean."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return f"http://me:{PASSWORD}@127.0.0.1:{server.server_address[1]}"


def _runs(site: Site) -> list[Any]:
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{site.output / 'mlflow.db'}")
    ids = [one.experiment_id for one in client.search_experiments() if one.experiment_id != "0"]
    return list(client.search_runs(ids))


def _complete(site: Site) -> None:
    """Assert that every record of the decision is in MLflow, that no run is open, and that nothing waits."""
    runs = _runs(site)
    assert "RUNNING" not in {one.info.status for one in runs}, [(one.info.run_name, one.info.status) for one in runs]
    decided = [one for one in runs if one.data.tags.get("stage") == "promote"]
    assert decided and {one.data.tags.get("verdict") for one in decided} == {"PROMOTE"}, [one.data.tags for one in runs]
    parents = {one.data.tags["mlflow.parentRunId"] for one in decided}
    (parent,) = [one for one in runs if one.info.run_id in parents]
    assert parent.data.tags["verdict"] == "PROMOTE" and "description" not in parent.data.tags
    assert "## PROMOTE" in parent.data.tags["mlflow.note.content"]
    spool = Spool(site.output / "spool")
    assert not len(spool), f"{len(spool)} records wait"
    assert not list(site.output.glob("spool/drivers/*")), "a journal is left"
    text = "".join(path.read_text() for path in site.output.glob("spool/rejected.jsonl"))
    assert PASSWORD not in text


def _mended(mend: Callable[[Site], None]) -> Callable[[Site, Ran], None]:
    """Mend the tracking, promote again, and compare; the first command must have been quick and quiet."""

    def check(site: Site, ran: Ran) -> None:
        warnings = [line for line in ran.stderr.splitlines() if line.startswith("MLflow at ")]
        assert len(warnings) <= 2, warnings
        assert PASSWORD not in ran.stdout + ran.stderr
        mend(site)
        again = run(["promote", str(site.config)], site.root)
        assert again.status == 0, again.stderr[-1500:]
        _complete(site)

    return check


def _local(site: Site) -> None:
    site.change(tracking__uri=None)


def _point_at(answer: Callable[[Handler], None]) -> Callable[[Site], None]:
    return lambda site: site.change(tracking__uri=_serve(answer))


def _database(site: Site) -> Path:
    return site.output / "mlflow.db"


def _aside(site: Site) -> Path:
    return site.root / "aside.db"


def _put_back(site: Site) -> None:
    path = _database(site)
    if path.is_dir():
        path.rmdir()
    path.unlink(missing_ok=True)
    shutil.copy(_aside(site), path)


def _broken_database(harm: Callable[[Path], None]) -> Callable[[Site], None]:
    def do(site: Site) -> None:
        shutil.copy(_database(site), _aside(site))
        harm(_database(site))

    return do


def _not_a_database(path: Path) -> None:
    path.write_bytes(b"no database " * 1000)


def _old_schema(path: Path) -> None:
    with sqlite3.connect(path) as database:
        database.execute("UPDATE alembic_version SET version_num = '728d730b5ebd'")


def _a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _read_only_tables(path: Path) -> None:
    """Let every insertion of a tag fail, as a full disk of the server does, while reads succeed."""
    with sqlite3.connect(path) as database:
        for table in ("tags", "metrics", "params", "experiment_tags", "runs"):
            for event in ("INSERT", "UPDATE"):
                database.execute(
                    f"CREATE TRIGGER full_{table}_{event} BEFORE {event} ON {table} "
                    "BEGIN SELECT RAISE(ABORT, 'database or disk is full'); END"
                )


def _without_artifacts(site: Site) -> None:
    (site.output / "mlartifacts").write_text("a file")


def _with_artifacts(site: Site) -> None:
    (site.output / "mlartifacts").unlink()


def _spool_is(text: str) -> Callable[[Site], None]:
    def do(site: Site) -> None:
        shutil.rmtree(site.output / "spool", ignore_errors=True)
        (site.output / "spool").write_text(text)

    return do


def _in_a_process(site: Site, work: Callable[[Site], None], *, end: bool) -> None:
    """Run ``work`` in a process that dies without any clean-up, or waits until this process ends."""
    ready, there = multiprocessing.Pipe()
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    process = context.Process(target=_work_and_die, args=(work, site, there, end), daemon=True)
    process.start()
    assert ready.recv() == "ready"
    if end:
        process.join()
    else:
        LIVING[site.root] = process, ready


def _work_and_die(work: Callable[[Site], None], site: Site, there: Connection, end: bool) -> None:
    work(site)
    there.send("ready")
    if not end:
        there.recv()
    os._exit(9)


LIVING: dict[Path, tuple[Any, Connection]] = {}


def _leave_runs(site: Site) -> None:
    tracker = MlflowTracker(f"sqlite:///{_database(site)}", _experiment(site), site.output / "spool")
    LEFT_RUNS.append(tracker.run("left", tags={"stage": "left"}))  # or its end would end the run
    LEFT_RUNS[-1].__enter__()


LEFT_RUNS: list[Any] = []


def _experiment(site: Site) -> str:
    return str(yaml.safe_load(site.config.read_text(encoding="utf-8"))["campaign"])


def _left_status(status: str) -> Callable[[Site, Ran], None]:
    def check(site: Site, ran: Ran) -> None:
        (left,) = [one for one in _runs(site) if one.data.tags.get("stage") == "left"]
        assert left.info.status == status, left.info.status
        assert (left.data.tags.get("error") == ABANDONED) is (status == "KILLED")
        if site.root in LIVING:
            process, ready = LIVING.pop(site.root)
            ready.send("end")
            process.join()

    return check


def _unknown_run(site: Site) -> None:
    Spool(site.output / "spool").append(SetTags(run="0" * 32, tags={"a": "b"}))


def _rubbish(site: Site) -> None:
    _unknown_run(site)
    with sqlite3.connect(site.output / "spool" / "spool.db") as database:
        database.execute("UPDATE waiting SET operation = 'rubbish'")


def _named_once(site: Site, ran: Ran) -> None:
    again = run(["promote", str(site.config)], site.root)
    assert again.status == 0 and "rejected" not in again.stderr, again.stderr[-500:]
    assert len((site.output / "spool" / "rejected.jsonl").read_text().splitlines()) == 1
    _complete(site)


def _first_use(site: Site) -> None:
    """Remove the database; another campaign that records there begins at the same time, and both are the first."""
    shutil.copytree(site.output, site.root / "other")
    _database(site).unlink()
    for path in site.root.glob("*/state/parent-*"):
        path.unlink()
    site.change(tracking__uri=f"sqlite:///{_database(site)}")
    other = ["promote", str(site.config), "--set", "output=other"]
    SECOND[site.root] = Worker("second").post(lambda: run(other, site.root))


SECOND: dict[Path, Job[Ran]] = {}


def _both_complete(site: Site, ran: Ran) -> None:
    second = SECOND.pop(site.root)
    assert second.finished(PATIENCE), "the other command has not ended"
    other = second.result()
    assert other.status == 0, other.stderr[-1500:]
    assert "MLflow" not in ran.stderr + other.stderr
    runs = _runs(site)
    assert {one.info.status for one in runs} == {"FINISHED"}
    decided = [one for one in runs if one.data.tags.get("stage") == "promote"]
    assert [one.data.tags["verdict"] for one in decided] == ["PROMOTE", "PROMOTE"]
    assert len({one.data.tags["mlflow.parentRunId"] for one in decided}) == 2
    for folder in (site.output, site.root / "other"):
        assert not len(Spool(folder / "spool")), "records wait"


def _half_made(site: Site) -> None:
    """Leave what a command that was killed while it created the database leaves."""
    (site.output / "mlflow.db.new-1").write_bytes(_database(site).read_bytes()[:8192])
    (site.output / "mlflow.db.lock").touch()


def _journal_of_a_dead(site: Site) -> None:
    _in_a_process(site, _open_a_foreign_run, end=True)


def _open_a_foreign_run(site: Site) -> None:
    DRIVERS.append(Driver(site.output / "spool" / "drivers"))
    DRIVERS[-1].opened(OpenRun(run="f" * 32, name="gone", start=0))


DRIVERS: list[Driver] = []


def _closed_port(site: Site) -> None:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        site.change(tracking__uri=f"http://me:{PASSWORD}@127.0.0.1:{found.getsockname()[1]}")


def _try(name: str, do: Callable[[Site], None], **more: Any) -> Try:
    return Try(**{"point": 4, "name": name, "do": do, "command": PROMOTE, "stage": "evaluate", "status": 0} | more)


def _outage(name: str, do: Callable[[Site], None], mend: Callable[[Site], None] = _local, **more: Any) -> Try:
    """Return a try in which the decision is in the chain, and the student is registered when tracking is mended."""
    return _try(name, do, **{"status": 1, "says": REPAIR, "may_change": DECIDED, "check": _mended(mend)} | more)


TRIES: tuple[Try, ...] = (
    *(_outage(f"a server that {name}", _point_at(answer)) for name, answer in SERVERS.items()),
    _outage("no server at the port", _closed_port),
    _outage("no server of that name", lambda site: site.change(tracking__uri=f"http://me:{PASSWORD}@mlflow.invalid:5")),
    _outage(
        "a database without its driver",
        lambda site: site.change(tracking__uri=f"mssql+pyodbc://me:{PASSWORD}@db/mlflow"),
    ),
    _outage("a database below a file", lambda site: site.change(tracking__uri=f"sqlite:///{site.config}/mlflow.db")),
    _outage("a file that is no database", _broken_database(_not_a_database), _put_back),
    _outage("a folder in the database's place", _broken_database(_a_folder), _put_back),
    _outage("a schema of another version", _broken_database(_old_schema), _put_back),
    _outage("a database that takes no records", _broken_database(_read_only_tables), _put_back),
    _outage("an artifact store that is a file", _without_artifacts, _with_artifacts),
    _try("a half-made database beside the whole one", _half_made, check=lambda site, ran: _complete(site)),
    _try("two commands that create the database at once", _first_use, check=_both_complete),
    _try("a spool that is a file", _spool_is("x"), check=lambda site, ran: None),
    _outage(
        "a spool that is a file, and no server",
        lambda site: (_spool_is("x")(site), _closed_port(site)),  # type: ignore[func-returns-value]
        says="are lost when this command ends|" + REPAIR,
        check=lambda site, ran: None,
    ),
    _try("a record of an unknown run in the spool", _unknown_run, says="refused a record", check=_named_once),
    _try("rubbish in the spool", _rubbish, says="damaged operation", check=_named_once),
    _try(
        "a run of a killed command",
        lambda site: _in_a_process(site, _leave_runs, end=True),
        check=_left_status("KILLED"),
    ),
    _try(
        "a run of a command at work",
        lambda site: _in_a_process(site, _leave_runs, end=False),
        check=_left_status("RUNNING"),
    ),
    _try("a journal with a run that MLflow has not", _journal_of_a_dead, check=lambda site, ran: _complete(site)),
)
