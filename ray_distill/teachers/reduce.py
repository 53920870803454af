"""From logits to the stored form of a distribution, in float32, on the device the logits are on."""

import numpy as np
import torch
from torch import Tensor

from ray_distill.errors import TeacherRefused
from ray_distill.labels.signal import Distributions
from ray_distill.teachers.base import Ask

#: Elements of a float32 slice; bounds the copies of the logits that exist at once.
_SLICE = 1 << 24


def reduce_logits(logits_NV: Tensor, ask: Ask) -> Distributions:
    """Reduce logits, one position a row, to dense or top-k `Distributions` (MATHS.md §1-3).

    ``log_tail`` at T is ``logsumexp`` of ℓ/T over the classes that are not stored, less the one over all of them:
    it is exact however small the tail is, where ``1 - Σp`` would cancel. Where k ≥ V nothing is outside and it
    is -inf. Rows with NaN logits come out as NaN (logp, entropy): who stores them decides what becomes of them.

    Raises:
        TeacherRefused: the estimator is unknown.
    """
    if ask.estimator not in ("dense", "topk"):
        raise TeacherRefused(f"this teacher cannot give the estimator {ask.estimator!r}: use dense or topk")
    rows, classes = logits_NV.shape
    k = classes if ask.estimator == "dense" else min(ask.k, classes)
    step = max(1, _SLICE // classes)
    parts = [_reduce(logits_NV[start : start + step].float(), k, ask.temperatures) for start in range(0, rows, step)]
    if not parts:
        parts = [_reduce(logits_NV.float(), k, ask.temperatures)]
    ids_NK, logp_NK, tail_NT, entropy_N = (torch.cat(column).cpu().numpy() for column in zip(*parts, strict=True))
    return Distributions(
        classes=classes, temperatures=ask.temperatures, row_offsets=np.arange(rows + 1, dtype=np.int64),
        position=np.zeros(rows, np.int32), entry_offsets=np.arange(rows + 1, dtype=np.int64) * k,
        ids=ids_NK.reshape(-1), logp=logp_NK.reshape(-1), log_tail=tail_NT, entropy=entropy_N)


def _reduce(logits_NV: Tensor, k: int, temperatures: tuple[float, ...]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Ids int32 ``[N, k]`` ascending, logp ``[N, k]``, log tail ``[N, T]``, entropy ``[N]``."""
    logp_NV = logits_NV.log_softmax(-1)
    entropy_N = torch.special.entr(logp_NV.exp()).sum(-1)
    if k == logp_NV.shape[1]:
        ids_NK = torch.arange(k, dtype=torch.int32, device=logp_NV.device).expand(len(logp_NV), k)
        tail_NT = logp_NV.new_full((len(logp_NV), len(temperatures)), -torch.inf)
        return ids_NK, logp_NV, tail_NT, entropy_N
    ids_NK = logp_NV.topk(k, dim=-1).indices.sort(-1).values
    logp_NK = logp_NV.gather(-1, ids_NK)
    rest_NV = logp_NV.scatter(-1, ids_NK, -torch.inf)
    tails = [(rest_NV / t).logsumexp(-1) - (logp_NV / t).logsumexp(-1) for t in temperatures]
    return ids_NK.int(), logp_NK, torch.stack(tails, -1), entropy_N
