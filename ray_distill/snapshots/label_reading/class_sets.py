"""Convert sets of classes to ascending indices: from names, indices or 0/1 vectors.

A set is a list of names or indices, or a vector of 0 and 1 (or false and true) with one number a class. The rows that
can only be one of the two decide once, for all rows of all sources. A row of the other kind goes to quarantine, so no
value is read in two ways.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from ray_distill.errors import SnapshotError
from ray_distill.snapshots import merge
from ray_distill.snapshots.label_reading.names import UNKNOWN, UNLABELLED, class_names, label_index
from ray_distill.snapshots.label_reading.reading import (
    NOTHING,
    LabelRules,
    Reading,
    count_values,
    read_labels,
    to_names,
    without_markers,
)
from ray_distill.snapshots.rows import Mask, Reason, Rows

#: What a vector may consist of: off and on.
_MARKS = (("0", "1"), ("false", "true"))


@dataclass(frozen=True, kw_only=True)
class _Lists:
    """N lists of names: their E entries, and the row of each."""

    entries: pa.Array
    owner: npt.NDArray[np.int64]
    lengths: npt.NDArray[np.int64]

    @classmethod
    def of(cls, labels: pa.Array) -> "_Lists":
        lengths = pc.fill_null(pc.list_value_length(labels), 0).to_numpy(zero_copy_only=False).astype(np.int64)
        return cls(entries=labels.flatten(), owner=np.repeat(np.arange(len(labels)), lengths), lengths=lengths)

    def all_of(self, entries: Mask) -> Mask:
        """Return ``[N]``: whether all entries of a row are among the masked ones."""
        result: Mask = np.bincount(self.owner, weights=~entries, minlength=len(self.lengths)) == 0
        return result


def find_names(labels: pa.Array) -> tuple[str, ...]:
    """Return the names in lists, sorted as by `class_names`; empty texts are not names."""
    names = labels.flatten()
    return class_names(names.filter(pc.fill_null(pc.not_equal(names, ""), False)))


def read_sets(rows: Rows, rules: LabelRules) -> tuple[Rows, Reading]:
    """Read sets and vectors as lists of class names, and mark the rows that are neither.

    Args:
        rows: the column ``label`` has lists of texts.
        rules: known classes and settings.

    Raises:
        SnapshotError: the labels may be both vectors and sets, or are vectors without known classes, or their entries
            have two readings.
    """
    labels = rows.table.column("label").combine_chunks()
    labelled: Mask = np.asarray(pc.is_valid(labels))
    lists = _Lists.of(labels)
    if rules.known is None:
        _refuse_marks(find_names(labels))
    else:
        names = rules.known.names
        vector = labelled & _is_vector(lists, len(names))
        if _are_vectors(vector, labelled & _may_be_set(lists, names)):
            rows = rows.with_labels(_from_vectors(lists, labels, vector, names))
            return rows.mark(labelled & ~vector, Reason.UNKNOWN_LABEL), NOTHING
    reading = without_markers(read_labels(count_values(lists.entries), rules))
    named = to_names(lists.entries, reading)
    known, unique = lists.all_of(np.asarray(pc.is_valid(named))), _unique(lists, _codes(named))
    rows = rows.with_labels(_with_entries(labels, named, lists.lengths))
    rows = rows.mark(labelled & ~known, Reason.UNKNOWN_LABEL).mark(labelled & ~unique, Reason.REPEATED_LABEL)
    return rows, reading


def merge_sets(
    copies: merge.Copies, labels: pa.Array, classes: Sequence[str], policy: str
) -> tuple[pa.Array, merge.Index]:
    """Merge the sets of each input's copies into one, by whole sets; see `merge.merge_labels`.

    A tie is won by the set whose sorted names come first.

    Returns:
        ``[R]`` sets, and the runs whose copies contradict each other.
    """
    sets = _indices(labels, classes)
    keys = pc.binary_join(sets.cast(pa.list_(pa.string())), ",").dictionary_encode()
    codes = keys.indices.fill_null(UNLABELLED).to_numpy(zero_copy_only=False).astype(np.int32)
    at = np.zeros(len(keys.dictionary), dtype=np.int64)
    at[codes[codes >= 0]] = np.flatnonzero(codes >= 0)
    distinct = sets.take(pa.array(at))
    order = ["\0".join(sorted(classes[index] for index in found)) for found in distinct.to_pylist()]
    merged, conflicts = merge.merge_labels(copies, codes, order, policy)
    return distinct.take(pa.array(merged, mask=merged == UNLABELLED)), conflicts


def _indices(labels: pa.Array, classes: Sequence[str]) -> pa.Array:
    """Return lists of names as ascending indices."""
    lists = _Lists.of(labels)
    index = label_index(lists.entries, classes)
    ascending = index[np.lexsort((index, lists.owner))]
    offsets = pa.array(np.concatenate([[0], np.cumsum(lists.lengths)]), pa.int32())
    return pa.ListArray.from_arrays(offsets, pa.array(ascending), mask=pc.is_null(labels))


def _may_be_set(lists: _Lists, names: Sequence[str]) -> Mask:
    """Return ``[N]``: whether a row may be a set, each entry by itself a name or an index."""
    index = {name: at for at, name in enumerate(names)}
    numbers = {str(at): at for at in range(len(names))}
    encoded = lists.entries.dictionary_encode()
    lookup = np.array([*((numbers | index).get(text, UNKNOWN) for text in encoded.dictionary.to_pylist()), UNKNOWN])
    at = lookup[encoded.indices.fill_null(len(lookup) - 1).to_numpy(zero_copy_only=False)].astype(np.int32)
    return lists.all_of(at >= 0) & _unique(lists, at)


def _codes(texts: pa.Array) -> npt.NDArray[np.int32]:
    """Return a number for each distinct text, `UNKNOWN` for null."""
    indices = texts.dictionary_encode().indices.fill_null(UNKNOWN)
    result: npt.NDArray[np.int32] = indices.to_numpy(zero_copy_only=False).astype(np.int32)
    return result


def _with_entries(labels: pa.Array, entries: pa.Array, lengths: npt.NDArray[np.int64]) -> pa.Array:
    """Return lists of the same lengths with other entries; null stays null."""
    offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]), pa.int64())
    return pa.LargeListArray.from_arrays(offsets, entries, mask=pc.is_null(labels))


def _unique(lists: _Lists, index: npt.NDArray[np.int32]) -> Mask:
    """Return ``[N]``: whether no known class occurs twice in a row."""
    order = np.lexsort((index, lists.owner))
    owner, sorted_index = lists.owner[order], index[order]
    twice = (owner[1:] == owner[:-1]) & (sorted_index[1:] == sorted_index[:-1]) & (sorted_index[1:] >= 0)
    result: Mask = np.bincount(owner[1:][twice], minlength=len(lists.lengths)) == 0
    return result


def _is_vector(lists: _Lists, classes: int) -> Mask:
    """Return ``[N]``: whether a row has one mark a class, all numbers or all truth values."""
    result: Mask = np.zeros(len(lists.lengths), dtype=bool)
    for marks in _MARKS:
        result |= lists.all_of(_among(lists.entries, marks))
    result &= lists.lengths == classes
    return result


def _are_vectors(vector: Mask, as_set: Mask) -> bool:
    """Decide whether a column has vectors: more rows can only be vectors than can only be sets.

    Raises:
        SnapshotError: every row that has a label could be either.
    """
    only_vector, only_set = int((vector & ~as_set).sum()), int((as_set & ~vector).sum())
    if not only_vector and not only_set and (vector & as_set).any():
        raise SnapshotError(
            "snapshot.columns.label: every label may be a 0/1 vector or a set of indices: write vectors as true and "
            "false, or sets as class names"
        )
    return only_vector > only_set


def _from_vectors(lists: _Lists, labels: pa.Array, vector: Mask, classes: Sequence[str]) -> pa.Array:
    """Return vectors as lists of class names; null in rows that are not vectors."""
    on = _among(lists.entries, [marks[1] for marks in _MARKS]) & vector[lists.owner]
    starts = np.cumsum(lists.lengths) - lists.lengths
    place = np.arange(len(lists.owner)) - starts[lists.owner]
    lengths = np.bincount(lists.owner[on], minlength=len(labels))
    names = pa.array(list(classes), pa.large_string()).take(pa.array(place[on]))
    offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]), pa.int64())
    return pa.LargeListArray.from_arrays(offsets, names, mask=pa.array(~vector))


def _refuse_marks(names: Sequence[str]) -> None:
    if names and any(set(names) <= set(marks) for marks in _MARKS):
        raise SnapshotError(
            f"snapshot.columns.label: the only labels are {' and '.join(names)}: list the classes in snapshot.classes, "
            "whether the labels are 0/1 vectors or these are class names"
        )


def _among(entries: pa.Array, values: Sequence[str]) -> Mask:
    found = pc.is_in(entries, value_set=pa.array(list(values), pa.large_string()))
    result: Mask = found.to_numpy(zero_copy_only=False)
    return result
