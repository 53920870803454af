"""Measure what a stored form costs: nats it adds, how far values move, bytes.

The settings that are chosen before the first unit are measured here too.

Measured on a slice of the calibration split, through the very bytes that a shard would have.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from ray_distill.labels.format import parquet_shards
from ray_distill.labels.format.fitted_arrays import Fits
from ray_distill.labels.model.distributions import Distributions, log_sigmoid
from ray_distill.labels.model.part_specs import DistributionsSpec
from ray_distill.labels.model.ragged import owner
from ray_distill.labels.model.rowids import ROW_ID_BYTES

Floats = npt.NDArray[np.float64]


def added_error(exact: Distributions, spec: DistributionsSpec, fits: Fits) -> dict[str, Any]:
    """Measure the error that encoding adds to a slice.

    Returns:
        ``nats``: by temperature, the mean over positions of ``KL(p_T ‖ p̂_T)`` over the stored classes and the tail's
        bucket, p̂ what decoding gives; ``max_abs_dlogp``: the largest change of a log-probability at T = 1;
        ``bytes_a_position``: of a shard of the slice, Parquet's overhead and the row ids included.
    """
    ids = np.frombuffer(np.random.default_rng(0).bytes(exact.rows * ROW_ID_BYTES), dtype=f"S{ROW_ID_BYTES}")
    data = parquet_shards.encode_labels(ids, exact, spec, fits)
    _, stored = parquet_shards.decode_labels(data, spec, fits, "the measured slice")
    with np.errstate(invalid="ignore"):
        moved = np.where(exact.logp == stored.logp, 0, np.abs(exact.logp - stored.logp))
    return {
        "nats": {f"{at:g}": _mean_divergence(exact, stored, at) for at in exact.temperatures},
        "max_abs_dlogp": float(moved.max(initial=0)),
        "bytes_a_position": len(data) / max(len(exact.position), 1),
    }


def _mean_divergence(exact: Distributions, stored: Distributions, temperature: float) -> float:
    column = exact.temperatures.index(temperature)
    if exact.log_odds is not None and stored.log_odds is not None:
        return float(_bernoulli(exact.log_odds, stored.log_odds, temperature).sum() / max(len(exact.position), 1))
    p, q = _log_softened(exact, temperature), _log_softened(stored, temperature)
    head, tail = np.exp(p), exact.log_tail[:, column].astype(np.float64)
    total = _terms(head, p, q).sum() + _terms(np.exp(tail), tail, stored.log_tail[:, column].astype(np.float64)).sum()
    return float(total / max(len(exact.position), 1))


def _terms(weight: Floats, log_p: Floats, log_q: Floats) -> Floats:
    """Return ``p log(p/q)``, 0 where p is 0."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(weight > 0, weight * (log_p - log_q), 0)


def _bernoulli(exact: npt.NDArray[Any], stored: npt.NDArray[Any], temperature: float) -> Floats:
    """Return, for each class, the divergence of a yes or no with these log-odds, softened."""
    z, found = exact.astype(np.float64) / temperature, stored.astype(np.float64) / temperature
    yes, no = (log_sigmoid(z), log_sigmoid(found)), (log_sigmoid(-z), log_sigmoid(-found))
    return _terms(np.exp(yes[0]), *yes) + _terms(np.exp(no[0]), *no)


def _log_softened(distributions: Distributions, temperature: float) -> Floats:
    """Return ``log p_T`` of the stored entries.

    They are softened, then scaled to the mass beside the tail at T (MATHS.md §3).
    """
    column, offsets = distributions.temperatures.index(temperature), distributions.entry_offsets
    soft = distributions.logp.astype(np.float64) / temperature
    owners = owner(offsets)
    sums = np.bincount(owners, np.exp(soft), minlength=len(offsets) - 1)
    with np.errstate(divide="ignore", invalid="ignore"):
        rest = np.log(-np.expm1(np.minimum(distributions.log_tail[:, column].astype(np.float64), 0)))
        softened: Floats = soft + (rest - np.log(sums))[owners]
    return softened
