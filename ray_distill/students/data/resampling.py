"""Which rows come how often in an epoch, where some shall come more often: by class, by entropy, or by source."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ray_distill.config import SamplingConfig
from ray_distill.errors import ConfigError
from ray_distill.students.data.examples import Examples
from ray_distill.students.order.cursor import Index

Weights = npt.NDArray[np.float64]

#: Rows whose counts are found at a time.
_CHUNK = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Shares:
    """What part of an epoch the rows of each source are."""

    starts: Index
    """``[M+1]`` where each source begins in the rows of the data."""
    weights: tuple[float, ...]
    """Of each; a source without a row that is learnt from has none."""


def resampled(
    rows: Index, data: Examples, sampling: SamplingConfig | None, seed: int, shares: Shares | None = None
) -> Index:
    """The rows of an epoch, ascending, as many as before: each about as often as its weight asks for.

    A row of ``c`` times the mean weight comes ⌊c⌋ or ⌈c⌉ times, ``c`` on average over seeds (systematic sampling);
    the same rows in every epoch. Rows whose class or entropy is not known come once on average.

    Args:
        rows: ``[N]`` the rows to choose from, ascending.
        data: what they are rows of.
        sampling: what was configured; None: each once.
        seed: of the run.
        shares: of the sources that the rows come from; None: their own numbers decide.

    Raises:
        ConfigError: the rows have no classes, or no known entropies, or are not in memory.
    """
    if sampling is None:
        return rows if shares is None else _shared_evenly(rows, shares, seed)
    if sampling.by == "class":
        weight = class_weights(data.sampling_classes()[rows], sampling.power)
    else:
        weight = entropy_weights(_entropies(data)[rows], sampling.power)
    return np.repeat(rows, systematic(weight if shares is None else shared(weight, rows, shares), seed))


def shared(weight: Weights, rows: Index, shares: Shares) -> Weights:
    """Weights of rows scaled so that each source has its share of them all; NaN weighs what others of its source do."""
    source = np.searchsorted(shares.starts, rows, side="right") - 1
    found = np.zeros(len(rows))
    for number, share in enumerate(shares.weights):
        own = source == number
        filled = _filled(weight[own])
        found[own] = filled * share / max(float(filled.sum()), np.finfo(np.float64).tiny)
    return found


def class_weights(classes: npt.NDArray[np.float64], power: float) -> Weights:
    """``[N]``: a class of n rows weighs n^(1 - power) in all; NaN where the class is not known."""
    known = ~np.isnan(classes)
    _, inverse, counts = np.unique(classes[known], return_inverse=True, return_counts=True)
    weight = np.full(len(classes), np.nan)
    weight[known] = counts[inverse].astype(np.float64) ** -power
    return weight


def entropy_weights(entropies: npt.NDArray[np.float64], power: float) -> Weights:
    """``[N]``: the teacher's entropy to a power; NaN where it is not known."""
    weight: Weights = np.maximum(entropies, 0.0) ** power
    return weight


def systematic(weight: Weights, seed: int) -> Index:
    """How often each row comes: N times in all, its share of the weights on average; NaN weighs what the others do."""
    edges = np.cumsum(_filled(weight))
    edges *= len(weight) / edges[-1]
    edges[-1] = len(weight)  # whatever rounding says
    start = _start(seed)
    return np.diff(np.floor(edges + start), prepend=0.0).astype(np.int64)


def _shared_evenly(rows: Index, shares: Shares, seed: int) -> Index:
    """`systematic` where the rows of a source weigh alike: some rows at a time, for there may be very many."""
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
    """Where systematic sampling begins, in [0, 1)."""
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, 1]))).random()


def _filled(weight: Weights) -> Weights:
    """The weights with their mean where they are not known; all 1 where that is nothing."""
    known = ~np.isnan(weight)
    mean = float(weight[known].mean()) if known.any() else 0.0
    return np.where(known, weight, mean) if mean > 0 else np.ones(len(weight))


def _entropies(data: Examples) -> npt.NDArray[np.float64]:
    """Return ``[R]`` entropies of the teacher in nats; NaN where it has none.

    Raises:
        ConfigError: no row that may be taught has one.
    """
    found = data.entropies()
    if data.distil.any() and np.isnan(found[data.distil]).all():
        raise ConfigError(
            "student.training.sampling.by: entropy, but the labels tell none: the teacher's engine gives "
            "none, or they are the mean of truncated ones; sample by class, or label otherwise"
        )
    return found
