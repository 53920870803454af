"""One attempt at a unit of prompts: write its file, read it back, return the receipt that may be committed."""

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
    """One attempt at a unit of prompts, complete and verified; committed, it is the unit's entry in the log."""

    unit: str
    attempt: str
    """Unique name of the attempt's file."""
    generator: str
    """Fingerprint of the generator."""
    rows: int
    """Prompts that were answered."""
    rejected: int
    """Prompts that got no answer."""
    reasons: dict[str, int]
    """Of these, by reason."""
    sequences: int
    tokens: int
    """Written, all sequences together."""
    size: int
    """Bytes of the file."""
    digest: str
    """``sha256:…`` of the file."""
    halved: int = 0
    """0 where the batches were those planned; else prompts of the smallest batch that a failed one was cut into."""

    @property
    def name(self) -> str:
        """Name of the file, relative to the store."""
        return files.join("written", self.unit, f"{self.attempt}.parquet")


def write_attempt(url: str, generator: Generator, unit: WorkUnit, table: pa.Table, halved: int = 0) -> WriteReceipt:
    """Store what was written for a whole unit under a fresh attempt name.

    Args:
        url: the store.
        generator: what wrote it.
        unit: the prompts.
        table: `attempts.SCHEMA`: all candidates of every prompt, or its reason; in any order.
        halved: `WriteReceipt.halved`.

    Raises:
        LabelError: prompts or candidates are missing, foreign or doubled.
        StorageError: the file could not be written, or reads back differently.
    """
    where = f"unit {unit.unit_id} ({unit.shard}, rows {unit.start}:{unit.stop})"
    found = np.unique(rowids.to_numpy(table["row_id"]))
    if unit_id(found, generator.fingerprint) != unit.unit_id:
        raise LabelError(
            f"{where}: found {len(found)} prompts, not its own {len(unit.rows)}, or another generator: "
            "write for the prompts of the unit alone"
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
    """The receipts in one record of the log.

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
