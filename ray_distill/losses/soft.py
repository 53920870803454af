"""Temperature-softened divergences from stored classes and one bucket for everything else (MATHS.md §1-3).

| targets        | forward_kl | reverse_kl, jsd, skewed_kl, total_variation, adaptive_kl |
|----------------|------------|----------------------------------------------------------|
| dense, topk    | yes        | yes                                                      |
| sampled, hybrid| yes        | no                                                       |

Drawn targets are right on average alone: only forward KL is linear in them, so that its gradient is too.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ray_distill.losses.base import Labels, LossBatch, SparseTargets, StudentOutput, require_targets, teacher_weight
from ray_distill.losses.buckets import Buckets, drawn_weights, renormalise, soften, student_masses
from ray_distill.losses.divergences import DIVERGENCES, Mix

TAILS = ("bucket", "renormalised")


@dataclass(frozen=True, kw_only=True)
class Soft:
    """``T² · D(p_T, q_T)`` on the stored classes plus a tail bucket; dense targets simply have no tail.

    ``temperature`` must be one the labels declare: the mass outside the stored classes at another temperature
    is unknown. The factor T² keeps the gradient's scale as T grows (Hinton et al., arXiv 1503.02531, §2).

    ``divergence`` is one of `DIVERGENCES` (drawn targets allow ``forward_kl`` alone). ``beta``, ``skew`` and ``head``
    are parameters of one each (`Mix`).

    ``tail`` is ``bucket``, or ``renormalised``: the stored classes alone, scaled to 1, against the student's whole
    distribution. That is what truncating toolkits do; it teaches over-confidence and is here to be compared with.

    Raises (when called):
        ValueError: the batch has no targets, they do not declare the temperature, or do not allow the divergence.
    """

    temperature: float = 1.0
    divergence: str = "forward_kl"
    beta: float = 0.5
    skew: float = 0.1
    head: float = 0.5
    tail: str = "bucket"

    def __post_init__(self) -> None:
        if self.divergence not in DIVERGENCES:
            raise ValueError(
                f"the loss 'soft' knows the divergences {', '.join(DIVERGENCES)}, found {self.divergence!r}"
            )
        if self.tail not in TAILS:
            raise ValueError(f"the loss 'soft' knows the tails {', '.join(TAILS)}, found {self.tail!r}")
        for name, value in (("beta", self.beta), ("skew", self.skew), ("head", self.head)):
            if not 0 < value < 1:
                raise ValueError(f"the loss 'soft' needs 0 < {name} < 1, found {value:g}")
        if not 0 < self.temperature < math.inf:
            raise ValueError(f"the loss 'soft' needs a temperature greater than 0, found {self.temperature:g}")

    def check(self, labels: Labels) -> None:
        """Refuse what drawn targets would bias."""
        if labels.drawn:
            self._require_linear()

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
        """Divergence at each position ``[N]``, without the factor T²; of the student's log bucket masses.

        Drawn targets have no bucket: ``Σ_S ŵ (log p - log q)`` with ``ŵ`` of `drawn_weights`. Its gradient in the
        logits is ``(Σŵ) q - ŵ`` over T. The value is an unbiased estimate of the KL over *all* classes, and as one it
        may be below 0.
        """
        if targets.count_NK is not None:
            return self._drawn(logq_NB, targets)
        soft = soften if self.tail == "bucket" else renormalise
        logp_NK, log_tail_N = soft(targets, self.temperature)
        logp_NB = torch.cat([logp_NK, log_tail_N.unsqueeze(-1)], -1).to(logq_NB.dtype)
        mix = Mix(beta=self.beta, skew=self.skew, head=self.head)
        return DIVERGENCES[self.divergence](logp_NB, logq_NB.masked_fill(logp_NB == -math.inf, -math.inf), mix)

    def _drawn(self, logq_NB: Tensor, targets: SparseTargets) -> Tensor:
        self._require_linear()
        logp_NK, _ = soften(targets, self.temperature)
        w_NK = drawn_weights(targets, self.temperature).to(logq_NB.dtype).exp()
        ratio_NK = logp_NK.to(logq_NB.dtype) - logq_NB[:, :-1]
        return (w_NK * ratio_NK.masked_fill(logp_NK == -math.inf, 0.0)).sum(-1)

    def _require_linear(self) -> None:
        if self.divergence == "forward_kl" and self.tail == "bucket":
            return
        what = f"divergence {self.divergence!r}" if self.divergence != "forward_kl" else f"tail {self.tail!r}"
        raise ValueError(
            f"the {what} cannot be used with sampled or hybrid labels: their targets are right on average, only "
            "forward KL is linear in the teacher's probabilities, and any other divergence of them is biased; use "
            "forward_kl, or label with the estimator topk or dense"
        )


def forward_kl(logits_NV: Tensor, targets: SparseTargets, temperature: float = 1.0) -> Tensor:
    """KL of teacher from student at temperature T, per position ``[N]``, in nats, without the factor T²."""
    return Soft(temperature=temperature).divergences(student_masses(logits_NV, targets, temperature), targets)
