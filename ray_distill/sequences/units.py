"""Write one attempt at a unit of prompts, read it back, and return its receipt."""

import uuid
from collections import Counter

import numpy as np
import pyarrow as pa

from ray_distill.errors import LabelError
from ray_distill.labels.model import rowids
from ray_distill.labels.model.work_units import WorkUnit, unit_id
from ray_distill.sequences import attempts
from ray_distill.sequences.generator import Generator
from ray_distill.storage.receipts import Count, UnitReceipt, part_file, write_verified

#: Name of the part with the sequences of a unit.
WRITTEN = "written"


class WriteReceipt(UnitReceipt):
    """A complete, verified attempt at a unit of prompts."""

    sequences: Count
    tokens: Count
    """Number of generated tokens in all sequences."""

    @property
    def name(self) -> str:
        """Name of the file, relative to the store."""
        return part_file(WRITTEN, self.unit, self.attempt)


def write_attempt(url: str, generator: Generator, unit: WorkUnit, table: pa.Table, *, halved: int = 0) -> WriteReceipt:
    """Store the sequences of a whole unit under a new attempt name.

    Args:
        url: the store.
        generator: the generator that wrote the sequences.
        unit: the prompts.
        table: `attempts.SCHEMA`: all candidates of every prompt, or its reason; in any order.
        halved: `WriteReceipt.halved`.

    Raises:
        LabelError: prompts or candidates are missing, duplicated, or belong to another unit.
        StorageError: the file cannot be written, or its bytes differ when read back.
    """
    where = f"unit {unit.unit_id} ({unit.shard}, rows {unit.start}:{unit.stop})"
    found = np.unique(rowids.to_numpy(table["row_id"]))
    if unit_id(found, generator.fingerprint) != unit.unit_id:
        raise LabelError(
            f"{where}: found {len(found)} prompts, expected the unit's {len(unit.rows)} and the store's generator: "
            "write for exactly the prompts of the unit"
        )
    attempts.require_candidates(table, generator.candidates, where)
    table = attempts.ordered([table])
    answers, reasons = attempts.answered(table), attempts.unanswered(table)["reason"].to_pylist()
    attempt = uuid.uuid4().hex
    file = write_verified(url, part_file(WRITTEN, unit.unit_id, attempt), attempts.encode(table))
    return WriteReceipt(
        unit=unit.unit_id,
        attempt=attempt,
        manifest=generator.fingerprint,
        rows=len(found) - len(reasons),
        rejected=len(reasons),
        reasons=dict(sorted(Counter(reasons).items())),
        parts={WRITTEN: file},
        sequences=len(answers),
        tokens=pa.compute.sum(answers["tokens"]).as_py() or 0,
        halved=halved,
    )
