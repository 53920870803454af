"""Convert a source's column of labels: one class a row, or a set of classes.

Each function returns the converted column and a reason for each row that it could not convert (which is null).
"""

import json
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from ray_distill.errors import SnapshotError
from ray_distill.snapshots.rows import Mask, Reason, Rows, Why, reasons
from ray_distill.snapshots.sources.convert import mixed_to_text, to_text

#: A set of classes before its names become indices.
NAMES = pa.large_list(pa.large_string())

#: An entry of a JSON array; floats become texts together.
Entry: TypeAlias = str | float | None

_EXPECT_ONE = (
    "the task reads one class a row: set snapshot.columns.label to a column with one class name or index a row, or "
    "choose a task that reads sets of classes"
)
_EXPECT_SETS = (
    'the task reads a set of classes a row: give each row a list, in CSV a JSON array such as ["a", "b"], or choose a '
    "task that reads one class a row"
)


def to_class(column: pa.ChunkedArray, name: str) -> tuple[pa.Array, Why]:
    """Return one class a row as large_string: a name or an index; empty texts are null.

    Raises:
        SnapshotError: the column has lists, or a type without one obvious text.
    """
    if _is_list(column.type):
        raise SnapshotError(f"column {name!r} has {column.type}, but {_EXPECT_ONE}")
    text, bad = to_text(column, name)
    return pc.if_else(pc.equal(text, ""), None, text), reasons(bad, Reason.NOT_UTF8)


def to_classes(column: pa.ChunkedArray, name: str) -> tuple[pa.Array, Why]:
    """Return a set of classes a row as `NAMES`: null where unknown, [] where none applies.

    Args:
        column: lists of names, numbers or truth values, or texts that are JSON arrays of them.
        name: its name in the source.

    Raises:
        SnapshotError: the column has another type.
    """
    if column.null_count == len(column):
        return pa.nulls(len(column), NAMES), np.zeros(len(column), dtype=np.int8)
    if _is_list(column.type):
        return _from_lists(column, name)
    if not _is_text(column.type):
        raise SnapshotError(f"column {name!r} has {column.type}, but {_EXPECT_SETS}")
    text, bad = to_text(column, name)
    return _from_json(text, reasons(bad, Reason.NOT_UTF8))


def no_labels(column: pa.ChunkedArray, name: str) -> tuple[pa.Array, Why]:
    """Return nulls, large_string: the task reads no labels."""
    return pa.nulls(len(column), pa.large_string()), np.zeros(len(column), dtype=np.int8)


def refuse_other_kind(rows: Rows) -> None:
    """Refuse sources in which every label is of another kind than the task reads.

    Sources of texts, such as JSON Lines, have no column type that would show it.

    Raises:
        SnapshotError: every label is a list where one class is expected, or the other way round.
    """
    if pc.any(pc.is_valid(rows.table.column("label"))).as_py():
        return
    for reason, expected in ((Reason.LABEL_LIST, _EXPECT_ONE), (Reason.LABEL_NOT_LIST, _EXPECT_SETS)):
        count = int((rows.why == reason).sum())
        if count:
            raise SnapshotError(f"snapshot.columns.label: {reason.text} in all {count} labelled rows, but {expected}")


def refuse_arrays(names: tuple[str, ...]) -> None:
    """Refuse class names found in the data that are JSON arrays: sets read as one class each.

    Raises:
        SnapshotError: every name is such.
    """
    if names and all(name.startswith("[") and _entries(name) is not None for name in names):
        raise SnapshotError(
            f"snapshot.columns.label: every label is a JSON array such as {names[0][:40]}, but {_EXPECT_ONE}"
        )


def _from_lists(column: pa.ChunkedArray, name: str) -> tuple[pa.Array, Why]:
    lists = pa.concat_arrays(column.cast(pa.large_list(column.type.value_type)).chunks)
    lengths = pc.fill_null(pc.list_value_length(lists), 0).to_numpy(zero_copy_only=False).astype(np.int64)
    text, bad = to_text(lists.flatten(), name)
    owner = np.repeat(np.arange(len(lists)), lengths)
    why = np.zeros(len(lists), dtype=np.int8)
    why[owner[bad]] = Reason.NOT_UTF8
    return _lists(text, lengths, np.asarray(pc.is_null(lists)) | (why != 0)), why


def _from_json(texts: pa.Array, why: Why) -> tuple[pa.Array, Why]:
    lengths, absent = np.zeros(len(texts), dtype=np.int64), np.ones(len(texts), dtype=bool)
    flat: list[Entry] = []
    for row, text in enumerate(texts.to_pylist()):
        if not text:
            continue
        entries = _entries(text)
        if entries is None or not _is_utf8(entries):
            why[row] = Reason.LABEL_NOT_LIST if entries is None else Reason.NOT_UTF8
            continue
        flat += entries
        lengths[row], absent[row] = len(entries), False
    return _lists(mixed_to_text(flat), lengths, absent), why


def _entries(text: str) -> list[Entry] | None:
    """Return the entries of a JSON array of plain values; None for any other text."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(value, list) or not all(entry is None or isinstance(entry, str | int | float) for entry in value):
        return None
    return [entry if entry is None or isinstance(entry, str | float) else str(entry).lower() for entry in value]


def _is_utf8(entries: list[Entry]) -> bool:
    return not any("\ud800" <= letter <= "\udfff" for entry in entries if isinstance(entry, str) for letter in entry)


def _lists(texts: pa.Array, lengths: npt.NDArray[np.int64], absent: Mask) -> pa.Array:
    offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]), pa.int64())
    lists = pa.LargeListArray.from_arrays(offsets, texts)
    return pc.if_else(pa.array(absent), pa.scalar(None, NAMES), lists) if absent.any() else lists


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def _is_text(kind: pa.DataType) -> bool:
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return bool(
        pa.types.is_string(kind)
        or pa.types.is_large_string(kind)
        or pa.types.is_string_view(kind)
        or pa.types.is_binary(kind)
        or pa.types.is_large_binary(kind)
        or pa.types.is_binary_view(kind)
    )
