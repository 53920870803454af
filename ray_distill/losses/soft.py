"""Temperature-softened divergences from stored classes and one bucket for everything else (MATHS.md §1-3).

| targets        | forward_kl | reverse_kl | jsd | skewed_kl |
|----------------|------------|------------|-----|-----------|
| dense, topk    | yes        | yes        | yes | yes       |
| sampled, hybrid| yes        | no         | no  | no        |

Drawn targets are right on average alone: only forward KL is linear in them, so that its gradient is too.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ray_distill.losses.base import LossBatch, SparseTargets, StudentOutput, require_targets, teacher_weight
from ray_distill.losses.buckets import Buckets, drawn_weights, renormalise, soften, student_masses

TAILS = ("bucket", "renormalised")


@dataclass(frozen=True, kw_only=True)
class Soft:
    """``T² · D(p_T, q_T)`` on the stored classes plus a tail bucket; dense targets simply have no tail.

    ``temperature`` must be one the labels declare: the mass outside the stored classes at another temperature
    is unknown. The factor T² keeps the gradient's scale as T grows (Hinton et al., arXiv 1503.02531, §2).

    ``divergence`` is one of, p the teacher and q the student (drawn targets allow the first alone):

    - ``forward_kl``: KL(p ‖ q).
    - ``reverse_kl``: KL(q ‖ p).
    - ``jsd``: ``β KL(p ‖ m) + (1-β) KL(q ‖ m)``, m = βp + (1-β)q, β = ``beta`` (Agarwal et al., arXiv 2306.13649).
    - ``skewed_kl``: KL(p ‖ αp + (1-α)q), α = ``skew`` (Ko et al., arXiv 2402.03898).

    ``tail`` is ``bucket``, or ``renormalised``: the stored classes alone, scaled to 1, against the student's whole
    distribution. That is what truncating toolkits do; it teaches over-confidence and is here to be compared with.

    Raises (when called):
        ValueError: the batch has no targets, they do not declare the temperature, or do not allow the divergence.
    """

    temperature: float = 1.0
    divergence: str = "forward_kl"
    beta: float = 0.5
    skew: float = 0.1
    tail: str = "bucket"

    def __post_init__(self) -> None:
        if self.divergence not in DIVERGENCES:
            raise ValueError(f"the loss 'soft' knows the divergences {', '.join(DIVERGENCES)}, "
                             f"found {self.divergence!r}")
        if self.tail not in TAILS:
            raise ValueError(f"the loss 'soft' knows the tails {', '.join(TAILS)}, found {self.tail!r}")
        for name, value in (("beta", self.beta), ("skew", self.skew)):
            if not 0 < value < 1:
                raise ValueError(f"the loss 'soft' needs 0 < {name} < 1, found {value:g}")

    def weights(self, batch: LossBatch) -> Tensor:
        """``[B]``: weight of each example, 0 where the teacher may not teach."""
        return teacher_weight(batch)

    def weight(self, batch: LossBatch) -> Tensor:
        """Total weight of the examples the teacher may teach."""
        return self.weights(batch).sum()

    def __call__(self, output: StudentOutput, batch: LossBatch) -> Tensor:
        """Weighted sum over examples, in nats times T²."""
        targets = require_targets(batch, "soft")
        logq_NB = student_masses(output.logits_BV, targets, self.temperature)
        return self._sum(logq_NB, targets, batch)

    def of_buckets(self, student: Buckets, batch: LossBatch) -> Tensor:
        """The same from the student's buckets at this temperature."""
        return self._sum(student.logq_NB, require_targets(batch, "soft"), batch)

    def _sum(self, logq_NB: Tensor, targets: SparseTargets, batch: LossBatch) -> Tensor:
        return self.temperature**2 * (self.divergences(logq_NB, targets) * teacher_weight(batch)).sum()

    def divergences(self, logq_NB: Tensor, targets: SparseTargets) -> Tensor:
        """Divergence at each position ``[N]``, in nats, without the factor T²; of the student's log bucket masses.

        Drawn targets have no bucket: ``Σ_S ŵ (log p - log q)`` with ``ŵ`` of `drawn_weights`. Its gradient in the
        logits is ``(Σŵ) q - ŵ`` over T. The value is an unbiased estimate of the KL over *all* classes, and as one it
        may be below 0.
        """
        if targets.count_NK is not None:
            return self._drawn(logq_NB, targets)
        soft = soften if self.tail == "bucket" else renormalise
        logp_NK, log_tail_N = soft(targets, self.temperature)
        logp_NB = torch.cat([logp_NK, log_tail_N.unsqueeze(-1)], -1).to(logq_NB.dtype)
        # Buckets that the teacher gives no mass (padding, an empty tail) are left out, whatever the student gives them.
        return DIVERGENCES[self.divergence](logp_NB, logq_NB.masked_fill(logp_NB == -math.inf, -math.inf), self)

    def _drawn(self, logq_NB: Tensor, targets: SparseTargets) -> Tensor:
        if self.divergence != "forward_kl" or self.tail != "bucket":
            what = self.divergence if self.divergence != "forward_kl" else f"tail {self.tail}"
            raise ValueError(
                f"the divergence {what!r} cannot be used with sampled or hybrid labels: their targets are right on "
                "average, only forward KL is linear in the teacher's probabilities, and any other divergence of them "
                "is biased; use forward_kl, or label with the estimator topk or dense")
        logp_NK, _ = soften(targets, self.temperature)
        w_NK = drawn_weights(targets, self.temperature).to(logq_NB.dtype).exp()
        ratio_NK = logp_NK.to(logq_NB.dtype) - logq_NB[:, :-1]
        return (w_NK * ratio_NK.masked_fill(logp_NK == -math.inf, 0.0)).sum(-1)


