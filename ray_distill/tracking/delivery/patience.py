"""Limit how long a command waits for tracking in all."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ray_distill.tracking.sqlite_uri import sqlite_file

#: The part of a command's own time that tracking may cost besides `Patience.work`: a server that is slow, not silent.
SHARE = 0.05
#: The least speed at which an upload is waited for.
BYTES_PER_SECOND = 1e6


@dataclass(frozen=True, kw_only=True)
class Patience:
    """The longest waits of a command for its tracking server, in seconds.

    After them, records wait in the spool.
    """

    call: float = 10.0
    """For one answer; at a command's end, also for the next record to be accepted."""
    work: float = 20.0
    """For all answers while the command works, plus `SHARE` of its time; model uploads that progress do not count."""
    end: float = 30.0
    """For the records that wait when the command ends."""
    retry: float = 10.0
    """Between two attempts to reach a server that was not available."""


SERVER = Patience()
#: A local database answers as fast as the machine is, and its first use creates it: processor time, not silence.
DATABASE = Patience(call=120.0, work=240.0, end=120.0)


def patience_for(uri: str) -> Patience:
    """Return the patience for a tracking or registry URI."""
    return SERVER if sqlite_file(uri) is None else DATABASE


def upload_seconds(path: Path) -> float:
    """Return the time that an upload may take in addition to a call."""
    files = [path] if path.is_file() else [item for item in path.rglob("*") if item.is_file()]
    return sum(item.stat().st_size for item in files) / BYTES_PER_SECOND


class Clock:
    """The time that a command has waited for tracking."""

    def __init__(self, patience: Patience) -> None:
        self.patience = patience
        self._started = time.monotonic()
        self._waited = 0.0
        self._lock = threading.Lock()

    def left(self) -> float:
        """Return the seconds that the next answer may take."""
        allowed = self.patience.work + SHARE * (time.monotonic() - self._started)
        return max(0.0, min(self.patience.call, allowed - self._waited))

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Count the time of the block."""
        began = time.monotonic()
        try:
            yield
        finally:
            with self._lock:
                self._waited += time.monotonic() - began
