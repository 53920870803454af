"""Whether a teacher's answer is fit to be stored: finite, and probabilities that sum to 1."""

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ray_distill.errors import LabelError
from ray_distill.labels.model import rowids
from ray_distill.labels.model.signal import Distributions, Hidden, Signal

#: How far the stored mass and the tail's may sum from 1.
MASS_TOLERANCE = 1e-3

Rejects = list[tuple[bytes, str]]


def split_unusable(row_ids: pa.Array, signal: Signal) -> tuple[pa.Array, Signal, Rejects]:
    """Part the rows that can be stored from those that cannot: NaN, infinities, mass that is not 1.

    Returns:
        The usable row ids and their signal, in order, and ``(row id, reason)`` of each other row.
    """
    reasons = unusable(signal)
    if not reasons:
        return row_ids, signal, []
    keep = np.setdiff1d(np.arange(len(row_ids), dtype=np.int64), np.fromiter(reasons, dtype=np.int64))
    rejected = [(row_ids[row].as_py(), reason) for row, reason in sorted(reasons.items())]
    return row_ids.take(pa.array(keep)), signal.take(keep), rejected


def unusable(signal: Signal) -> dict[int, str]:
    """Rows that cannot be stored, each with the first reason found."""
    found: dict[int, str] = {}
    parts = [] if signal.distributions is None else _bad_distributions(signal.distributions)
    parts += [
        (_bad_hidden(hidden), f"hidden state of layer {layer} is NaN or infinite")
        for layer, hidden in signal.hidden.items()
    ]
    for rows, reason in parts:
        for row in rows:
            found.setdefault(int(row), reason)
    return found


def _bad_distributions(distributions: Distributions) -> list[tuple[npt.NDArray[np.int64], str]]:
    entry_position = owner(distributions.entry_offsets)
    position_row = owner(distributions.row_offsets)
    # -inf is a probability of 0 (a masked class, an empty tail) and fine; NaN and +inf are not.
    entry_bad = np.isnan(distributions.logp) | (distributions.logp == np.inf)
    tail_bad = np.isnan(distributions.log_tail) | (distributions.log_tail == np.inf)
    # A teacher that cannot give entropies gives none at all; one that is missing among others is a broken answer.
    entropy_bad = ~np.isfinite(distributions.entropy) & ~np.isnan(distributions.entropy).all()
    not_finite = tail_bad.any(axis=1) | entropy_bad
    not_finite[entry_position[entry_bad]] = True
    off = np.abs(mass(distributions) - 1) > MASS_TOLERANCE
    return [
        (np.unique(position_row[not_finite]), "distribution is NaN or infinite"),
        (np.unique(position_row[off & ~not_finite]), "probabilities do not sum to 1"),
    ]


def _bad_hidden(hidden: Hidden) -> npt.NDArray[np.int64]:
    bad = ~np.isfinite(hidden.values).all(axis=1)
    return np.unique(owner(hidden.offsets)[bad])


def mass(distributions: Distributions) -> npt.NDArray[np.float64]:
    """``[P]``: stored mass plus tail at T = 1; 1 where the signal is sound. All 1 for Bernoulli classes."""
    positions = len(distributions.position)
    if distributions.family != "categorical":
        return np.ones(positions)
    position, p = owner(distributions.entry_offsets), np.exp(distributions.logp.astype(np.float64))
    stored = np.asarray(np.bincount(position, weights=p, minlength=positions), dtype=np.float64)
    tail = distributions.log_tail[:, distributions.temperatures.index(1.0)].astype(np.float64)
    total: npt.NDArray[np.float64] = stored + np.exp(tail)
    return total


def owner(offsets: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """For each item, which range of ``offsets`` it belongs to."""
    return np.repeat(np.arange(len(offsets) - 1, dtype=np.int64), np.diff(offsets))


def require_usable(row_ids: rowids.RowIds, signal: Signal) -> None:
    """Refuse a signal that must not be stored.

    Raises:
        LabelError: names the rows and reasons.
    """
    reasons = unusable(signal)
    if reasons:
        row, reason = min(reasons.items())
        name = rowids.hexadecimal(row_ids[row : row + 1])[0]
        raise LabelError(
            f"{len(reasons)} of {len(row_ids)} rows cannot be stored, first {name}: {reason}; reject them "
            "(split_unusable) or correct the teacher"
        )
