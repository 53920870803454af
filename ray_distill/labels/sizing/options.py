"""Measure what each stored form loses, and recommend the smallest within a target; pure.

The measures are those of MATHS.md §1-3.

Measured on a probe's *wide* answer: every class where there are few, else the likeliest `WIDE` and the mass of the
rest, which with the stored entropy are enough for exact numbers at temperature 1.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from ray_distill.labels.model.distributions import Distributions

#: Classes of the wide answer where the teacher has more than `DENSE_UP_TO`.
WIDE, DENSE_UP_TO = 1024, 4096
#: Share of positions at the lower end of the retained mass.
LOW = 0.05

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Kept:
    """The mass that the k likeliest classes keep, and the nats lost with the others."""

    k: int
    mass: Mapping[str, float]
    """Mean mass, by temperature."""
    low: Mapping[str, float]
    """Mass that 95 % of the positions exceed, by temperature."""
    nats: float
    """Mean ``KL(p ‖ p̃)`` at T = 1, p̃ with the mass of the rest spread evenly over the other classes: all that is lost
    when nothing is known of the rest but its mass. An upper bound where the teacher gives no entropy."""


@dataclass(frozen=True, kw_only=True)
class Option:
    """A way to store a position."""

    estimator: str
    encoding: str
    k: int
    draws: int
    bytes_a_position: float
    """In a whole unit's shard, Parquet's overhead and row ids included."""
    nats: float
    """Expected loss at T = 1: the shape of the rest (0 where it is drawn) and the encoding's rounding."""
    noise: float
    """``E‖ŵ − p‖²`` of the drawn target; 0 where nothing is drawn."""
    total_bytes: int
    """Bytes of the run's labels."""


def is_full(wide: Distributions) -> bool:
    """Return whether a wide answer has every class."""
    return len(wide.ids) == len(wide.position) * wide.classes


def curve(wide: Distributions) -> tuple[Kept, ...]:
    """Measure the k likeliest classes at k = 1, 2, 4, … up to the classes of the wide answer."""
    found = _Sorted.of(wide)
    return tuple(found.kept(k) for k in ladder(found.logp.shape[1]))


def kept(wide: Distributions, k: int) -> Kept:
    """Measure what the k likeliest classes keep."""
    found = _Sorted.of(wide)
    return found.kept(min(k, found.logp.shape[1]))


def ladder(most: int) -> list[int]:
    """Return 1, 2, 4, … below ``most``, and ``most``."""
    return [2**power for power in range(most.bit_length()) if 2**power < most] + ([most] if most else [])


def smallest_k(wide: Distributions, target: float) -> int | None:
    """Return the fewest classes whose mean loss in nats is within ``target``.

    None if the wide answer has too few.
    """
    within = np.flatnonzero(_Sorted.of(wide).lost().mean(axis=0) <= target)
    return int(within[0]) + 1 if len(within) else None


def truncate(wide: Distributions, k: int) -> Distributions:
    """Return the ``topk`` answer that a wide one contains, with a teacher's tails (MATHS.md §3)."""
    found = _Sorted.of(wide)
    positions, width = found.logp.shape
    k = min(k, width)
    head = np.sort(found.order[:, :k], axis=1)  # entries stand by class id: the order within a position is theirs
    flat = (head + np.arange(positions)[:, None] * width).reshape(-1)
    with np.errstate(divide="ignore"):
        tails = np.stack([np.log(found.tail(column)[:, k - 1]) for column in range(len(wide.temperatures))], axis=1)
    return replace(
        wide,
        entry_offsets=np.arange(positions + 1, dtype=np.int64) * k,
        ids=wide.ids[flat],
        logp=wide.logp[flat],
        log_tail=tails.astype(np.float32),
    )


def noise_of_draws(wide: Distributions, k: int, draws: int) -> float:
    """Return ``E‖ŵ − p‖²`` of draws outside the k likeliest, an upper bound (MATHS.md §1).

    The draws are from the teacher itself.

    n draws from ``r = p/τ`` with ``ŵ = τ c/n`` have the variance ``Σ_tail (τ p − p²)/n``, at most ``τ²/n``.
    """
    found = _Sorted.of(wide)
    tail = np.ones(len(found.logp)) if k == 0 else found.tail(found.one)[:, min(k, found.logp.shape[1]) - 1]
    squares = np.square(np.exp(found.logp)).sum(axis=1) if k == 0 else 0.0
    return float(np.mean(np.square(tail) - squares) / max(draws, 1))


