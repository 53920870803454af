"""Durable and exclusive writes on a local disk.

Both kinds write a hidden temporary file beside the target and flush it to the disk before it gets its name,
so that a reader never meets a half-written file, whatever moment the process or the machine dies at.
"""
# Descriptors, links and folder syncs have no pathlib form, and one module of calls is clearer than two:
# ruff: noqa: PTH103, PTH105, PTH108, PTH121

import contextlib
import errno
import os
import re
import uuid
from pathlib import Path

#: Errors by which a file system says that it has no hard links.
NO_LINKS = frozenset({errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS})

_UNFINISHED = re.compile(r"\..+\.[0-9a-f]{32}\.part")


def is_unfinished(name: str) -> bool:
    """Whether a file name is that of a write that never ended."""
    return _UNFINISHED.fullmatch(name) is not None


def write(path: Path, data: bytes) -> None:
    """Write a whole file so that the name holds the old bytes or the new ones, never a mixture.

    Raises:
        OSError: as the operating system says.
    """
    temporary = _write_temporary(path, data)
    try:
        os.replace(temporary, path)
    except OSError:
        os.unlink(temporary)
        raise
    _sync_folder(path.parent)


def create(path: Path, data: bytes) -> None:
    """Create a file that must not exist: a link, unlike ``O_EXCL``, gives the name and all bytes at once.

    Where the file system has no links, ``O_EXCL`` is exclusive still, but a crash may leave a short file.

    Raises:
        FileExistsError: the name is taken.
        OSError: as the operating system says.
    """
    temporary = _write_temporary(path, data)
    try:
        _link(temporary, path, data)
    finally:
        os.unlink(temporary)
    _sync_folder(path.parent)


def _link(temporary: Path, path: Path, data: bytes) -> None:
    try:
        os.link(temporary, path)
    except FileExistsError:
        # A network file system may have linked, lost its answer and asked again: then the name is ours.
        if not os.path.samefile(temporary, path):
            raise
    except OSError as error:
        if error.errno not in NO_LINKS:
            raise
        _write_new(path, data)


def _write_temporary(path: Path, data: bytes) -> Path:
    os.makedirs(path.parent, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")
    try:
        _write_new(temporary, data)
    except OSError:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise
    return temporary


def _write_new(path: Path, data: bytes) -> None:
    descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
    try:
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(descriptor, rest) :]
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync_folder(path: Path) -> None:
    """Flush a folder's entries; without it a new name may be lost with the power."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some file systems cannot sync a folder
            raise
    finally:
        os.close(descriptor)
