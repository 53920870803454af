"""Distributions over classes as plain numpy: named columns over rows, positions and entries."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, cast

import numpy as np
import numpy.typing as npt

from ray_distill.errors import LabelError
from ray_distill.labels.model.columns import Columns, constant, flat, lists, shared
from ray_distill.labels.model.ragged import Offsets, gather_ranges, join_offsets, owner, running

Family = Literal["categorical", "bernoulli"]
Floats = npt.NDArray[np.float32]

#: How far the stored mass and the tail's may sum from 1.
MASS_TOLERANCE = 1e-3


@dataclass(frozen=True, kw_only=True)
class Draws:
    """How an estimator drew entries (``sampled``, ``hybrid``; MATHS.md §1).

    The proposal is ``r_j = p_j^exponent / Z`` at T = 1, over all classes (``sampled``) or over those outside the exact
    head (``hybrid``). An entry with count c has the target ``c · p_T(j) / (number · r_j)``.
    """

    number: int
    """N: draws a position."""
    exponent: float
    """a: 1 draws from the teacher itself."""
    count: npt.NDArray[np.int32]
    """``[E]``: how often an entry was drawn; 0 marks an entry of the exact head (``hybrid``)."""
    log_normaliser: Floats
    """``[P]``: log Z. 0 for ``sampled`` at a = 1; the head's log tail mass for ``hybrid`` at a = 1."""


