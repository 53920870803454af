"""Work units and receipts: what is to be labelled, and proof of what was."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Self

import numpy as np

from ray_distill.errors import CorruptStore
from ray_distill.fingerprint import fingerprint, fingerprint_bytes
from ray_distill.labels.model.rowids import RowIds
from ray_distill.storage import files


def unit_id(ids: RowIds, manifest_fingerprint: str) -> str:
    """Id of the unit that labels these rows for this manifest; the order of the rows does not matter."""
    rows = fingerprint_bytes(np.sort(ids).tobytes())
    return fingerprint({"rows": rows, "count": len(ids), "manifest": manifest_fingerprint})


@dataclass(frozen=True, kw_only=True)
class WorkUnit:
    """Rows of one snapshot shard that are labelled together, in one attempt, by one worker."""

    unit_id: str
    shard: str
    """Name of the snapshot shard."""
    start: int
    stop: int
    """The unit's fixed range of rows in the shard, ``start:stop``."""
    rows: tuple[int, ...]
    """Positions in the shard still to label, ascending, all within the range."""

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON values."""
        return {**asdict(self), "rows": list(self.rows)}

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> Self:
        """Rebuild from `to_dict`'s form."""
        return cls(**{**value, "rows": tuple(value["rows"])})


@dataclass(frozen=True, kw_only=True)
class FileReceipt:
    """A file that was written and read back: bytes and SHA-256."""

    size: int
    digest: str


@dataclass(frozen=True, kw_only=True)
class Receipt:
    """One attempt at a unit, complete and verified; committed, it is the unit's entry in the log."""

    unit: str
    attempt: str
    """Unique name of the attempt's files."""
    manifest: str
    """Fingerprint of the store's manifest."""
    shard: str
    start: int
    stop: int
    rows: int
    """Rows that were labelled."""
    rejected: int
    """Rows that went to quarantine."""
    reasons: Mapping[str, int] = field(default_factory=dict)
    """Rejected rows by reason."""
    labels: FileReceipt
    hidden: Mapping[int, FileReceipt] = field(default_factory=dict)
    """By layer."""
    quarantine: FileReceipt | None = None
    halved: int = 0
    """0 where the batches were those of the store's plan; else rows of the smallest batch, after a batch that the
    teacher could not answer was halved: then the last digits may be others than an undisturbed run's."""

    def files(self) -> dict[str, FileReceipt]:
        """All files of the attempt, by name relative to the store."""
        found = {labels_name(self.unit, self.attempt): self.labels}
        found |= {hidden_name(layer, self.unit, self.attempt): item for layer, item in self.hidden.items()}
        if self.quarantine is not None:
            found[quarantine_name(self.unit, self.attempt)] = self.quarantine
        return found

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON values."""
        return {**asdict(self), "hidden": {str(layer): asdict(item) for layer, item in self.hidden.items()}}

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> Self:
        """Rebuild from `to_dict`'s form.

        Raises:
            CorruptStore: a field is missing, unknown or of the wrong kind.
        """
        try:
            built = dict(value)
            built["labels"] = _file(value["labels"])
            built["hidden"] = {int(layer): _file(item) for layer, item in value["hidden"].items()}
            built["quarantine"] = None if value["quarantine"] is None else _file(value["quarantine"])
            receipt = cls(**built)
        except (TypeError, ValueError, KeyError, AttributeError) as error:
            raise CorruptStore(f"a unit's entry in the log is malformed ({error!r}): {str(value)[:120]}") from error
        _check(receipt)
        return receipt


def _file(value: Mapping[str, Any]) -> FileReceipt:
    return FileReceipt(size=int(value["size"]), digest=str(value["digest"]))


def _check(receipt: Receipt) -> None:
    """File names are built from these, so they must be plain names."""
    numbers = (receipt.start, receipt.stop, receipt.rows, receipt.rejected, receipt.halved)
    names = (receipt.unit, receipt.attempt, receipt.manifest)
    plain = all(isinstance(name, str) and name.isalnum() for name in names)
    if not plain or not all(isinstance(number, int) and number >= 0 for number in numbers):
        raise CorruptStore(f"a unit's entry in the log has unusable names or counts: {names}, {numbers}")
    if not isinstance(receipt.reasons, Mapping) or (receipt.rejected > 0) != (receipt.quarantine is not None):
        raise CorruptStore(f"unit {receipt.unit}: its entry in the log disagrees with itself about rejected rows")


def labels_name(unit: str, attempt: str) -> str:
    """Name of an attempt's labels, relative to the store."""
    return files.join("labels", unit, f"{attempt}.parquet")


def hidden_name(layer: int, unit: str, attempt: str) -> str:
    """Name of an attempt's hidden states of one layer, relative to the store."""
    return files.join("hidden", layer, unit, f"{attempt}.parquet")


def quarantine_name(unit: str, attempt: str) -> str:
    """Name of an attempt's rejected rows, relative to the store."""
    return files.join("quarantine", unit, f"{attempt}.parquet")


def entries(record: Mapping[str, Any], number: int) -> list[Receipt]:
    """The receipts in one record of the log.

    Raises:
        CorruptStore: the record or an entry is malformed.
    """
    if record.get("version") != 1 or not isinstance(record.get("units"), list):
        raise CorruptStore(
            f"log record {number}: expected version 1 with units, found version {record.get('version')!r}; a later "
            "release may have written it: upgrade, or restore the record"
        )
    return [Receipt.from_dict(entry) for entry in record["units"]]
