"""Turn rows into the content of a snapshot, in memory: checks, duplicates, labels, splits.

Nothing is written here, and nothing depends on the order of the rows but the label policy ``first``.
"""

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from ray_distill.config import SnapshotConfig, Splits
from ray_distill.errors import SnapshotError
from ray_distill.snapshots import merge
from ray_distill.snapshots.identity import Ids, ids_to_arrow, row_ids
from ray_distill.snapshots.labels import check_classes
from ray_distill.snapshots.manifest import RowCounts, Truth
from ray_distill.snapshots.rows import Mask, Reason, Rows, check_bad_fraction, count_reasons, quarantine_table
from ray_distill.snapshots.sources.columns import InputColumn, source_columns
from ray_distill.snapshots.sources.label_columns import refuse_other_kind
from ray_distill.snapshots.sources.read import read_rows
from ray_distill.snapshots.sources.resolve import match_sources, source_patterns
from ray_distill.snapshots.splits import SplitIndex, check_none_empty, split_by_group, split_by_id, split_by_time
from ray_distill.snapshots.truth import TRUTHS


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


@dataclass(frozen=True, kw_only=True)
class _Groups:
    """Return each input's group and split, and the number of inputs in groups of several splits."""

    names: pa.Array
    split: SplitIndex
    crossing: int


def freeze(config: SnapshotConfig, column: InputColumn, truth: Truth, seed: int) -> Frozen:
    """Read the sources and compute the whole content of a snapshot.

    Raises:
        SnapshotError: nothing matches, a column is missing, too many rows are unusable, none is left, or a split
            is empty.
        StorageError: a source cannot be read.
    """
    check_classes(config.classes or ())
    files = match_sources(source_patterns(config.source), config.format)
    names = [file.name for file in files]
    rows = read_rows(files, source_columns(config.columns, column), column, truth)
    refuse_other_kind(rows)
    rows = _mark_unusable(rows, config, column, truth)
    check_bad_fraction(rows, names, config.max_bad_fraction, "source")
    usable = rows.filter(rows.why == 0)
    ids = row_ids(usable.table.column(column.name), column.name)
    kept = ~_is_excluded(ids, config, column)
    if not kept.any():
        raise SnapshotError(
            f"no row is left: {len(rows)} read, {len(rows) - len(usable)} unusable, {len(kept)} excluded: check "
            f"snapshot.source and snapshot.exclude"
        )
    frozen = _settle(usable.table.filter(pa.array(kept)).combine_chunks(), ids[kept], config, truth, seed=seed)
    counts = frozen.counts.with_changes(
        read=len(rows), excluded=int((~kept).sum()), quarantined=len(rows) - len(usable)
    )
    return replace(frozen, counts=counts, reasons=count_reasons(rows), quarantine=quarantine_table(rows, names))


def _mark_unusable(rows: Rows, config: SnapshotConfig, column: InputColumn, truth: Truth) -> Rows:
    inputs = rows.table.column(column.name)
    if column.verify is not None:
        rows = rows.mark_each(column.verify(inputs))
    rows = rows.mark(np.asarray(inputs.is_null()), Reason.MISSING_INPUT)
    rows = TRUTHS[truth].check(rows, config.classes)
    if config.splits.by == "time":
        missing: Mask = np.asarray(rows.table.column("time").is_null())
        rows = rows.mark(missing, Reason.MISSING_TIME)
    return rows


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


def _settle(table: pa.Table, ids: Ids, config: SnapshotConfig, truth: Truth, *, seed: int) -> Frozen:
    """Merge and split usable rows, whose input is the first column.

    The counts of rows that were left out before are still zero.
    """
    copies = merge.gather_copies(ids)
    kind, found = TRUTHS[truth], table.column("label").combine_chunks()
    classes = config.classes or kind.names(found)
    labels, conflicts = kind.merge(copies, found, classes, config.conflicts)
    first_ids = ids[copies.first]
    groups = _merge_groups(copies, table, first_ids, splits=config.splits, seed=seed)
    columns = {
        "row_id": ids_to_arrow(first_ids),
        "label": labels,
        "count": pa.array(copies.counts),
        **_merge_columns(copies, table, config, groups),
    }
    kept = np.ones(len(copies.counts), dtype=bool)
    if config.conflicts == "drop":
        kept[conflicts] = False
    merged = pa.table(columns).filter(pa.array(kept))
    split = _split(merged, first_ids[kept], groups.split[kept], splits=config.splits, seed=seed)
    check_none_empty(split, config.splits)
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
        groups_crossing=groups.crossing,
    )


def _merge_columns(
    copies: merge.Copies, table: pa.Table, config: SnapshotConfig, groups: _Groups
) -> dict[str, pa.Array]:
    columns: dict[str, pa.Array] = {}
    if config.columns.group is not None:
        columns["group"] = groups.names
    if config.columns.time is not None:
        columns["time"] = merge.merge_times(copies, table.column("time").combine_chunks())
    for name in config.columns.slices:
        columns[name] = merge.merge_texts(copies, table.column(name).combine_chunks())
    return columns


def _merge_groups(copies: merge.Copies, table: pa.Table, ids: Ids, *, splits: Splits, seed: int) -> _Groups:
    """Return one group of each input; if groups decide the split, one of the earliest split."""
    split = np.zeros(len(ids), dtype=np.int8)
    if "group" not in table.column_names:
        return _Groups(names=pa.nulls(len(ids), pa.large_string()), split=split, crossing=0)
    column = table.column("group").combine_chunks()
    if splits.by != "group":
        return _Groups(names=merge.merge_texts(copies, column), split=split, crossing=0)
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
        crossing=int((~alone & (latest != split)).sum()),
    )


def _split(table: pa.Table, ids: Ids, by_group: SplitIndex, *, splits: Splits, seed: int) -> SplitIndex:
    if splits.by == "group":
        return by_group
    if splits.by == "id":
        return split_by_id(ids, splits, seed)
    return split_by_time(table.column("time").cast(pa.int64()).to_numpy(), ids, splits)
