"""Merge exact duplicates to one row with a count; conflicting labels follow a policy.

Whatever else the copies of a row differ in is settled without regard to their order: the first group and slice
value by name, the earliest time; a value wins over null.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from ray_distill.snapshots.identity import Ids, id_order
from ray_distill.snapshots.label_reading.names import UNLABELLED

Index = npt.NDArray[np.int64]
Labels = npt.NDArray[np.int32]
NULL = np.iinfo(np.int64).max


@dataclass(frozen=True, kw_only=True)
class Copies:
    """Rows gathered by id: run r is ``order[starts[r]:starts[r] + counts[r]]``, in source order."""

    order: Index
    """``[N]``: positions of the rows, by id, then by source order"""
    starts: Index
    """``[R]``"""
    counts: Index
    """``[R]``: copies of each input"""

    @property
    def first(self) -> Index:
        """``[R]``: position of each input's first copy."""
        return self.order[self.starts]

    def least(self, values: Index) -> Index:
        """Return ``[R]``: the least value among the copies of each input."""
        return np.minimum.reduceat(values[self.order], self.starts) if len(self.starts) else values[:0]


def gather_copies(ids: Ids) -> Copies:
    """Find the rows with equal ids; inputs come in the order of their ids."""
    order = np.lexsort(id_order(ids))
    ordered = ids[order]
    is_first = np.ones(len(order), dtype=bool)
    is_first[1:] = (ordered[1:] != ordered[:-1]).any(axis=1)
    starts = np.flatnonzero(is_first)
    return Copies(order=order, starts=starts, counts=np.diff(np.append(starts, len(order))))


def merge_labels(copies: Copies, labels: Labels, classes: Sequence[str], policy: str) -> tuple[Labels, Index]:
    """Merge labels into one for each input.

    Args:
        copies: N rows gathered into R inputs.
        labels: ``[N]`` class indices or `UNLABELLED`; a missing label does not contradict another.
        classes: class names; a tie is won by the first by name.
        policy: ``majority``, ``first`` (in source order), ``drop`` or ``unlabel``. Dropping is left to the caller.

    Returns:
        ``[R]`` labels, and the runs whose copies contradict each other.
    """
    run = np.repeat(np.arange(len(copies.starts)), copies.counts)
    label = labels[copies.order]
    run, label = run[label != UNLABELLED], label[label != UNLABELLED]
    votes, first, count = np.unique(run * len(classes) + label, return_index=True, return_counts=True)
    voted, choice = np.divmod(votes, max(len(classes), 1))
    rank = np.argsort(np.argsort(np.array(classes, dtype=object), kind="stable")) if classes else choice
    best = np.lexsort((first, voted)) if policy == "first" else np.lexsort((rank[choice], -count, voted))
    runs, at = np.unique(voted[best], return_index=True)
    result = np.full(len(copies.starts), UNLABELLED, dtype=np.int32)
    result[runs] = choice[best][at]
    conflicts = np.flatnonzero(np.bincount(voted, minlength=len(copies.starts)) > 1)
    if policy == "unlabel":
        result[conflicts] = UNLABELLED
    return result, conflicts


def merge_texts(copies: Copies, column: pa.Array) -> pa.Array:
    """Return ``[R]``: the first text by name among copies of each input; null if all are null."""
    names, ranks = rank_texts(column)
    return take_ranked(names, copies.least(ranks))


def merge_times(copies: Copies, column: pa.Array) -> pa.Array:
    """Return ``[R]``: the earliest time among the copies of each input; null if all are null."""
    micros = column.cast(pa.int64()).fill_null(NULL).to_numpy(zero_copy_only=False)
    least = copies.least(micros)
    return pa.array(least, mask=least == NULL).cast(column.type)


def rank_texts(column: pa.Array) -> tuple[pa.Array, Index]:
    """Return distinct texts in order, and each row's rank (the largest int64 if null)."""
    encoded = column.dictionary_encode()
    order = pc.sort_indices(encoded.dictionary).to_numpy()
    rank = np.empty(len(order) + 1, dtype=np.int64)
    rank[order], rank[-1] = np.arange(len(order)), NULL
    indices = encoded.indices.fill_null(len(order)).to_numpy(zero_copy_only=False)
    return encoded.dictionary.take(pa.array(order)), rank[indices]


def take_ranked(names: pa.Array, ranks: Index) -> pa.Array:
    """Return texts of the given ranks; null for the rank of null."""
    absent = ranks == NULL
    return names.take(pa.array(np.where(absent, 0, ranks), mask=absent))
