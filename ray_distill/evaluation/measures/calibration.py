"""Compare probabilities with frequencies, in bins of equal width."""

import numpy as np

from ray_distill.evaluation.measures.intervals import Floats, Ints

#: Mean probability and frequency of the non-empty bins, and every bin's share of the weight.
Curve = tuple[Floats, Floats, Floats]


def probability_bins(probability: Floats, bins: int) -> Ints:
    """Return the bin of each probability, of equal width over 0…1."""
    found: Ints = np.minimum((probability * bins).astype(np.int64), bins - 1)
    return found


def reliability_curve(probability_N: Floats, hit_N: Floats, weight_N: Floats, bins: int) -> Curve:
    """Return the reliability curve of N probabilities.

    Args:
        probability_N: what the model claimed.
        hit_N: 1 where the claim is true, else 0.
        weight_N: weights.
        bins: number of bins.
    """
    index_N = probability_bins(probability_N, bins)
    weight, claimed, hits = (
        np.bincount(index_N, weights=values_N, minlength=bins).astype(np.float64, copy=False)
        for values_N in (weight_N, weight_N * probability_N, weight_N * hit_N)
    )
    return mean_curve(weight, claimed, hits)


def mean_curve(weight: Floats, claimed: Floats, hits: Floats) -> Curve:
    """Return the curve of each bin's total weight, probability and hits."""
    some = weight > 0
    return claimed[some] / weight[some], hits[some] / weight[some], weight / weight.sum()


def calibration_error(probability_N: Floats, hit_N: Floats, weight_N: Floats, bins: int) -> float:
    """Return the mean gap of probabilities and frequencies; arguments as `reliability_curve`."""
    claimed, hits, share = reliability_curve(probability_N, hit_N, weight_N, bins)
    return float((np.abs(claimed - hits) * share[share > 0]).sum())
