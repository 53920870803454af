"""Probabilities of independent labels, to which a temperature is fitted."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ray_distill.config import EvaluationConfig
from ray_distill.evaluation.measures.calibration import calibration_error
from ray_distill.evaluation.measures.intervals import Floats
from ray_distill.labels.model.distributions import log_sigmoid
from ray_distill.losses.base import LossBatch, require_targets
from ray_distill.losses.binary import require_log_odds
from ray_distill.tasks.answers.labels.evaluation.predictions import probabilities


@dataclass(frozen=True, kw_only=True)
class LabelConfidence:
    """A sigmoid for each label; see `Confidence`."""

    bins: int = EvaluationConfig().bins
    averaged: bool = True

    def targets(self, logits_BV: Tensor, batch: LossBatch, *, truth: bool) -> Tensor:
        """Return 1 or 0 by true label, or the teacher's probability of each."""
        if truth:
            return (batch.labels_B > 0).to(logits_BV.dtype)
        targets = require_targets(batch, "calibration")
        probability_BV = require_log_odds(targets, "calibration").to(logits_BV.dtype).sigmoid()
        return torch.zeros_like(logits_BV).scatter(1, targets.ids_NK.long(), probability_BV)

    def probabilities(self, logits_NV: Floats) -> Floats:
        """Return the sigmoids."""
        return probabilities(logits_NV)

    def losses(self, logits_NV: Floats, target_NV: Floats) -> Floats:
        """Return the cross-entropy of each row, a mean over its labels."""
        terms_NV = target_NV * log_sigmoid(logits_NV) + (1 - target_NV) * log_sigmoid(-logits_NV)
        return np.asarray(-terms_NV.mean(axis=1))

    def calibration_error(self, logits_NV: Floats, target_NV: Floats, weight_N: Floats) -> float:
        """Return the mean over labels of the error of a label's probability."""
        probability_NV = self.probabilities(logits_NV)
        return float(
            np.mean(
                [
                    calibration_error(probability_N, target_N, weight_N, self.bins)
                    for probability_N, target_N in zip(probability_NV.T, target_NV.T, strict=True)
                ]
            )
        )
