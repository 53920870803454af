"""Join rows of several distributions; entries are copied only when rows are taken."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from ray_distill.labels.model.distributions import Distributions, column_of, columns_of, require_same_kind
from ray_distill.labels.model.ragged import running

Index = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class DistributionParts:
    """R rows of ``parts``, in any order.

    It is read as `Distributions` are, but has no entries of its own: a document's are tens of kilobytes, so every copy
    counts, and `take` makes the only one.
    """

    parts: tuple[Distributions, ...]
    part: Index
    """``[R]``: which of them a row is of."""
    row: Index
    """``[R]``: its row there."""

    @classmethod
    def of(cls, found: "Distributions | DistributionParts") -> "DistributionParts":
        """Wrap all rows of some distributions."""
        if isinstance(found, DistributionParts):
            return found
        return cls(parts=(found,), part=np.zeros(found.rows, np.int64), row=np.arange(found.rows, dtype=np.int64))

    @classmethod
    def join(cls, several: Sequence["Distributions | DistributionParts"]) -> "DistributionParts":
        """Join all rows of several, one after the other; those without rows are left out.

        Raises:
            LabelError: they have different classes, temperatures or draws.
        """
        every = [cls.of(found) for found in several if found.rows] or [cls.of(several[0])]
        parts = tuple(part for found in every for part in found.parts)
        require_same_kind(parts)
        bases = running(np.array([len(found.parts) for found in every]))
        return cls(
            parts=parts,
            row=np.concatenate([found.row for found in every]),
            part=np.concatenate([found.part + base for found, base in zip(every, bases, strict=False)]),
        )

    @property
    def rows(self) -> int:
        """Number of rows, R."""
        return len(self.row)

    @property
    def temperatures(self) -> tuple[float, ...]:
        """See `Distributions`."""
        return self.parts[0].temperatures

    @property
    def drawn(self) -> bool:
        """Return whether the entries were drawn."""
        return self.parts[0].drawn

    @cached_property
    def row_offsets(self) -> Index:
        """See `Distributions`."""
        return running(np.array([own.stop - own.start for _, own in self._positions(np.arange(self.rows))], np.int64))

    @cached_property
    def log_tail(self) -> npt.NDArray[np.float32]:
        """See `Distributions`."""
        return self._whole("log_tail")

    @cached_property
    def entropy(self) -> npt.NDArray[np.float32]:
        """See `Distributions`."""
        return self._whole("entropy")

    def take(self, rows: Sequence[int] | Index) -> Distributions:
        """Return the given rows, in the given order; see `Distributions.take`."""
        index = np.asarray(rows, dtype=np.int64)
        if not len(index):
            return self.parts[0].take(index)
        positions = self._positions(index)
        ends = [(part, part.entry_offsets[own.start : own.stop + 1]) for part, own in positions]
        entries = [(part, slice(int(own[0]), int(own[-1]))) for part, own in ends]
        return columns_of(
            self.parts[0],
            row_offsets=running(np.array([own.stop - own.start for _, own in positions], np.int64)),
            entry_offsets=running(np.concatenate([own[1:] - own[:-1] for _, own in ends])),
            positions=lambda name: _column(name, positions),
            entries=lambda name: _column(name, entries),
        )

    def _positions(self, index: Index) -> list[tuple[Distributions, slice]]:
        """Return for each row the part that it belongs to, and its positions there."""
        found = []
        for number, row in zip(self.part[index].tolist(), self.row[index].tolist(), strict=True):
            part = self.parts[number]
            found.append((part, slice(int(part.row_offsets[row]), int(part.row_offsets[row + 1]))))
        return found

    def _whole(self, name: str) -> npt.NDArray[Any]:
        """Return a column of positions, of all rows."""
        slices = self._positions(np.arange(self.rows))
        return _column(name, slices) if slices else getattr(self.parts[0], name)[:0]


def _column(name: str, slices: Sequence[tuple[Distributions, slice]]) -> npt.NDArray[Any]:
    return np.concatenate([column_of(part, name)[own] for part, own in slices])
