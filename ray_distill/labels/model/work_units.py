"""Work units and receipts: what is to be labelled, and proof of what was."""

from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt
from pydantic import model_validator

from ray_distill.artifacts import Document
from ray_distill.fingerprint import fingerprint, fingerprint_bytes
from ray_distill.labels.model.rowids import RowIds
from ray_distill.storage.receipts import Count, UnitReceipt


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


def unit_of(ids: RowIds, new: npt.NDArray[np.bool_], *, shard: str, start: int, manifest: str) -> WorkUnit | None:
    """Return the unit of the new rows of a fixed range; None if there are none.

    Args:
        ids: of all rows of the range.
        new: those that have no answer yet.
        shard: name of the snapshot shard.
        start: first row of the range in the shard.
        manifest: fingerprint of the store's manifest.
    """
    if not new.any():
        return None
    rows = tuple(int(row) for row in np.flatnonzero(new) + start)
    return WorkUnit(unit_id=unit_id(ids[new], manifest), shard=shard, start=start, stop=start + len(ids), rows=rows)


@dataclass(frozen=True, kw_only=True)
class Coverage:
    """How many rows of a snapshot have answers in a store, and the units that are missing."""

    units: tuple[WorkUnit, ...]
    rows_total: int
    rows_reused: int
    """Rows that have an answer already, from this snapshot or another."""
    rows_quarantined: int
    """Rows that could not be answered; they are not tried again."""

    @property
    def rows_left(self) -> int:
        """Rows in ``units``."""
        return sum(len(unit.rows) for unit in self.units)


class Receipt(UnitReceipt):
    """One complete and verified attempt to label a unit."""

    shard: str
    """Name of the snapshot shard that the rows came from."""
    start: Count
    stop: Count

    @model_validator(mode="after")
    def _agrees_about_rejected_rows(self) -> Self:
        if (self.rejected > 0) != (self.quarantine is not None):
            raise ValueError("rejected rows and the file of quarantine disagree")
        return self
