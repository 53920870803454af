"""File systems on which a process dies, or a connection breaks, at a chosen point of a run.

Two of them, so that both ways of storage are cut: ``crash://<local path>``, an fsspec file system that stands for
a remote one, and `crashing_disk`, which cuts the operating-system calls of local writes. Production code does
not see either. After its death a process does nothing more: every later operation dies as well, until the
context is left. Count the points of a run first (`points`), then run it once for each point and way.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal
from unittest import mock

import fsspec
from fsspec.implementations.local import LocalFileSystem

from ray_distill.storage import local

#: How an operation fails. ``before``, ``half`` and ``after``: the process dies before it, in the midst of it (half
#: of the bytes are written), after it. ``refused`` and ``lost``: the connection breaks once, before the operation
#: or after it took effect, and works again.
Way = Literal["before", "half", "after", "refused", "lost"]
DEATHS: tuple[Way, ...] = ("before", "half", "after")


class Crash(BaseException):
    """The process died here; not an Exception, because nobody can handle that."""


class Fuse:
    """Counts operations and lets number ``at`` (from 0) fail; with None it only counts."""

    def __init__(self, at: int | None = None, way: Way = "before") -> None:
        self.at = at
        self.way = way
        self.count = 0
        self.dead = False

    def guard(self, operation: Callable[[], Any], half: Callable[[], Any] | None = None) -> Any:
        """Run an operation that may be the one to fail; ``half`` does it half."""
        if self.dead:
            raise Crash("a dead process does nothing")
        number, self.count = self.count, self.count + 1
        return operation() if number != self.at else self._fail(operation, half)

    def _fail(self, operation: Callable[[], Any], half: Callable[[], Any] | None) -> Any:
        if self.way == "refused":
            raise ConnectionResetError("connection reset before the request")
        if self.way == "lost":
            operation()
            raise ConnectionResetError("connection reset before the answer")
        self.dead = True
        if self.way == "half" and half is not None:
            half()
        if self.way == "after":
            operation()
        raise Crash(f"died {self.way} operation {self.at}")


_fuse = Fuse()


class CrashFileSystem(LocalFileSystem):  # type: ignore[misc]
    """Simulate a remote file system in a folder: writes, conditional creates, reads, deletions.

    A plain write that is cut leaves half a file under its name, as some file systems do; a conditional create is
    atomic, as on object stores, so half of one is nothing.
    """

    protocol = "crash"
    exclusive_create = True
    cachable = False

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **kwargs: Any) -> None:
        """Write a file whole."""
        target = Path(self._strip_protocol(path))
        if mode == "create":
            _fuse.guard(lambda: local.create(target, value))
        else:
            _fuse.guard(lambda: target.write_bytes(value), lambda: target.write_bytes(value[: len(value) // 2]))

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **kwargs: Any) -> bytes:
        """Read a file."""
        data: bytes = _fuse.guard(lambda: super(CrashFileSystem, self).cat_file(path, start=start, end=end))
        return data

    def rm(self, path: str, recursive: bool = False, maxdepth: int | None = None) -> None:
        """Delete a file or folder."""
        _fuse.guard(lambda: super(CrashFileSystem, self).rm(path, recursive=recursive, maxdepth=maxdepth))


fsspec.register_implementation("crash", CrashFileSystem, clobber=True)


@contextmanager
def crashing_remote(at: int | None = None, way: Way = "before") -> Iterator[Fuse]:
    """Let operation ``at`` on ``crash://`` fail; with None only count them."""
    global _fuse
    before, _fuse = _fuse, Fuse(at, way)
    try:
        yield _fuse
    finally:
        _fuse = before


class _CrashingOs:
    """Replace calls of the os module that write local files; the process may die at each."""

    CALLS = frozenset({"open", "write", "fsync", "link", "replace", "unlink", "makedirs"})

    def __init__(self, fuse: Fuse) -> None:
        self._fuse = fuse

    def __getattr__(self, name: str) -> Any:
        call = getattr(os, name)
        return (lambda *args, **kwargs: self._call(name, call, *args, **kwargs)) if name in self.CALLS else call

    def _call(self, name: str, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        half = (lambda: os.write(args[0], args[1][: len(args[1]) // 2])) if name == "write" else None
        return self._fuse.guard(lambda: call(*args, **kwargs), half)


@contextmanager
def crashing_disk(at: int | None = None, way: Way = "before") -> Iterator[Fuse]:
    """Let call ``at`` of those that write local files fail; with None only count them."""
    fuse = Fuse(at, way)
    with mock.patch.object(local, "os", _CrashingOs(fuse)):
        yield fuse


def points(crashing: Callable[[], Any], run: Callable[[], object]) -> int:
    """Return how many operations a run has, in a context such as `crashing_remote`."""
    with crashing() as fuse:
        run()
    count: int = fuse.count
    return count


def cut_points(count: int, ways: Sequence[Way] = DEATHS) -> list[tuple[int, Way]]:
    """List every point of a run in every way."""
    return [(at, way) for at in range(count) for way in ways]
