"""Store the texts of one generator: a unit store whose files are `attempts`.

Readers trust the log only. One store serves all snapshots: a prompt is identified by its row id, so it is written once,
even if several snapshots contain it.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ray_distill.errors import CorruptStore, LabelError
from ray_distill.labels.model import rowids
from ray_distill.labels.model.rowids import RowIds
from ray_distill.labels.model.work_units import Coverage, unit_of
from ray_distill.sequences import attempts
from ray_distill.sequences.generator import Generator
from ray_distill.sequences.units import WRITTEN, WriteReceipt
from ray_distill.snapshots.reader import Snapshot
from ray_distill.storage import files
from ray_distill.storage.receipts import open_committed, read_verified
from ray_distill.storage.unit_store import UnitStore, create_manifest, read_manifest


class SequenceStore(UnitStore[Generator, WriteReceipt]):
    """An open store of one generator's texts."""

    def __init__(self, url: str, generator: Generator) -> None:
        super().__init__(url, generator, WriteReceipt)

    def coverage(self, snapshot: Snapshot, splits: Sequence[str], unit_rows: int) -> Coverage:
        """Compare the prompts of a snapshot with all committed prompts, row by row."""
        self.log.refresh()
        committed, rejected = self._committed()
        mark, units, prompts, reused, bad = self.manifest.fingerprint, [], 0, 0, 0
        for shard, start, ids in _ranges(snapshot, splits, unit_rows):
            known, refused = rowids.is_in(ids, committed), rowids.is_in(ids, rejected)
            units.append(unit_of(ids, ~known, shard=shard, start=start, manifest=mark))
            prompts, reused, bad = prompts + len(ids), reused + int((known & ~refused).sum()), bad + int(refused.sum())
        missing = tuple(unit for unit in units if unit is not None)
        return Coverage(units=missing, rows_total=prompts, rows_reused=reused, rows_quarantined=bad)

    def _committed(self) -> tuple[RowIds, RowIds]:
        """Return the sorted ids of all committed prompts, and of those without a sequence."""
        committed, rejected = [rowids.empty()], [rowids.empty()]
        for receipt in self.ledger.receipts():
            url = files.join(self.url, receipt.name)
            with open_committed(url) as source:
                table = attempts.read_ids(source, url)
            committed.append(rowids.to_numpy(table["row_id"]))
            rejected.append(rowids.to_numpy(attempts.unanswered(table)["row_id"]))
        return np.unique(np.concatenate(committed)), np.unique(np.concatenate(rejected))

    def read(self, ids: RowIds) -> pa.Table:
        """Read the sequences of these prompts (`attempts.SCHEMA`), sorted by prompt and candidate.

        The digest of every file is verified.

        Raises:
            LabelError: some of the prompts are not written yet.
            CorruptStore: a file's bytes differ from the committed ones.
        """
        self.log.refresh()
        requested, parts = np.sort(ids), []
        left = np.ones(len(requested), bool)
        for table in self._tables():
            # Two writers that divide prompts into different units may both write one: the first committed one counts.
            at = rowids.find(rowids.to_numpy(table["row_id"]), requested)
            fresh = (at >= 0) & left[at]
            parts.append(table.filter(pa.array(fresh)))
            left[at[fresh]] = False
        if left.any():
            raise LabelError(
                f"{self.url}: {int(left.sum())} of {len(requested)} prompts are not written yet; "
                "run `ray-distill write`"
            )
        return attempts.ordered(parts)

    def _tables(self) -> Iterator[pa.Table]:
        for receipt in self.ledger.receipts():
            url = files.join(self.url, receipt.name)
            yield attempts.decode(read_verified(url, receipt.parts[WRITTEN]), url)


def create_or_open(url: str, generator: Generator) -> SequenceStore:
    """Create a store, or open the existing one of the same generator; many may do so at once.

    Raises:
        CorruptStore: the existing store has another generator, or its description is damaged.
    """
    create_manifest(url, generator)
    found = read_manifest(url, Generator).fingerprint
    if found != generator.fingerprint:
        raise CorruptStore(
            f"{url}: found the generator {found}, expected {generator.fingerprint}; restore store.json, or move the "
            "folder away"
        )
    return SequenceStore(url, generator)


def prompt_ids(snapshot: Snapshot, splits: Sequence[str]) -> RowIds:
    """Return the row ids of all prompts."""
    return np.concatenate([rowids.empty(), *(ids for _, _, ids in _ranges(snapshot, splits, 1 << 20))])


def _ranges(snapshot: Snapshot, splits: Sequence[str], unit_rows: int) -> Iterator[tuple[str, int, RowIds]]:
    """Yield shard, first row and ids of the fixed ranges of prompts, in order."""
    for shard in snapshot.shards:
        if shard.split in splits:
            ids = rowids.to_numpy(snapshot.read_shard(shard, columns=["row_id"])["row_id"])
            for start in range(0, len(ids), unit_rows):
                yield shard.name, start, ids[start : start + unit_rows]


def count_reasons(table: pa.Table) -> dict[str, int]:
    """Count the prompts without a sequence by reason."""
    counted = pc.value_counts(attempts.unanswered(table)["reason"])
    return {item["values"].as_py(): item["counts"].as_py() for item in counted}
