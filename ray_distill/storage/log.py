"""An append-only log of JSON records, one file each, that many writers share without a lock.

Record n is created exclusively: of all writers that try n one wins, the others read what it wrote and try
n+1. The log is dense, so a gap means a lost record and is never read over.
"""

import hashlib
import json
import re
from collections.abc import Callable, Sequence
from typing import Any

from ray_distill.errors import AlreadyExists, CorruptStore, StorageError
from ray_distill.fingerprint import canonical_json
from ray_distill.storage import files

Record = dict[str, Any]

_NAME = re.compile(r"(\d{12})\.json")


class CommitLog:
    """The log under ``<root>/log/``, as it was at the last `refresh`."""

    def __init__(self, root: str) -> None:
        self.root = root
        self._records: list[Record] = []
        self._digests = [_start()]

    @property
    def records(self) -> Sequence[Record]:
        """The records read so far, in order."""
        return tuple(self._records)

    @property
    def digest(self) -> str:
        """Digest of everything read so far."""
        return self._digests[-1]

    def prefix_digest(self, length: int) -> str:
        """Digest of the first ``length`` records: a SHA-256 chain over their bytes.

        Raises:
            CorruptStore: the log is shorter.
        """
        if length > len(self._records):
            raise CorruptStore(
                f"{files.join(self.root, 'log')}: found {len(self._records)} records, expected at least {length}; "
                "restore the missing records")
        return self._digests[length]

    def refresh(self) -> None:
        """Read the records that were appended since.

        Raises:
            CorruptStore: a record is missing or is not JSON.
        """
        last = max((n for n in map(_number, self._listed()) if n is not None), default=-1)
        urls = [record_url(self.root, n) for n in range(len(self._records), last + 1)]
        for url, data in zip(urls, self._read(urls), strict=True):
            self._records.append(_parse(url, data))
            self._digests.append(_chain(self._digests[-1], data))

    def append(self, build: Callable[[Sequence[Record]], Record | None]) -> Record | None:
        """Append what ``build(records)`` makes of the log as it stands; None ends without a record.

        After a lost race the log is read again and ``build`` is asked again, so that it can leave out what
        the winner has already done. Each lost race is another writer's success: it cannot go on for ever.
        """
        self.refresh()
        while (record := build(self.records)) is not None:
            url = record_url(self.root, len(self._records))
            data = canonical_json(record) + b"\n"
            try:
                files.create_exclusive(url, data)
            except AlreadyExists:
                self._refresh_past(url)
                continue
            self.refresh()
            return record
        return None

    def _refresh_past(self, url: str) -> None:
        before = len(self._records)
        self.refresh()
        if len(self._records) == before:
            raise StorageError(f"{url}: it exists but is not listed; the file system must list what it holds")

    def _listed(self) -> list[str]:
        return [item.name for item in files.list_files(files.join(self.root, "log"))]

    def _read(self, urls: Sequence[str]) -> list[bytes]:
        """Read by name: a listing taken while others write may lack a record that is there."""
        try:
            return files.read_many(urls)
        except StorageError as error:
            missing = [url for url in urls if not files.exists(url)]
            if not missing:
                raise
            raise CorruptStore(f"{missing[0]}: the log has later records but not this one; restore it") from error


def record_url(root: str, number: int) -> str:
    """URL of a record."""
    return files.join(root, "log", f"{number:012d}.json")


def _number(name: str) -> int | None:
    match = _NAME.fullmatch(name)
    return int(match.group(1)) if match else None


def _parse(url: str, data: bytes) -> Record:
    try:
        record = json.loads(data)
    except ValueError as error:
        raise CorruptStore(f"{url}: expected a JSON record, found something else ({error}); restore it") from error
    if not isinstance(record, dict):
        raise CorruptStore(f"{url}: expected a JSON object, found {type(record).__name__}; restore it")
    return record


def _start() -> str:
    return "sha256:" + hashlib.sha256(b"").hexdigest()


def _chain(digest: str, data: bytes) -> str:
    return "sha256:" + hashlib.sha256(digest.encode() + b"\n" + hashlib.sha256(data).digest()).hexdigest()
