"""Compute 95 % intervals of all measures, and paired differences.

Proportions have Wilson's interval, everything else the bootstrap's.

Conventions, which every number here follows:

- An example weighs its ``count``. Splits draw distinct inputs, not requests, so the *row* is the sampling unit:
  intervals resample rows, and ``n`` is a number of rows.
- Intervals of means that are proportions (accuracy, agreement) are Wilson's at Kish's effective size
  ``(Σw)²/Σw²``, since a bootstrap of all-correct rows would claim certainty; their paired differences are
  Bonett and Price's (2012) adjusted Wald at the same size. The rest are bootstrapped percentiles,
  shifted so that the resamples centre on the estimate (a resampled ECE is biased upwards by its noise).
- A calibration error is raised by noise in the estimate itself, by more the better a model is calibrated. Its interval
  extends below by the most that this can be; that of a difference by the first model's below, by the second's above.
- Fewer than two rows give values without intervals, and so do values that are not finite.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ray_distill.artifacts import Estimate
from ray_distill.config import Campaign

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

#: Numbers in memory at once while resampling.
CHUNK_ELEMENTS = 4_000_000
Z95 = 1.959963984540054


@dataclass(frozen=True, kw_only=True)
class Resampling:
    """How estimates and their intervals are made: as in the evaluation config."""

    seed: int
    """Seed of the resampling: equal seeds draw equal rows for every model."""
    bootstrap: int
    """Number of resamples."""
    bins: int = 15
    """Equal-width bins of confidence in the calibration error."""

    @classmethod
    def of(cls, config: Campaign) -> Self:
        """Return a campaign's settings."""
        settings = config.evaluation
        return cls(seed=config.seed, bootstrap=settings.bootstrap, bins=settings.bins)


class Measure(Protocol):
    """A family's measures: `JudgeFacet.measure`."""

    def __call__(self, answers: pa.Table, how: Resampling) -> dict[str, Estimate]:
        """Return the metrics of one model's answers by name."""


class Compare(Protocol):
    """A family's paired differences: `JudgeFacet.compare`."""

    def __call__(self, student: pa.Table, other: pa.Table, how: Resampling) -> dict[str, Estimate]:
        """Return the student's metrics less another model's, on the same rows, by name."""


#: Metrics of B weightings ``[B, N]`` of the same N rows: ``[B]`` by name.
Weighted = Callable[[Floats], dict[str, Floats]]


def wilson(proportion: float, weight_N: Floats) -> Estimate:
    """Return Wilson's score interval of a weighted proportion, at Kish's effective size."""
    n, size = len(weight_N), effective_size(weight_N)
    if n < 2:
        return Estimate(value=proportion, n=n)
    centre = (proportion + Z95**2 / (2 * size)) / (1 + Z95**2 / size)
    half = Z95 * math.sqrt(proportion * (1 - proportion) / size + Z95**2 / (4 * size**2)) / (1 + Z95**2 / size)
    return _bracketed(proportion, centre - half, centre + half, n, low=0.0, high=1.0)


def paired_proportions(first_N: Floats, second_N: Floats, weight_N: Floats) -> Estimate:
    """Return the difference of two weighted proportions on the same rows, first minus second.

    The interval is that of Bonett and Price (2012).

    Args:
        first_N: 1 where the first model is right, else 0.
        second_N: the same of the second model.
        weight_N: weights of the rows.
    """
    n, size, total = len(weight_N), effective_size(weight_N), weight_N.sum()
    gain = float((weight_N * first_N * (1 - second_N)).sum() / total)
    loss = float((weight_N * second_N * (1 - first_N)).sum() / total)
    if n < 2:
        return Estimate(value=gain - loss, n=n)
    up, down = (size * gain + 1) / (size + 2), (size * loss + 1) / (size + 2)
    half = Z95 * math.sqrt((up + down - (up - down) ** 2) / (size + 2))
    return _bracketed(gain - loss, up - down - half, up - down + half, n, low=-1.0, high=1.0)


def effective_size(weight_N: Floats) -> float:
    """Return Kish's effective number of equally weighted rows, ``(Σw)²/Σw²``."""
    return float(weight_N.sum() ** 2 / (weight_N**2).sum())


def resample(models: Sequence[Weighted], weight_N: Floats, how: Resampling, *, widest: int) -> list[dict[str, Floats]]:
    """Return the metrics of every resample of the rows, ``[B]`` by name.

    Every model sees the same resamples.

    Args:
        models: the metrics of each model as a function of the rows' weights.
        weight_N: weights of the rows.
        how: seed and number of resamples.
        widest: as `resampled_weights`.
    """
    parts: list[list[dict[str, Floats]]] = [[] for _ in models]
    for weight_BN in resampled_weights(weight_N, how, widest=widest):
        for part, metrics in zip(parts, models, strict=True):
            part.append(metrics(weight_BN))
    return [{name: np.concatenate([item[name] for item in part]) for name in part[0]} for part in parts]


def resampled_weights(weight_N: Floats, how: Resampling, *, widest: int) -> Iterator[Floats]:
    """Yield weights of resamples of N rows, ``[B, N]`` a piece.

    A weight is the number of times that a row was drawn, times its own weight.

    ``widest`` is the number of values a resample is reduced to, which bounds a piece's size as N does.
    """
    n, generator = len(weight_N), np.random.default_rng(how.seed)
    chunk = max(1, CHUNK_ELEMENTS // max(n, widest))
    for start in range(0, how.bootstrap, chunk):
        size = min(chunk, how.bootstrap - start)
        drawn = generator.integers(n, size=(size, n)) + np.arange(size)[:, None] * n
        yield np.bincount(drawn.ravel(), minlength=size * n).reshape(size, n) * weight_N


def percentiles(
    value: float, samples_B: Floats, n: int, *, low: float, high: float, raised: float = 0.0, lowered: float = 0.0
) -> Estimate:
    """Return a bootstrap interval shifted so that the resamples centre on the value.

    None if a resample has no value.

    Args:
        value: the estimate on all rows.
        samples_B: ``[B]``, the same of the resamples.
        n: rows.
        low: least possible value.
        high: greatest possible value.
        raised: by how much noise may have raised the value; the interval extends below by it.
        lowered: by how much noise may have lowered it; the interval extends above by it.
    """
    if n < 2 or not math.isfinite(value) or not np.isfinite(samples_B).all():
        return Estimate(value=value, n=n)
    lower, upper = np.quantile(samples_B, (0.025, 0.975)) - samples_B.mean() + value
    return _bracketed(value, float(lower) - raised, float(upper) + lowered, n, low=low, high=high)


def noise_of_gaps(value: float, samples_B: Floats) -> float:
    """Return by how much noise has raised a sum of absolute gaps, at most.

    The mean of |gap| exceeds the true |gap| by ``s √(2/π)`` where the true gap is 0 and its standard error ``s``,
    elsewhere by less. Resampling adds the same noise once more: it raises the mean from ``s √(2/π)`` to
    ``√2 s √(2/π)``. The increase, times ``1 / (√2 - 1) = 1 + √2``, is the bias where all true gaps are 0, and more than
    the bias elsewhere.
    """
    return (1 + math.sqrt(2)) * max(0.0, float(samples_B.mean()) - value)


def _bracketed(value: float, lower: float, upper: float, n: int, *, low: float, high: float) -> Estimate:
    """Return an estimate whose interval is within the possible values and contains the value."""
    return Estimate(value=value, low=max(low, min(lower, value)), high=min(high, max(upper, value)), n=n)
