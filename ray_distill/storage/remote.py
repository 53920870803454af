"""What fsspec leaves open: which file systems create exclusively, which failures pass, what to tell the user."""

import errno
import sys
import time
from collections.abc import Callable
from typing import Any, TypeVar

import fsspec

from ray_distill.errors import AlreadyExists, StorageError

T = TypeVar("T")

#: Object stores: no folders to make, whole objects at once, and a conditional create on the server's side.
OBJECT_STORES = frozenset({"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss"})

#: Seconds waited before the second try, the third, …
BACKOFF_SECONDS = (0.2, 0.6, 1.8)

_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)
_NO_CREDENTIALS = (
    "NoCredentialsError", "PartialCredentialsError", "DefaultCredentialsError", "ClientAuthenticationError")
_FINAL = (FileNotFoundError, PermissionError, FileExistsError, IsADirectoryError, NotADirectoryError)
_EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs", "az": "azure", "abfs": "azure", "abfss": "azure"}

#: Bases of the errors that client libraries raise beside OSError, looked up only where the library is loaded.
_CLIENT_ERRORS = (
    ("botocore.exceptions", "BotoCoreError"), ("botocore.exceptions", "ClientError"), ("aiohttp", "ClientError"),
    ("gcsfs.retry", "HttpError"), ("google.auth.exceptions", "GoogleAuthError"),
    ("azure.core.exceptions", "AzureError"))


def protocol(url: str) -> str:
    """The protocol of a URL, ``file`` where it has none."""
    return url.split("://", 1)[0].split("::", 1)[0] if "://" in url or "::" in url else "file"


def resolve(url: str) -> tuple[Any, str]:
    """The fsspec file system of a URL and the path in it. Listings are never cached: other writers exist.

    Raises:
        StorageError: the protocol is unknown, or its package is not installed.
    """
    try:
        filesystem, path = fsspec.core.url_to_fs(url, use_listings_cache=False)
    except ImportError as error:
        extra = _EXTRAS.get(protocol(url))
        advice = f"pip install 'ray-distill[{extra}]'" if extra else "install the package it names"
        raise StorageError(f"{url}: no driver for {protocol(url)}:// is installed ({error}): {advice}") from error
    except failures() as error:
        raise translate(error, url, "open") from error
    except ValueError as error:
        raise StorageError(f"{url}: not a usable URL ({error}): use a local path or a URL that fsspec knows") from error
    return filesystem, path


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
            time.sleep(wait)
    raise AssertionError("the last try returns or raises")


def is_transient(error: BaseException) -> bool:
    """Whether a later try may succeed: resets, time-outs, 5xx; not missing files, rights, space or keys."""
    if isinstance(error, _FINAL) or is_taken(error) or type(error).__name__ in _NO_CREDENTIALS:
        return False
    return getattr(error, "errno", None) not in (*_NO_SPACE, errno.EROFS, errno.ENAMETOOLONG)


def is_taken(error: BaseException) -> bool:
    """Whether a conditional create was refused because the name exists."""
    response = getattr(error.__cause__, "response", None)
    code = response.get("Error", {}).get("Code") if isinstance(response, dict) else None
    return isinstance(error, FileExistsError) or code in ("PreconditionFailed", "412")


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
