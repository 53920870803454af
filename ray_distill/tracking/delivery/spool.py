"""Store operations on local disk while the tracking server is unavailable.

After the first operation that has to wait, a spool folder contains::

    spool.db         SQLite: the operations that wait, and the server's id of every run that has a local one
    files/<name>/…   artifacts of waiting operations, and of those in rejected.jsonl
    replay.lock      locked by the one process that replays
    rejected.jsonl   operations that the server refused, with its reason
    drivers/         the open runs of each process at work, see `drivers`

All processes of a campaign share one queue. `append` commits an operation to the database, and the operation is deleted
after the server has accepted it. A crash therefore repeats at most the operation in flight, and operations are
idempotent (see `client`).
"""

import fcntl
import json
import logging
import os
import shutil
import sqlite3
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray_distill.tracking.delivery.failures import NeverAccepted
from ray_distill.tracking.operations import LogArtifact, LogModel, Operation, read_operation

logger = logging.getLogger(__name__)

LOCAL_PREFIX = "spooled-"
#: Seconds that a process waits for another process's commit.
BUSY_SECONDS = 30.0
_TABLES = """
CREATE TABLE IF NOT EXISTS waiting (n INTEGER PRIMARY KEY AUTOINCREMENT, operation TEXT NOT NULL, files TEXT);
CREATE TABLE IF NOT EXISTS runs (local TEXT PRIMARY KEY, real TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS attempts (n INTEGER PRIMARY KEY, attempts INTEGER NOT NULL);
"""


def new_local_id() -> str:
    """Return a local id for a run that does not exist on the server yet."""
    return LOCAL_PREFIX + uuid.uuid4().hex


@dataclass(frozen=True, kw_only=True)
class Waiting:
    """An operation in the queue."""

    number: int
    operation: Operation
    files: str | None
    """Name of the folder with copies of the operation's files."""


