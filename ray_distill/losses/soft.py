"""Compute softened divergences over stored classes and a tail bucket (MATHS.md §1-3).

| targets        | forward_kl | reverse_kl, jsd, skewed_kl, total_variation, adaptive_kl |
|----------------|------------|----------------------------------------------------------|
| dense, topk    | yes        | yes                                                      |
| sampled, hybrid| yes        | no                                                       |

Drawn targets are right on average alone: only forward KL is linear in them, so that its gradient is too.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ray_distill.losses.base import Labels, LossBatch, SparseTargets, StudentOutput, require_targets, teacher_weight
from ray_distill.losses.buckets import BucketLoss, Buckets, drawn_weights, renormalise, soften, student_masses
from ray_distill.losses.divergences import build_divergence

TAILS = ("bucket", "renormalised")


@dataclass(frozen=True, kw_only=True)
class Soft(BucketLoss):
    """``T² · D(p_T, q_T)`` on the stored classes plus a tail bucket; dense targets have no tail.

    ``temperature`` must be one the labels declare: the mass outside the stored classes at another temperature
    is unknown. The factor T² keeps the gradient's scale as T grows (Hinton et al., arXiv 1503.02531, §2).

    ``divergence`` is one of `DIVERGENCES`, by name or as ``{name: {parameter: value}}``; drawn targets allow
    ``forward_kl`` alone.

    ``tail`` is ``bucket``, or ``renormalised``: the stored classes alone, scaled to 1, against the student's whole
    distribution. Truncating toolkits do that; it teaches over-confidence and exists for comparison.

    Raises (when called):
        ValueError: the batch has no targets, they do not declare the temperature, or do not allow the divergence.
    """

    temperature: float = 1.0
    divergence: str | Mapping[str, Mapping[str, float]] = "forward_kl"
    tail: str = "bucket"

    def __post_init__(self) -> None:
        build_divergence(self.divergence)
        if self.tail not in TAILS:
            raise ValueError(f"the loss 'soft' has the tails {', '.join(TAILS)}, found {self.tail!r}")
        if not 0 < self.temperature < math.inf:
            raise ValueError(f"the loss 'soft' needs a temperature greater than 0, found {self.temperature:g}")

    def check(self, labels: Labels) -> None:
        """Refuse what drawn targets would bias."""
        if labels.drawn:
            self._require_linear()

    def weights(self, batch: LossBatch) -> Tensor:
        """Return the weight of each example ``[B]``, 0 where the teacher is excluded."""
        return teacher_weight(batch)

    def __call__(self, output: StudentOutput, batch: LossBatch) -> Tensor:
        """Return the weighted sum over examples, in nats times T²."""
        targets = require_targets(batch, "soft")
        logq_NB = student_masses(output.logits_BV, targets, self.temperature)
        return self._sum(logq_NB, targets, batch)

    def of_buckets(self, student: Buckets, batch: LossBatch) -> Tensor:
        """Return the weighted sum from the student's buckets at this temperature."""
        return self._sum(student.logq_NB, require_targets(batch, "soft"), batch)

    def _sum(self, logq_NB: Tensor, targets: SparseTargets, batch: LossBatch) -> Tensor:
        return self.temperature**2 * (self.divergences(logq_NB, targets) * teacher_weight(batch)).sum()

    def divergences(self, logq_NB: Tensor, targets: SparseTargets) -> Tensor:
        """Return the divergence by position ``[N]`` from log masses, without the factor T².

        Drawn targets have no bucket: ``Σ_S ŵ (log p - log q)`` with ``ŵ`` of `drawn_weights`. Its gradient in the
        logits is ``(Σŵ) q - ŵ`` over T. The value is an unbiased estimate of the KL over *all* classes, and as one it
        may be below 0.
        """
        if targets.count_NK is not None:
            return self._drawn(logq_NB, targets)
        soft = soften if self.tail == "bucket" else renormalise
        logp_NK, log_tail_N = soft(targets, self.temperature)
        logp_NB = torch.cat([logp_NK, log_tail_N.unsqueeze(-1)], -1).to(logq_NB.dtype)
        compare = build_divergence(self.divergence)
        return compare(logp_NB, logq_NB.masked_fill(logp_NB == -math.inf, -math.inf))

    def _drawn(self, logq_NB: Tensor, targets: SparseTargets) -> Tensor:
        self._require_linear()
        logp_NK, _ = soften(targets, self.temperature)
        w_NK = drawn_weights(targets, self.temperature).to(logq_NB.dtype).exp()
        ratio_NK = logp_NK.to(logq_NB.dtype) - logq_NB[:, :-1]
        return (w_NK * ratio_NK.masked_fill(logp_NK == -math.inf, 0.0)).sum(-1)

    def _require_linear(self) -> None:
        linear = build_divergence(self.divergence).linear
        if linear and self.tail == "bucket":
            return
        name = self.divergence if isinstance(self.divergence, str) else next(iter(self.divergence))
        what = f"tail {self.tail!r}" if linear else f"divergence {name!r}"
        raise ValueError(
            f"the {what} cannot be used with sampled or hybrid labels: their targets are right on average, only "
            "forward KL is linear in the teacher's probabilities, and any other divergence of them is biased; use "
            "forward_kl, or label with the estimator topk or dense"
        )


def forward_kl(logits_NV: Tensor, targets: SparseTargets, temperature: float = 1.0) -> Tensor:
    """Return the KL by position ``[N]`` at temperature T, in nats, without the factor T²."""
    return Soft(temperature=temperature).divergences(student_masses(logits_NV, targets, temperature), targets)
