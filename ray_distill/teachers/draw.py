"""Draw by row, not by batch: counter-based uniforms, and the inverse CDF on the device.

Nothing here has a state. A uniform is a hash of (row id, position, seed, number of the draw), so that a row gets the
same draws in another batch, order or slice, on any worker.
"""

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.functional import pad

Words = npt.NDArray[np.uint64]

#: Increment and multipliers of splitmix64 (Steele, Lea, Flood: Fast splittable pseudorandom number generators, 2014).
_GOLDEN, _FIRST, _SECOND = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)

#: Keys of written texts have this in place of a row's position; it is not a position.
_WRITING = np.uint64(2**63)


def stratified(
    row_ids: npt.NDArray[np.bytes_], positions: npt.NDArray[np.int32], *, draws: int, seed: int
) -> npt.NDArray[np.float64]:
    """Return ascending points in [0, 1): ``(i + U_i) / draws``, ``U_i`` uniform on 53 bits.

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
    key_P = _keys(row_ids, seed, positions.astype(np.uint64))
    strata_D = np.arange(draws, dtype=np.uint64)
    bits_PD = _mix(_mix(key_P)[:, None] + strata_D * _GOLDEN)
    points_PD: npt.NDArray[np.float64] = (strata_D + _uniform(bits_PD)) / max(draws, 1)
    return points_PD


def independent(
    row_ids: npt.NDArray[np.bytes_], candidates: npt.NDArray[np.int32], *, step: int, seed: int
) -> npt.NDArray[np.float64]:
    """Return points in [0, 1) to generate by, independent over rows, candidates and steps.

    They have nothing in common with those of `stratified`, so that the draws by which a text is written and the draws
    by which it is labelled are independent too.

    Args:
        row_ids: ``[N]`` of dtype S16: the prompt of each text.
        candidates: ``[N]``: which of the prompt's texts.
        step: number of the token.
        seed: of the campaign.

    Returns:
        ``[N]``.
    """
    steps_N = np.full(len(row_ids), step, dtype=np.uint64)
    return _uniform(_mix(_keys(row_ids, seed, np.full_like(steps_N, _WRITING), candidates.astype(np.uint64), steps_N)))


def _keys(row_ids: npt.NDArray[np.bytes_], seed: int, *words: Words) -> Words:
    """Return ``[P]``: one key for each row id and its words."""
    halves_P2 = np.frombuffer(np.ascontiguousarray(row_ids, dtype="S16").tobytes(), dtype="<u8").reshape(-1, 2)
    key_P = np.full(len(halves_P2), seed % 2**64, dtype=np.uint64)
    for word_P in (halves_P2[:, 0], halves_P2[:, 1], *words):
        key_P = _mix(key_P ^ word_P)
    return key_P


def _uniform(bits: Words) -> npt.NDArray[np.float64]:
    """Return uniform numbers in [0, 1) on 53 bits."""
    numbers: npt.NDArray[np.float64] = (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53
    return numbers


def pick(weight_NV: Tensor, points_ND: Tensor) -> tuple[Tensor, Tensor]:
    """Return classes ``[N, D]`` at points of the weights' CDF, and float64 sums ``[N]``.

    A class without weight is never picked while the row has any. Running sums are float64: in float32 they would lose
    the classes behind the first 2²⁴ parts. They are taken over blocks of classes, then within the blocks that are hit:
    a running sum over all classes would cost several times as much. Ascending points give ascending classes.
    """
    rows, classes = weight_NV.shape
    width = _block(classes, points_ND.shape[1])
    blocks_NKB = pad(weight_NV, (0, -classes % width)).view(rows, -(-classes // width), width)
    sum_NK = blocks_NKB.sum(-1, dtype=torch.float64)
    cdf_NK = sum_NK.cumsum(-1)
    total_N = cdf_NK[:, -1]
    at_ND = torch.minimum(points_ND * total_N.unsqueeze(-1), _just_below(total_N).unsqueeze(-1))
    block_ND = torch.searchsorted(cdf_NK, at_ND, right=True).clamp(max=cdf_NK.shape[1] - 1)
    inner_NDB = blocks_NKB.gather(1, block_ND.unsqueeze(-1).expand(-1, -1, width)).cumsum(-1, dtype=torch.float64)
    left_ND = (at_ND - (cdf_NK - sum_NK).gather(1, block_ND)).clamp(min=0)
    left_ND = torch.minimum(left_ND, _just_below(inner_NDB[..., -1]))
    within_ND = torch.searchsorted(inner_NDB, left_ND.unsqueeze(-1), right=True).squeeze(-1).clamp(max=width - 1)
    return (block_ND * width + within_ND).clamp(max=classes - 1), total_N


def _block(classes: int, draws: int) -> int:
    """Return classes a block: a power of two up to 128; the blocks hit must not exceed V."""
    return min(128, 1 << max(classes // max(draws, 1), 1).bit_length() - 1)


def _just_below(total: Tensor) -> Tensor:
    """Return the largest numbers below ``total``, which are in the last class with weight."""
    return torch.nextafter(total, torch.zeros_like(total))


def _mix(state: Words) -> Words:
    """Apply one step of splitmix64, elementwise; uint64 arrays wrap."""
    z = state + _GOLDEN
    z = (z ^ (z >> np.uint64(30))) * _FIRST
    z = (z ^ (z >> np.uint64(27))) * _SECOND
    return z ^ (z >> np.uint64(31))
