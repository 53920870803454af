"""Append JSON records, one file each, to a log that many writers share without a lock.

Record n is created exclusively: one of the writers that try n succeeds, the others read its record and try
n+1. The log is dense, so a gap means a lost record; a gap is an error and is never skipped.

A checkpoint, ``log/compact/<n>-<digest of its bytes>.parquet``, replaces the first n records for readers: opening
the log reads the newest checkpoint and the records after it. The caller decides the content of a checkpoint, except
for the chain of digests, which continues from there.

Records are never deleted, although a checkpoint contains them: a writer that paused after reading n records would
find the name of record n free again and create a second history.
"""

import hashlib
import json
import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from ray_distill.errors import AlreadyExists, CorruptStore, StorageError
from ray_distill.fingerprint import canonical_json, sha256
from ray_distill.storage import files

Record = dict[str, Any]

#: ``(url, bytes) -> chain``: load a checkpoint and return the chain of digests stored in it.
Restore = Callable[[str, bytes], bytes]

#: Size in bytes of the digest of one prefix in a chain of digests.
DIGEST_BYTES = 32

#: Folder of the pins, beside that of the log.
PINS = "pins"

_PIN = re.compile(r"(\d{12})-([0-9a-f]{32})\.json")
_NAME = re.compile(r"(\d{12})\.json")
_CHECKPOINT = re.compile(r"compact/(\d{12})-([0-9a-f]{32})\.parquet")


