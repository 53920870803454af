"""Temperature-softened forward KL from stored classes and one bucket for everything else (MATHS.md §1-3)."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ray_distill.losses.base import LossBatch, SparseTargets, StudentOutput, require_targets, teacher_weight


@dataclass(frozen=True, kw_only=True)
class Soft:
    """``T² · KL(p_T || q_T)`` on the stored classes plus a tail bucket; dense targets simply have no tail.

    ``temperature`` must be one the labels declare: the mass outside the stored classes at another temperature
    is unknown. The factor T² keeps the gradient's scale as T grows (Hinton et al., arXiv 1503.02531, §2).

    Raises (when called):
        ValueError: the batch has no targets, or they do not declare the temperature.
    """

    temperature: float = 1.0

    def weight(self, batch: LossBatch) -> Tensor:
        """Total weight of the examples the teacher may teach."""
        return teacher_weight(batch).sum()

    def __call__(self, output: StudentOutput, batch: LossBatch) -> Tensor:
        """Weighted sum over examples, in nats times T²."""
        kl_B = forward_kl(output.logits_BV, require_targets(batch, "soft"), self.temperature)
        return self.temperature**2 * (kl_B * teacher_weight(batch)).sum()


def forward_kl(logits_NV: Tensor, targets: SparseTargets, temperature: float = 1.0) -> Tensor:
    """KL of teacher from student at temperature T, per position ``[N]``, in nats, without the factor T².

    ``Σ_S p log(p/q) + τ log(τ/τq)``. The student's tail is a logsumexp over the complement of S, because
    ``1 - Σ q`` cancels; where the teacher has no tail the bucket is masked out, so that 0·(-inf) never occurs.
    Logits below float32 are raised to it.
    """
    scaled_NV = logits_NV.to(torch.promote_types(logits_NV.dtype, torch.float32)) / temperature
    logp_NK, log_tail_N = soften(targets, temperature)
    logp_NK, log_tail_N = logp_NK.to(scaled_NV.dtype), log_tail_N.to(scaled_NV.dtype)
    norm_N = scaled_NV.logsumexp(-1)
    logq_NK = scaled_NV.gather(-1, targets.ids_NK) - norm_N.unsqueeze(-1)
    head_N = _p_log_ratio(logp_NK, logq_NK).sum(-1)
    log_tail_q_N = _complement_logsumexp(scaled_NV, targets, log_tail_N != -math.inf) - norm_N
    return head_N + _p_log_ratio(log_tail_N, log_tail_q_N)


def soften(targets: SparseTargets, temperature: float) -> tuple[Tensor, Tensor]:
    """Teacher log-probabilities at a declared temperature: stored classes ``[N, K]`` and tail ``[N]``.

    ``p_T(i) ∝ exp(logp_i / T)`` on the stored classes, scaled to ``1 - τ_T``; -inf on padding and where there
    is no tail.

    Raises:
        ValueError: the temperature is not declared; the declared ones are named.
    """
    log_tail_N = targets.log_tail_NT[:, temperature_index(targets.temperatures, temperature)]
    scaled_NK = targets.logp_NK / temperature
    log_head_N = _log1mexp(log_tail_N)
    return scaled_NK - (scaled_NK.logsumexp(-1) - log_head_N).unsqueeze(-1), log_tail_N


def temperature_index(declared: tuple[float, ...], temperature: float) -> int:
    """Position of a temperature among the declared ones.

    Raises:
        ValueError: it is not among them.
    """
    for index, value in enumerate(declared):
        if math.isclose(value, temperature, rel_tol=1e-6):
            return index
    names = ", ".join(f"{value:g}" for value in declared)
    raise ValueError(
        f"temperature {temperature:g} is not declared by the labels, which declare {names}: the mass outside the "
        "stored classes is only known there; train at one of these, or label again with it declared")


def _p_log_ratio(logp: Tensor, logq: Tensor) -> Tensor:
    """``p (log p - log q)``, and 0 with a zero gradient where p = 0; a NaN stays one."""
    present = logp != -math.inf
    safe_logp, safe_logq = logp.masked_fill(~present, 0.0), logq.masked_fill(~present, 0.0)
    return torch.where(present, safe_logp.exp() * (safe_logp - safe_logq), 0.0)


def _complement_logsumexp(scaled_NV: Tensor, targets: SparseTargets, has_tail_N: Tensor) -> Tensor:
    """Logsumexp over the classes that are not stored; rows without a tail get any finite value."""
    stored_NV = torch.zeros(scaled_NV.shape, dtype=torch.int32, device=scaled_NV.device)
    stored_NV.scatter_add_(-1, targets.ids_NK, (targets.logp_NK != -math.inf).to(torch.int32))
    outside_NV = (stored_NV == 0) | ~has_tail_N.unsqueeze(-1)
    return scaled_NV.masked_fill(~outside_NV, -math.inf).logsumexp(-1)


def _log1mexp(x: Tensor) -> Tensor:
    """``log(1 - e^x)`` for x <= 0 without cancellation (Mächler 2012); 0 at -inf.

    Rounding can lift the log of a tail of almost all the mass just above 0, which counts as 0.
    """
    x = x.clamp(max=0.0)
    near = x > -math.log(2)
    return torch.where(near, torch.log(-torch.expm1(x)), torch.log1p(-torch.exp(x)))
