"""Cross-entropy with one class an example: the true label, or the teacher's first choice."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from ray_distill.losses.base import LossBatch, StudentOutput, label_weight, require_targets, teacher_weight
from ray_distill.losses.buckets import Buckets


@dataclass(frozen=True, kw_only=True)
class Hard:
    """Cross-entropy with the true label; examples without one (label -1) have no weight."""

    temperature: ClassVar[float] = 1.0
    follows_labels: ClassVar[bool] = True

    def weights(self, batch: LossBatch) -> Tensor:
        """``[B]``: weight of each example, 0 without a label."""
        return label_weight(batch)

    def weight(self, batch: LossBatch) -> Tensor:
        """Total weight of the labelled examples."""
        return self.weights(batch).sum()

    def __call__(self, output: StudentOutput, batch: LossBatch) -> Tensor:
        """Weighted sum over examples, in nats."""
        return (_cross_entropy(output.logits_BV, batch.labels_B.clamp(min=0)) * label_weight(batch)).sum()

    def of_buckets(self, student: Buckets, batch: LossBatch) -> Tensor:
        """The same from the student's buckets."""
        return -(student.log_gold_N * label_weight(batch)).sum()


@dataclass(frozen=True, kw_only=True)
class TeacherHard:
    """Cross-entropy with the teacher's most probable class: what pseudo-labelling would train on."""

    temperature: ClassVar[float] = 1.0

    def weights(self, batch: LossBatch) -> Tensor:
        """``[B]``: weight of each example, 0 where the teacher may not teach."""
        return teacher_weight(batch)

    def weight(self, batch: LossBatch) -> Tensor:
        """Total weight of the examples the teacher may teach."""
        return self.weights(batch).sum()

    def __call__(self, output: StudentOutput, batch: LossBatch) -> Tensor:
        """Weighted sum over examples, in nats."""
        targets = require_targets(batch, "teacher_hard")
        first_N1 = targets.logp_NK.argmax(-1, keepdim=True)
        labels_B = targets.ids_NK.gather(-1, first_N1).squeeze(-1)
        return (_cross_entropy(output.logits_BV, labels_B) * teacher_weight(batch)).sum()

    def of_buckets(self, student: Buckets, batch: LossBatch) -> Tensor:
        """The same from the student's buckets."""
        first_N1 = require_targets(batch, "teacher_hard").logp_NK.argmax(-1, keepdim=True)
        return -(student.logq_NB.gather(-1, first_N1).squeeze(-1) * teacher_weight(batch)).sum()


def _cross_entropy(logits_BV: Tensor, labels_B: Tensor) -> Tensor:
    wide_BV = logits_BV.to(torch.promote_types(logits_BV.dtype, torch.float32))
    return functional.cross_entropy(wide_BV, labels_B, reduction="none")
