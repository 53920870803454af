"""Work units and receipts: what is to be labelled, and proof of what was."""

from typing import Self

import numpy as np
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
