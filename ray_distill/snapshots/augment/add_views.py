"""Derive a snapshot whose train split has views beside its rows.

Every other split has the files of the parent, byte by byte. Labelling and training read a derived snapshot like any
other; views are the rows with a `PARENT`.

Memory is bounded whatever the number of rows: a shard of the parent, `RUN_BYTES` of rows that are sorted, and a shard
that is written; of all rows the ids alone, 16 bytes each, for the splits without views. Rows and views lie in temporary
files until they are uploaded.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from ray_distill.artifacts import SnapshotRef
from ray_distill.fingerprint import sha256
from ray_distill.snapshots.augment.kinds import Chosen
from ray_distill.snapshots.augment.sorted_rows import ids_of, sort_by_id
from ray_distill.snapshots.augment.views import EQUAL, PARENT, PARTNER, SPLIT, SortedIds, ViewMaker, with_columns
from ray_distill.snapshots.label_reading.truth import count_classes
from ray_distill.snapshots.manifest import MANIFEST_NAME, QUARANTINE_NAME, Shard, SplitCounts, manifest_json
from ray_distill.snapshots.reader import Snapshot
from ray_distill.snapshots.shard_files import content_of, to_parquet, type_name
from ray_distill.snapshots.take import is_there
from ray_distill.storage.files import absolute, join, write_bytes
from ray_distill.storage.scratch import Scratch
from ray_distill.storage.sealed import write_sealed

#: Rows whose views are made together, and about how many bytes of them.
_CHUNK_ROWS, _CHUNK_BYTES = 256, 16 << 20


def add_views(
    parent: Snapshot, chosen: Sequence[Chosen], *, views: int, seed: int, url: str, shard_rows: int
) -> SnapshotRef:
    """Freeze the train rows of a snapshot beside their views; a snapshot that exists is kept.

    A view depends on seed, row id and number alone, a mix on its partner too: neither on shards nor, but for partners,
    on other rows. A view that equals a row of another split is dropped, and so are views that equal their parent,
    another train row, or an earlier view.

    Args:
        parent: the snapshot.
        chosen: kinds of views; their order does not matter.
        views: views a row, at most: not every row allows every kind.
        seed: of the campaign.
        url: folder of snapshots.
        shard_rows: rows a shard, about.

    Raises:
        SnapshotError, StorageError: the parent cannot be read, or the result not be written.
    """
    maker = ViewMaker(
        column=parent.input_column,
        chosen=sorted(chosen, key=lambda one: one.name),
        views=views,
        seed=seed,
        elsewhere=_other_ids(parent),
    )
    with Scratch("views") as scratch:
        train = _Train(classes=parent.classes, column=parent.input_column, folder=scratch.path)
        rows = parent.manifest.splits[SPLIT].rows
        ranges = max(1, -(-rows * (1 + views) // shard_rows))
        schema = with_columns(parent.read_shard(next(_shards(parent))).schema)
        made = (table for pair in maker.make(_chunks(parent)) for table in pair)
        for part in sort_by_id(made, schema=schema, path=scratch.path / "sorted.arrow", ranges=ranges):
            train.add(part)
        left_out = {reason: count for reason, count in sorted((maker.left_out + train.left_out).items()) if count}
        others = tuple(shard for shard in parent.shards if shard.split != SPLIT)
        manifest = parent.manifest.with_changes(
            columns={field.name: type_name(field.type) for field in schema},
            splits={**parent.manifest.splits, SPLIT: train.counts},
            shards=(*train.shards, *others),
            derived={
                "parent": parent.ref.fingerprint,
                "augment": {"views": views, "kinds": {one.name: one.strength for one in maker.chosen}, "seed": seed},
                "counts": {
                    "rows": rows,
                    "views": rows * views,
                    "kept": dict(sorted(train.kept.items())),
                    "left_out": left_out,
                },
            },
        )
        ref = SnapshotRef(url=join(absolute(url), manifest.fingerprint), fingerprint=manifest.fingerprint)
        if not is_there(ref):
            for shard in train.shards:
                write_bytes(join(ref.url, shard.name), train.file_of(shard).read_bytes())
            for shard in others:
                write_bytes(join(ref.url, shard.name), parent.file_of(shard))
            write_bytes(join(ref.url, QUARANTINE_NAME), parent.quarantine_file())
            write_sealed(join(ref.url, MANIFEST_NAME), manifest_json(manifest))
    return ref


@dataclass(frozen=True, kw_only=True)
class _Train:
    """The shards of the train split, written to a folder, and their counts."""

    classes: tuple[str, ...]
    column: str
    folder: Path
    shards: list[Shard] = field(default_factory=list)
    kept: Counter[str] = field(default_factory=Counter)
    """Views by kind."""
    left_out: Counter[str] = field(default_factory=Counter)
    labels: Counter[int] = field(default_factory=Counter)
    totals: Counter[str] = field(default_factory=Counter)

    def add(self, rows: pa.Table) -> None:
        """Write the next rows, if there are any."""
        if not len(rows):
            return
        table = self._distinct(rows)
        data = to_parquet(table, ["row_id", self.column, PARENT, PARTNER])
        shard = Shard(
            name=f"data/{SPLIT}-{len(self.shards):05d}.parquet",
            split=SPLIT,
            rows=len(table),
            content=content_of(table.drop_columns([self.column])),
            bytes=len(data),
            digest=sha256(data),
        )
        self.file_of(shard).write_bytes(data)
        self.shards.append(shard)
        self.kept.update(kind for kind in table["view_kind"].to_pylist() if kind is not None)
        self.labels.update(dict(enumerate(count_classes(table["label"], len(self.classes)).tolist())))
        self.totals.update(
            rows=len(table),
            weight=pc.sum(table["count"], min_count=0).as_py(),
            labelled=len(table) - table["label"].null_count,
        )

    def file_of(self, shard: Shard) -> Path:
        """Return where a shard lies."""
        return self.folder / Path(shard.name).name

    @property
    def counts(self) -> SplitCounts:
        """Counts of all rows that were added."""
        classes = {name: self.labels[number] for number, name in enumerate(self.classes)}
        return SplitCounts(**{name: self.totals[name] for name in ("rows", "weight", "labelled")}, classes=classes)

    def _distinct(self, rows: pa.Table) -> pa.Table:
        """Return each id once: as a row if it is one, else as its first view.

        A view that equals others with other labels has no label.
        """
        ids = ids_of(rows)
        starts = np.flatnonzero(np.append(True, ids[1:] != ids[:-1]))
        if len(starts) == len(rows):
            return rows
        self.left_out[EQUAL] += len(rows) - len(starts)
        picked, unsure = starts.copy(), np.zeros(len(starts), dtype=np.bool_)
        for at, start, size in _runs(starts, len(rows)):
            place, unsure[at] = _first_of(rows.slice(start, size))
            picked[at] += place
        first = rows.take(pa.array(picked)).combine_chunks()
        labels, column = first["label"].combine_chunks(), first.column_names.index("label")
        labels = pc.if_else(pa.array(unsure), pa.scalar(None, labels.type), labels)
        return first.set_column(column, first.schema.field(column), labels)


def _runs(starts: npt.NDArray[np.int64], rows: int) -> Iterator[tuple[int, int, int]]:
    """Yield the number, the start and the size of each run of several rows."""
    sizes = np.diff(np.append(starts, rows))
    for at in np.flatnonzero(sizes > 1).tolist():
        yield at, int(starts[at]), int(sizes[at])


def _first_of(equal: pa.Table) -> tuple[int, bool]:
    """Return the place of the row, else of the first view, and whether labels differ."""
    found = equal.select([PARENT, "view_number", "label"]).to_pylist()
    place = min(range(len(found)), key=lambda at: (found[at][PARENT] or b"", found[at]["view_number"] or 0))
    is_view = found[place][PARENT] is not None
    return place, is_view and any(one["label"] != found[0]["label"] for one in found)


def _shards(snapshot: Snapshot) -> Iterator[Shard]:
    return (shard for shard in snapshot.shards if shard.split == SPLIT)


def _chunks(parent: Snapshot) -> Iterator[pa.Table]:
    for shard in _shards(parent):
        table = parent.read_shard(shard)
        size = max(1, min(_CHUNK_ROWS, _CHUNK_BYTES * len(table) // max(1, table.nbytes)))
        for start in range(0, len(table), size):
            yield table.slice(start, size)


def _other_ids(parent: Snapshot) -> SortedIds:
    parts = [ids_of(parent.read_shard(shard, ["row_id"])) for shard in parent.shards if shard.split != SPLIT]
    return np.sort(np.concatenate([np.empty(0, "S16"), *parts]))
