"""Cross-entropy with one class an example: the true label, or the teacher's first choice."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from ray_distill.losses.base import LossBatch, StudentOutput, label_weight, require_targets, teacher_weight
from ray_distill.losses.buckets import BucketLoss, Buckets


class _OneClass(BucketLoss):
    """Cross-entropy with one class an example, which is defined at T = 1."""

    @property
    def temperature(self) -> float:
        """Return 1."""
        return 1.0


@dataclass(frozen=True, kw_only=True)
class Hard(_OneClass):
    """Cross-entropy with the true label; examples without one (label -1) have no weight."""

    follows_labels: ClassVar[bool] = True

    def weights(self, batch: LossBatch) -> Tensor:
        """Return the weight of each example ``[B]``, 0 without a label."""
        return label_weight(batch)

    def __call__(self, output: StudentOutput, batch: LossBatch) -> Tensor:
        """Return the weighted sum over examples, in nats."""
        return (_cross_entropy(output.logits_BV, batch.labels_B.clamp(min=0)) * label_weight(batch)).sum()

    def of_buckets(self, student: Buckets, batch: LossBatch) -> Tensor:
        """Return the weighted sum from the student's buckets."""
        return -(student.log_gold_N * label_weight(batch)).sum()


@dataclass(frozen=True, kw_only=True)
class TeacherHard(_OneClass):
    """Cross-entropy with the teacher's most probable class, as in pseudo-labelling."""

    def weights(self, batch: LossBatch) -> Tensor:
        """Return the weight of each example ``[B]``, 0 where the teacher is excluded."""
        return teacher_weight(batch)

    def __call__(self, output: StudentOutput, batch: LossBatch) -> Tensor:
        """Return the weighted sum over examples, in nats."""
        targets = require_targets(batch, "teacher_hard")
        first_N1 = targets.logp_NK.argmax(-1, keepdim=True)
        labels_B = targets.ids_NK.gather(-1, first_N1).squeeze(-1)
        return (_cross_entropy(output.logits_BV, labels_B) * teacher_weight(batch)).sum()

    def of_buckets(self, student: Buckets, batch: LossBatch) -> Tensor:
        """Return the weighted sum from the student's buckets."""
        first_N1 = require_targets(batch, "teacher_hard").logp_NK.argmax(-1, keepdim=True)
        return -(student.logq_NB.gather(-1, first_N1).squeeze(-1) * teacher_weight(batch)).sum()


def _cross_entropy(logits_BV: Tensor, labels_B: Tensor) -> Tensor:
    wide_BV = logits_BV.to(torch.promote_types(logits_BV.dtype, torch.float32))
    return functional.cross_entropy(wide_BV, labels_B, reduction="none")