@dataclass(frozen=True, kw_only=True)
class _Sorted:
    """A wide answer as a rectangle, the likeliest class first."""

    wide: Distributions
    order: npt.NDArray[np.int64]
    """``[P, K]``: places in the position's entries."""
    logp: Floats
    """``[P, K]``, descending."""

    @classmethod
    def of(cls, wide: Distributions) -> "_Sorted":
        width = len(wide.ids) // max(len(wide.position), 1)
        assert len(wide.ids) == width * len(wide.position), "a wide answer has equally many entries at each position"
        logp = wide.logp.reshape(-1, width).astype(np.float64)
        order = np.argsort(-logp, axis=1, kind="stable")
        return cls(wide=wide, order=order, logp=np.take_along_axis(logp, order, axis=1))

    @property
    def one(self) -> int:
        """The column of temperature 1."""
        return self.wide.temperatures.index(1.0)

    def tail(self, column: int) -> Floats:
        """Return ``[P, K]``: mass at a temperature outside the first 1, 2, … classes.

        It is summed from its small end.
        """
        soft = self.logp / self.wide.temperatures[column]
        soft = np.exp(soft - soft[:, :1])
        outside = np.exp(self.wide.log_tail[:, column].astype(np.float64))
        inside = soft * ((1 - outside) / soft.sum(axis=1))[:, None]
        after = np.cumsum(inside[:, ::-1], axis=1)[:, ::-1]
        found: Floats = np.concatenate([after[:, 1:], np.zeros((len(after), 1))], axis=1) + outside[:, None]
        return found

    def lost(self) -> Floats:
        """Return ``[P, K]``: ``KL(p ‖ p̃)`` with the first 1, 2, … classes exact and the rest even.

        ``τ log((V − k)/τ) + Σ_tail p log p``; the last sum is −entropy less the head's part. Where the entropy is not
        known it is what makes the loss largest: the mass outside the wide answer, in classes as likely as its last one.
        """
        with np.errstate(invalid="ignore"):
            terms = np.where(self.logp > -np.inf, np.exp(self.logp) * self.logp, 0.0)
        tail = self.tail(self.one)
        if is_full(self.wide):
            rest = np.cumsum(terms[:, ::-1], axis=1)[:, ::-1] - terms
        else:
            rest = -self._entropy(terms)[:, None] - np.cumsum(terms, axis=1)
        others = self.wide.classes - np.arange(1, terms.shape[1] + 1, dtype=np.float64)
        with np.errstate(divide="ignore", invalid="ignore"):
            spread = np.where((tail > 0) & (others > 0), tail * (np.log(np.maximum(others, 1)) - np.log(tail)), 0.0)
        return np.where(others > 0, np.maximum(spread + rest, 0.0), 0.0)

    def _entropy(self, terms: Floats) -> Floats:
        """Return the given entropy ``[P]``, or the least possible one where none was given.

        Σ p log p is convex, so classes of a given total mass have the least entropy if they are as few and as likely as
        possible.
        """
        entropy = self.wide.entropy.astype(np.float64)
        outside = self.tail(self.one)[:, -1]
        with np.errstate(invalid="ignore"):
            least = -terms.sum(axis=1) - np.where(outside > 0, outside * self.logp[:, -1], 0.0)
        return np.where(np.isnan(entropy), least, entropy)

    def kept(self, k: int) -> Kept:
        """Measure as `kept`."""
        mass = {f"{at:g}": 1 - self.tail(column)[:, k - 1] for column, at in enumerate(self.wide.temperatures)}
        return Kept(
            k=k,
            mass={at: float(part.mean()) for at, part in mass.items()},
            low={at: float(np.quantile(part, LOW)) for at, part in mass.items()},
            nats=float(self.lost()[:, k - 1].mean()),
        )


def recommend(options: Sequence[Option], target: float) -> Option:
    """Recommend the form of fewest bytes within ``target``.

    Forms that draw are recommended only where no other is within it.

    Draws are unbiased but noisy. If nothing is within the target, the form that loses least.
    """
    within = [option for option in options if option.nats <= target]
    usable = [option for option in within if not option.draws] or within
    if not usable:
        return min(options, key=lambda option: option.nats)
    return min(usable, key=lambda option: (option.bytes_a_position, option.nats))


def ranks(values_ND: npt.NDArray[np.float32], shares: Sequence[float] = (0.95, 0.99)) -> dict[float, int]:
    """Return the principal components that keep each share of the variance of hidden states.

    None for fewer than two vectors.
    """
    if len(values_ND) < 2:
        return {}
    centred_ND = values_ND.astype(np.float64) - values_ND.mean(axis=0, dtype=np.float64)
    power = np.square(np.linalg.svd(centred_ND, compute_uv=False))
    kept = np.cumsum(power) / max(power.sum(), np.finfo(np.float64).tiny)
    return {share: min(int(np.searchsorted(kept, share)) + 1, len(kept)) for share in shares}
