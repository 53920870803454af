"""Records that wait on local disk while the tracking server is away.

Layout of a spool folder (nothing is created before the first record has to wait)::

    <session>.jsonl   records and acknowledgements of one process, which holds a lock on the file while it lives
    ids/<local id>    the server's id of a run that was created while the server was away
    files/<n>/…       artifacts of waiting records
    rejected.jsonl    records the server refused, with its reason

A line is either ``{"n": 7, …record…}`` or ``{"ack": 7}``. A record is written before it counts and acknowledged
after the server took it, so a crash repeats at most the record in flight, and repeating a record is harmless
(see `client`). A torn last line was never promised to anybody and is cut off. A session that died leaves its
lock behind; the next session adopts its records, oldest first.
"""

import fcntl
import json
import logging
import os
import shutil
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from io import BufferedRandom
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)

Record = dict[str, Any]
LOCAL_PREFIX = "spooled-"


def new_local_id() -> str:
    """Return an id for a run the server does not know yet."""
    return LOCAL_PREFIX + uuid.uuid4().hex


@dataclass
class _Session:
    """One process's file: an append-only list of records and acknowledgements, under an exclusive lock."""

    path: Path
    handle: BufferedRandom
    waiting: dict[int, Record] = field(default_factory=dict)
    last: int = 0

    def append(self, record: Record) -> None:
        self.last += 1
        self._write({"n": self.last, **record})
        self.waiting[self.last] = record

    def acknowledge(self) -> Record:
        """Forget the oldest record; the file goes when its last record does."""
        number = next(iter(self.waiting))
        self._write({"ack": number})
        record = self.waiting.pop(number)
        if not self.waiting:
            self.path.unlink(missing_ok=True)
            self.handle.close()
        return record

    def _write(self, line: Record) -> None:
        self.handle.write(json.dumps(line).encode() + b"\n")
        self.handle.flush()


def _open_session(path: Path) -> _Session | None:
    """Open a session's file and read what still waits in it; None if a living process owns it."""
    handle = path.open("a+b")
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        handle.close()
        return None
    handle.seek(0)
    data = handle.read()
    whole = data.rfind(b"\n") + 1
    if whole < len(data):
        handle.truncate(whole)
    session = _Session(path=path, handle=handle)
    for line in data[:whole].splitlines():
        _read_line(session, line)
    return session


def _read_line(session: _Session, line: bytes) -> None:
    try:
        value = json.loads(line)
    except ValueError:
        logger.warning("%s holds a damaged line, which is left out: %r", session.path, line[:80])
        return
    if "ack" in value:
        session.waiting.pop(value["ack"], None)
        return
    session.last = value.pop("n")
    session.waiting[session.last] = value


class Spool:
    """A queue of records on disk, first in, first out; one spool folder may serve several processes."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._own: _Session | None = None
        self._sessions = self._adopt()

    @property
    def folder(self) -> Path:
        """Where the records wait."""
        return self._folder

    def __len__(self) -> int:
        return sum(len(session.waiting) for session in self._sessions)

    def append(self, record: Record) -> None:
        """Write a record behind all others.

        Raises:
            OSError: the disk is full or the folder cannot be written.
        """
        if self._own is None or self._own not in self._sessions:
            self._own = self._start()
            self._sessions.append(self._own)
        self._own.append(record)

    def first(self) -> Record | None:
        """Return the record that is next, without taking it."""
        return next(iter(self._sessions[0].waiting.values())) if self._sessions else None

    def acknowledge(self) -> None:
        """Take the next record off for good, and the files kept for it."""
        session = self._sessions[0]
        record = session.acknowledge()
        if not session.waiting:
            self._sessions.remove(session)
        if kept := record.get("kept"):
            shutil.rmtree(self._folder / "files" / kept, ignore_errors=True)

    def keep_files(self, path: Path, *, link: bool) -> tuple[str, Path]:
        """Copy a file or folder into the spool; return the name under which it is kept, and the copy's path.

        Args:
            path: what to keep.
            link: hard-link where the disk allows it. Only for files that are never changed in place.
        """
        kept = uuid.uuid4().hex
        target = self._folder / "files" / kept / path.name
        target.parent.mkdir(parents=True)
        copy = _link_or_copy if link else shutil.copy2
        if path.is_dir():
            shutil.copytree(path, target, copy_function=copy)
        else:
            copy(path, target)
        return kept, target

    def map_id(self, local: str, real: str) -> None:
        """Remember the server's id of a run that had a local one."""
        target = self._folder / "ids" / local
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_suffix(f".{os.getpid()}")
        partial.write_text(real)
        partial.replace(target)

    def real_id(self, run_id: str) -> str | None:
        """Return the server's id of a run, or None while the server does not know the run."""
        if not run_id.startswith(LOCAL_PREFIX):
            return run_id
        try:
            return (self._folder / "ids" / run_id).read_text()
        except FileNotFoundError:
            return None

    def is_mapped(self, real: str) -> bool:
        """Whether a server's run already answers to some local id."""
        folder = self._folder / "ids"
        return folder.is_dir() and any(item.read_text() == real for item in folder.iterdir())

    def reject(self, record: Record, reason: str) -> None:
        """Put a record the server refused aside, with the reason."""
        self._folder.mkdir(parents=True, exist_ok=True)
        with (self._folder / "rejected.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps({"reason": reason, **record}) + "\n")

    def _start(self) -> _Session:
        self._folder.mkdir(parents=True, exist_ok=True)
        session = _open_session(self._folder / f"{time.time_ns()}-{os.getpid()}-{uuid.uuid4().hex[:8]}.jsonl")
        if session is None:
            raise OSError(f"the spool {self._folder} gave a new file that another process has locked")
        return session

    def _adopt(self) -> list[_Session]:
        """Take over the files of sessions that died, oldest first."""
        names = sorted(self._folder.glob("[0-9]*.jsonl")) if self._folder.is_dir() else []
        sessions = [session for path in names if (session := _open_session(path)) is not None]
        for session in sessions:
            if not session.waiting:
                session.path.unlink(missing_ok=True)
                session.handle.close()
        return [session for session in sessions if session.waiting]


def _link_or_copy(source: str | Path, target: str | Path) -> str:
    """Hard-link a file, or copy it where the target is on another disk."""
    copy: Callable[[Any, Any], Any] = shutil.copy2
    try:
        os.link(source, target)
    except OSError:
        copy(source, target)
    return str(target)