class CommitLog:
    """The log under ``<root>/log/`` in its state at the last `refresh`.

    Args:
        root: the folder.
        restore: loads a checkpoint when the log is first read; without it every record is read.
    """

    def __init__(self, root: str, restore: Restore | None = None) -> None:
        self.root = root
        self.checkpoint = 0
        """Number of records that the newest checkpoint covers."""
        self._restore = restore
        self._records: list[Record] = []
        self._chain = bytearray(hashlib.sha256(b"").digest())

    @property
    def length(self) -> int:
        """Number of records, including those before `first`."""
        return len(self._chain) // DIGEST_BYTES - 1

    @property
    def first(self) -> int:
        """Number of the first of `records`; earlier ones are in a checkpoint or were dropped."""
        return self.length - len(self._records)

    @property
    def records(self) -> Sequence[Record]:
        """Records in memory, from number `first` on, in order."""
        return tuple(self._records)

    @property
    def digest(self) -> str:
        """Digest of all records read so far."""
        return self.prefix_digest(self.length)

    @property
    def chain(self) -> bytes:
        """Digests of all prefixes, 32 bytes each, starting with that of the empty prefix."""
        return bytes(self._chain)

    def prefix_digest(self, length: int) -> str:
        """Return the digest of the first ``length`` records: a SHA-256 chain over their bytes.

        Raises:
            CorruptStore: the log is shorter than ``length``.
        """
        if length > self.length:
            raise CorruptStore(
                f"{files.join(self.root, 'log')}: found {self.length} records, expected at least {length}; "
                "restore the missing records"
            )
        at = length * DIGEST_BYTES
        return "sha256:" + self._chain[at : at + DIGEST_BYTES].hex()

    def refresh(self) -> None:
        """Read the records that were appended since the last call.

        Raises:
            CorruptStore: a record is missing or is not JSON, or the newest checkpoint is damaged.
        """
        names = self._listed()
        self._load_checkpoint(sorted(name for name in names if _CHECKPOINT.fullmatch(name)))
        last = max((n for n in map(_number, names) if n is not None), default=-1)
        urls = [record_url(self.root, n) for n in range(self.length, last + 1)]
        for url, data in zip(urls, self._read(urls), strict=True):
            self._records.append(_parse(url, data))
            self._chain += _next(self.digest, data)

    def _load_checkpoint(self, checkpoints: Sequence[str]) -> None:
        """Note the number of the newest checkpoint; restore from it if nothing has been read yet."""
        if not checkpoints:
            return
        newest = checkpoints[-1]
        number = covered(newest)
        if self._restore is not None and not self.length:
            url = files.join(self.root, "log", newest)
            data = files.read_bytes(url)
            check_checkpoint(url, data)
            chain = self._restore(url, data)
            if len(chain) != (number + 1) * DIGEST_BYTES:
                raise damaged_checkpoint(url, f"found the digests of {len(chain) // DIGEST_BYTES - 1} records")
            self._chain = bytearray(chain)
        self.checkpoint = max(self.checkpoint, number)

    def write_checkpoint(self, data: bytes) -> str:
        """Write a checkpoint of all records up to `length` and return its URL.

        Many writers may do so at the same time.
        """
        url = files.join(self.root, "log", "compact", f"{self.length:012d}-{_short(data)}.parquet")
        with suppress(AlreadyExists):  # the name contains the digest of the content, so an existing file is equal
            files.create_exclusive(url, data)
        self.checkpoint = max(self.checkpoint, self.length)
        return url

    def checkpoints(self) -> list[str]:
        """Return the URLs of all checkpoints, oldest first."""
        return [files.join(self.root, "log", name) for name in sorted(self._listed()) if _CHECKPOINT.fullmatch(name)]

    def pin(self) -> None:
        """Record beside the log how long it is, so that a loss of records is noticed."""
        digest = self.digest
        name = f"{self.length:012d}-{digest.removeprefix('sha256:')[:32]}.json"
        with suppress(AlreadyExists):  # the name contains the digest, so an existing file is equal
            files.create_exclusive(
                files.join(self.root, PINS, name), files.json_bytes({"records": self.length, "digest": digest})
            )

    def check_pins(self) -> None:
        """Compare the log with the pins of earlier commands.

        Raises:
            CorruptStore: the log has fewer records than a pin, or other records.
        """
        pins = files.list_files(files.join(self.root, PINS))  # before the log: what is pinned meanwhile is in it, too
        self.refresh()
        for item in pins:
            found = _PIN.fullmatch(item.name)
            if found is None:
                raise CorruptStore(f"{item.url}: this is not the name of a pin; restore or delete it")
            if not self.prefix_digest(int(found[1])).startswith(f"sha256:{found[2]}"):
                raise CorruptStore(
                    f"{files.join(self.root, 'log')}: its first {int(found[1])} records are not those that an earlier "
                    f"command recorded in {item.url}; restore the records"
                )

    def drop_records(self) -> None:
        """Drop the records in memory; their digests stay, and later records are read as before."""
        self._records = []

    def append(self, build: Callable[[Sequence[Record]], Record | None]) -> Record | None:
        """Append the record that ``build(records)`` returns, or nothing if it returns None.

        ``build`` receives the records in memory (see `first`). After a lost race the log is read and ``build`` is
        called again, so that it can leave out what the winner has already recorded. Each lost race is another
        writer's success, so the number of tries is bounded by the number of writers' records.
        """
        self.refresh()
        while (record := build(self.records)) is not None:
            url = record_url(self.root, self.length)
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
        before = self.length
        self.refresh()
        if self.length == before:
            raise StorageError(f"{url}: it exists but is not listed; the file system must list all of its files")

    def _listed(self) -> list[str]:
        return [item.name for item in files.list_files(files.join(self.root, "log"))]

    def _read(self, urls: Sequence[str]) -> list[bytes]:
        """Read records by name, because a listing during writes may lack an existing record."""
        try:
            return files.read_many(urls)
        except StorageError as error:
            missing = [url for url in urls if not files.exists(url)]
            if not missing:
                raise
            raise CorruptStore(f"{missing[0]}: the log has later records but not this one; restore it") from error


def record_url(root: str, number: int) -> str:
    """Return the URL of a record."""
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


def _next(digest: str, data: bytes) -> bytes:
    return hashlib.sha256(digest.encode() + b"\n" + hashlib.sha256(data).digest()).digest()


def _short(data: bytes) -> str:
    return sha256(data).removeprefix("sha256:")[:32]


def covered(name: str) -> int:
    """Return the number of records that a checkpoint covers, from its name or URL."""
    return int(name.rsplit("/", 1)[-1][:12])


def check_checkpoint(url: str, data: bytes) -> None:
    """Compare the digest of a checkpoint's bytes with its name.

    Raises:
        CorruptStore: the digests differ.
    """
    if not url.endswith(f"-{_short(data)}.parquet"):
        raise damaged_checkpoint(url, f"found {len(data)} bytes with {sha256(data)}, expected the digest in its name")


def damaged_checkpoint(url: str, found: str) -> CorruptStore:
    """Build the error for a checkpoint that cannot be used."""
    return CorruptStore(
        f"{url}: this checkpoint of the log is damaged: {found}; delete it, the records contain the same data"
    )
