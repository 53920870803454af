"""Work units and receipts: what is to be labelled, and proof of what was."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Self

import numpy as np
from pydantic import Field, StringConstraints, model_validator

from ray_distill.artifacts import Document
from ray_distill.errors import CorruptStore, DistillError
from ray_distill.fingerprint import fingerprint, fingerprint_bytes
from ray_distill.labels.model.rowids import RowIds
from ray_distill.storage import files

#: A number of rows or bytes.
Count = Annotated[int, Field(strict=True, ge=0)]

#: File names are built from these, so they must be plain names.
Name = Annotated[str, StringConstraints(pattern=r"^[0-9A-Za-z]+$")]
PartName = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]*(\.[0-9]+)?$")]


def unit_id(ids: RowIds, manifest_fingerprint: str) -> str:
    """Return the id of the unit that labels these rows for this manifest, in any order."""
    rows = fingerprint_bytes(np.sort(ids).tobytes())
    return fingerprint({"rows": rows, "count": len(ids), "manifest": manifest_fingerprint})


class WorkUnit(Document):
    """Rows of one snapshot shard that are labelled together, in one attempt, by one worker."""

    unit_id: str
    shard: str
    """Name of the snapshot shard."""
    start: int
    """First row of the unit's fixed range in the shard."""
    stop: int
    """Row after the last of that range."""
    rows: tuple[int, ...]
    """Positions in the shard still to label, ascending, all within the range."""


class FileReceipt(Document):
    """A file that was written and read back."""

    refusal: ClassVar[type[DistillError]] = CorruptStore

    size: Count
    """Bytes."""
    digest: str
    """``sha256:…``"""


class Receipt(Document):
    """One complete and verified attempt at a unit; committed, it is the unit's entry in the log."""

    refusal: ClassVar[type[DistillError]] = CorruptStore

    unit: Name
    attempt: Name
    """Unique name of the attempt's files."""
    manifest: Name
    """Fingerprint of the store's manifest."""
    shard: str
    """Name of the snapshot shard that the rows came from."""
    start: Count
    stop: Count
    rows: Count
    """Rows that were labelled."""
    rejected: Count
    """Rows that went to quarantine."""
    reasons: dict[str, Any] = {}
    """Rejected rows by reason."""
    parts: dict[PartName, FileReceipt]
    """The file of each part of the signal, by the part's name."""
    quarantine: FileReceipt | None = None
    """The file of rejected rows; None where there are none."""
    halved: Count = 0
    """0 where the batches were those of the store's plan; else rows of the smallest batch, after a batch that the
    teacher could not answer was halved: then the last digits may be others than an undisturbed run's."""

    @model_validator(mode="after")
    def _agrees_about_rejected_rows(self) -> Self:
        if (self.rejected > 0) != (self.quarantine is not None):
            raise ValueError("rejected rows and the file of quarantine disagree")
        return self

    def files(self) -> dict[str, FileReceipt]:
        """Return all files of the attempt, by name relative to the store."""
        found = {part_file(part, self.unit, self.attempt): item for part, item in self.parts.items()}
        if self.quarantine is not None:
            found[quarantine_file(self.unit, self.attempt)] = self.quarantine
        return found


def part_file(part: str, unit: str, attempt: str) -> str:
    """Return the name of an attempt's file of one part of the signal, relative to the store."""
    return files.join(part, unit, f"{attempt}.parquet")


def quarantine_file(unit: str, attempt: str) -> str:
    """Return the name of an attempt's rejected rows, relative to the store."""
    return files.join("quarantine", unit, f"{attempt}.parquet")


def entries(record: Mapping[str, Any], number: int) -> list[Receipt]:
    """Return the receipts in one record of the log.

    Raises:
        CorruptStore: the record or an entry is malformed.
    """
    if record.get("version") != 1 or not isinstance(record.get("units"), list):
        raise CorruptStore(
            f"log record {number}: expected version 1 with units, found version {record.get('version')!r}; a later "
            "release may have written it: upgrade, or restore the record"
        )
    return [Receipt.from_dict(entry, f"log record {number}: a unit's entry") for entry in record["units"]]
