"""Take, join and count rows of unequal length in one flat array, without a loop over rows."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
import numpy.typing as npt

Offsets = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class RaggedArray:
    """Values of many rows: row r owns ``values[offsets[r]:offsets[r+1]]``."""

    values: npt.NDArray[Any]
    """``[N, *inner]``; the inner shape is the same for all rows."""
    offsets: Offsets
    """``[R+1]``"""
    pad: int = 0
    """Fills short rows when rows are made equally long."""

    @property
    def rows(self) -> int:
        """Number of rows, R."""
        return len(self.offsets) - 1

    def take(self, rows: Sequence[int] | Offsets) -> Self:
        """Return the given rows, in the given order."""
        offsets, flat = gather_ranges(self.offsets, np.asarray(rows, dtype=np.int64))
        return replace(self, offsets=offsets, values=self.values[flat])

    @classmethod
    def concat(cls, parts: Sequence[Self]) -> Self:
        """Concatenate the rows of several; parts without values may have another inner shape."""
        filled = [part.values for part in parts if len(part.values)]
        values = np.concatenate(filled) if filled else parts[0].values
        return replace(parts[0], offsets=join_offsets([part.offsets for part in parts]), values=values)


def gather_ranges(offsets: Offsets, index: Offsets) -> tuple[Offsets, Offsets]:
    """Return offsets and flat indices of the ranges ``offsets[i]:offsets[i+1]``.

    The ranges are those of each i of ``index``, in order.
    """
    lengths = offsets[index + 1] - offsets[index]
    new_offsets = running(lengths)
    flat = np.arange(new_offsets[-1], dtype=np.int64) + np.repeat(offsets[index] - new_offsets[:-1], lengths)
    return new_offsets, flat


def join_offsets(parts: Sequence[Offsets]) -> Offsets:
    """Return the offsets of several ragged arrays' rows, one after the other."""
    return running(np.concatenate([np.diff(offsets) for offsets in parts]))


def running(counts: npt.NDArray[Any]) -> Offsets:
    """Return offsets from counts: ``[n+1]``, starting at 0."""
    offsets = np.zeros(len(counts) + 1, dtype=np.int64)
    np.cumsum(counts, out=offsets[1:])
    return offsets


def owner(offsets: Offsets) -> Offsets:
    """Return, for each item, which range of ``offsets`` it belongs to."""
    return np.repeat(np.arange(len(offsets) - 1, dtype=np.int64), np.diff(offsets))
