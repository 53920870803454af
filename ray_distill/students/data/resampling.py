"""Weigh the rows of an epoch by count, and resample them by class, entropy or source."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ray_distill.config import SamplingConfig
from ray_distill.errors import ConfigError
from ray_distill.labels.model.ragged import RaggedArray
from ray_distill.students.data.examples import Examples
from ray_distill.students.order.cursor import Index

Weights = npt.NDArray[np.float64]

#: Rows whose counts are found at a time.
_CHUNK = 1 << 20
#: Factor by which a share is lowered before it is rounded up, so that rounding errors do not repeat a row once more.
_BELOW = 1 - 1e-9
#: Relative difference up to which weights are equal.
_EQUAL = 1e-6


@dataclass(frozen=True, kw_only=True)
class Shares:
    """The share of an epoch that each source's rows have."""

    starts: Index
    """``[M+1]`` number of each source's first row in the data."""
    weights: tuple[float, ...]
    """Weight of each source; a source without rows to train on has no share."""


@dataclass(frozen=True, kw_only=True)
class Occurrences:
    """The examples of an epoch."""

    rows: Index
    """Ascending; a row may be there several times."""
    weights: npt.NDArray[np.float32] | None
    """Weight of each element of ``rows``, 1 on average; None = all weigh the same."""


def occurrences(
    rows: Index, data: Examples, sampling: SamplingConfig | None, *, seed: int, shares: Shares | None = None
) -> Occurrences:
    """Return the examples of an epoch, in which each row has its share of the total weight.

    If every row came once, they are `resampled`. Otherwise the share of a row is in proportion to how often it came,
    and to its weight by ``sampling``. A row with ``c`` times the mean share is there ⌈c⌉ times and weighs c / ⌈c⌉ each
    time, so no example weighs more than the mean, there are at most 2N examples, and no row is left out.

    Args and errors as `resampled`.
    """
    count = None if data.count is None else data.count[rows]
    if count is None or (count == count[0]).all():
        return Occurrences(rows=resampled(rows, data, sampling, seed=seed, shares=shares), weights=None)
    share = count.astype(np.float64)
    if sampling is not None:
        share *= _filled(_sampling_weights(rows, data, sampling, count))
    if shares is not None:
        share = shared(share, rows, shares)
    share *= len(rows) / share.sum()
    times = np.ceil(share * _BELOW)
    weights = np.repeat(np.divide(share, times, out=np.zeros(len(rows)), where=times > 0), times.astype(np.int64))
    uniform = bool(np.allclose(weights, weights[0], rtol=_EQUAL, atol=0))
    return Occurrences(
        rows=np.repeat(rows, times.astype(np.int64)), weights=None if uniform else weights.astype(np.float32)
    )


def resampled(
    rows: Index, data: Examples, sampling: SamplingConfig | None, *, seed: int, shares: Shares | None = None
) -> Index:
    """Return the N rows of an epoch, ascending, each repeated in proportion to its weight.

    A row with ``c`` times the mean weight is repeated ⌊c⌋ or ⌈c⌉ times, ``c`` on average over seeds (systematic
    sampling). The rows are the same in every epoch. A row with an unknown class or entropy occurs once on average.

    Args:
        rows: ``[N]`` the rows to sample from, ascending.
        data: the examples to which the row numbers refer.
        sampling: the configured sampling; None = each row once.
        seed: seed of the run.
        shares: shares of the sources; None = each source has the share of its number of rows.

    Raises:
        ConfigError: the rows have no classes, or no known entropies, or are not in memory.
    """
    if sampling is None:
        return rows if shares is None else _shared_evenly(rows, shares, seed)
    weight = _sampling_weights(rows, data, sampling, None)
    return np.repeat(rows, systematic(weight if shares is None else shared(weight, rows, shares), seed))


def shared(weight: Weights, rows: Index, shares: Shares) -> Weights:
    """Scale the weights of rows to the shares of their sources.

    NaN is replaced by the mean weight of the row's source.
    """
    source = np.searchsorted(shares.starts, rows, side="right") - 1
    found = np.zeros(len(rows))
    for number, share in enumerate(shares.weights):
        own = source == number
        filled = _filled(weight[own])
        found[own] = filled * share / max(float(filled.sum()), np.finfo(np.float64).tiny)
    return found