@dataclass(frozen=True, kw_only=True)
class Distributions:
    """Distributions over classes, or independent sigmoids of all classes.

    Distributions are dense, truncated or sampled (MATHS.md §1-3).

    R rows, P positions, E entries, T declared temperatures. ``logp`` are the teacher's log-probabilities at
    temperature 1 under the *full* distribution; they are never renormalised over the stored classes.
    """

    family: Family = "categorical"
    """``bernoulli``: every class is a yes or no of its own, so masses do not sum to 1 and nothing is in the tail."""
    classes: int
    """Size of the full class set, V."""
    temperatures: tuple[float, ...]
    """Declared temperatures; column t of ``log_tail`` belongs to ``temperatures[t]``."""
    row_offsets: Offsets
    """``[R+1]``: row r owns positions ``row_offsets[r]:row_offsets[r+1]``."""
    position: npt.NDArray[np.int32]
    """``[P]``: where in its row (token, frame, query)."""
    entry_offsets: Offsets
    """``[P+1]``: position p owns entries ``entry_offsets[p]:entry_offsets[p+1]``."""
    ids: npt.NDArray[np.int32]
    """``[E]``: class ids, ascending within a position."""
    logp: Floats
    """``[E]``: natural log-probabilities at T = 1."""
    log_tail: Floats
    """``[P, T]``: log of the mass outside the stored classes at each T; -inf where nothing is outside."""
    entropy: Floats
    """``[P]``: entropy of the full distribution at T = 1, nats; NaN at all positions where a teacher cannot give it."""
    log_odds: Floats | None = None
    """``[E]``: z of ``bernoulli`` classes, else None. It is all that a yes or no needs: the probability at any T is
    σ(z/T) and its complement σ(−z/T), both exact however certain the teacher is."""
    draws: Draws | None = None
    """How entries were sampled; None where every stored class is exact."""

    def __post_init__(self) -> None:
        positions, entries = len(self.position), len(self.ids)
        assert self.row_offsets[0] == 0 and self.row_offsets[-1] == positions
        assert self.entry_offsets[0] == 0 and self.entry_offsets[-1] == entries
        assert len(self.entry_offsets) == positions + 1 and len(self.logp) == entries
        assert self.log_tail.shape == (positions, len(self.temperatures)) and len(self.entropy) == positions
        assert self.draws is None or (len(self.draws.count) == entries and len(self.draws.log_normaliser) == positions)
        assert (self.log_odds is not None) == (self.family == "bernoulli")
        assert self.log_odds is None or (len(self.log_odds) == entries and self.draws is None)

    @property
    def rows(self) -> int:
        """Number of rows, R."""
        return len(self.row_offsets) - 1

    @property
    def drawn(self) -> bool:
        """Return whether the entries were drawn."""
        return self.draws is not None

    @property
    def width(self) -> int:
        """Entries of every position; 0 where they differ."""
        positions = len(self.position)
        width = int(self.entry_offsets[-1]) // max(positions, 1)
        return width if np.array_equal(self.entry_offsets, np.arange(positions + 1) * width) else 0

    def take(self, rows: Sequence[int] | Offsets) -> "Distributions":
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

        return columns_of(
            self,
            row_offsets=row_offsets,
            entry_offsets=entry_offsets,
            positions=lambda name: column_of(self, name)[positions],
            entries=lambda name: taken(column_of(self, name)),
        )

    @classmethod
    def concat(cls, parts: Sequence["Distributions"]) -> "Distributions":
        """Return the rows of several, one after the other.

        Raises:
            LabelError: they have different classes, temperatures or draws.
        """
        require_same_kind(parts)

        def joined(name: str) -> npt.NDArray[Any]:
            return np.concatenate([column_of(part, name) for part in parts])

        return columns_of(
            parts[0],
            row_offsets=join_offsets([part.row_offsets for part in parts]),
            entry_offsets=join_offsets([part.entry_offsets for part in parts]),
            positions=joined,
            entries=joined,
        )

    def to_columns(self, extra: int = 0) -> Columns:
        """Return lists of numbers and constants, one a row, and ``extra`` rows without positions.

        ``family``, ``classes``, ``temperatures`` [T]; ``position``, ``entries``, ``entropy`` [P], ``log_tail`` [P·T];
        ``ids``, ``logp`` [E]; ``log_odds`` [E] of bernoulli classes; of draws ``draws``, ``exponent``, ``count`` [E]
        and ``log_normaliser`` [P].
        """
        rows, count, width = self.row_offsets, self.rows + extra, len(self.temperatures)
        entries = self.entry_offsets[rows]
        temperatures = np.tile(np.asarray(self.temperatures, dtype=np.float64), count)
        columns = {
            "family": constant(self.family, count),
            "classes": constant(self.classes, count),
            "temperatures": lists(temperatures, np.arange(count + 1, dtype=np.int64) * width),
            "position": lists(self.position.astype(np.int32), rows, extra),
            "entries": lists(np.diff(self.entry_offsets).astype(np.int32), rows, extra),
            "ids": lists(self.ids.astype(np.int32), entries, extra),
            "logp": lists(self.logp.astype(np.float32), entries, extra),
            "log_tail": lists(self.log_tail.astype(np.float32).reshape(-1), rows * width, extra),
            "entropy": lists(self.entropy.astype(np.float32), rows, extra),
        }
        if self.log_odds is not None:
            columns["log_odds"] = lists(self.log_odds.astype(np.float32), entries, extra)
        if self.draws is not None:
            columns |= {
                "draws": constant(self.draws.number, count),
                "exponent": constant(float(self.draws.exponent), count),
                "count": lists(self.draws.count.astype(np.int32), entries, extra),
                "log_normaliser": lists(self.draws.log_normaliser.astype(np.float32), rows, extra),
            }
        return columns

    @classmethod
    def from_columns(cls, columns: Columns) -> "Distributions":
        """Rebuild from `to_columns`' form."""
        position, rows = flat(columns, "position", np.int32)
        log_tail, _ = flat(columns, "log_tail", np.float32)
        temperatures = tuple(shared(columns, "temperatures", []))
        return cls(
            family=cast(Family, shared(columns, "family", "bernoulli" if "log_odds" in columns else "categorical")),
            classes=int(shared(columns, "classes", 0)),
            temperatures=temperatures,
            row_offsets=rows,
            position=position,
            entry_offsets=running(flat(columns, "entries", np.int32)[0]),
            ids=flat(columns, "ids", np.int32)[0],
            logp=flat(columns, "logp", np.float32)[0],
            log_tail=log_tail.reshape(len(position), len(temperatures)),
            entropy=flat(columns, "entropy", np.float32)[0],
            log_odds=flat(columns, "log_odds", np.float32)[0] if "log_odds" in columns else None,
            draws=_draws(columns) if "draws" in columns else None,
        )

    def invalid_rows(self) -> list[tuple[npt.NDArray[np.int64], str]]:
        """Return the rows that cannot be stored, with the reason."""
        entry_position = owner(self.entry_offsets)
        position_row = owner(self.row_offsets)
        # -inf is a probability of 0 (a masked class, an empty tail) and fine; NaN and +inf are not.
        entry_bad = np.isnan(self.logp) | (self.logp == np.inf)
        if self.log_odds is not None:
            entry_bad |= np.isnan(self.log_odds)
        tail_bad = np.isnan(self.log_tail) | (self.log_tail == np.inf)
        # A teacher that cannot give entropies gives none at all; one that is missing among others is a broken answer.
        entropy_bad = ~np.isfinite(self.entropy) & ~np.isnan(self.entropy).all()
        not_finite = tail_bad.any(axis=1) | entropy_bad
        not_finite[entry_position[entry_bad]] = True
        off = np.abs(mass(self) - 1) > MASS_TOLERANCE
        return [
            (np.unique(position_row[not_finite]), "distribution is NaN or infinite"),
            (np.unique(position_row[off & ~not_finite]), "probabilities do not sum to 1"),
        ]


