"""What losses of hidden states share: pairs of layers, and states by row instead of by token (MATHS.md §5)."""

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ray_distill.losses.base import Labels, LossBatch, teacher_weight


class LayerLoss(Protocol):
    """A loss between pairs of layers."""

    @property
    def layers(self) -> Mapping[int, int]:
        """Student layer to the stored teacher layer it follows."""


def require_layers(loss: str, layers: Mapping[int, int]) -> None:
    """Refuse a loss without any pair.

    Raises:
        ValueError: there is none.
    """
    if not layers:
        raise ValueError(f"the loss {loss!r} needs at least one pair of layers")


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
    """Of each pair the teacher's layer, the student's states and the teacher's, in at least float32.

    Raises:
        ValueError: a layer is missing from the batch or from what the student gave, or they differ in all dimensions
            but the last.
    """
    found = []
    for ours, theirs in layers.items():
        if ours not in student or theirs not in batch.hidden:
            raise ValueError(
                f"the loss {loss!r} pairs student layer {ours} with teacher layer {theirs}; the student gave layers "
                f"{sorted(student)}, the labels hold layers {sorted(batch.hidden)}"
            )
        mine, wanted = student[ours], batch.hidden[theirs]
        if mine.shape[:-1] != wanted.shape[:-1]:
            raise ValueError(
                f"student layer {ours} has states of shape {tuple(mine.shape)}, teacher layer {theirs} of shape "
                f"{tuple(wanted.shape)}: pool them alike"
            )
        wide = torch.promote_types(mine.dtype, torch.float32)
        found.append((theirs, mine.to(wide), wanted.to(wide)))
    return found


def over_tokens(values: Tensor, mask_BL: Tensor | None) -> Tensor:
    """Mean over an example's tokens: ``[B]`` stays, ``[B, L]`` becomes ``[B]``; 0 of an example without any."""
    if values.ndim == 1:
        return values
    mask_BL = require_mask(mask_BL)
    return torch.where(mask_BL, values, 0.0).sum(-1) / mask_BL.sum(-1).clamp(min=1)


def require_mask(mask_BL: Tensor | None) -> Tensor:
    """The mask of states one a token.

    Raises:
        ValueError: there is none.
    """
    if mask_BL is None:
        raise ValueError("states one a token need a mask that says which tokens are padding")
    return mask_BL


def row_weights(batch: LossBatch) -> Tensor:
    """``[R]``: weight of each of a micro-batch's rows in losses that follow the teacher; of a language model's, what
    each of its positions has."""
    weight_B = teacher_weight(batch)
    if batch.row_B is None:
        return weight_B
    return weight_B.new_zeros(_rows(batch.row_B)).scatter_reduce(0, batch.row_B, weight_B, "amax")


def row_states(states: Tensor, batch: LossBatch) -> Tensor:
    """``[R, D]``: one vector a row; of states one a token their mean."""
    if states.ndim == 3:
        mask_BL1 = require_mask(batch.hidden_mask_BL).unsqueeze(-1)
        return torch.where(mask_BL1, states, 0.0).sum(1) / mask_BL1.sum(1).clamp(min=1)
    if batch.row_B is None:
        return states
    sums_RD = states.new_zeros(_rows(batch.row_B), states.shape[1]).index_add(0, batch.row_B, states)
    return sums_RD / batch.row_B.bincount(minlength=len(sums_RD)).clamp(min=1).unsqueeze(-1)


def sequences(states: Tensor, batch: LossBatch) -> Tensor:
    """``[R, L, D]``: the states of each row's tokens, zeros on padding.

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
    """bool ``[R, L]``: which tokens of `sequences` are real.

    Raises:
        ValueError: the states are pooled.
    """
    if batch.row_B is None:
        return require_mask(batch.hidden_mask_BL)
    length_R = batch.row_B.bincount()
    return torch.arange(int(length_R.max()) if len(length_R) else 0, device=length_R.device) < length_R.unsqueeze(-1)


def _lengths(row_B: Tensor | None) -> list[int]:
    if row_B is None:
        raise ValueError("states are pooled, one a row, and what is wanted are relations between a row's tokens")
    lengths: list[int] = row_B.bincount().tolist()
    return lengths


def _rows(row_B: Tensor) -> int:
    return int(row_B[-1]) + 1 if len(row_B) else 0
