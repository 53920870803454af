"""Numbers of a distribution in one or two bytes, and back (MATHS.md §1).

Probabilities: bins of equal width in ``p^power``, so that with ``power = 1/(2T)`` every bin adds about the same
divergence at temperature T. Only their ratios are kept: decoding scales the head to the mass beside the tail.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Codes = npt.NDArray[np.uint16]

_TOP = 65535
#: Log-odds up to this size are distinguished; exp(-16384) is far outside float32.
_ODDS = 2.0**14
_STEP = float(np.arcsinh(_ODDS / 4)) / (_TOP // 2 - 1)


def quantise(logp: npt.NDArray[Any], power: float, levels: int) -> Codes:
    """Bin of each probability: 0 for a probability of 0, else 1..levels."""
    root = np.exp(logp.astype(np.float64) * power)
    bins = np.clip(1 + np.floor(root * levels), 1, levels)
    return np.where(np.isneginf(logp), 0, bins).astype(np.uint16)


def centres(power: float, levels: int) -> Floats:
    """Return the log-probability ``[levels+1]`` of each bin, before scaling; -inf for bin 0."""
    with np.errstate(divide="ignore"):
        logs: Floats = np.log(np.maximum(np.arange(levels + 1) - 0.5, 0) / levels) / power
    return logs


def encode_odds(log_odds: Floats) -> Codes:
    """Encode log-odds in 16 bits: 5e-4 apart around 0, coarser outwards; ±infinity exactly."""
    finite = np.clip(np.where(np.isfinite(log_odds), log_odds, 0), -_ODDS, _ODDS)
    codes = np.rint(np.arcsinh(finite / 4) / _STEP) + _TOP // 2 + 1
    return np.where(np.isneginf(log_odds), 0, np.where(np.isposinf(log_odds), _TOP, codes)).astype(np.uint16)


def decode_odds(codes: Codes) -> Floats:
    """Return the log-odds that `encode_odds` stored."""
    odds = 4 * np.sinh((codes.astype(np.float64) - (_TOP // 2 + 1)) * _STEP)
    return np.where(codes == 0, -np.inf, np.where(codes == _TOP, np.inf, odds))


def log_odds(log_tail: Floats, log_head: Floats) -> Floats:
    """Log of the tail's mass over the head's; exact however small either is, if both are."""
    with np.errstate(invalid="ignore"):
        odds = log_tail - log_head
    return np.where(np.isneginf(log_tail), -np.inf, odds)


def log_rest(log_mass: Floats) -> Floats:
    """Return ``log(1 - exp(x))`` for x <= 0; -inf for x >= 0."""
    with np.errstate(divide="ignore"):
        return np.log(-np.expm1(np.minimum(log_mass, 0)))


def log_share(odds: Floats) -> Floats:
    """Log of the share that log-odds stand for: ``-softplus(-x)``."""
    return -np.logaddexp(0, -odds)


def encode_entropy(entropy: npt.NDArray[Any], classes: int) -> Codes:
    """Encode an entropy in nats, within 0..log V, in 16 bits; finer near 0."""
    share = np.clip(entropy.astype(np.float64) / np.log(max(classes, 2)), 0, 1)
    codes: Codes = np.rint(np.sqrt(share) * _TOP).astype(np.uint16)
    return codes


def decode_entropy(codes: Codes, classes: int) -> npt.NDArray[np.float32]:
    """Return the entropy that `encode_entropy` stored."""
    share = (codes.astype(np.float64) / _TOP) ** 2
    entropy: npt.NDArray[np.float32] = (share * np.log(max(classes, 2))).astype(np.float32)
    return entropy
