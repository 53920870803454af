"""What fsspec leaves open: which file systems create exclusively, which failures pass, what to tell the user."""

import errno
import io
import random
import sys
import time
from collections.abc import Callable
from typing import Any, TypeVar

import fsspec

from ray_distill.errors import AlreadyExists, StorageError

T = TypeVar("T")

#: Object stores: no folders to make, whole objects at once, and a conditional create on the server's side.
OBJECT_STORES = frozenset({"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss"})

#: Seconds waited before the second try of an operation, the third, …: up to half as much more or less, so that many
#: workers that one outage stopped do not all come back at once.
BACKOFF_SECONDS = (0.2, 0.6, 1.8)

#: Tries of one request by S3's own client, which waits up to 1, 2, 4 s between them. An operation of many requests (a
#: listing of a thousand pages) would rarely get through if only the whole of it were tried again.
REQUEST_TRIES = 4
#: Seconds until a connection stands, and between two pieces of an answer. A store that answers nothing at all is given
#: up after 4 operations × 4 requests × these: 8 minutes. fsspec's own settings go first (``FSSPEC_S3`` and its files).
S3_CLIENT = {
    "connect_timeout": 10,
    "read_timeout": 30,
    "retries": {"mode": "standard", "total_max_attempts": REQUEST_TRIES},
}

#: Bytes fetched at once when a file is read in pieces.
READ_AHEAD = 2**20

_S3 = ("s3", "s3a")
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)
_NO_CREDENTIALS = (
    "NoCredentialsError",
    "PartialCredentialsError",
    "DefaultCredentialsError",
    "ClientAuthenticationError",
)
_FINAL = (FileNotFoundError, PermissionError, FileExistsError, IsADirectoryError, NotADirectoryError)
_EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs", "az": "azure", "abfs": "azure", "abfss": "azure"}

#: Bases of the errors that client libraries raise beside OSError, looked up only where the library is loaded.
_CLIENT_ERRORS = (
    ("botocore.exceptions", "BotoCoreError"),
    ("botocore.exceptions", "ClientError"),
    ("aiohttp", "ClientError"),
    ("botocore.parsers", "ResponseParserError"),
    ("gcsfs.retry", "HttpError"),
    ("google.auth.exceptions", "GoogleAuthError"),
    ("azure.core.exceptions", "AzureError"),
)


def protocol(url: str) -> str:
    """The protocol of a URL, ``file`` where it has none."""
    return url.split("://", 1)[0].split("::", 1)[0] if "://" in url or "::" in url else "file"


def resolve(url: str) -> tuple[Any, str]:
    """The fsspec file system of a URL and the path in it. Listings are never cached: other writers exist.

    Raises:
        StorageError: the protocol is unknown, or its package is not installed.
    """
    try:
        filesystem, path = fsspec.core.url_to_fs(url, use_listings_cache=False, **_settings(protocol(url)))
    except ImportError as error:
        extra = _EXTRAS.get(protocol(url))
        advice = f"pip install 'ray-distill[{extra}]'" if extra else "install the package it names"
        raise StorageError(f"{url}: no driver for {protocol(url)}:// is installed ({error}): {advice}") from error
    except failures() as error:
        raise translate(error, url, "open") from error
    except ValueError as error:
        raise StorageError(f"{url}: not a usable URL ({error}): use a local path or a URL that fsspec knows") from error
    if protocol(url) in _S3:
        # s3fs tries what its client has tried again, and reads twice over: in all 125 times. `attempt` is enough.
        filesystem.retries = 1
        _drop_expectation(filesystem)
    return filesystem, path


def _drop_expectation(filesystem: Any) -> None:
    """Have uploads not wait to be asked for their body.

    The client's time-outs begin when the body is sent. A server that takes the connection and says nothing is so
    waited for without end (measured: aiohttp 3.14, ``Expect: 100-continue``).
    """
    from botocore.handlers import add_expect_header  # type: ignore[import-untyped]

    filesystem.s3.meta.events.unregister("before-call.s3", add_expect_header)


def _settings(scheme: str) -> dict[str, Any]:
    """Time-outs and retries for the client of a protocol, below what fsspec was configured with."""
    if scheme not in _S3:
        return {}
    return {"config_kwargs": {**S3_CLIENT, **fsspec.config.conf.get("s3", {}).get("config_kwargs", {})}}


def creates_exclusively(url: str, filesystem: Any) -> bool:
    """Whether ``pipe_file(mode="create")`` lets exactly one of many writers win.

    fsspec's default looks first and writes then, which two writers can both pass; so a file system counts
    only if it is an object store known for conditional writes, or says so by an attribute ``exclusive_create``.
    """
    return protocol(url) in OBJECT_STORES or getattr(filesystem, "exclusive_create", False) is True


