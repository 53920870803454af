"""Freeze input into a snapshot: shards first, the manifest last.

    <url>/<fingerprint>/data/<split>-<nnnnn>.parquet
    <url>/<fingerprint>/quarantine.parquet
    <url>/<fingerprint>/snapshot.json

All rows stay in Arrow memory while a snapshot is taken: until reading streams, the memory of one machine
(about three times the size of the input) bounds a snapshot.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from ray_distill.artifacts import SnapshotRef
from ray_distill.config import SnapshotConfig
from ray_distill.errors import SnapshotError
from ray_distill.fingerprint import sha256
from ray_distill.snapshots.freeze import Frozen, freeze
from ray_distill.snapshots.label_reading.reading import ClassNames
from ray_distill.snapshots.label_reading.truth import count_classes
from ray_distill.snapshots.manifest import (
    MANIFEST_NAME,
    QUARANTINE_NAME,
    Shard,
    SnapshotManifest,
    SplitCounts,
    Truth,
    manifest_json,
)
from ray_distill.snapshots.reader import open_snapshot
from ray_distill.snapshots.rows import Why
from ray_distill.snapshots.shard_files import content_of, to_parquet, type_name
from ray_distill.snapshots.sources.columns import Companions, InputColumn
from ray_distill.snapshots.splits import SPLITS
from ray_distill.storage.files import absolute, join, write_bytes
from ray_distill.storage.sealed import write_sealed


@dataclass(frozen=True, kw_only=True)
class _PlannedShard:
    """A shard whose file is not written yet, and the positions of its rows."""

    shard: Shard
    rows: npt.NDArray[np.int64]


def take_snapshot(
    config: SnapshotConfig,
    *,
    input_column: str,
    seed: int,
    url: str,
    binary: bool = False,
    verify: Callable[[pa.ChunkedArray], Why] | None = None,
    nested: bool = False,
    companions: Companions | None = None,
    truth: Truth = "class",
    known: ClassNames | None = None,
    empty_splits: bool = False,
) -> SnapshotRef:
    """Freeze the configured sources below ``url``; an existing snapshot is kept.

    Args:
        config: sources, columns, splits and policies.
        input_column: column of the inputs, such as ``text`` or ``image``.
        seed: decides the splits by id and by group.
        url: folder of snapshots; this one gets a folder named by its fingerprint.
        binary: inputs are encoded files such as images, not texts.
        verify: returns a reason for each input that is not usable, as `tasks.inputs.modality.Inputs.verify`.
        nested: lists and objects in the input column are conversations, kept as canonical JSON; else an error.
        companions: columns that belong to the inputs, such as the tools of a conversation; None: there are none.
        truth: how labels are read: one class a row, a set of classes, or not at all.
        known: class names where ``config.classes`` has none, such as the teacher's; None: the labels name the classes.
        empty_splits: accept splits without rows, because no model is trained or judged on the snapshot.

    Returns:
        A reference to the snapshot, local paths made absolute.

    Raises:
        SnapshotError: the sources cannot be frozen; nothing has been written.
        StorageError: a source cannot be read, or the snapshot not be written.
    """
    column = InputColumn(
        name=input_column,
        binary=binary,
        verify=verify,
        nested=nested,
        companions=companions or Companions(),
        largest=config.max_cell_bytes,
        expansion=config.max_expansion,
    )
    frozen = freeze(config, column, truth=truth, seed=seed, known=known, empty_splits=empty_splits)
    manifest = SnapshotManifest(
        input_column=input_column,
        columns={},
        truth=truth,
        classes=frozen.classes,
        seed=seed,
        split_by=config.splits.by,
        split_shares={name: getattr(config.splits, name) for name in SPLITS},
        rows=frozen.counts,
        quarantined={},
        conflict_policy=config.conflicts,
        conflicts=0,
        groups_crossing=0,
        splits={},
        shards=(),
    )
    return write_frozen(frozen, manifest, shard_rows=config.shard_rows, url=url)


def write_frozen(frozen: Frozen, about: SnapshotManifest, *, shard_rows: int, url: str) -> SnapshotRef:
    """Write the content of a snapshot below ``url``; one that is already there is left as it is.

    Args:
        frozen: the rows, in the order of their ids; each split has some.
        about: the manifest's fields on the origin of the rows; the fields on the rows are filled in.
        shard_rows: rows a shard.
        url: as in `take_snapshot`, as are returns and errors.
    """
    planned = list(_plan(frozen, shard_rows))
    manifest = _describe(frozen, about, [item.shard for item in planned])
    input_column = manifest.input_column
    ref = SnapshotRef(url=join(absolute(url), manifest.fingerprint), fingerprint=manifest.fingerprint)
    if not is_there(ref):
        shards = tuple(_write(ref.url, item, frozen, input_column) for item in planned)
        rejected = to_parquet(frozen.quarantine, [])
        write_bytes(join(ref.url, QUARANTINE_NAME), rejected)
        whole = manifest.with_changes(shards=shards, quarantine=sha256(rejected))
        write_sealed(join(ref.url, MANIFEST_NAME), manifest_json(whole))
    return ref


def is_there(ref: SnapshotRef) -> bool:
    """Return whether the snapshot is complete; without a valid manifest it is written again."""
    try:
        open_snapshot(ref)
    except SnapshotError:
        return False
    return True


def _plan(frozen: Frozen, shard_rows: int) -> Iterator[_PlannedShard]:
    for index, split in enumerate(SPLITS):
        rows = np.flatnonzero(frozen.split == index)
        for number, start in enumerate(range(0, len(rows), shard_rows)):
            part = rows[start : start + shard_rows]
            shard = Shard(
                name=f"data/{split}-{number:05d}.parquet",
                split=split,
                rows=len(part),
                content=content_of(frozen.table.take(pa.array(part))),
                bytes=0,
                digest="",
            )
            yield _PlannedShard(shard=shard, rows=part)


def _describe(frozen: Frozen, about: SnapshotManifest, shards: list[Shard]) -> SnapshotManifest:
    schema = _shard_table(frozen, np.zeros(0, dtype=np.int64), about.input_column).schema
    return about.with_changes(
        columns={field.name: type_name(field.type) for field in schema},
        classes=frozen.classes,
        rows=frozen.counts,
        quarantined=frozen.reasons,
        own=dict(frozen.own) or about.own,
        labels_read=frozen.labels_read or about.labels_read,
        conflicts=frozen.conflicts,
        groups_crossing=frozen.groups_crossing,
        splits={name: _count(frozen, index) for index, name in enumerate(SPLITS)},
        shards=tuple(shards),
    )


def _count(frozen: Frozen, split: int) -> SplitCounts:
    table = frozen.table.filter(pa.array(frozen.split == split))
    labels = table.column("label")
    by_class = count_classes(labels, len(frozen.classes))
    return SplitCounts(
        rows=len(table),
        weight=pc.sum(table.column("count"), min_count=0).as_py(),
        labelled=len(labels) - labels.null_count,
        classes={name: int(count) for name, count in zip(frozen.classes, by_class, strict=True)},
    )


def _write(url: str, planned: _PlannedShard, frozen: Frozen, input_column: str) -> Shard:
    # Ids and inputs hardly repeat, and nobody searches by their range.
    data = to_parquet(_shard_table(frozen, planned.rows, input_column), ["row_id", input_column])
    write_bytes(join(url, planned.shard.name), data)
    return planned.shard.with_changes(bytes=len(data), digest=sha256(data))


def _shard_table(frozen: Frozen, rows: npt.NDArray[np.int64], input_column: str) -> pa.Table:
    """Return rows as they are stored: texts as plain strings, the input beside its id."""
    table = frozen.table.take(pa.array(rows))
    table = table.add_column(1, input_column, frozen.inputs.take(pa.array(frozen.first[rows])))
    stored = [
        pa.field(field.name, pa.string() if pa.types.is_large_string(field.type) else field.type)
        for field in table.schema
    ]
    try:
        return table.cast(pa.schema(stored))
    except pa.ArrowInvalid as error:
        raise SnapshotError(f"{len(rows)} rows are too much text for a shard ({error}): lower shard_rows") from error
