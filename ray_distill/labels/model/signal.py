"""A teacher's answer as plain numpy: named, aligned columns over rows, positions and entries.

Both levels are ragged: a row has positions (one for a classifier, one a token for a language model) and a
position has entries (the classes that are stored). Rows are aligned with the row ids they were asked for.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

Family = Literal["categorical", "bernoulli"]
Array = npt.NDArray[np.generic]


@dataclass(frozen=True, kw_only=True)
class Draws:
    """How entries were drawn, where an estimator draws them (``sampled``, ``hybrid``; MATHS.md §1).

    The proposal is ``r_j = p_j^exponent / Z`` at T = 1, over all classes (``sampled``) or over those outside the exact
    head (``hybrid``). An entry with count c has the target ``c · p_T(j) / (number · r_j)``.
    """

    number: int
    """N: draws a position."""
    exponent: float
    """a: 1 draws from the teacher itself."""
    count: npt.NDArray[np.int32]
    """``[E]``: how often an entry was drawn; 0 marks an entry of the exact head (``hybrid``)."""
    log_normaliser: npt.NDArray[np.float32]
    """``[P]``: log Z. 0 for ``sampled`` at a = 1; the head's log tail mass for ``hybrid`` at a = 1."""


@dataclass(frozen=True, kw_only=True)
class Distributions:
    """Distributions over classes, dense, truncated or sampled (MATHS.md §1-3).

    R rows, P positions, E entries, T declared temperatures. ``logp`` are the teacher's log-probabilities at
    temperature 1 under the *full* distribution; they are never renormalised over the stored classes.
    """

    family: Family = "categorical"
    classes: int
    """Size of the full class set, V."""
    temperatures: tuple[float, ...]
    """Declared temperatures; column t of ``log_tail`` belongs to ``temperatures[t]``."""
    row_offsets: npt.NDArray[np.int64]
    """``[R+1]``: row r owns positions ``row_offsets[r]:row_offsets[r+1]``."""
    position: npt.NDArray[np.int32]
    """``[P]``: where in its row (token, frame, query)."""
    entry_offsets: npt.NDArray[np.int64]
    """``[P+1]``: position p owns entries ``entry_offsets[p]:entry_offsets[p+1]``."""
    ids: npt.NDArray[np.int32]
    """``[E]``: class ids, ascending within a position."""
    logp: npt.NDArray[np.float32]
    """``[E]``: natural log-probabilities at T = 1."""
    log_tail: npt.NDArray[np.float32]
    """``[P, T]``: log of the mass outside the stored classes at each T; -inf where nothing is outside."""
    entropy: npt.NDArray[np.float32]
    """``[P]``: entropy of the full distribution at T = 1, nats; NaN at all positions where a teacher cannot give it."""
    draws: Draws | None = None
    """Of sampled entries; None where every stored class is exact."""

    def __post_init__(self) -> None:
        positions, entries = len(self.position), len(self.ids)
        assert self.row_offsets[0] == 0 and self.row_offsets[-1] == positions
        assert self.entry_offsets[0] == 0 and self.entry_offsets[-1] == entries
        assert len(self.entry_offsets) == positions + 1 and len(self.logp) == entries
        assert self.log_tail.shape == (positions, len(self.temperatures)) and len(self.entropy) == positions
        assert self.draws is None or (len(self.draws.count) == entries and len(self.draws.log_normaliser) == positions)

    @property
    def rows(self) -> int:
        """Number of rows, R."""
        return len(self.row_offsets) - 1

    @property
    def drawn(self) -> bool:
        """Whether the entries were drawn."""
        return self.draws is not None

    @property
    def width(self) -> int:
        """Entries of every position; 0 where they differ."""
        positions = len(self.position)
        width = int(self.entry_offsets[-1]) // max(positions, 1)
        return width if np.array_equal(self.entry_offsets, np.arange(positions + 1) * width) else 0

    def take(self, rows: Sequence[int] | npt.NDArray[np.int64]) -> "Distributions":
        """Return the given rows, in the given order."""
        index = np.asarray(rows, dtype=np.int64)
        row_offsets, positions = gather_ranges(self.row_offsets, index)
        width = self.width
        if width:  # whole lines of a matrix: no index of every entry
            entry_offsets = np.arange(len(positions) + 1, dtype=np.int64) * width
        else:
            entry_offsets, entries = gather_ranges(self.entry_offsets, positions)

        def taken(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
            return values.reshape(-1, width).take(positions, axis=0).reshape(-1) if width else values.take(entries)

        return Distributions(
            family=self.family,
            classes=self.classes,
            temperatures=self.temperatures,
            row_offsets=row_offsets,
            position=self.position[positions],
            entry_offsets=entry_offsets,
            ids=taken(self.ids),
            logp=taken(self.logp),
            log_tail=self.log_tail[positions],
            entropy=self.entropy[positions],
            draws=None
            if self.draws is None
            else replace(
                self.draws, count=taken(self.draws.count), log_normaliser=self.draws.log_normaliser[positions]
            ),
        )


@dataclass(frozen=True, kw_only=True)
class Hidden:
    """Hidden states of one layer: ``values[offsets[r]:offsets[r+1]]`` are row r's vectors.

    Pooled states have one vector a row, per-token states one a token.
    """

    offsets: npt.NDArray[np.int64]
    """``[R+1]``"""
    values: npt.NDArray[np.float32]
    """``[N, D]``"""

    @property
    def rows(self) -> int:
        """Number of rows, R."""
        return len(self.offsets) - 1

    def take(self, rows: Sequence[int] | npt.NDArray[np.int64]) -> "Hidden":
        """Return the given rows, in the given order."""
        offsets, positions = gather_ranges(self.offsets, np.asarray(rows, dtype=np.int64))
        return Hidden(offsets=offsets, values=self.values[positions])


@dataclass(frozen=True, kw_only=True)
class Signal:
    """Everything a teacher said about some rows; every part has the same rows in the same order."""

    distributions: Distributions | None = None
    hidden: Mapping[int, Hidden] = field(default_factory=dict)
    """By layer index, counted from 0 (the embeddings) as transformers' ``hidden_states`` does."""

    def take(self, rows: Sequence[int] | npt.NDArray[np.int64]) -> "Signal":
        """Return the given rows, in the given order."""
        return Signal(
            distributions=None if self.distributions is None else self.distributions.take(rows),
            hidden={layer: hidden.take(rows) for layer, hidden in self.hidden.items()},
        )


def gather_ranges(
    offsets: npt.NDArray[np.int64], index: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Offsets and flat indices of the ranges ``offsets[i]:offsets[i+1]`` for each i of ``index``, in order."""
    lengths = offsets[index + 1] - offsets[index]
    new_offsets = np.zeros(len(index) + 1, dtype=np.int64)
    np.cumsum(lengths, out=new_offsets[1:])
    flat = np.arange(new_offsets[-1], dtype=np.int64) + np.repeat(offsets[index] - new_offsets[:-1], lengths)
    return new_offsets, flat


def rectangular(values: npt.NDArray[np.float32], width: int) -> npt.NDArray[np.float32]:
    """View flat entries of equal width as ``[P, width]`` without a copy."""
    return values.reshape(-1, width)
