"""Match the student's projected hidden states with the teacher's stored ones (MATHS.md §5)."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from ray_distill.losses.base import Labels, LossBatch, StudentOutput, teacher_weight
from ray_distill.losses.layers import LayerLoss, over_tokens, paired, require_layers

KINDS = ("pca", "mse", "cosine")


@dataclass(frozen=True, kw_only=True)
class HiddenMatch(LayerLoss):
    """Distance between pairs of layers, averaged over the pairs and over tokens.

    ``layers`` maps a student layer to the stored teacher layer it follows. ``kind`` is one of, s the student's
    projected state and t the teacher's:

    - ``pca``: ``‖s - t‖² / RMS²``, RMS² the mean of ``‖t‖²`` over the stored states (``scales``). Only of states that
      are stored on a PCA basis: those have mean 0, so a student that always predicts the mean scores 1.
    - ``mse``: the mean over the dimensions of ``(s - t)²``, whatever its size is.
    - ``cosine``: ``1 - cos(s, t)``.

    Raises (when called):
        ValueError: a layer is missing from the batch or from the student's output, or has no scale, or widths differ.
    """

    kind: str = "cosine"
    scales: Mapping[int, float] = field(default_factory=dict)
    """Keyed by teacher layer, for ``pca``."""

    projected: ClassVar[bool] = True

    def __post_init__(self) -> None:
        require_layers("hidden", self.layers)
        if self.kind not in KINDS:
            raise ValueError(f"the loss 'hidden' has the kinds {', '.join(KINDS)}, found {self.kind!r}")

    def check(self, labels: Labels) -> None:
        """Refuse labels without states, or without a PCA basis where the kind needs one."""
        super().check(labels)
        if self.kind == "pca" and not labels.basis:
            raise ValueError(
                "the kind pca needs states that are stored on a PCA basis; set labels.hidden.rank or "
                "labels.hidden.variance, or take the kind cosine or mse"
            )

    def weight(self, batch: LossBatch) -> Tensor:
        """Return the total weight of the examples that the teacher may teach."""
        return teacher_weight(batch).sum()

    def __call__(self, output: StudentOutput, batch: LossBatch) -> Tensor:
        """Return the weighted sum over examples."""
        pairs = [
            over_tokens(self._distance(student, teacher, layer), batch.hidden_mask_BL)
            for layer, student, teacher in paired("hidden", self.layers, output.hidden, batch)
        ]
        return (torch.stack(pairs).mean(0) * teacher_weight(batch)).sum()

    def _distance(self, student: Tensor, teacher: Tensor, layer: int) -> Tensor:
        if student.shape != teacher.shape:
            raise ValueError(
                f"a student layer has states of shape {tuple(student.shape)}, teacher layer {layer} of shape "
                f"{tuple(teacher.shape)}: project them alike"
            )
        if self.kind == "cosine":
            return 1 - functional.cosine_similarity(student, teacher, dim=-1)
        if self.kind == "mse":
            return (student - teacher).square().mean(-1)
        if not self.scales.get(layer, 0.0) > 0:
            raise ValueError(
                f"the kind pca divides by the size of teacher layer {layer}, found "
                f"{self.scales.get(layer)}: its states are all 0, or were not measured"
            )
        return (student - teacher).square().sum(-1) / self.scales[layer]
