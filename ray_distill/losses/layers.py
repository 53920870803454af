"""Share the parts of losses on hidden states: layer pairs, and states by row (MATHS.md §5)."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ray_distill.losses.base import Labels, Loss, LossBatch, teacher_weight


def require_layers(loss: str, layers: Mapping[int, int]) -> None:
    """Refuse a loss without any pair.

    Raises:
        ValueError: there is none.
    """
    if not layers:
        raise ValueError(f"the loss {loss!r} needs at least one pair of layers")


@dataclass(frozen=True, kw_only=True)
class LayerLoss(Loss):
    """Compare hidden states of pairs of layers."""

    layers: Mapping[int, int]
    """Student layer to the stored teacher layer that it follows."""

    def check(self, labels: Labels) -> None:
        """Refuse labels without hidden states."""
        require_hidden(labels)

    def layer_pairs(self) -> Mapping[int, int]:
        """Return ``layers``."""
        return self.layers


def require_hidden(labels: Labels) -> None:
    """Refuse labels without hidden states.

    Raises:
        ValueError: there are none.
    """
    if not labels.hidden:
        raise ValueError("no hidden states are stored; set labels.hidden.layers")


def paired(
    loss: str, layers: Mapping[int, int], student: Mapping[int, Tensor], batch: LossBatch
) -> list[tuple[int, Tensor, Tensor]]:
    """Return (teacher layer, student states, teacher states) of each pair, in at least float32.

    Raises:
        ValueError: a layer is missing from the batch or from the student's output, or the shapes differ in more than
            the last dimension.
    """
    found = []
    for student_layer, teacher_layer in layers.items():
        if student_layer not in student or teacher_layer not in batch.hidden:
            raise ValueError(
                f"the loss {loss!r} pairs student layer {student_layer} with teacher layer {teacher_layer}; the "
                f"student gave layers {sorted(student)}, the labels have layers {sorted(batch.hidden)}"
            )
        output, target = student[student_layer], batch.hidden[teacher_layer]
        if output.shape[:-1] != target.shape[:-1]:
            raise ValueError(
                f"student layer {student_layer} has states of shape {tuple(output.shape)}, teacher layer "
                f"{teacher_layer} of shape {tuple(target.shape)}: pool them alike"
            )
        wide = torch.promote_types(output.dtype, torch.float32)
        found.append((teacher_layer, output.to(wide), target.to(wide)))
    return found


def over_tokens(values: Tensor, mask_BL: Tensor | None) -> Tensor:
    """Average ``[B, L]`` over tokens, 0 without any; ``[B]`` is returned unchanged."""
    if values.ndim == 1:
        return values
    mask_BL = require_mask(mask_BL)
    return torch.where(mask_BL, values, 0.0).sum(-1) / mask_BL.sum(-1).clamp(min=1)


def require_mask(mask_BL: Tensor | None) -> Tensor:
    """Return the mask of token-level states.

    Raises:
        ValueError: there is none.
    """
    if mask_BL is None:
        raise ValueError("token-level states need a mask that marks the padding")
    return mask_BL


def row_weights(batch: LossBatch) -> Tensor:
    """Return each row's weight ``[R]`` in losses that follow the teacher."""
    weight_B = teacher_weight(batch)
    if batch.row_B is None:
        return weight_B
    return weight_B.new_zeros(_rows(batch.row_B)).scatter_reduce(0, batch.row_B, weight_B, "amax")


def row_states(states: Tensor, batch: LossBatch) -> Tensor:
    """Return one vector a row ``[R, D]``: the mean of token-level states."""
    if states.ndim == 3:
        mask_BL1 = require_mask(batch.hidden_mask_BL).unsqueeze(-1)
        return torch.where(mask_BL1, states, 0.0).sum(1) / mask_BL1.sum(1).clamp(min=1)
    if batch.row_B is None:
        return states
    sums_RD = states.new_zeros(_rows(batch.row_B), states.shape[1]).index_add(0, batch.row_B, states)
    return sums_RD / batch.row_B.bincount(minlength=len(sums_RD)).clamp(min=1).unsqueeze(-1)


def sequences(states: Tensor, batch: LossBatch) -> Tensor:
    """Return ``[R, L, D]``: the states of each row's tokens, zeros on padding.

    Raises:
        ValueError: they are pooled.
    """
    if states.ndim == 3:
        return states
    lengths = _lengths(batch.row_B)
    if not lengths:
        return states.unsqueeze(0)[:0]
    return pad_sequence(list(torch.split(states, lengths)), batch_first=True)


def sequence_mask(batch: LossBatch) -> Tensor:
    """Return bool ``[R, L]``: which tokens of `sequences` are real.

    Raises:
        ValueError: the states are pooled.
    """
    if batch.row_B is None:
        return require_mask(batch.hidden_mask_BL)
    length_R = batch.row_B.bincount()
    return torch.arange(int(length_R.max()) if len(length_R) else 0, device=length_R.device) < length_R.unsqueeze(-1)


def _lengths(row_B: Tensor | None) -> list[int]:
    if row_B is None:
        raise ValueError("states are pooled, one a row, and the loss compares the tokens of a row")
    lengths: list[int] = row_B.bincount().tolist()
    return lengths


def _rows(row_B: Tensor) -> int:
    return int(row_B[-1]) + 1 if len(row_B) else 0
