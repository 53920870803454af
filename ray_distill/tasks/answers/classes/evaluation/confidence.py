"""Probabilities of one class for each row, to which a temperature is fitted."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ray_distill.config import EvaluationConfig
from ray_distill.evaluation.measures.calibration import calibration_error
from ray_distill.evaluation.measures.intervals import Floats
from ray_distill.losses.base import LossBatch, SparseTargets, require_targets
from ray_distill.losses.buckets import drawn_weights


@dataclass(frozen=True, kw_only=True)
class ClassConfidence:
    """A softmax over all classes; see `Confidence`."""

    bins: int = EvaluationConfig().bins
    averaged: bool = False

    def targets(self, logits_BV: Tensor, batch: LossBatch, *, truth: bool) -> Tensor:
        """Return 1 for the true class, or the teacher's probability of each."""
        if not truth:
            return teacher_probabilities(require_targets(batch, "calibration"), logits_BV.softmax(-1))
        return torch.zeros_like(logits_BV).scatter(1, batch.labels_B.clamp(min=0).unsqueeze(1), 1.0)

    def probabilities(self, logits_NV: Floats) -> Floats:
        """Return the softmax."""
        return np.exp(_log_softmax(logits_NV))

    def losses(self, logits_NV: Floats, target_NV: Floats) -> Floats:
        """Return the cross-entropy of each row."""
        return np.asarray(-(target_NV * _log_softmax(logits_NV)).sum(axis=1))

    def calibration_error(self, logits_NV: Floats, target_NV: Floats, weight_N: Floats) -> float:
        """Return the error of the top class's probability (Guo et al. 2017)."""
        first_N1 = logits_NV.argmax(axis=1, keepdims=True)
        confidence_N = self.probabilities(logits_NV).max(axis=1)
        return calibration_error(confidence_N, np.take_along_axis(target_NV, first_N1, 1)[:, 0], weight_N, self.bins)


def teacher_probabilities(targets: SparseTargets, own_BV: Tensor) -> Tensor:
    """Return stored distributions over all classes, ``[B, V]``.

    Args:
        targets: the stored ones.
        own_BV: the student's probabilities, in whose proportion the mass outside the stored classes is shared.
    """
    drawn, ids_BK = targets.count_NK is not None, targets.ids_NK.long()
    weight_BK = (drawn_weights(targets, 1.0) if drawn else targets.logp_NK).exp().to(own_BV.dtype)
    found_BV = torch.zeros_like(own_BV).scatter_add(1, ids_BK, weight_BK)
    rest_BV = torch.zeros_like(own_BV) if drawn else own_BV.masked_fill(found_BV > 0, 0.0)
    tail_B1 = (1 - found_BV.sum(1, keepdim=True)).clamp(min=0.0)
    found_BV = found_BV + tail_B1 * rest_BV / rest_BV.sum(1, keepdim=True).clamp(min=1e-300)
    return found_BV / found_BV.sum(1, keepdim=True)


def _log_softmax(logits_NV: Floats) -> Floats:
    shifted_NV = logits_NV - logits_NV.max(axis=1, keepdims=True)
    return np.asarray(shifted_NV - np.log(np.exp(shifted_NV).sum(axis=1, keepdims=True)))