def _sampling_weights(rows: Index, data: Examples, sampling: SamplingConfig, count: Index | None) -> Weights:
    """Return ``[N]`` weights by class or entropy; NaN = unknown."""
    if sampling.by == "class":
        return class_weights(data.sampling_classes().take(rows), sampling.power, count)
    return entropy_weights(_entropies(data)[rows], sampling.power)


def class_weights(classes: RaggedArray, power: float, count: Index | None = None) -> Weights:
    """Return ``[N]`` weights by the classes of each row; NaN = the row has none.

    If every row has one class, a class of n rows weighs n^(1 - power) in total. A row of several classes has the weight
    of its rarest one, as in repeat factor sampling (Gupta et al., arXiv 1908.03195).

    Args:
        classes: the classes of each row.
        power: the exponent; see `SamplingConfig`.
        count: ``[N]`` how often each row came, as which it counts in the size of a class; None = once.
    """
    _, inverse = np.unique(classes.values, return_inverse=True)
    each = None if count is None else np.repeat(count, np.diff(classes.offsets))
    by_class = np.bincount(inverse, weights=each)[inverse].astype(np.float64) ** -power
    weight = np.full(classes.rows, np.nan)
    known = np.flatnonzero(np.diff(classes.offsets))
    if len(known):
        weight[known] = np.maximum.reduceat(by_class, classes.offsets[known])
    return weight


def entropy_weights(entropies: npt.NDArray[np.float64], power: float) -> Weights:
    """Return ``[N]`` weights: the teacher's entropy to a power; NaN = unknown entropy."""
    weight: Weights = np.maximum(entropies, 0.0) ** power
    return weight


def systematic(weight: Weights, seed: int) -> Index:
    """Return how often each row occurs, on average in proportion to its weight.

    The sum is N.

    A weight of NaN is replaced by the mean of the known weights.
    """
    edges = np.cumsum(_filled(weight))
    edges *= len(weight) / edges[-1]
    edges[-1] = len(weight)  # without the rounding error of the sum
    start = _start(seed)
    return np.diff(np.floor(edges + start), prepend=0.0).astype(np.int64)


def _shared_evenly(rows: Index, shares: Shares, seed: int) -> Index:
    """Sample as `systematic` with equal weights within a source.

    Rows are processed in chunks, because N may be very large.
    """
    bounds, start = np.searchsorted(rows, shares.starts), _start(seed)
    sizes = np.diff(bounds)
    weights = np.where(sizes > 0, shares.weights, 0.0)
    edges = np.append(0, np.cumsum(weights)) * len(rows) / weights.sum()
    edges[-1] = len(rows)
    found = np.empty(len(rows), dtype=np.int64)
    done = 0
    for number, size in enumerate(sizes.tolist()):
        for low in range(0, size, _CHUNK):
            place = np.arange(low, min(low + _CHUNK, size) + 1, dtype=np.float64) / size
            edge = np.where(place < 1, edges[number] + place * (edges[number + 1] - edges[number]), edges[number + 1])
            counts = np.diff(np.floor(edge + start))
            own = np.repeat(rows[bounds[number] + low : bounds[number] + low + len(counts)], counts.astype(np.int64))
            found[done : done + len(own)] = own
            done += len(own)
    assert done == len(rows), (done, len(rows))
    return found


def _start(seed: int) -> float:
    """Return the start of systematic sampling, in [0, 1)."""
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, 1]))).random()


def _filled(weight: Weights) -> Weights:
    """Replace unknown weights by the mean of the known ones.

    If that mean is 0, all weights are 1.
    """
    known = ~np.isnan(weight)
    mean = float(weight[known].mean()) if known.any() else 0.0
    return np.where(known, weight, mean) if mean > 0 else np.ones(len(weight))


def _entropies(data: Examples) -> npt.NDArray[np.float64]:
    """Return ``[R]`` entropies of the teacher in nats; NaN = unknown.

    Raises:
        ConfigError: no row that the teacher may teach has a known entropy.
    """
    found = data.entropies()
    if data.distil.any() and np.isnan(found[data.distil]).all():
        raise ConfigError(
            "student.training.sampling.by: entropy, but the labels contain no entropies: the teacher's engine gives "
            "none, or the labels are the mean of truncated distributions; sample by class, or label with other settings"
        )
    return found