class Spool:
    """A FIFO queue of operations on disk, shared by all processes that open the folder.

    Every method raises OSError if the disk is full, or the folder or its database cannot be used.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._path = folder / "spool.db"
        self._connection: sqlite3.Connection | None = None
        self._lock = threading.RLock()

    @property
    def folder(self) -> Path:
        """Folder of the queue."""
        return self._folder

    def __len__(self) -> int:
        rows = self._read("SELECT count(*) FROM waiting")
        return int(rows[0][0]) if rows else 0

    def append(self, operation: Operation, files: str | None = None) -> Waiting:
        """Append an operation, and the name that `keep_files` gave its files; return its place."""
        row = (operation.model_dump_json(), files)
        with self._database() as database:
            number = database.execute("INSERT INTO waiting (operation, files) VALUES (?, ?)", row).lastrowid
        return Waiting(number=int(number or 0), operation=operation, files=files)

    def keep(self, operation: Operation) -> Waiting:
        """Append an operation, with a copy of the files that it names.

        Raises:
            NeverAccepted: its files do not exist.
        """
        if not isinstance(operation, LogArtifact | LogModel):
            return self.append(operation)
        if not Path(operation.path).exists():
            raise NeverAccepted(f"{operation.path} does not exist")
        files, path = self.keep_files(Path(operation.path), link=isinstance(operation, LogModel))
        return self.append(operation.model_copy(update={"path": str(path)}), files)

    def first(self, after: int = 0) -> Waiting | None:
        """Return the next operation behind a number; move invalid rows to `rejected.jsonl`."""
        while rows := self._read("SELECT n, operation, files FROM waiting WHERE n > ? ORDER BY n LIMIT 1", after):
            ((number, text, files),) = rows
            try:
                return Waiting(number=number, operation=read_operation(text), files=files)
            except ValueError as error:
                logger.warning("%s contains a damaged operation, which is skipped: %r", self._path, text[:80])
                self._reject({"operation": text}, str(error))
                self._delete(number, files)
        return None

    def acknowledge(self, waiting: Waiting) -> None:
        """Delete an operation and the copies of its files."""
        self._delete(waiting.number, waiting.files)

    def set_aside(self, waiting: Waiting, reason: str) -> None:
        """Move an operation that the server refused to `rejected.jsonl`; its files stay."""
        self.reject(waiting.operation, reason)
        self._delete(waiting.number, None)

    def count_attempt(self, waiting: Waiting) -> int:
        """Count an attempt to deliver an operation; return the number of attempts of all commands."""
        query = (
            "INSERT INTO attempts (n, attempts) VALUES (?, 1) ON CONFLICT (n) DO UPDATE SET attempts = attempts + 1 "
            "RETURNING attempts"
        )
        with self._database() as database:
            return int(database.execute(query, (waiting.number,)).fetchone()[0])

    @contextmanager
    def replaying(self) -> Iterator[bool]:
        """Yield whether this process may replay: False if another one does, or nothing waits."""
        if not self._path.exists():
            yield False
            return
        with (self._folder / "replay.lock").open("ab") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
                return
            yield True  # closing the file, or the end of the process, releases the lock

    def keep_files(self, path: Path, *, link: bool) -> tuple[str, Path]:
        """Copy a file or folder into the spool; return the copy's name in the spool and its path.

        Args:
            path: the file or folder.
            link: hard-link if the disk allows it. Only for files that are never changed in place.
        """
        kept = uuid.uuid4().hex
        target = self._folder / "files" / kept / path.name
        target.parent.mkdir(parents=True)
        copy = _link_or_copy if link else shutil.copy2
        try:
            if path.is_dir():
                shutil.copytree(path, target, copy_function=copy)
            else:
                copy(path, target)
        except OSError:  # a full disk: half a copy would take the room of later records
            shutil.rmtree(target.parent, ignore_errors=True)
            raise
        return kept, target

    def map_id(self, local: str, real: str) -> None:
        """Store the server's id of a run that had a local one."""
        with self._database() as database:
            database.execute("INSERT OR REPLACE INTO runs (local, real) VALUES (?, ?)", (local, real))

    def real_id(self, run_id: str) -> str | None:
        """Return the server's id of a run, or None if the run is not on the server yet."""
        if not run_id.startswith(LOCAL_PREFIX):
            return run_id
        rows = self._read("SELECT real FROM runs WHERE local = ?", run_id)
        return str(rows[0][0]) if rows else None

    def is_mapped(self, real: str) -> bool:
        """Return whether a local id is mapped to a server's run already."""
        return bool(self._read("SELECT 1 FROM runs WHERE real = ? LIMIT 1", real))

    def reject(self, operation: Operation, reason: str) -> None:
        """Append an operation that the server refused to `rejected.jsonl`, with the reason."""
        self._reject(operation.model_dump(mode="json"), reason)

    def close(self) -> None:
        """Close the database; the next call opens it again."""
        with self._lock:
            if self._connection is not None:
                self._connection.close()
                self._connection = None

    def _reject(self, record: dict[str, Any], reason: str) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        with (self._folder / "rejected.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps({"reason": reason, **record}) + "\n")

    def _delete(self, number: int, files: str | None) -> None:
        with self._database() as database:
            database.execute("DELETE FROM waiting WHERE n = ?", (number,))
            database.execute("DELETE FROM attempts WHERE n = ?", (number,))
        if files is not None:
            shutil.rmtree(self._folder / "files" / files, ignore_errors=True)
        if not len(self):
            self.close()  # the last process that closes a database removes its journal files

    def _read(self, query: str, *values: str | int) -> list[tuple[Any, ...]]:
        """Return a query's rows; none if there is no database yet."""
        if self._connection is None and not self._path.exists():
            return []
        with self._database() as database:
            return database.execute(query, values).fetchall()

    @contextmanager
    def _database(self) -> Iterator[sqlite3.Connection]:
        """Open the database if it is closed; commit at the end of the block."""
        with self._lock:
            try:
                if self._connection is None:
                    self._connection = _open(self._path)
                with self._connection:
                    yield self._connection
            except sqlite3.Error as error:
                raise OSError(f"the spool {self._path} cannot be used: {error}") from error


def _open(path: Path) -> sqlite3.Connection:
    """Open the database; rename a damaged file and open a new database instead."""
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        return _connect(path)
    except sqlite3.OperationalError:
        raise
    except sqlite3.DatabaseError as error:
        aside = path.with_name(f"damaged-{time.time_ns()}.db")
        path.rename(aside)
        logger.warning("%s is damaged (%s): renaming it to %s", path, error, aside.name)
        return _connect(path)


def _connect(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, timeout=BUSY_SECONDS, check_same_thread=False)
    with suppress(sqlite3.OperationalError):  # another process is changing the mode, which is stored in the file
        connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = NORMAL")
    connection.executescript(_TABLES)
    return connection


def _link_or_copy(source: str | Path, target: str | Path) -> str:
    """Hard-link a file, or copy it if the target is on another disk."""
    copy: Callable[[Any, Any], Any] = shutil.copy2
    try:
        os.link(source, target)
    except OSError:
        copy(source, target)
    return str(target)
