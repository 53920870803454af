"""The divergences by name, of log masses of teacher and student in the buckets of a position (MATHS.md §2).

Both are ``[N, B]``, the tail's bucket last, and both -inf where the teacher has no mass: such buckets (padding, an
empty tail) are left out, whatever the student gives them. Each returns ``[N]``, in nats but for total variation.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Mix:
    """Parameters of the divergences that mix; each is a share, greater than 0 and less than 1."""

    beta: float
    """jsd: weight of the teacher in the mean."""
    skew: float
    """skewed_kl: weight of the teacher in the mixture."""
    head: float
    """adaptive_kl: mass of the classes that are the head."""


def forward_kl(logp_NB: Tensor, logq_NB: Tensor, _: Mix) -> Tensor:
    """``Σ p log(p/q)``; ``Σ_S p log(p/q) + τ log(τ/τq)`` with the tail's bucket."""
    return _total(_p_log_ratio(logp_NB, logq_NB))


def reverse_kl(logp_NB: Tensor, logq_NB: Tensor, _: Mix) -> Tensor:
    """``Σ q log(q/p)``."""
    return _total(_p_log_ratio(logq_NB, logp_NB))


def jsd(logp_NB: Tensor, logq_NB: Tensor, mix: Mix) -> Tensor:
    """``β KL(p ‖ m) + (1-β) KL(q ‖ m)``, m = βp + (1-β)q (Agarwal et al., arXiv 2306.13649)."""
    logm_NB = _mixture(logp_NB, logq_NB, mix.beta)
    return _total(mix.beta * _p_log_ratio(logp_NB, logm_NB) + (1 - mix.beta) * _p_log_ratio(logq_NB, logm_NB))


def skewed_kl(logp_NB: Tensor, logq_NB: Tensor, mix: Mix) -> Tensor:
    """``KL(p ‖ αp + (1-α)q)`` (Ko et al., arXiv 2402.03898)."""
    return _total(_p_log_ratio(logp_NB, _mixture(logp_NB, logq_NB, mix.skew)))


def total_variation(logp_NB: Tensor, logq_NB: Tensor, _: Mix) -> Tensor:
    """``½ Σ |p - q|``, between 0 and 1, as ``Σ max(p - q, 0)``, which is the same for masses that sum to 1.

    So what the student gives to classes without any mass of the teacher counts too, though they are left out.
    """
    return _total((logp_NB.exp() - logq_NB.exp()).clamp(min=0))


def adaptive_kl(logp_NB: Tensor, logq_NB: Tensor, mix: Mix) -> Tensor:
    """``(g_h KL(p ‖ q) + g_t KL(q ‖ p)) / (g_h + g_t)`` (Wu et al., arXiv 2404.02657).

    The gaps ``Σ |p - q|`` are over the head, the fewest of the teacher's likeliest classes that hold ``head`` of its
    mass, and over all others. No gradient goes through them. The tail's bucket, many classes at once, is never head.
    """
    p_NB, q_NB = logp_NB.detach().exp(), logq_NB.detach().exp()
    sorted_NK, order_NK = p_NB[:, :-1].sort(dim=-1, descending=True, stable=True)
    before_NK = sorted_NK.cumsum(-1) - sorted_NK
    head_NB = torch.zeros_like(p_NB, dtype=torch.bool).scatter_(-1, order_NK, before_NK < mix.head)
    gap_NB = (p_NB - q_NB).abs()
    in_head_N, all_N = torch.where(head_NB, gap_NB, 0.0).sum(-1), gap_NB.sum(-1)
    share_N = torch.where(all_N > 0, in_head_N / all_N, 0.5)
    return share_N * forward_kl(logp_NB, logq_NB, mix) + (1 - share_N) * reverse_kl(logp_NB, logq_NB, mix)


#: By the name a configuration gives. A new divergence is a function and a line here.
DIVERGENCES: Mapping[str, Callable[[Tensor, Tensor, Mix], Tensor]] = {
    "forward_kl": forward_kl,
    "reverse_kl": reverse_kl,
    "jsd": jsd,
    "skewed_kl": skewed_kl,
    "total_variation": total_variation,
    "adaptive_kl": adaptive_kl,
}


def _mixture(logp_NB: Tensor, logq_NB: Tensor, share: float) -> Tensor:
    """``log(share p + (1 - share) q)``; anything finite where the teacher has no mass."""
    absent_NB = logp_NB == -math.inf
    logp_safe_NB, logq_safe_NB = logp_NB.masked_fill(absent_NB, 0.0), logq_NB.masked_fill(absent_NB, 0.0)
    return torch.logaddexp(logp_safe_NB + math.log(share), logq_safe_NB + math.log(1 - share))


def _p_log_ratio(logp: Tensor, logq: Tensor) -> Tensor:
    """``p (log p - log q)``, and 0 with a zero gradient where p = 0; a NaN stays one."""
    present = logp != -math.inf
    safe_logp, safe_logq = logp.masked_fill(~present, 0.0), logq.masked_fill(~present, 0.0)
    return torch.where(present, safe_logp.exp() * (safe_logp - safe_logq), 0.0)


def _total(terms_NB: Tensor) -> Tensor:
    """Sum over buckets, the tail's last and by itself: padding among the others then changes no bit."""
    return terms_NB[:, :-1].sum(-1) + terms_NB[:, -1]
