"""Write one attempt at a unit of prompts, read it back, and return its receipt."""

import uuid
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from ray_distill.artifacts import Artifact
from ray_distill.errors import ConfigError, CorruptStore, LabelError
from ray_distill.labels.model import rowids
from ray_distill.labels.model.work_units import WorkUnit, unit_id
from ray_distill.labels.store.writer import write_verified
from ray_distill.sequences import attempts
from ray_distill.sequences.generator import Generator
from ray_distill.storage import files


class WriteReceipt(Artifact):
    """A complete, verified attempt at a unit of prompts; once committed, the unit's log entry."""

    unit: str
    attempt: str
    """Unique name of the attempt's file."""
    generator: str
    """Fingerprint of the generator."""
    rows: int
    """Number of prompts with sequences."""
    rejected: int
    """Number of prompts without a sequence."""
    reasons: dict[str, int]
    """Number of rejected prompts by reason."""
    sequences: int
    tokens: int
    """Number of generated tokens in all sequences."""
    size: int
    """Size of the file in bytes."""
    digest: str
    """``sha256:…`` of the file."""
    halved: int = 0
    """0 if all batches ran as planned; else the number of prompts in the smallest part of a divided batch."""

    @property
    def name(self) -> str:
        """Name of the file, relative to the store."""
        return files.join("written", self.unit, f"{self.attempt}.parquet")


def write_attempt(url: str, generator: Generator, unit: WorkUnit, table: pa.Table, halved: int = 0) -> WriteReceipt:
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
    receipt = WriteReceipt(
        unit=unit.unit_id,
        attempt=attempt,
        generator=generator.fingerprint,
        rows=len(found) - len(reasons),
        rejected=len(reasons),
        reasons=dict(sorted(Counter(reasons).items())),
        sequences=len(answers),
        tokens=pa.compute.sum(answers["tokens"]).as_py() or 0,
        size=0,
        digest="",
        halved=halved,
    )
    file = write_verified(url, receipt.name, attempts.encode(table))
    return receipt.with_changes(size=file.size, digest=file.digest)


def entries(record: Mapping[str, Any], number: int) -> list[WriteReceipt]:
    """Parse the receipts in one record of the log.

    Raises:
        CorruptStore: the record or an entry is malformed.
    """
    if record.get("version") != 1 or not isinstance(record.get("units"), list):
        raise CorruptStore(
            f"log record {number}: expected version 1 with units, found version "
            f"{record.get('version')!r}; a later release may have written it: upgrade, or restore it"
        )
    try:
        found = [WriteReceipt.from_dict(entry) for entry in record["units"]]
    except (ConfigError, TypeError, ValueError, AttributeError) as error:
        raise CorruptStore(f"log record {number}: an entry is malformed ({error!r}); restore the record") from error
    for receipt in found:
        if not (str(receipt.unit).isalnum() and str(receipt.attempt).isalnum()):
            raise CorruptStore(f"log record {number}: unusable names {receipt.unit!r}, {receipt.attempt!r}; restore it")
    return found
