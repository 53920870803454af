"""Read the traffic and the splits' own sources, each with its columns and labels.

An input may be in several of these parts. It belongs to the last of them, in the order traffic, validation,
calibration, test, and its rows in the other parts are left out: no row that measures a model can have taught it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from ray_distill.config import SnapshotConfig
from ray_distill.config.snapshot import Columns, as_tuple
from ray_distill.errors import SnapshotError
from ray_distill.snapshots.identity import Ids, ids_to_arrow, row_ids
from ray_distill.snapshots.label_reading import messages
from ray_distill.snapshots.label_reading.reading import ClassNames, LabelRules, Reading
from ray_distill.snapshots.label_reading.spelling import is_integer
from ray_distill.snapshots.label_reading.truth import TRUTHS
from ray_distill.snapshots.manifest import Truth
from ray_distill.snapshots.rows import Mask, Reason, Rows, check_bad_fraction
from ray_distill.snapshots.sources.columns import InputColumn, MissingColumn, source_columns
from ray_distill.snapshots.sources.label_columns import refuse_other_kind
from ray_distill.snapshots.sources.read import read_rows
from ray_distill.snapshots.sources.resolve import match_sources
from ray_distill.snapshots.splits import SPLITS

#: Value of `Part.split` for traffic, whose rows are split by their ids, groups or times.
TRAFFIC = -1


@dataclass(frozen=True, kw_only=True)
class Request:
    """The settings that every part is read with."""

    config: SnapshotConfig
    column: InputColumn
    truth: Truth
    known: ClassNames | None


@dataclass(frozen=True, kw_only=True)
class Part:
    """The rows of one part: all as they were read, and the usable ones with their ids."""

    split: int
    """Index of the split that the rows are for, or `TRAFFIC`."""
    section: str
    """Place of its columns in the configuration."""
    files: Sequence[str]
    rows: Rows
    reading: Reading
    table: pa.Table
    """Usable rows."""
    ids: Ids

    @property
    def name(self) -> str:
        """Return the place in the configuration that names the part's source."""
        return self.section.rpartition(".")[0]

    def filter(self, mask: Mask) -> "Part":
        """Keep the masked ones of the usable rows."""
        return replace(self, table=self.table.filter(pa.array(mask)), ids=self.ids[mask])


def read_parts(request: Request) -> list[Part]:
    """Read the traffic, then the sources of splits, in the order of the splits.

    Raises:
        SnapshotError: nothing matches, a column is missing, too many rows are unusable, or the labels of a source are
            read differently by two sources.
        StorageError: a source cannot be read.
    """
    config = request.config
    parts = [_read(request, TRAFFIC, config.source, kind=config.format, columns=config.columns)]
    for split, own in config.own_sources.items():
        columns = own.columns or config.columns
        part = _read(request, SPLITS.index(split), own.source, kind=own.format, columns=columns)
        _require_labels(part, columns, request)
        parts.append(part)
    if request.known is None or request.known.generic:
        _refuse_other_names(parts)
    return parts


def _read(request: Request, split: int, source: str | tuple[str, ...], *, kind: str, columns: Columns) -> Part:
    own = request.config.own_sources
    section = f"snapshot.{SPLITS[split]}.columns" if split != TRAFFIC and own[SPLITS[split]].columns else None
    files = match_sources(as_tuple(source), kind)
    names = [file.name for file in files]
    try:
        rows = read_rows(files, source_columns(columns, request.column), request.column, request.truth)
    except MissingColumn as missing:
        raise (missing if split == TRAFFIC else missing.of(f"snapshot.{SPLITS[split]}.columns")) from None
    refuse_other_kind(rows)
    rows = _mark_inputs(rows, request.column)
    rules = LabelRules(
        known=request.known,
        columns=columns,
        section=section or "snapshot.columns",
        tolerance=request.config.max_bad_fraction,
    )
    rows, reading = TRUTHS[request.truth].read(rows, rules)
    if columns.label_unknown == "unlabelled":
        rows = _without_unknown(rows)
    if split == TRAFFIC and request.config.splits.by == "time":
        rows = rows.mark(np.asarray(rows.table.column("time").is_null()), Reason.MISSING_TIME)
    what = "source" if split == TRAFFIC else f"source of snapshot.{SPLITS[split]}"
    check_bad_fraction(rows, names, request.config.max_bad_fraction, what, more=_unknown(reading, rules))
    usable = rows.filter(rows.why == 0)
    return Part(
        split=split,
        section=rules.section,
        files=names,
        rows=rows,
        reading=reading,
        table=usable.table,
        ids=row_ids(usable.table.column(request.column.name), request.column.name),
    )


