"""Turn rows into the content of a snapshot, in memory: checks, duplicates, labels, splits.

Nothing is written here, and nothing depends on the order of the rows but the label policy ``first``.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from ray_distill.config import SnapshotConfig, Splits
from ray_distill.errors import SnapshotError
from ray_distill.snapshots import merge
from ray_distill.snapshots.identity import Ids, ids_to_arrow, row_ids
from ray_distill.snapshots.label_reading import messages
from ray_distill.snapshots.label_reading.names import check_classes
from ray_distill.snapshots.label_reading.reading import ClassNames
from ray_distill.snapshots.label_reading.truth import TRUTHS
from ray_distill.snapshots.manifest import LabelsRead, RowCounts, Truth
from ray_distill.snapshots.parts import TRAFFIC, Part, Request, join, keep_apart, read_parts
from ray_distill.snapshots.rows import Mask, check_bad_fraction, count_reasons, quarantine_table
from ray_distill.snapshots.sources.columns import InputColumn, source_columns
from ray_distill.snapshots.sources.read import read_rows
from ray_distill.snapshots.sources.resolve import match_sources
from ray_distill.snapshots.splits import (
    SPLITS,
    SplitIndex,
    check_none_empty,
    split_by_group,
    split_by_id,
    split_by_time,
)


@dataclass(frozen=True, kw_only=True)
class Frozen:
    """The content of a snapshot: K rows in the order of their ids."""

    inputs: pa.ChunkedArray
    """The input of every usable source row, large."""
    first: npt.NDArray[np.int64]
    """``[K]``: where in ``inputs`` each row's input is"""
    table: pa.Table
    """``[K]``: all columns but the input"""
    split: SplitIndex
    classes: tuple[str, ...]
    counts: RowCounts
    reasons: dict[str, int]
    quarantine: pa.Table
    conflicts: int
    groups_crossing: int
    own: Mapping[str, int] = field(default_factory=dict)
    """Splits with a source of their own, and the rows left out elsewhere because of each."""
    labels_read: tuple[LabelsRead, ...] = ()


@dataclass(frozen=True, kw_only=True)
class _Groups:
    """Each input's group and split, and whether it is in groups of several splits."""

    names: pa.Array
    split: SplitIndex
    crossing: Mask


def freeze(
    config: SnapshotConfig,
    column: InputColumn,
    *,
    truth: Truth,
    seed: int,
    known: ClassNames | None = None,
    empty_splits: bool = False,
) -> Frozen:
    """Read the sources and compute the whole content of a snapshot.

    Args:
        config: sources, columns, splits and policies.
        column: the column of the inputs.
        truth: kind of the labels.
        seed: decides the splits by id and by group.
        known: class names where ``config.classes`` has none; None: the labels name the classes.
        empty_splits: as `take_snapshot`.

    Raises:
        SnapshotError: nothing matches, a column is missing, labels have two readings, too many rows are unusable, none
            is left, or a split is empty that may not be.
        StorageError: a source cannot be read.
    """
    check_classes(config.classes or ())
    known = known if config.classes is None else ClassNames(names=config.classes)
    parts = read_parts(Request(config=config, column=column, truth=truth, known=known))
    read = sum(len(part.rows) for part in parts)
    usable = sum(len(part.ids) for part in parts)
    parts, excluded = _exclude(parts, config, column)
    parts, own = keep_apart(parts, by_group=config.splits.by == "group")
    frozen = _settle(parts, config, truth, known=known, seed=seed)
    if not empty_splits:
        check_none_empty(frozen.split, config.splits, own=config.own_sources)
    counts = frozen.counts.with_changes(
        read=read, excluded=excluded, quarantined=read - usable, overlapping=sum(own.values())
    )
    return replace(
        frozen,
        counts=counts,
        own=own,
        reasons=count_reasons(np.concatenate([part.rows.why for part in parts])),
        quarantine=pa.concat_tables([quarantine_table(part.rows, part.files) for part in parts]),
        labels_read=tuple(_describe(part) for part in parts if part.reading.rows),
    )


def _exclude(parts: Sequence[Part], config: SnapshotConfig, column: InputColumn) -> tuple[list[Part], int]:
    """Leave out the rows of ``config.exclude``, and return how many these are.

    Raises:
        SnapshotError: a part has no row left.
    """
    kept, excluded = [], 0
    for part in parts:
        mask = ~_is_excluded(part.ids, config, column)
        if not mask.any():
            what = "snapshot.source" if part.split == TRAFFIC else f"snapshot.{SPLITS[part.split]}.source"
            raise SnapshotError(
                f"no row is left: {len(part.rows)} read, {len(part.rows) - len(mask)} unusable, {len(mask)} excluded: "
                f"check {what} and snapshot.exclude"
            )
        excluded += int((~mask).sum())
        kept.append(part.filter(mask))
    return kept, excluded


def _describe(part: Part) -> LabelsRead:
    reading = part.reading
    unknown = sorted(reading.unknown, key=lambda value: (-reading.unknown[value], value))
    respelt = sorted(reading.respelt.items())[: messages.SHOWN]
    return LabelsRead(
        section=part.section,
        values=reading.kind,
        unlabelled={messages.cut(value): rows for value, rows in reading.unlabelled.items()},
        unknown={messages.cut(value): reading.unknown[value] for value in unknown[: messages.SHOWN]},
        more=max(len(unknown) - messages.SHOWN, 0),
        respelt={messages.cut(value): name for value, name in respelt},
    )


