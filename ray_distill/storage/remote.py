"""Resolve fsspec URLs, retry transient failures, and translate errors of file systems.

fsspec itself does not define which file systems create exclusively or which failures are transient.
"""

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

#: Object stores: no folders to create, objects written as a whole, and a conditional create in the server.
OBJECT_STORES = frozenset({"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss"})

#: Seconds before the second, third and fourth try of an operation, each varied at random by up to half, so that the
#: many workers that one outage stopped do not all return at once.
BACKOFF_SECONDS = (0.2, 0.6, 1.8)

#: Tries of one request by S3's own client, which waits up to 1, 2, 4 s between tries. An operation of many requests (a
#: listing of a thousand pages) would rarely succeed if only the whole operation were retried.
REQUEST_TRIES = 4
#: Time limits in seconds for connecting and between two pieces of a response. With a store that never responds, an
#: operation fails after 4 operations × 4 requests × these limits: 8 minutes. fsspec's own settings (``FSSPEC_S3`` and
#: its files) take precedence.
S3_CLIENT = {
    "connect_timeout": 10,
    "read_timeout": 30,
    "retries": {"mode": "standard", "total_max_attempts": REQUEST_TRIES},
}

#: Bytes per request when a file is read in pieces.
READ_AHEAD = 2**20

_S3 = ("s3", "s3a")
NO_SPACE = (errno.ENOSPC, errno.EDQUOT)
_NO_CREDENTIALS = (
    "NoCredentialsError",
    "PartialCredentialsError",
    "DefaultCredentialsError",
    "ClientAuthenticationError",
)
_FINAL = (FileNotFoundError, PermissionError, FileExistsError, IsADirectoryError, NotADirectoryError)
_EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs", "az": "azure", "abfs": "azure", "abfss": "azure"}

#: Base classes of errors that client libraries raise in addition to OSError; resolved only if the library is loaded.
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
    """Return the protocol of a URL, ``file`` if the URL has none."""
    return url.split("://", 1)[0].split("::", 1)[0] if "://" in url or "::" in url else "file"


def resolve(url: str) -> tuple[Any, str]:
    """Return the fsspec file system of a URL and the path in it.

    Listings are never cached, because there are other writers.

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
        raise StorageError(
            f"{url}: not a usable URL ({error}): use a local path or a URL that fsspec supports"
        ) from error
    if protocol(url) in _S3:
        # s3fs retries what its client has retried already, and reads once more around that: 125 tries. `attempt` is
        # enough.
        filesystem.retries = 1
        _drop_expectation(filesystem)
    return filesystem, path


def _drop_expectation(filesystem: Any) -> None:
    """Send the body of an upload at once, without ``Expect: 100-continue``.

    The client's time limits start when the body is sent. A server that accepts the connection and never responds would
    therefore block an upload for ever (measured with aiohttp 3.14).
    """
    from botocore.handlers import add_expect_header  # type: ignore[import-untyped]

    filesystem.s3.meta.events.unregister("before-call.s3", add_expect_header)


def _settings(scheme: str) -> dict[str, Any]:
    """Return time limits and retries for a protocol's client; fsspec's configuration wins."""
    if scheme not in _S3:
        return {}
    return {"config_kwargs": {**S3_CLIENT, **fsspec.config.conf.get("s3", {}).get("config_kwargs", {})}}


def require_exclusive(url: str) -> None:
    """Refuse a remote place where two writers could overwrite each other; connect to nothing.

    fsspec's ``pipe_file(mode="create")`` first checks for the file and then writes it, so that two writers can both
    succeed. A file system therefore qualifies only if it is an object store with conditional writes, or has the
    attribute ``exclusive_create``.

    Raises:
        StorageError: it does not qualify, or its driver is unknown or not installed.
    """
    scheme = protocol(url)
    if scheme in OBJECT_STORES:  # whose drivers take a second to import
        return
    try:
        driver: Any = fsspec.get_filesystem_class(scheme)
    except (ImportError, ValueError):
        driver, _ = resolve(url)  # which names the driver that is missing
    if getattr(driver, "exclusive_create", False) is not True:
        raise StorageError(
            f"{url}: {scheme}:// cannot create a file exclusively, so two writers could overwrite each other; use a "
            f"local path or one of {', '.join(sorted(OBJECT_STORES))}"
        )


def failures() -> tuple[type[BaseException], ...]:
    """Return every exception type that a file system raises for a failure."""
    loaded = ((sys.modules.get(module), name) for module, name in _CLIENT_ERRORS)
    return (OSError, *(getattr(module, name) for module, name in loaded if module is not None))


def attempt(url: str, what: str, operation: Callable[[], T]) -> T:
    """Run an operation on a remote file system; retry transient failures a few times.

    Raises:
        StorageError: names the URL, the operation that failed and the remedy; AlreadyExists if the name is taken.
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
    """Return whether a later try may succeed.

    Resets, time-outs and 5xx are transient; missing files, permissions, space and credentials are not.
    """
    if _code(error) == "NoSuchUpload":  # a request whose response was lost has completed or dropped the upload
        return True
    if isinstance(error, _FINAL) or is_taken(error) or type(error).__name__ in _NO_CREDENTIALS:
        return False
    return getattr(error, "errno", None) not in (*NO_SPACE, errno.EROFS, errno.ENAMETOOLONG)


