"""Find the runs that processes which died left open.

Each process with open runs has a journal ``drivers/<id>.jsonl`` beside the spool, and a lock on it. The operating
system releases the lock when the process ends in any way: a journal that another process can lock belongs to a dead
one. No age, process number or host name decides.
"""

import fcntl
import json
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

_TRIES = 10


@dataclass(frozen=True, kw_only=True)
class OpenRun:
    """A run that a process has open."""

    run: str
    """The server's id, or the local one where the process had no other."""
    name: str
    start: int
    """`CreateRun.start`; 0 for a run that was reopened."""


class Driver:
    """The journal of this process; every method raises OSError if the folder cannot be used."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._file: IO[str] | None = None
        self._path = folder

    def opened(self, run: OpenRun) -> None:
        """Add a run; lock a new journal for the first."""
        if self._file is None:
            self._path, self._file = _locked_journal(self._folder)
        self._append({"open": run.run, "name": run.name, "start": run.start})

    def renamed(self, local: str, real: str) -> None:
        """Store the server's id of a run."""
        self._append({"is": local, "real": real})

    def closed(self, run: str) -> None:
        """Remove a run, by any of its ids."""
        self._append({"closed": run})

    def alive(self) -> None:
        """Store the time as that of the last sign of this process."""
        if self._file is not None:
            os.utime(self._path)

    def release(self) -> None:
        """Delete the journal, when no run is open; delete folders that are empty."""
        if self._file is not None:
            self._path.unlink(missing_ok=True)
            self._file.close()
            self._file = None
            for folder in (self._folder, self._folder.parent):
                with suppress(OSError):  # not empty: others are at work, or records wait
                    folder.rmdir()

    def _append(self, line: dict[str, str | int]) -> None:
        if self._file is not None:
            self._file.write(json.dumps(line) + "\n")
            self._file.flush()


@contextmanager
def abandoned(folder: Path) -> Iterator[list[tuple[OpenRun, int]]]:
    """Yield the runs that dead processes left open, and the time of the last sign of each.

    The time is in milliseconds since 1970.

    Runs that a living process has open are left out. The journals are deleted when the block ends without an error.
    """
    living = open_runs(folder)
    dead = [found for path in sorted(folder.glob("*.dead")) if (found := _lock(path)) is not None]
    try:
        yield [
            (run, path.stat().st_mtime_ns // 1_000_000)
            for path, _ in dead
            for run in _open_runs(path)
            if run.run not in living
        ]
        for path, _ in dead:
            path.unlink(missing_ok=True)
    finally:
        for _, file in dead:
            file.close()


def open_runs(folder: Path) -> set[str]:
    """Return the runs that living processes have open; rename the journals of dead ones."""
    living: set[str] = set()
    for path in folder.glob("*.jsonl"):
        with suppress(FileNotFoundError):  # its process has just ended
            found = _lock(path)
            if found is None:
                living |= {run.run for run in _open_runs(path)}
            else:
                path.rename(path.with_suffix(".dead"))
                found[1].close()
    return living


def _lock(path: Path) -> tuple[Path, IO[str]] | None:
    """Lock a journal; None if a process has locked it, or the file system has no locks."""
    try:
        file = path.open("r+", encoding="utf-8")
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        return None
    if not os.fstat(file.fileno()).st_nlink:  # another process has just deleted it
        file.close()
        return None
    return path, file


def _locked_journal(folder: Path) -> tuple[Path, IO[str]]:
    """Create a journal; it has its final name only with its lock.

    Otherwise another process could lock it first, and delete it.
    """
    path = folder / f"{uuid.uuid4().hex}.jsonl"
    for left in reversed(range(_TRIES)):
        folder.mkdir(parents=True, exist_ok=True)
        try:
            file = path.with_suffix(".new").open("x", encoding="utf-8")
            break
        except FileNotFoundError:  # another process has just removed the empty folder
            if not left:
                raise
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        path.with_suffix(".new").rename(path)
    except OSError:
        file.close()
        path.with_suffix(".new").unlink(missing_ok=True)
        raise
    return path, file


def _open_runs(path: Path) -> list[OpenRun]:
    """Read a journal; a last line that was cut is left out."""
    found: dict[str, OpenRun] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        with suppress(ValueError, KeyError, TypeError):
            entry = json.loads(line)
            if "open" in entry:
                found[entry["open"]] = OpenRun(run=entry["open"], name=entry["name"], start=entry["start"])
            elif "is" in entry and entry["is"] in found:
                was = found[entry["is"]]
                found[entry["is"]] = OpenRun(run=entry["real"], name=was.name, start=was.start)
            elif "closed" in entry:
                found = {key: run for key, run in found.items() if entry["closed"] not in (key, run.run)}
    return list(found.values())
