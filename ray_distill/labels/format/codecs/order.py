"""Put entries into the order of their ranks for storage, and back into that of class ids."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ray_distill.errors import CorruptStore, LabelError
from ray_distill.labels.format.fitted_arrays import Fits
from ray_distill.labels.model.distributions import Distributions
from ray_distill.labels.model.ragged import Offsets

#: Above this many times the entries, padding positions to equal width costs more than a general sort.
_PADDING = 4

#: Entries that are put in order at once.
_BLOCK = 1 << 16

Order = npt.NDArray[np.int64]
Columns = Sequence[npt.NDArray[Any] | None]


def rank_order(fits: Fits, classes: int, error: type[LabelError]) -> npt.NDArray[np.int32] | None:
    """Return the fitted order, rank to class id; None where rank and id are equal.

    Raises:
        LabelError: of the kind ``error``: it does not name each class once.
    """
    order = fits.get("ids")
    if order is None:
        return None
    seen = np.zeros(classes, dtype=np.bool_)
    if order.shape == (classes,) and order.dtype == np.int32 and order.min() >= 0 and order.max() < classes:
        seen[order] = True
    if not seen.all():
        raise error(
            f"the fitted array ids has {order.dtype} {list(order.shape)}, expected int32 [{classes}] that "
            "names each class once; restore the store's fits folder"
        )
    return order


def by_rank(distributions: Distributions, order: npt.NDArray[np.int32] | None) -> tuple[Order | slice, Order]:
    """Return where the entries go, and their gaps.

    A gap is the ranks' distance less 1; the first is the rank itself.

    Raises:
        LabelError: ids are not distinct and within 0..V-1.
    """
    offsets, ids = distributions.entry_offsets, distributions.ids
    if len(ids) and not (ids.min() >= 0 and ids.max() < distributions.classes):
        raise LabelError(f"class ids must be 0..{distributions.classes - 1}, found {ids.min()}..{ids.max()}")
    places: Order | slice = slice(None)
    ranks = ids.astype(np.int64)
    if order is not None:
        inverse = np.empty(len(order), dtype=np.int64)
        inverse[order] = np.arange(len(order))
        ranks = inverse[ids]
        places = sorted_places(ranks, offsets, distributions.classes)
        ranks = ranks[places]
    steps = np.diff(ranks, prepend=-1) - 1
    first = offsets[:-1][np.diff(offsets) > 0]
    steps[first] = ranks[first]
    if len(steps) and steps.min() < 0:
        raise LabelError("class ids must be distinct and ascending within a position")
    return places, steps


def by_class(
    steps: Order, offsets: Offsets, order: npt.NDArray[np.int32] | None, *, classes: int, columns: Columns
) -> tuple[npt.NDArray[np.int32], list[Any]]:
    """Return class ids, ascending within a position, and the columns in that order.

    Raises:
        CorruptStore: a rank is outside 0..V-1.
    """
    ids = np.empty(len(steps), dtype=np.int32)
    moved = [None if column is None or order is None else np.empty_like(column) for column in columns]
    for first, last in _blocks(offsets):
        at = slice(offsets[first], offsets[last])
        own = offsets[first : last + 1] - offsets[first]
        ranks = _ranks(steps[at], own, classes)
        if order is None:
            ids[at] = ranks
            continue
        found = order[ranks]
        places = sorted_places(found, own, classes)
        ids[at] = found[places]
        for old, new in zip(columns, moved, strict=True):
            if old is not None and new is not None:
                new[at] = old[at][places]
    return ids, list(columns) if order is None else moved


def _blocks(offsets: Offsets) -> Iterator[tuple[int, int]]:
    """Yield ranges of positions with about `_BLOCK` entries, which stay in a core's cache."""
    positions = len(offsets) - 1
    step = max(1, int(_BLOCK * positions // max(int(offsets[-1]), 1)))
    for first in range(0, positions, step):
        yield first, min(first + step, positions)


def _ranks(steps: Order, offsets: Offsets, classes: int) -> Order:
    sums = np.cumsum(steps + 1)
    before = np.append(0, sums)[offsets[:-1]]
    ranks: Order = sums - np.repeat(before + 1, np.diff(offsets))
    if len(ranks) and not (ranks.min() >= 0 and ranks.max() < classes):
        raise CorruptStore(f"column ids: found rank {ranks.min()}..{ranks.max()}, expected 0..{classes - 1}")
    return ranks


def sorted_places(values: npt.NDArray[Any], offsets: Offsets, limit: int) -> Order:
    """Return the entries' places by ascending ``values`` (0..limit-1) within each position."""
    if not len(values):
        return np.zeros(0, dtype=np.int64)
    counts = np.diff(offsets)
    width = int(counts.max())
    if len(counts) * width > _PADDING * len(values) + 65536:
        return np.lexsort((values, np.repeat(np.arange(len(counts)), counts)))
    bits = max(width - 1, 1).bit_length()
    # A key is the value and the place within its position; half as wide keys sort twice as fast.
    kind: Any = np.uint32 if limit.bit_length() + bits < 32 else np.uint64
    within = np.arange(width, dtype=kind)
    places: Order
    if len(counts) * width == len(values):
        keys = values.reshape(-1, width).astype(kind) << kind(bits) | within
        keys.sort(axis=1)
        places = ((keys & kind((1 << bits) - 1)).astype(np.int64) + offsets[:-1, None]).reshape(-1)
        return places
    filled = within < counts[:, None]
    keys = np.full((len(counts), width), np.iinfo(kind).max, dtype=kind)
    keys[filled] = values.astype(kind) << kind(bits) | np.broadcast_to(within, filled.shape)[filled]
    keys.sort(axis=1)
    places = ((keys & kind((1 << bits) - 1)).astype(np.int64) + offsets[:-1, None])[filled]
    return places
