"""Connect to MLflow without output, with short timeouts.

A SQLite database is created under a lock.
"""

import fcntl
import logging
import os
import sqlite3
import threading
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

from ray_distill.tracking.sqlite_uri import sqlite_file, sqlite_uri

#: With its default settings, MLflow reports an unavailable server only after about four minutes, waits as long as a
#: server demands in ``Retry-After``, and prints every run.
_SETTINGS = {
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_HTTP_RESPECT_RETRY_AFTER_HEADER": "false",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
}
_TIMEOUT = "MLFLOW_HTTP_REQUEST_TIMEOUT"
_UPLOAD_SECONDS = "120"
# Retries, and errors of a database with their traceback; the tracker reports an outage once, in one line.
_QUIET = ("urllib3.connectionpool", "mlflow.store.db.utils")
_lock = threading.Lock()
_active: list[int] = []
_added: dict[str, str] = {}
_levels: dict[str, int] = {}


def import_mlflow() -> Any:
    """Import mlflow without telemetry and start-up messages; the first call takes seconds."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    import mlflow

    for name in ("mlflow", "alembic"):
        if logging.getLogger(name).getEffectiveLevel() < logging.WARNING:
            logging.getLogger(name).setLevel(logging.WARNING)
    return mlflow


@contextmanager
def mlflow_settings() -> Iterator[None]:
    """Let MLflow's calls fail soon and without output, until the last such block ends.

    Variables that the user has set in the environment take precedence. The blocks are few and long, because another
    thread may copy the environment: a variable that disappears meanwhile would be its error.
    """
    with _lock:
        _active.append(1)
        if len(_active) == 1:
            _added.update({name: value for name, value in _SETTINGS.items() if name not in os.environ})
            os.environ.update(_added)
            for name in _QUIET:
                _levels[name] = logging.getLogger(name).level
                logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        with _lock:
            _active.pop()
            if not _active:
                for name, level in _levels.items():
                    logging.getLogger(name).setLevel(level)
                for name in _added:
                    os.environ.pop(name, None)
                _added.clear()


@contextmanager
def upload_timeout() -> Iterator[None]:
    """Let the requests of an upload take MLflow's own timeout, two minutes."""
    _set_timeout(_UPLOAD_SECONDS)
    try:
        yield
    finally:
        _set_timeout(_SETTINGS[_TIMEOUT])


def _set_timeout(seconds: str) -> None:
    with _lock:
        if _TIMEOUT in _added:
            os.environ[_TIMEOUT] = seconds


def new_client(uri: str, registry_uri: str | None = None) -> Any:
    """Return an ``MlflowClient`` for a tracking URI; create a missing SQLite database.

    Two processes that create or migrate one database at once would break it for one of them: one waits for the other.
    """
    registry = registry_uri or uri
    with ExitStack() as stack:
        for path in sorted({path for path in (sqlite_file(uri), sqlite_file(registry)) if path is not None}):
            path.parent.mkdir(parents=True, exist_ok=True)
            stack.enter_context(_locked(path))
            _create(path)
            _check(path)
        client = import_mlflow().MlflowClient(tracking_uri=uri, registry_uri=registry)
        if sqlite_file(registry) is not None:
            client.search_registered_models(max_results=1)  # the registry's store opens its tables with the first call
        return client


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Lock a database's creation between processes.

    The operating system releases the lock of a dead process.
    """
    try:
        lock = path.with_name(f"{path.name}.lock").open("ab")
    except PermissionError:
        if not path.exists():
            raise
        yield  # a folder where only the database may be written: nobody creates it
        return
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _check(path: Path) -> None:
    """Open a database once.

    MLflow tries for minutes to open a folder, or a file that may not be read.
    """
    with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=rw", timeout=30, uri=True)) as database:
        database.execute("PRAGMA schema_version").fetchone()


def _create(path: Path) -> None:
    """Create a database beside its place, so that a killed process leaves no half of one.

    A database that another program of MLflow creates meanwhile is kept.
    """
    if path.exists():
        return
    import_mlflow()
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    for left in path.parent.glob(f"{path.name}.new-*"):  # of a process that was killed: this one has the lock
        left.unlink(missing_ok=True)
    scratch = path.with_name(f"{path.name}.new-{uuid.uuid4().hex}")
    SqlAlchemyStore(sqlite_uri(scratch), "./mlruns").engine.dispose()
    try:
        path.hardlink_to(scratch)
    except FileExistsError:
        scratch.unlink()
    except OSError:  # a file system without hard links
        scratch.rename(path)
    else:
        scratch.unlink()
