"""Hidden-state matching: the student's projected states against the teacher's stored ones (MATHS.md §5)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from ray_distill.losses.base import LossBatch, StudentOutput, teacher_weight


@dataclass(frozen=True, kw_only=True)
class HiddenMatch:
    """Distance between pairs of layers, averaged over the pairs and, for states one a token, over the tokens.

    ``layers`` maps a student layer to the stored teacher layer it follows. ``mse`` is the mean over the
    teacher's dimensions of the squared difference, ``cosine`` is one minus the cosine.

    Raises (when called):
        ValueError: a layer is missing from the batch or from the student's output, or their shapes differ.
    """

    layers: Mapping[int, int]
    kind: Literal["mse", "cosine"] = "cosine"

    def __post_init__(self) -> None:
        if not self.layers:
            raise ValueError("the loss 'hidden' needs at least one pair of layers")
        if self.kind not in ("mse", "cosine"):
            raise ValueError(f"the loss 'hidden' knows the kinds mse and cosine, found {self.kind!r}")

    def weight(self, batch: LossBatch) -> Tensor:
        """Total weight of the examples the teacher may teach."""
        return teacher_weight(batch).sum()

    def __call__(self, output: StudentOutput, batch: LossBatch) -> Tensor:
        """Weighted sum over examples."""
        pairs = [self._pair(output, batch, student, teacher) for student, teacher in self.layers.items()]
        return (torch.stack(pairs).mean(0) * teacher_weight(batch)).sum()

    def _pair(self, output: StudentOutput, batch: LossBatch, student: int, teacher: int) -> Tensor:
        if student not in output.hidden or teacher not in batch.hidden:
            raise ValueError(
                f"the loss 'hidden' pairs student layer {student} with teacher layer {teacher}; the student gave "
                f"layers {sorted(output.hidden)}, the labels hold layers {sorted(batch.hidden)}")
        ours, theirs = output.hidden[student], batch.hidden[teacher]
        if ours.shape != theirs.shape:
            raise ValueError(
                f"student layer {student} has states of shape {tuple(ours.shape)}, teacher layer {teacher} of "
                f"shape {tuple(theirs.shape)}: project and pool them alike")
        return _over_tokens(self._distance(ours, theirs), batch.hidden_mask_BL)

    def _distance(self, ours: Tensor, theirs: Tensor) -> Tensor:
        ours = ours.to(torch.promote_types(ours.dtype, torch.float32))
        theirs = theirs.to(ours.dtype)
        if self.kind == "mse":
            return (ours - theirs).square().mean(-1)
        return 1 - functional.cosine_similarity(ours, theirs, dim=-1)


def _over_tokens(distance: Tensor, mask_BL: Tensor | None) -> Tensor:
    """Mean over an example's tokens: ``[B]`` stays, ``[B, L]`` becomes ``[B]``."""
    if distance.ndim == 1:
        return distance
    if mask_BL is None:
        raise ValueError("states one a token need a mask that says which tokens are padding")
    return torch.where(mask_BL, distance, 0.0).sum(-1) / mask_BL.sum(-1).clamp(min=1)