def bernoulli(
    log_odds_PV: npt.NDArray[np.floating[Any]],
    *,
    row_offsets: Offsets,
    position: npt.NDArray[np.int32] | None = None,
    temperatures: tuple[float, ...] = (1.0,),
) -> Distributions:
    """Return independent sigmoids of V classes at each position, from the teacher's logits.

    Args:
        log_odds_PV: z; ±infinity is certainty.
        row_offsets: ``[R+1]``, as in `Distributions`.
        position: ``[P]``; counted from 0 in each row by default.
        temperatures: declared ones.
    """
    positions, classes = log_odds_PV.shape
    if position is None:
        position = (np.arange(positions) - np.repeat(row_offsets[:-1], np.diff(row_offsets))).astype(np.int32)
    z = log_odds_PV.reshape(-1).astype(np.float64)
    return Distributions(
        family="bernoulli",
        classes=classes,
        temperatures=temperatures,
        row_offsets=row_offsets,
        position=position,
        entry_offsets=np.arange(positions + 1, dtype=np.int64) * classes,
        ids=np.tile(np.arange(classes, dtype=np.int32), positions),
        logp=log_sigmoid(z).astype(np.float32),
        log_tail=np.full((positions, len(temperatures)), -np.inf, dtype=np.float32),
        entropy=binary_entropy(z).reshape(positions, classes).sum(axis=1).astype(np.float32),
        log_odds=z.astype(np.float32),
    )


def log_sigmoid(log_odds: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Return ``log σ(z)``, exact in both tails."""
    with np.errstate(invalid="ignore"):
        found: npt.NDArray[np.float64] = -np.logaddexp(0.0, -np.asarray(log_odds, dtype=np.float64))
    return found


def binary_entropy(log_odds: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Return the entropy of a yes or no with these log-odds, nats; NaN where they are."""
    yes, no = log_sigmoid(log_odds), log_sigmoid(-np.asarray(log_odds, dtype=np.float64))
    with np.errstate(invalid="ignore"):
        terms = [np.where(np.isneginf(log), 0.0, np.exp(log) * log) for log in (yes, no)]
    return -(terms[0] + terms[1])


def mass(distributions: Distributions) -> npt.NDArray[np.float64]:
    """Return ``[P]``: stored mass plus tail at T = 1; 1 where the signal is sound.

    All 1 for Bernoulli classes.
    """
    positions = len(distributions.position)
    if distributions.family != "categorical":
        return np.ones(positions)
    position, p = owner(distributions.entry_offsets), np.exp(distributions.logp.astype(np.float64))
    stored = np.asarray(np.bincount(position, weights=p, minlength=positions), dtype=np.float64)
    tail = distributions.log_tail[:, distributions.temperatures.index(1.0)].astype(np.float64)
    total: npt.NDArray[np.float64] = stored + np.exp(tail)
    return total


def require_same_kind(parts: Sequence[Distributions]) -> None:
    """Refuse to join distributions of different classes, temperatures or draws.

    Raises:
        LabelError: names the kinds.
    """
    kinds = {(part.family, part.classes, part.temperatures, _kind(part.draws)) for part in parts}
    if len(kinds) > 1:
        raise LabelError(f"distributions of different kinds cannot be joined: {sorted(map(str, kinds))}")


def columns_of(
    first: Distributions,
    *,
    row_offsets: Offsets,
    entry_offsets: Offsets,
    positions: Callable[[str], npt.NDArray[Any]],
    entries: Callable[[str], npt.NDArray[Any]],
) -> Distributions:
    """Return distributions of the first one's kind, made column by column.

    Args:
        first: whose family, classes, temperatures and draws they have.
        row_offsets: of the rows' positions.
        entry_offsets: of the positions' entries.
        positions: the column of this name, a line a position: ``position, log_tail, entropy, log_normaliser``.
        entries: the column of this name, a number an entry: ``ids, logp, log_odds, count``.
    """
    return replace(
        first,
        row_offsets=row_offsets,
        entry_offsets=entry_offsets,
        position=positions("position"),
        log_tail=positions("log_tail"),
        entropy=positions("entropy"),
        ids=entries("ids"),
        logp=entries("logp"),
        log_odds=None if first.log_odds is None else entries("log_odds"),
        draws=None
        if first.draws is None
        else replace(first.draws, count=entries("count"), log_normaliser=positions("log_normaliser")),
    )


def column_of(part: Distributions, name: str) -> npt.NDArray[Any]:
    """Return a column by its name, those of draws included."""
    found: npt.NDArray[Any] = getattr(part.draws if name in ("count", "log_normaliser") else part, name)
    return found


def _kind(draws: Draws | None) -> tuple[int, float] | None:
    return None if draws is None else (draws.number, draws.exponent)


def _draws(columns: Columns) -> Draws:
    return Draws(
        number=int(shared(columns, "draws", 0)),
        exponent=float(shared(columns, "exponent", 1.0)),
        count=flat(columns, "count", np.int32)[0],
        log_normaliser=flat(columns, "log_normaliser", np.float32)[0],
    )
