"""Writing without a model or a cluster: for tests of anything beside an author."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from ray_distill.artifacts import SnapshotRef
from ray_distill.config import SnapshotConfig, Splits
from ray_distill.fingerprint import fingerprint
from ray_distill.sequences.attempts import SCHEMA, rejected_table
from ray_distill.sequences.generator import Generator
from ray_distill.sequences.store import SequenceStore, create_or_open
from ray_distill.sequences.units import write_attempt
from ray_distill.snapshots.reader import Snapshot, open_snapshot
from ray_distill.snapshots.take import take_snapshot

#: ``(rows with row_id and text, generator) -> attempts.SCHEMA``
FakeAuthor = Callable[[pa.Table, Generator], pa.Table]
SPLITS = Splits(train=0.5, validation=0.2, calibration=0.15, test=0.15)


def fake_generator(**changes: Any) -> Generator:
    """Build a generator for `fake_author`."""
    values: dict[str, Any] = {
        "teacher": "fake",
        "model": "fake",
        "format": "text",
        "method": "sample",
        "candidates": 2,
        "temperature": 1.0,
        "top_p": 1.0,
        "top_k": None,
        "beams": 1,
        "length_penalty": 1.0,
        "new_tokens": 8,
        "seed": 0,
        "prompts_a_batch": 4,
        "threads": 1,
    }
    return Generator(**(values | changes))


def fake_author(rows: pa.Table, generator: Generator) -> pa.Table:
    """Return letters and a length from row id and candidate; none for a prompt with ``!``."""
    found: list[dict[str, Any]] = []
    rejected = []
    for row_id, text in zip(rows["row_id"].to_pylist(), rows["text"].to_pylist(), strict=True):
        if "!" in text:
            rejected.append((row_id, "the teacher is configured to fail"))
            continue
        for candidate in range(generator.candidates):
            key = fingerprint([row_id.hex(), candidate, generator.seed])
            found.append(
                {
                    "row_id": row_id,
                    "candidate": candidate,
                    "text": f" {key[:2]}",
                    "tokens": 1 + int(key[3], 16),
                    "log_probability": -1.0 - int(key[4], 16),
                    "ended": key[5] < "8",
                    "same_tokens": True,
                    "reason": None,
                }
            )
    return pa.concat_tables([pa.Table.from_pylist(found, SCHEMA), rejected_table(rejected)])


def prompts_snapshot(folder: Path, texts: Sequence[str], **columns: Sequence[Any]) -> Snapshot:
    """Write a snapshot of these texts below ``folder``, in shards of 16 rows."""
    import pyarrow.parquet as pq

    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"text": list(texts), **columns}), folder / "in.parquet")
    config = SnapshotConfig.model_validate(
        {"source": str(folder / "in.parquet"), "splits": SPLITS, "shard_rows": 16, "columns": {"slices": list(columns)}}
    )
    ref: SnapshotRef = take_snapshot(config, input_column="text", seed=0, url=str(folder / "snapshots"))
    return open_snapshot(ref)


def write_all(
    url: str,
    generator: Generator,
    snapshot: Snapshot,
    author: FakeAuthor = fake_author,
    *,
    splits: Sequence[str] = ("train", "validation"),
    unit_rows: int = 8,
    units_a_record: int = 2,
) -> SequenceStore:
    """Write what is missing, one unit after the other, in this process."""
    store, receipts = create_or_open(url, generator), []
    for unit in store.coverage(snapshot, splits, unit_rows).units:
        shard = snapshot.read_shard(snapshot.shard(unit.shard), ["row_id", "text"])
        receipts.append(write_attempt(url, generator, unit, author(shard.take(pa.array(unit.rows)), generator)))
        if len(receipts) >= units_a_record:
            store.commit(receipts)
            receipts = []
    if receipts:
        store.commit(receipts)
    return store
