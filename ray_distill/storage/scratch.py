"""Make temporary folders that the next command removes if their process is killed.

The process has the operating system's lock on its folder: an unlocked folder belongs to a process that has ended.
"""

import fcntl
import os
import re
import shutil
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from ray_distill.errors import StorageError
from ray_distill.storage.remote import NO_SPACE

#: Begin of the names of these folders, which nobody gives to a folder of their own.
PREFIX = "ray-distill-scratch-"
#: Seconds after which an unlocked folder is a remnant: a younger one may be about to be locked.
SETTLED_SECONDS = 60.0

_NAME = re.compile(re.escape(PREFIX) + r"[a-z0-9]+-\w{8}")


class Scratch:
    """A temporary folder of this process; as a context manager, removed on exit."""

    def __init__(self, purpose: str) -> None:
        """Make the folder.

        Args:
            purpose: a word of its name, lower case.

        Raises:
            StorageError: there is no folder for temporary files, or it cannot be written.
        """
        try:
            # Cleanup also runs when the object or the interpreter ends.
            self._folder = tempfile.TemporaryDirectory(prefix=f"{PREFIX}{purpose}-", ignore_cleanup_errors=True)
        except OSError as error:
            raise _unusable(error) from error
        self.path = Path(self._folder.name)
        self._lock = _lock(self.path)

    def remove(self) -> None:
        """Remove the folder and its content; what cannot be removed is left to a later process."""
        self._folder.cleanup()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.remove()
        if isinstance(error, OSError) and error.errno in NO_SPACE:
            raise StorageError(
                f"no space left, probably for the temporary files in {self.path.parent}: free some, or set TMPDIR to "
                "a folder with more; finished work is kept"
            ) from error


def remove_remnants() -> int:
    """Remove the temporary folders of this user's ended processes; return their number."""
    try:
        found = [path for path in Path(tempfile.gettempdir()).glob(f"{PREFIX}*") if _NAME.fullmatch(path.name)]
    except OSError:
        return 0
    return sum(_remove_if_left(path) for path in found)


def _remove_if_left(path: Path) -> bool:
    try:
        about = path.lstat()
        if about.st_uid != os.getuid() or time.time() - about.st_mtime < SETTLED_SECONDS or path.is_symlink():
            return False
        path.chmod(0o700)  # else its lock could not be tried
    except OSError:
        return False
    lock = _lock(path)
    if lock is None:
        return False
    try:
        _open_folders(path)
        shutil.rmtree(path, ignore_errors=True)
        return not path.exists()
    finally:
        os.close(lock)


def _open_folders(path: Path) -> None:
    """Make the folders of a tree writable, without which they cannot be emptied."""
    for folder, names, _ in os.walk(path):
        for name in names:
            inner = Path(folder, name)
            if not inner.is_symlink():
                with suppress(OSError):
                    inner.chmod(0o700)


def _lock(path: Path) -> int | None:
    """Return a descriptor with the folder's lock; None if it cannot be locked."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECTORY)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


def _unusable(error: OSError) -> StorageError:
    if error.errno in NO_SPACE:
        where = f"no space left in {error.filename or 'the folder for temporary files'}"
    else:
        where = f"temporary files cannot be written: {error.strerror or error}"
    return StorageError(f"{where}; set TMPDIR to a folder that exists, has space and can be written")
