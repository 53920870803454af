"""Draws that belong to a row, not to a batch: counter-based uniforms, and the inverse CDF on the logits' device.

Nothing here has a state. A uniform is a hash of (row id, position, seed, number of the draw), so that a row gets the
same draws in another batch, order or slice, on any worker.
"""

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Words = npt.NDArray[np.uint64]

#: Increment and multipliers of splitmix64 (Steele, Lea, Flood: Fast splittable pseudorandom number generators, 2014).
_GOLDEN, _FIRST, _SECOND = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)


def stratified(
    row_ids: npt.NDArray[np.bytes_], positions: npt.NDArray[np.int32], *, draws: int, seed: int
) -> npt.NDArray[np.float64]:
    """Points in [0, 1), ascending along a row: ``(i + U_i) / draws`` with ``U_i`` uniform on 53 bits.

    One point falls in each of ``draws`` equal strata. Each point is as likely anywhere as a free uniform is, taken over
    the strata, so the expected number that hits an interval is still ``draws`` times its length; the variance is that
    of independent draws or less, never more.

    Args:
        row_ids: ``[P]`` of dtype S16: the row each position belongs to.
        positions: ``[P]``: where in its row.
        draws: points a position.
        seed: of the store.

    Returns:
        ``[P, draws]``.
    """
    halves_P2 = np.frombuffer(np.ascontiguousarray(row_ids, dtype="S16").tobytes(), dtype="<u8").reshape(-1, 2)
    key_P = np.full(len(halves_P2), seed % 2**64, dtype=np.uint64)
    for word_P in (halves_P2[:, 0], halves_P2[:, 1], positions.astype(np.uint64)):
        key_P = _mix(key_P ^ word_P)
    strata_D = np.arange(draws, dtype=np.uint64)
    bits_PD = _mix(_mix(key_P)[:, None] + strata_D * _GOLDEN)
    jitter_PD = (bits_PD >> np.uint64(11)).astype(np.float64) * 2.0**-53
    points_PD: npt.NDArray[np.float64] = (strata_D + jitter_PD) / max(draws, 1)
    return points_PD


def pick(weight_NV: Tensor, points_ND: Tensor) -> tuple[Tensor, Tensor]:
    """Classes at ``points`` of the CDF of unnormalised weights: int64 ``[N, D]``, and their sums ``[N]`` in float64.

    A class without weight is never picked while the row has any. The running sum is float64: in float32 it would lose
    the classes behind the first 2²⁴ parts. Ascending points give ascending classes.
    """
    cdf_NV = weight_NV.cumsum(-1, dtype=torch.float64)
    total_N = cdf_NV[:, -1]
    below_N1 = torch.nextafter(total_N, torch.zeros_like(total_N)).unsqueeze(-1)
    at_ND = torch.minimum(points_ND * total_N.unsqueeze(-1), below_N1)
    return torch.searchsorted(cdf_NV, at_ND, right=True).clamp(max=weight_NV.shape[1] - 1), total_N


def _mix(state: Words) -> Words:
    """One step of splitmix64, elementwise; uint64 arrays wrap."""
    z = state + _GOLDEN
    z = (z ^ (z >> np.uint64(30))) * _FIRST
    z = (z ^ (z >> np.uint64(27))) * _SECOND
    return z ^ (z >> np.uint64(31))
