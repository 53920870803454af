"""Compute divergences from the log masses of a position's buckets (MATHS.md §2).

Both are ``[N, B]``, the tail's bucket last, and both -inf where the teacher has no mass: such buckets (padding, an
empty tail) are left out, whatever the student gives them. Each returns ``[N]``, in nats except for total variation.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar, cast

import torch
from torch import Tensor


class Divergence(ABC):
    """Compare teacher and student at each position; the fields are parameters."""

    linear: ClassVar[bool] = False
    """True: linear in the teacher's probabilities, so that drawn targets estimate it without bias."""

    @abstractmethod
    def __call__(self, logp_NB: Tensor, logq_NB: Tensor) -> Tensor:
        """Return the divergence of each position ``[N]``."""


@dataclass(frozen=True, kw_only=True)
class ForwardKL(Divergence):
    """``Σ p log(p/q)``; ``Σ_S p log(p/q) + τ log(τ/τq)`` with the tail's bucket."""

    linear: ClassVar[bool] = True

    def __call__(self, logp_NB: Tensor, logq_NB: Tensor) -> Tensor:
        """See `Divergence`."""
        return _total(_p_log_ratio(logp_NB, logq_NB))


@dataclass(frozen=True, kw_only=True)
class ReverseKL(Divergence):
    """``Σ q log(q/p)``."""

    def __call__(self, logp_NB: Tensor, logq_NB: Tensor) -> Tensor:
        """See `Divergence`."""
        return _total(_p_log_ratio(logq_NB, logp_NB))


@dataclass(frozen=True, kw_only=True)
class JSD(Divergence):
    """``β KL(p ‖ m) + (1-β) KL(q ‖ m)``, m = βp + (1-β)q (Agarwal et al., arXiv 2306.13649)."""

    beta: float = 0.5
    """Weight of the teacher in the mean, in (0, 1)."""

    def __post_init__(self) -> None:
        _require_share("jsd", "beta", self.beta)

    def __call__(self, logp_NB: Tensor, logq_NB: Tensor) -> Tensor:
        """See `Divergence`."""
        logm_NB, beta = _mixture(logp_NB, logq_NB, self.beta), self.beta
        return _total(beta * _p_log_ratio(logp_NB, logm_NB) + (1 - beta) * _p_log_ratio(logq_NB, logm_NB))


@dataclass(frozen=True, kw_only=True)
class SkewedKL(Divergence):
    """``KL(p ‖ αp + (1-α)q)`` (Ko et al., arXiv 2402.03898)."""

    skew: float = 0.1
    """α: weight of the teacher in the mixture, in (0, 1)."""

    def __post_init__(self) -> None:
        _require_share("skewed_kl", "skew", self.skew)

    def __call__(self, logp_NB: Tensor, logq_NB: Tensor) -> Tensor:
        """See `Divergence`."""
        return _total(_p_log_ratio(logp_NB, _mixture(logp_NB, logq_NB, self.skew)))


@dataclass(frozen=True, kw_only=True)
class TotalVariation(Divergence):
    """``½ Σ |p - q|``, in [0, 1], as ``Σ max(p - q, 0)``: equal for masses that sum to 1.

    The student's mass on classes without any mass of the teacher counts too, although those classes are left out.
    """

    def __call__(self, logp_NB: Tensor, logq_NB: Tensor) -> Tensor:
        """See `Divergence`."""
        return _total((logp_NB.exp() - logq_NB.exp()).clamp(min=0))


@dataclass(frozen=True, kw_only=True)
class AdaptiveKL(Divergence):
    """``(g_h KL(p ‖ q) + g_t KL(q ‖ p)) / (g_h + g_t)`` (Wu et al., arXiv 2404.02657).

    The gaps ``Σ |p - q|`` are over the head, the fewest of the teacher's likeliest classes whose mass reaches ``head``,
    and over all others. No gradient goes through them. The tail's bucket, many classes at once, is never head.
    """

    head: float = 0.5
    """Mass of the head, in (0, 1)."""

    def __post_init__(self) -> None:
        _require_share("adaptive_kl", "head", self.head)

    def __call__(self, logp_NB: Tensor, logq_NB: Tensor) -> Tensor:
        """See `Divergence`."""
        p_NB, q_NB = logp_NB.detach().exp(), logq_NB.detach().exp()
        sorted_NK, order_NK = p_NB[:, :-1].sort(dim=-1, descending=True, stable=True)
        before_NK = sorted_NK.cumsum(-1) - sorted_NK
        head_NB = torch.zeros_like(p_NB, dtype=torch.bool).scatter_(-1, order_NK, before_NK < self.head)
        gap_NB = (p_NB - q_NB).abs()
        in_head_N, all_N = torch.where(head_NB, gap_NB, 0.0).sum(-1), gap_NB.sum(-1)
        share_N = torch.where(all_N > 0, in_head_N / all_N, 0.5)
        return share_N * ForwardKL()(logp_NB, logq_NB) + (1 - share_N) * ReverseKL()(logp_NB, logq_NB)


#: Divergences by the name that a configuration uses. A new divergence is a class and a line here.
DIVERGENCES: Mapping[str, type[Divergence]] = {
    "forward_kl": ForwardKL,
    "reverse_kl": ReverseKL,
    "jsd": JSD,
    "skewed_kl": SkewedKL,
    "total_variation": TotalVariation,
    "adaptive_kl": AdaptiveKL,
}


def build_divergence(setting: str | Mapping[str, Mapping[str, float]]) -> Divergence:
    """Return the divergence of a setting: a name, or ``{name: {parameter: value}}``.

    Raises:
        ValueError: an unknown name or parameter, or a value out of range; the known ones are listed.
    """
    given: Mapping[str, Mapping[str, float]] = {setting: {}} if isinstance(setting, str) else setting
    if len(given) != 1 or (name := next(iter(given))) not in DIVERGENCES:
        raise ValueError(f"a divergence is one of {', '.join(DIVERGENCES)}, found {setting!r}")
    kind, parameters = DIVERGENCES[name], given[name]
    known = [field.name for field in fields(cast("Any", kind))]
    if unknown := sorted(set(parameters) - set(known)):
        raise ValueError(f"{name} has no {', '.join(unknown)}; it has {', '.join(known) or 'no parameters'}")
    return kind(**parameters)


def _require_share(name: str, parameter: str, value: float) -> None:
    if not 0 < value < 1:
        raise ValueError(f"{name} needs 0 < {parameter} < 1, found {value:g}")


def _mixture(logp_NB: Tensor, logq_NB: Tensor, share: float) -> Tensor:
    """Return ``log(share p + (1 - share) q)``; anything finite where the teacher has no mass."""
    absent_NB = logp_NB == -math.inf
    logp_safe_NB, logq_safe_NB = logp_NB.masked_fill(absent_NB, 0.0), logq_NB.masked_fill(absent_NB, 0.0)
    return torch.logaddexp(logp_safe_NB + math.log(share), logq_safe_NB + math.log(1 - share))


def _p_log_ratio(logp: Tensor, logq: Tensor) -> Tensor:
    """Return ``p (log p - log q)``, and 0 with a zero gradient where p = 0; a NaN stays one."""
    present = logp != -math.inf
    safe_logp, safe_logq = logp.masked_fill(~present, 0.0), logq.masked_fill(~present, 0.0)
    return torch.where(present, safe_logp.exp() * (safe_logp - safe_logq), 0.0)


def _total(terms_NB: Tensor) -> Tensor:
    """Sum over buckets, the tail's last: padding among the others then changes no bit."""
    return terms_NB[:, :-1].sum(-1) + terms_NB[:, -1]
