"""Temperature-softened divergences from stored classes and one bucket for everything else (MATHS.md §1-3).

| targets        | forward_kl | reverse_kl | jsd |
|----------------|------------|------------|-----|
| dense, topk    | yes        | yes        | yes |
| sampled, hybrid| yes        | no         | no  |

Drawn targets are right on average alone: only forward KL is linear in them, so that its gradient is too.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ray_distill.losses.base import LossBatch, SparseTargets, StudentOutput, require_targets, teacher_weight


@dataclass(frozen=True, kw_only=True)
class Soft:
    """``T² · D(p_T, q_T)`` on the stored classes plus a tail bucket; dense targets simply have no tail.

    ``temperature`` must be one the labels declare: the mass outside the stored classes at another temperature
    is unknown. The factor T² keeps the gradient's scale as T grows (Hinton et al., arXiv 1503.02531, §2).
    ``divergence`` is ``forward_kl`` (teacher from student), ``reverse_kl`` (student from teacher) or ``jsd``
    (Jensen–Shannon, β = 1/2); drawn targets allow the first alone.

    Raises (when called):
        ValueError: the batch has no targets, they do not declare the temperature, or do not allow the divergence.
    """

    temperature: float = 1.0
    divergence: str = "forward_kl"

    def __post_init__(self) -> None:
        if self.divergence not in DIVERGENCES:
            raise ValueError(f"the loss 'soft' knows the divergences {', '.join(DIVERGENCES)}, "
                             f"found {self.divergence!r}")

    def weight(self, batch: LossBatch) -> Tensor:
        """Total weight of the examples the teacher may teach."""
        return teacher_weight(batch).sum()

    def __call__(self, output: StudentOutput, batch: LossBatch) -> Tensor:
        """Weighted sum over examples, in nats times T²."""
        targets = require_targets(batch, "soft")
        divergence_B = DIVERGENCES[self.divergence](output.logits_BV, targets, self.temperature)
        return self.temperature**2 * (divergence_B * teacher_weight(batch)).sum()


def forward_kl(logits_NV: Tensor, targets: SparseTargets, temperature: float = 1.0) -> Tensor:
    """KL of teacher from student at temperature T, per position ``[N]``, in nats, without the factor T².

    ``Σ_S p log(p/q) + τ log(τ/τq)``. The student's tail is a logsumexp over the complement of S, because
    ``1 - Σ q`` cancels; where the teacher has no tail the bucket is masked out, so that 0·(-inf) never occurs.
    Logits below float32 are raised to it.

    Drawn targets have no bucket: ``Σ_S ŵ (log p - log q)`` with ``ŵ`` of `drawn_weights`. Its gradient in the logits
    is ``(Σŵ) q - ŵ`` over T. The value is an unbiased estimate of the KL over *all* classes, and as one it may be
    below 0.
    """
    if targets.count_NK is not None:
        return _drawn_kl(logits_NV, targets, temperature)
    logp_NB, logq_NB = _buckets(logits_NV, targets, temperature)
    return _total(_p_log_ratio(logp_NB, logq_NB))


def reverse_kl(logits_NV: Tensor, targets: SparseTargets, temperature: float = 1.0) -> Tensor:
    """KL of student from teacher over the K + 1 buckets, per position ``[N]``, in nats, without the factor T².

    Buckets that the teacher gives no mass are left out, as in `forward_kl`.

    Raises:
        ValueError: the targets were drawn.
    """
    _refuse_drawn(targets, "reverse_kl")
    logp_NB, logq_NB = _buckets(logits_NV, targets, temperature)
    return _total(_p_log_ratio(logq_NB, logp_NB))


def jensen_shannon(logits_NV: Tensor, targets: SparseTargets, temperature: float = 1.0) -> Tensor:
    """``½ KL(p‖m) + ½ KL(q‖m)``, m their mean, over the K + 1 buckets, per position ``[N]``, in nats; at most ln 2.

    Buckets that the teacher gives no mass are left out, as in `forward_kl`.

    Raises:
        ValueError: the targets were drawn.
    """
    _refuse_drawn(targets, "jsd")
    logp_NB, logq_NB = _buckets(logits_NV, targets, temperature)
    absent_NB = logp_NB == -math.inf
    logm_NB = torch.logaddexp(logp_NB.masked_fill(absent_NB, 0.0), logq_NB.masked_fill(absent_NB, 0.0)) - math.log(2)
    return 0.5 * _total(_p_log_ratio(logp_NB, logm_NB) + _p_log_ratio(logq_NB, logm_NB))


#: By the name a configuration gives.
DIVERGENCES: Mapping[str, Callable[[Tensor, SparseTargets, float], Tensor]] = {
    "forward_kl": forward_kl, "reverse_kl": reverse_kl, "jsd": jensen_shannon}


def drawn_weights(targets: SparseTargets, temperature: float) -> Tensor:
    """Log of the targets ``ŵ`` of drawn entries at a declared temperature: ``[N, K]``, -inf on padding.

    ``ŵ_j = c_j p_T(j) / (N r_j)`` with ``r_j = p_j^a / Z`` where the entry was drawn, ``p_T(j)`` where it is exact.
    Never normalised by their own sum: that would bias them.
    """
    assert targets.count_NK is not None and targets.log_normaliser_N is not None
    logp_NK, _ = soften(targets, temperature)
    drawn_NK = (targets.count_NK > 0) & (targets.logp_NK != -math.inf)
    log_r_NK = targets.exponent * targets.logp_NK - targets.log_normaliser_N.unsqueeze(-1)
    log_share_NK = (targets.count_NK.clamp(min=1) / targets.draws).log()
    return logp_NK + torch.where(drawn_NK, log_share_NK - log_r_NK, 0.0)


def _drawn_kl(logits_NV: Tensor, targets: SparseTargets, temperature: float) -> Tensor:
    scaled_NV = logits_NV.to(torch.promote_types(logits_NV.dtype, torch.float32)) / temperature
    logp_NK, _ = soften(targets, temperature)
    logq_NK = scaled_NV.gather(-1, targets.ids_NK) - scaled_NV.logsumexp(-1, keepdim=True)
    present_NK = logp_NK != -math.inf
    w_NK = drawn_weights(targets, temperature).to(scaled_NV.dtype).exp()
    ratio_NK = (logp_NK.to(scaled_NV.dtype) - logq_NK).masked_fill(~present_NK, 0.0)
    return (w_NK * ratio_NK).sum(-1)


def _refuse_drawn(targets: SparseTargets, divergence: str) -> None:
    if targets.count_NK is not None:
        raise ValueError(
            f"the divergence {divergence!r} cannot be used with sampled or hybrid labels: their targets are right on "
            "average, only forward KL is linear in the teacher's probabilities, and any other divergence of them is "
            "biased; use forward_kl, or label with the estimator topk or dense")


def _buckets(logits_NV: Tensor, targets: SparseTargets, temperature: float) -> tuple[Tensor, Tensor]:
    """Log masses of teacher and student in the stored classes and the tail: two ``[N, K+1]``.

    Both are -inf in a bucket that the teacher gives no mass: padding, an empty tail.
    """
    scaled_NV = logits_NV.to(torch.promote_types(logits_NV.dtype, torch.float32)) / temperature
    logp_NK, log_tail_N = soften(targets, temperature)
    logp_NB = torch.cat([logp_NK, log_tail_N.unsqueeze(-1)], -1).to(scaled_NV.dtype)
    norm_N = scaled_NV.logsumexp(-1)
    head_NK = scaled_NV.gather(-1, targets.ids_NK) - norm_N.unsqueeze(-1)
    tail_N = _complement_logsumexp(scaled_NV, targets, log_tail_N != -math.inf) - norm_N
    logq_NB = torch.cat([head_NK, tail_N.unsqueeze(-1)], -1)
    return logp_NB, logq_NB.masked_fill(logp_NB == -math.inf, -math.inf)


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


def _total(terms_NB: Tensor) -> Tensor:
    """Sum over buckets, the tail's last and by itself: padding among the others then changes no bit."""
    return terms_NB[:, :-1].sum(-1) + terms_NB[:, -1]


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
