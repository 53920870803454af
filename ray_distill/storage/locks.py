"""Let one command at a time work on a local folder; name the command that is at work there.

The lock is the operating system's lock on an open file, so a process that ends in whatever way releases it. The file's
content only describes the holders. Object stores have no such lock: see this room's README.
"""

import contextlib
import errno
import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from contextvars import ContextVar
from datetime import UTC, datetime
from pathlib import Path

from ray_distill.errors import InUse
from ray_distill.storage import files, local, remote

#: Error numbers of file systems without locks.
_NO_LOCKS = frozenset({errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.EBADF})
#: Tries at a lock whose holder begins or ends at that moment, and their pause in seconds.
_TRIES, _PAUSE = 10, 0.05
#: Most holders that a message names.
_NAMED = 3

#: Lock files of this context: a command that calls another one is not its rival.
_acquired: ContextVar[frozenset[Path]] = ContextVar("acquired", default=frozenset())


@contextlib.contextmanager
def at_work(folder: str, name: str, command: str, *, shared: bool = False) -> Iterator[bool]:
    """Lock a folder by its file ``name`` for the block, in which it may be locked again.

    Args:
        folder: local path or URL; a remote folder is not locked.
        name: path of the lock file below the folder. It is removed with the last holder.
        command: names the holder in the message to others.
        shared: lock it together with others that share.

    Yields:
        Whether nobody else is at work: there is a lock, and it is not shared.

    Raises:
        InUse: another process has the lock; the message names its command, process, host and start.
        StorageError: the lock file cannot be created.
    """
    if not files.is_local(folder):
        yield False
        return
    path = Path(files.absolute(files.join(folder, name)))
    if path in _acquired.get():
        yield False  # the outer block has done what only a lone holder may do
        return
    descriptor, created = _acquire(path, folder, command, shared=shared)
    token = _acquired.set(_acquired.get() | {path})
    try:
        yield descriptor is not None and not shared
    finally:
        _acquired.reset(token)
        if descriptor is not None:
            _release(descriptor, path, created)


def _acquire(path: Path, folder: str, command: str, *, shared: bool) -> tuple[int | None, list[Path]]:
    """Return the locked descriptor (None without locks), and the folders made for it."""
    created: list[Path] | None = None
    for _ in range(_TRIES):  # a shared lock is an exclusive one for a moment, when it begins and when it ends
        descriptor = None
        try:
            created = _missing_parents(path) if created is None else created
            descriptor = _open(path)
            if descriptor is not None and _lock(descriptor, shared=shared) and _is_current(descriptor, path):
                _sign(descriptor, command, shared=shared)
                kept, descriptor = descriptor, None
                return kept, created
        except BlockingIOError:
            pass
        except OSError as error:
            if error.errno in _NO_LOCKS:
                return None, []
            raise remote.translate(error, str(path), "lock the folder for this command") from error
        finally:
            if descriptor is not None:
                os.close(descriptor)
        time.sleep(_PAUSE)
    raise InUse(_refusal(path, folder))


def _open(path: Path) -> int | None:
    """Open the lock file; return None if its last holder removed its folder between two calls."""
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except FileNotFoundError:
        return None
    except PermissionError:
        if not path.exists():
            raise
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)  # another user's: enough to lock it


def _lock(descriptor: int, *, shared: bool) -> bool:
    """Lock the file alone, which empties its list of holders; then share it, if configured."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        _clear(descriptor)
        if not shared:
            return True
    except BlockingIOError:
        if not shared:
            raise
    fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    return True


def _is_current(descriptor: int, path: Path) -> bool:
    """Return whether the locked file is still at the path: its last holder removes it."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _clear(descriptor: int) -> None:
    with contextlib.suppress(OSError):  # not writable for this user: the description is not essential
        os.ftruncate(descriptor, 0)


def _sign(descriptor: int, command: str, *, shared: bool) -> None:
    """Append the description of this process; shared holders may append at the same time."""
    since = datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    holder = {"command": command, "pid": os.getpid(), "host": socket.gethostname(), "since": since}
    with contextlib.suppress(OSError):
        if not shared:
            os.ftruncate(descriptor, 0)
        fcntl.fcntl(descriptor, fcntl.F_SETFL, os.O_APPEND)
        os.write(descriptor, (json.dumps(holder) + "\n").encode())


def _release(descriptor: int, path: Path, created: list[Path]) -> None:
    """Remove the file if nobody shares it, and folders that were made for it and stayed empty."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if _is_current(descriptor, path):
            path.unlink()
            for folder in created:
                folder.rmdir()
    except OSError:
        pass  # shared, or not empty, or not this user's: the closed descriptor releases the lock
    finally:
        os.close(descriptor)


def _missing_parents(path: Path) -> list[Path]:
    """Return the folders above a path that do not exist, the innermost first."""
    return [parent for parent in path.parents if not parent.exists()]


def _refusal(path: Path, folder: str) -> str:
    """Return who is at work in a folder, and the way out."""
    named = _holders(path)
    who = " and ".join(named[-_NAMED:]) or "another command"
    return (
        f"{who} {'are' if len(named) > 1 else 'is'} at work on {folder}: wait until it ends, or use another folder "
        "(a killed command leaves no lock)"
    )


def _holders(path: Path) -> list[str]:
    """Return the holders that have signed, except those of this host that have ended."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return []
    found = []
    for line in lines:
        with contextlib.suppress(ValueError, KeyError, TypeError):
            one = json.loads(line)
            if one["host"] != socket.gethostname() or local.is_running(int(one["pid"])):
                found.append(f"`{one['command']}` (process {one['pid']} on {one['host']}, since {one['since']})")
    return found
