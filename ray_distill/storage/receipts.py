"""Describe attempts at work units: files that were read back, and entries in the log."""

from collections.abc import Mapping
from typing import IO, Annotated, Any, ClassVar, NoReturn, Self

from pydantic import Field, StringConstraints

from ray_distill.artifacts import Document
from ray_distill.errors import CorruptStore, DistillError, StorageError
from ray_distill.fingerprint import sha256
from ray_distill.storage import files

#: A number of rows or bytes.
Count = Annotated[int, Field(strict=True, ge=0)]

#: File names are built from these, so they must be plain names.
Name = Annotated[str, StringConstraints(pattern=r"^[0-9A-Za-z]+$")]
PartName = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]*(\.[0-9]+)?$")]


class FileReceipt(Document):
    """A file that was written and read back."""

    refusal: ClassVar[type[DistillError]] = CorruptStore

    size: Count
    """Bytes."""
    digest: str
    """``sha256:…``"""


class UnitReceipt(Document):
    """One complete and verified attempt at a unit; committed, it is the unit's entry in the log.

    A store's own receipts add fields that are numbers or text.
    """

    refusal: ClassVar[type[DistillError]] = CorruptStore

    unit: Name
    attempt: Name
    """Unique name of the attempt's files."""
    manifest: Name
    """Fingerprint of the store's manifest."""
    rows: Count
    """Rows that have an answer."""
    rejected: Count
    """Rows that have a reason instead."""
    reasons: dict[str, Any] = {}
    """Rejected rows by reason."""
    parts: dict[PartName, FileReceipt]
    """The file of each part of the answers, by the part's name."""
    quarantine: FileReceipt | None = None
    """The file of rejected rows; None where there is none."""
    halved: Count = 0
    """0 where the batches were those of the store's plan; else rows of the smallest batch, after a batch that the
    teacher could not answer was halved: then the last digits may be others than an undisturbed run's."""

    def files(self) -> dict[str, FileReceipt]:
        """Return all files of the attempt, by name relative to the store."""
        found = {part_file(part, self.unit, self.attempt): item for part, item in self.parts.items()}
        if self.quarantine is not None:
            found[quarantine_file(self.unit, self.attempt)] = self.quarantine
        return found

    @property
    def bytes_written(self) -> int:
        """Size of all files."""
        return sum(item.size for item in self.files().values())

    @classmethod
    def in_record(cls, record: Mapping[str, Any], number: int) -> list[Self]:
        """Return the receipts in one record of the log.

        Raises:
            CorruptStore: the record or an entry is malformed.
        """
        if record.get("version") != 1 or not isinstance(record.get("units"), list):
            raise CorruptStore(
                f"log record {number}: expected version 1 with units, found version {record.get('version')!r}; a later "
                "release may have written it: upgrade, or restore the record"
            )
        return [cls.from_dict(entry, f"log record {number}: a unit's entry") for entry in record["units"]]


def part_file(part: str, unit: str, attempt: str) -> str:
    """Return the name of an attempt's file of one part, relative to the store."""
    return files.join(part, unit, f"{attempt}.parquet")


def quarantine_file(unit: str, attempt: str) -> str:
    """Return the name of an attempt's rejected rows, relative to the store."""
    return files.join("quarantine", unit, f"{attempt}.parquet")


def write_verified(url: str, name: str, data: bytes) -> FileReceipt:
    """Write a file below ``url`` and read it back.

    Raises:
        StorageError: it could not be written, or reads back differently.
    """
    target, digest = files.join(url, name), sha256(data)
    files.write_bytes(target, data)
    found = sha256(files.read_bytes(target))
    if found != digest:
        raise StorageError(f"{target}: wrote {digest} but read back {found}; check the disk or the object store")
    return FileReceipt(size=len(data), digest=digest)


def open_committed(location: str) -> IO[bytes]:
    """Open a committed file for reading; its digest is not verified.

    Raises:
        CorruptStore: it is missing.
        StorageError: it cannot be opened.
    """
    try:
        return files.open_input(location)
    except StorageError as error:
        _refuse(location, error)


def _refuse(location: str, error: StorageError) -> NoReturn:
    """Raise the error for a committed file that cannot be opened."""
    if isinstance(error.__cause__, FileNotFoundError):
        raise CorruptStore(f"{location}: the log promised this file, but it is missing; restore it") from error
    raise error


def read_verified(location: str, promised: FileReceipt) -> bytes:
    """Return the bytes of a committed file, verified.

    Raises:
        CorruptStore: it is missing, or its size or digest is not what the log promised.
    """
    try:
        data = files.read_bytes(location)
    except StorageError as error:
        _refuse(location, error)
    if len(data) != promised.size or sha256(data) != promised.digest:
        raise CorruptStore(
            f"{location}: found {len(data)} bytes with {sha256(data)}, the log promised {promised.size} bytes with "
            f"{promised.digest}; restore the file"
        )
    return data