def _is_excluded(ids: Ids, config: SnapshotConfig, column: InputColumn) -> Mask:
    if not config.exclude:
        return np.zeros(len(ids), dtype=bool)
    files = match_sources(config.exclude, config.format, splits=True)
    only_input = config.columns.model_copy(update={"label": None, "group": None, "time": None, "slices": ()})
    rows = read_rows(files, source_columns(only_input, column), column, "none")
    check_bad_fraction(rows, [file.name for file in files], config.max_bad_fraction, "sources to exclude")
    inputs = rows.filter(rows.why == 0).table.column(column.name).drop_null()
    excluded = ids_to_arrow(row_ids(inputs, column.name))
    result: Mask = pc.is_in(ids_to_arrow(ids), value_set=excluded).to_numpy(zero_copy_only=False)
    return result


def _settle(
    parts: Sequence[Part], config: SnapshotConfig, truth: Truth, *, known: ClassNames | None, seed: int
) -> Frozen:
    """Merge and split usable rows, whose input is the first column.

    The counts of rows that were left out before are still zero.
    """
    table, ids, owner = join(parts)
    copies = merge.gather_copies(ids)
    kind, found = TRUTHS[truth], table.column("label").combine_chunks()
    classes = _classes(kind.names(found), known)
    labels, conflicts = kind.merge(copies, found, classes, config.conflicts)
    first_ids, own = ids[copies.first], owner[copies.first]
    groups = _merge_groups(copies, table, first_ids, splits=config.splits, seed=seed)
    columns = {
        "row_id": ids_to_arrow(first_ids),
        "label": labels,
        "count": pa.array(copies.counts),
        **_merge_columns(copies, table, groups),
    }
    kept = np.ones(len(copies.counts), dtype=bool)
    if config.conflicts == "drop":
        kept[conflicts] = False
    merged = pa.table(columns).filter(pa.array(kept))
    split = own.copy()[kept]
    traffic = split == TRAFFIC
    split[traffic] = _split(
        merged.filter(pa.array(traffic)),
        first_ids[kept][traffic],
        groups.split[kept][traffic],
        splits=config.splits,
        seed=seed,
    )
    split[traffic & np.isin(split, [SPLITS.index(name) for name in config.own_sources])] = SPLITS.index("train")
    rows, copies_kept = int(kept.sum()), int(copies.counts[kept].sum())
    counts = RowCounts(
        read=0, kept=rows, merged=copies_kept - rows, dropped=len(ids) - copies_kept, excluded=0, quarantined=0
    )
    return Frozen(
        inputs=table.column(0),
        first=copies.first[kept],
        table=merged,
        split=split,
        classes=classes,
        counts=counts,
        reasons={},
        quarantine=pa.table({}),
        conflicts=len(conflicts),
        groups_crossing=int((groups.crossing & (own == TRAFFIC)).sum()),
    )


def _classes(found: tuple[str, ...], known: ClassNames | None) -> tuple[str, ...]:
    """Return the known classes, or those that the labels name.

    Raises:
        SnapshotError: nobody names the classes.
    """
    if known is None or (known.generic and not set(found) <= set(known.names)):
        return found
    if known.generic and not found:
        raise SnapshotError(messages.nobody_named(known))
    return known.names


def _merge_columns(copies: merge.Copies, table: pa.Table, groups: _Groups) -> dict[str, pa.Array]:
    """Merge the columns after input and label, in their order; slices are texts."""
    columns: dict[str, pa.Array] = {}
    for name in table.column_names[2:]:
        column = table.column(name).combine_chunks()
        if name == "group":
            columns[name] = groups.names
        else:
            columns[name] = merge.merge_times(copies, column) if name == "time" else merge.merge_texts(copies, column)
    return columns


def _merge_groups(copies: merge.Copies, table: pa.Table, ids: Ids, *, splits: Splits, seed: int) -> _Groups:
    """Return one group of each input; if groups decide the split, one of the earliest split."""
    split, nowhere = np.zeros(len(ids), dtype=np.int8), np.zeros(len(ids), dtype=bool)
    if "group" not in table.column_names:
        return _Groups(names=pa.nulls(len(ids), pa.large_string()), split=split, crossing=nowhere)
    column = table.column("group").combine_chunks()
    if splits.by != "group":
        return _Groups(names=merge.merge_texts(copies, column), split=split, crossing=nowhere)
    names, ranks = merge.rank_texts(column)
    by_name = np.append(split_by_group(names.to_pylist(), splits, seed), 0).astype(np.int64)
    present = ranks != merge.NULL
    split_of_copy = by_name[np.where(present, ranks, -1)]
    best = copies.least(np.where(present, split_of_copy * len(by_name) + ranks, merge.NULL))
    latest = -copies.least(np.where(present, -split_of_copy, 0))
    alone = best == merge.NULL
    earliest, rank = np.divmod(best, len(by_name))
    split = np.where(alone, split_by_id(ids, splits, seed), earliest).astype(np.int8)
    return _Groups(
        names=merge.take_ranked(names, np.where(alone, merge.NULL, rank)),
        split=split,
        crossing=~alone & (latest != split),
    )


def _split(table: pa.Table, ids: Ids, by_group: SplitIndex, *, splits: Splits, seed: int) -> SplitIndex:
    if splits.by == "group":
        return by_group
    if splits.by == "id":
        return split_by_id(ids, splits, seed)
    return split_by_time(table.column("time").cast(pa.int64()).to_numpy(), ids, splits)