def forward_kl(logits_NV: Tensor, targets: SparseTargets, temperature: float = 1.0) -> Tensor:
    """KL of teacher from student at temperature T, per position ``[N]``, in nats, without the factor T²."""
    return Soft(temperature=temperature).divergences(student_masses(logits_NV, targets, temperature), targets)


def _forward(logp_NB: Tensor, logq_NB: Tensor, _: Soft) -> Tensor:
    """``Σ p log(p/q)``; ``Σ_S p log(p/q) + τ log(τ/τq)`` with the tail's bucket."""
    return _total(_p_log_ratio(logp_NB, logq_NB))


def _reverse(logp_NB: Tensor, logq_NB: Tensor, _: Soft) -> Tensor:
    return _total(_p_log_ratio(logq_NB, logp_NB))


def _jensen_shannon(logp_NB: Tensor, logq_NB: Tensor, loss: Soft) -> Tensor:
    absent_NB = logp_NB == -math.inf
    logp_safe_NB, logq_safe_NB = logp_NB.masked_fill(absent_NB, 0.0), logq_NB.masked_fill(absent_NB, 0.0)
    logm_NB = torch.logaddexp(logp_safe_NB + math.log(loss.beta), logq_safe_NB + math.log(1 - loss.beta))
    return _total(loss.beta * _p_log_ratio(logp_NB, logm_NB) + (1 - loss.beta) * _p_log_ratio(logq_NB, logm_NB))


def _skewed(logp_NB: Tensor, logq_NB: Tensor, loss: Soft) -> Tensor:
    absent_NB = logp_NB == -math.inf
    logp_safe_NB, logq_safe_NB = logp_NB.masked_fill(absent_NB, 0.0), logq_NB.masked_fill(absent_NB, 0.0)
    logm_NB = torch.logaddexp(logp_safe_NB + math.log(loss.skew), logq_safe_NB + math.log(1 - loss.skew))
    return _total(_p_log_ratio(logp_NB, logm_NB))


#: By the name a configuration gives: of log masses of teacher and student ``[N, B]``, both -inf where the teacher has
#: none, and the loss that holds the parameters.
DIVERGENCES: Mapping[str, Callable[[Tensor, Tensor, Soft], Tensor]] = {
    "forward_kl": _forward, "reverse_kl": _reverse, "jsd": _jensen_shannon, "skewed_kl": _skewed}


def _p_log_ratio(logp: Tensor, logq: Tensor) -> Tensor:
    """``p (log p - log q)``, and 0 with a zero gradient where p = 0; a NaN stays one."""
    present = logp != -math.inf
    safe_logp, safe_logq = logp.masked_fill(~present, 0.0), logq.masked_fill(~present, 0.0)
    return torch.where(present, safe_logp.exp() * (safe_logp - safe_logq), 0.0)


def _total(terms_NB: Tensor) -> Tensor:
    """Sum over buckets, the tail's last and by itself: padding among the others then changes no bit."""
    return terms_NB[:, :-1].sum(-1) + terms_NB[:, -1]