def failures() -> tuple[type[BaseException], ...]:
    """Every exception type by which a file system reports failure."""
    loaded = ((sys.modules.get(module), name) for module, name in _CLIENT_ERRORS)
    return (OSError, *(getattr(module, name) for module, name in loaded if module is not None))


def attempt(url: str, what: str, operation: Callable[[], T]) -> T:
    """Run an operation on a remote file system; transient failures are tried again a bounded number of times.

    Raises:
        StorageError: names the URL, what failed and what to do; AlreadyExists where a name was taken.
    """
    for wait in (*BACKOFF_SECONDS, None):
        try:
            return operation()
        except failures() as error:
            if wait is None or not is_transient(error):
                raise translate(error, url, what) from error
            time.sleep(wait * random.uniform(0.5, 1.5))
    raise AssertionError("the last try returns or raises")


def is_transient(error: BaseException) -> bool:
    """Whether a later try may succeed: resets, time-outs, 5xx; not missing files, rights, space or keys."""
    if _code(error) == "NoSuchUpload":  # the upload was completed, or dropped, by a request whose answer was lost
        return True
    if isinstance(error, _FINAL) or is_taken(error) or type(error).__name__ in _NO_CREDENTIALS:
        return False
    return getattr(error, "errno", None) not in (*_NO_SPACE, errno.EROFS, errno.ENAMETOOLONG)


def is_taken(error: BaseException) -> bool:
    """Whether a conditional create was refused because the name exists."""
    return isinstance(error, FileExistsError) or _code(error) in ("PreconditionFailed", "412")


def _code(error: BaseException) -> str | None:
    """The code of an S3 server's answer, if an error comes of one."""
    response = getattr(error.__cause__, "response", None)
    return response.get("Error", {}).get("Code") if isinstance(response, dict) else None


def translate(error: BaseException, url: str, what: str) -> StorageError:
    """The StorageError for a file system's failure: the URL, what was found, and what to do."""
    failed = f"{url}: cannot {what}"
    detail = str(error) or type(error).__name__
    if is_taken(error):
        return AlreadyExists(f"{failed}: the name is taken")
    if isinstance(error, FileNotFoundError):
        return StorageError(f"{failed}: it does not exist; check the path, and that its writer ended well")
    if isinstance(error, PermissionError):
        return StorageError(f"{failed}: permission denied ({detail}); check the rights and the credentials")
    if type(error).__name__ in _NO_CREDENTIALS:
        return StorageError(f"{failed}: no credentials ({detail}); provide them as {protocol(url)}:// expects")
    if getattr(error, "errno", None) in _NO_SPACE:
        return StorageError(f"{failed}: no space left; free some and run again, finished work is kept")
    return StorageError(f"{failed}: {type(error).__name__}: {detail}; run again if the cause may have passed")


def open_steadily(url: str) -> io.BufferedReader:
    """Open a remote file for reading; each piece is read by `attempt`, and none is taken for whole when it is short.

    Raises:
        StorageError: it cannot be opened; later, from the reads: a piece cannot be read.
    """
    filesystem, path = resolve(url)
    # The size is asked for when the file is opened. Without a cache a read of it is a request for just these bytes.
    opened = attempt(url, "open it", lambda: filesystem.open(path, "rb", cache_type="none"))
    return io.BufferedReader(_Steady(url, opened), READ_AHEAD)


class _Steady(io.RawIOBase):
    """A remote file whose reads are tried again from where they began."""

    def __init__(self, url: str, opened: Any):
        self._url, self._opened, self._at = url, opened, 0
        self._size = int(opened.size)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence] + offset
        return self._at

    def readinto(self, buffer: Any) -> int:
        length = min(len(buffer), max(0, self._size - self._at))
        if length:
            buffer[:length] = attempt(self._url, "read it", lambda: self._read(length))
            self._at += length
        return length

    def readall(self) -> bytes:
        """All that is left, at once: by default it is read in pieces of 8 KiB, each of them a request here."""
        left = bytearray(max(0, self._size - self._at))
        self.readinto(left)
        return bytes(left)

    def _read(self, length: int) -> bytes:
        self._opened.seek(self._at)
        data: bytes = self._opened.read(length)
        if len(data) != length:
            raise OSError(errno.EIO, f"{len(data)} of {length} bytes came from position {self._at} on")
        return data

    def close(self) -> None:
        if not self.closed:
            self._opened.close()
        super().close()
