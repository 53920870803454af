"""Compare the relations between the tokens of a row, without projections (MATHS.md §5)."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ray_distill.losses.base import Labels, LossBatch, StudentOutput, teacher_weight
from ray_distill.losses.layers import LayerLoss, paired, require_layers, sequence_mask, sequences


@dataclass(frozen=True, kw_only=True)
class TokenRelation(LayerLoss):
    """KL between the relations of a row's tokens in student and teacher, on hidden states.

    MiniLM uses it on values (Wang et al., arXiv 2002.10957, §3.2; with relation heads, arXiv 2012.15828, §3.1). A
    token's relation to the tokens of its row is ``softmax(h Hᵀ / √d)`` in each of ``heads`` slices of d dimensions;
    more heads make it softer. The KL is averaged over the tokens, the heads and the pairs of layers. Rows of a single
    token have nothing to compare and weigh 0. The tokens of a language model's row are its answered positions, and
    each weighs as much as any other position. A row needs ``heads · L²`` numbers.

    Raises (when called):
        ValueError: a layer is missing, is pooled, or has a width that is not a multiple of ``heads``.
    """

    heads: int = 8

    name: ClassVar[str] = "relation"

    def __post_init__(self) -> None:
        require_layers(self.name, self.layers)
        if self.heads < 1:
            raise ValueError(f"the loss 'relation' needs at least one head, found {self.heads}")

    def check(self, labels: Labels) -> None:
        """Refuse labels without token-level states."""
        super().check(labels)
        if labels.pool != "token":
            raise ValueError(
                f"relations between tokens need token-level states, and labels.hidden.pool is "
                f"{labels.pool}; set it to token, or take cka, rkd_distance or rkd_angle"
            )

    def weight(self, batch: LossBatch) -> Tensor:
        """Return the total weight of the taught examples in rows of two or more tokens."""
        return self._weights(batch, sequence_mask(batch)).sum()

    def __call__(self, output: StudentOutput, batch: LossBatch) -> Tensor:
        """Return the weighted sum over rows."""
        mask_RL = sequence_mask(batch)
        pairs = [
            self._divergence(sequences(student, batch), sequences(teacher, batch), mask_RL)
            for _, student, teacher in paired(self.name, self.layers, output.states, batch)
        ]
        return (torch.stack(pairs).mean(0) * self._weights(batch, mask_RL)).sum()

    def _weights(self, batch: LossBatch, mask_RL: Tensor) -> Tensor:
        """Return the weight of each row ``[R]``."""
        weight_B = teacher_weight(batch)
        weight_R = (
            weight_B if batch.row_B is None else weight_B.new_zeros(len(mask_RL)).index_add(0, batch.row_B, weight_B)
        )
        return torch.where(mask_RL.sum(-1) >= 2, weight_R, 0.0)

    def _divergence(self, student_RLD: Tensor, teacher_RLD: Tensor, mask_RL: Tensor) -> Tensor:
        """Return the KL of each row ``[R]``, averaged over heads and tokens."""
        logq_RHLL, logp_RHLL = (self._relations(states, mask_RL) for states in (student_RLD, teacher_RLD))
        between_RHLL = (logp_RHLL - logq_RHLL).masked_fill(~mask_RL[:, None, None, :], 0.0)
        token_RL = (logp_RHLL.exp() * between_RHLL).sum(-1).mean(1)
        return torch.where(mask_RL, token_RL, 0.0).sum(-1) / mask_RL.sum(-1).clamp(min=1)

    def _relations(self, states_RLD: Tensor, mask_RL: Tensor) -> Tensor:
        """Return log relations ``[R, H, L, L]``; -inf at padding."""
        rows, length, width = states_RLD.shape
        if width % self.heads:
            raise ValueError(
                f"the loss 'relation' has {self.heads} heads, and states of width {width} do not divide "
                "into as many; set student.losses.relation.heads"
            )
        parts_RHLd = states_RLD.view(rows, length, self.heads, width // self.heads).transpose(1, 2)
        scores_RHLL: Tensor = parts_RHLd @ parts_RHLd.transpose(-2, -1) / (width // self.heads) ** 0.5
        # A row without any token would have none to be normalised over.
        known_RL = mask_RL | ~mask_RL.any(-1, keepdim=True)
        return scores_RHLL.masked_fill(~known_RL[:, None, None, :], -torch.inf).log_softmax(-1)