def is_taken(error: BaseException) -> bool:
    """Return whether a conditional create was refused because the name exists."""
    return isinstance(error, FileExistsError) or _code(error) in ("PreconditionFailed", "412")


def _code(error: BaseException) -> str | None:
    """Return the error code in an S3 server's response, or None if the error has another cause."""
    response = getattr(error.__cause__, "response", None)
    return response.get("Error", {}).get("Code") if isinstance(response, dict) else None


def translate(error: BaseException, url: str, what: str) -> StorageError:
    """Translate a file system's failure into a StorageError: URL, cause and remedy."""
    failed = f"{url}: cannot {what}"
    detail = str(error) or type(error).__name__
    if is_taken(error):
        return AlreadyExists(f"{failed}: the name is taken")
    if isinstance(error, FileNotFoundError):
        return StorageError(f"{failed}: it does not exist; check the path, and that its writer has finished")
    if isinstance(error, PermissionError):
        return StorageError(f"{failed}: permission denied ({detail}); check the permissions and the credentials")
    if type(error).__name__ in _NO_CREDENTIALS:
        return StorageError(f"{failed}: no credentials ({detail}); provide them as {protocol(url)}:// expects")
    if getattr(error, "errno", None) in NO_SPACE:
        return StorageError(f"{failed}: no space left; free some and run again, finished work is kept")
    return StorageError(f"{failed}: {type(error).__name__}: {detail}; run again if the cause may have passed")


def open_with_retries(url: str) -> io.BufferedReader:
    """Open a remote file for reading; failed and truncated reads are retried by `attempt`.

    Raises:
        StorageError: the file cannot be opened; later reads raise it if a piece cannot be read.
    """
    filesystem, path = resolve(url)
    # Opening requests the size of the file. Without a cache, a read is a request for exactly these bytes.
    opened = attempt(url, "open it", lambda: filesystem.open(path, "rb", cache_type="none"))
    return io.BufferedReader(_RetryingFile(url, opened), READ_AHEAD)


class _RetryingFile(io.RawIOBase):
    """A remote file that retries a failed read from the position where the read began."""

    def __init__(self, url: str, opened: Any):
        self._url, self._opened, self._at = url, opened, 0
        self._size = int(opened.size)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

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
        """Read the rest of the file at once; the default would send one request per 8 KiB."""
        left = bytearray(max(0, self._size - self._at))
        self.readinto(left)
        return bytes(left)

    def _read(self, length: int) -> bytes:
        self._opened.seek(self._at)
        data: bytes = self._opened.read(length)
        if len(data) != length:
            raise OSError(errno.EIO, f"received {len(data)} of {length} bytes from position {self._at}")
        return data

    def close(self) -> None:
        if not self.closed:
            self._opened.close()
        super().close()
