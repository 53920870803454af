"""Write files durably and create files exclusively on a local disk.

Both functions write a hidden temporary file beside the target and flush it to disk before it gets its final name.
A reader therefore never sees a partial file, at whatever moment the process or the machine fails.
"""
# Descriptors, links and folder syncs have no pathlib form, and one module for these calls is clearer than two:
# ruff: noqa: PTH103, PTH105, PTH108, PTH121

import contextlib
import errno
import os
import re
import uuid
from pathlib import Path

#: Error numbers of file systems without hard links.
NO_LINKS = frozenset({errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS})

_UNFINISHED = re.compile(r"\..+\.[0-9a-f]{32}\.part")


def is_unfinished(name: str) -> bool:
    """Return whether a file name belongs to an interrupted write."""
    return _UNFINISHED.fullmatch(name) is not None


def is_running(pid: int) -> bool:
    """Return whether a process of this machine has not ended."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass  # another user's
    return True


def size_if_there(path: Path) -> int | None:
    """Return the size of a listed file, or None if another process has removed it since."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return None


def is_loop(folder: Path) -> bool:
    """Return whether a folder is a link to one above it, in which a walk would never end."""
    return folder.is_symlink() and folder.parent.resolve().is_relative_to(folder.resolve())


def write(path: Path, data: bytes) -> None:
    """Write a whole file atomically: readers see the old bytes or the new ones, never a mixture.

    Raises:
        OSError: the operating system refuses an operation.
    """
    temporary = _write_temporary(path, data)
    try:
        os.replace(temporary, path)
    except OSError:
        os.unlink(temporary)
        raise
    _sync_folder(path.parent)


def create(path: Path, data: bytes) -> None:
    """Create a file that must not exist yet, as a hard link to a complete temporary file.

    A link makes the name and all bytes visible at once, which ``O_EXCL`` does not. On file systems without links,
    ``O_EXCL`` is used: the creation is still exclusive, but a crash may leave a short file.

    Raises:
        FileExistsError: the name is taken.
        OSError: the operating system refuses an operation.
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
        # A network file system may have created the link, lost the response and repeated the request: then the
        # existing name is this process's own link.
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
    """Flush a folder's entries to disk; without this a power failure may lose a new name."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some file systems cannot sync a folder
            raise
    finally:
        os.close(descriptor)