def _mark_inputs(rows: Rows, column: InputColumn) -> Rows:
    inputs = rows.table.column(column.name)
    if column.verify is not None:
        rows = rows.mark_each(column.verify(inputs))
    return rows.mark(np.asarray(inputs.is_null()), Reason.MISSING_INPUT)


def _without_unknown(rows: Rows) -> Rows:
    """Keep rows whose label is not a class, without their label."""
    unknown, labels = rows.why == Reason.UNKNOWN_LABEL, rows.table.column("label").combine_chunks()
    kept = rows.with_labels(pc.if_else(pa.array(unknown), pa.scalar(None, labels.type), labels))
    return replace(kept, why=np.where(unknown, 0, rows.why).astype(rows.why.dtype))


def _unknown(reading: Reading, rules: LabelRules) -> str:
    """Return a sentence about the values that are not a class; empty if there are none."""
    if not reading.unknown or rules.known is None:
        return ""
    return messages.not_a_class(reading.unknown, rules.known, rules.section)


def _require_labels(part: Part, columns: Columns, request: Request) -> None:
    """Refuse a source of one's own without labels, where the task reads labels.

    Raises:
        SnapshotError: no column of labels is named, or no row has one.
    """
    if request.truth == "none":
        return
    place = f"snapshot.{SPLITS[part.split]}"
    if columns.label is None:
        raise SnapshotError(
            f"{place} has labelled rows of one's own, and {part.section}.label is not set: set {place}.columns.label "
            "to the column of the labels"
        )
    if part.table.column("label").null_count == len(part.table):
        raise SnapshotError(
            f"{place}: none of the {len(part.rows):,} rows has a label in the column {columns.label!r}: name another "
            f"column in {part.section}.label, or other files in {place}.source"
        )


def _refuse_other_names(parts: Sequence[Part]) -> None:
    """Refuse integers as classes in one part and words in another, if no names are known.

    Raises:
        SnapshotError: names both fields.
    """
    named = [(f"{part.section}.label", part.reading.found) for part in parts if part.reading.found]
    numbers = [field for field, names in named if all(is_integer(name) for name in names)]
    words = [field for field, names in named if not any(is_integer(name) for name in names)]
    if numbers and words:
        raise SnapshotError(messages.other_kinds(numbers[0], words[0]))


def keep_apart(parts: Sequence[Part], *, by_group: bool) -> tuple[list[Part], dict[str, int]]:
    """Leave rows out of every part that a later part has too; see the module.

    Args:
        parts: in the order of `read_parts`.
        by_group: a later part also has all other rows of its groups.

    Returns:
        The parts, and by split with a source of its own the number of rows that were left out because of it.
    """
    parts = list(parts)
    left: dict[str, int] = {}
    for later in range(len(parts) - 1, 0, -1):
        name = SPLITS[parts[later].split]
        left[name] = 0
        for at in range(later):
            shared = _shared(parts[at], parts[later], by_group=by_group)
            left[name] += int(shared.sum())
            parts[at] = parts[at].filter(~shared)
    return parts, left


def _shared(part: Part, later: Part, *, by_group: bool) -> Mask:
    shared: Mask = pc.is_in(ids_to_arrow(part.ids), value_set=ids_to_arrow(later.ids)).to_numpy(zero_copy_only=False)
    if by_group and "group" in part.table.column_names and "group" in later.table.column_names:
        groups = later.table.column("group").drop_null().combine_chunks()
        shared = shared | pc.is_in(part.table.column("group"), value_set=groups).to_numpy()
    return shared


def join(parts: Sequence[Part]) -> tuple[pa.Table, Ids, npt.NDArray[np.int8]]:
    """Return usable rows of all parts in order, their ids, and their splits or `TRAFFIC`.

    A column that a part lacks is null in its rows.
    """
    table = pa.concat_tables([part.table for part in parts], promote_options="default").combine_chunks()
    owner = np.concatenate([np.full(len(part.ids), part.split, dtype=np.int8) for part in parts])
    return table, np.concatenate([part.ids for part in parts]), owner
