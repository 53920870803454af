"""Compare the relations between rows of a group: CKA and RKD (MATHS.md §5).

A group is G rows that the sampler names, consecutive ones of the global batch; no rank and no micro-batch splits one,
so the loss depends on neither. Rows the teacher may not teach, and padding, are left out of their group. A group with
fewer rows than a relation needs weighs 0; any other as much as its rows. States one a token are averaged over a row.

Widths of student and teacher may differ: only relations are compared. With fewer rows than dimensions, as a group has,
CKA of unrelated states is well above 0: its value means little, its gradient is right.
"""

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from ray_distill.losses.base import LossBatch, StudentOutput
from ray_distill.losses.layers import LayerLoss, paired, require_layers, row_states, row_weights

#: Rows of a group, unless a configuration sets another number.
GROUP = 16


@dataclass(frozen=True, kw_only=True)
class GroupLoss(LayerLoss):
    """Compare a relation between the rows of n groups, averaged over the layer pairs."""

    group: int = GROUP

    name: ClassVar[str]
    least: ClassVar[int]
    """Rows without which there is nothing to compare."""

    def __post_init__(self) -> None:
        require_layers(self.name, self.layers)
        if self.group < self.least:
            raise ValueError(f"the loss {self.name!r} needs a group of at least {self.least} rows, found {self.group}")

    def group_rows(self) -> int:
        """Return ``group``."""
        return self.group

    def weight(self, batch: LossBatch) -> Tensor:
        """Return the total weight of the taught rows in large enough groups."""
        return self._weights(batch)[1].sum()

    def __call__(self, output: StudentOutput, batch: LossBatch) -> Tensor:
        """Return the weighted sum over groups."""
        inside_nG, weight_n = self._weights(batch)
        pairs = [
            self.compare(self._states(student, batch), self._states(teacher, batch), inside_nG)
            for _, student, teacher in paired(self.name, self.layers, output.states, batch)
        ]
        return (torch.stack(pairs).mean(0) * weight_n).sum()

    @abstractmethod
    def compare(self, student_nGD: Tensor, teacher_nGD: Tensor, inside_nG: Tensor) -> Tensor:
        """Return the distance of the relations ``[n]``: finite, with a finite gradient."""

    def _weights(self, batch: LossBatch) -> tuple[Tensor, Tensor]:
        """Return which rows count in each group ``[n, G]``, and the weight of each ``[n]``."""
        weight_R = row_weights(batch)
        if batch.row_B is None and len(weight_R) % self.group:
            raise ValueError(
                f"the loss {self.name!r} compares groups of {self.group} rows, and a micro-batch has "
                f"{len(weight_R)}: it was not divided by groups"
            )
        weight_nG = self._grouped(weight_R)
        inside_nG = weight_nG > 0
        return inside_nG, torch.where(inside_nG.sum(-1) >= self.least, weight_nG.sum(-1), 0.0)

    def _states(self, states: Tensor, batch: LossBatch) -> Tensor:
        """Return one vector a row, by group ``[n, G, D]``."""
        return self._grouped(row_states(states, batch))

    def _grouped(self, values: Tensor) -> Tensor:
        """Reshape ``[R, …]`` to ``[n, G, …]``, with zeros for the rows missing at the end.

        These rows have no answered token.
        """
        missing = -len(values) % self.group
        filled = torch.cat([values, values.new_zeros(missing, *values.shape[1:])])
        return filled.view(len(filled) // self.group, self.group, *values.shape[1:])


@dataclass(frozen=True, kw_only=True)
class Cka(GroupLoss):
    """One minus linear CKA of centred states (Kornblith et al., arXiv 1905.00414, §3).

    CKA is ``‖YᵀX‖² / (‖XᵀX‖ ‖YᵀY‖)``. For two rows it is always 1, so a group needs three.
    """

    name: ClassVar[str] = "cka"
    least: ClassVar[int] = 3

    def compare(self, student_nGD: Tensor, teacher_nGD: Tensor, inside_nG: Tensor) -> Tensor:
        """Use the ``G × G`` products of rows, which have the norms of the ``D × D`` ones."""
        x_nGG, y_nGG = (_products(states, inside_nG) for states in (student_nGD, teacher_nGD))
        sizes_n = _root(x_nGG.square().sum((-2, -1))) * _root(y_nGG.square().sum((-2, -1)))
        return 1 - (x_nGG * y_nGG).sum((-2, -1)) / torch.where(sizes_n > 0, sizes_n, 1.0)


@dataclass(frozen=True, kw_only=True)
class RkdDistance(GroupLoss):
    """Huber loss on normalised distances of row pairs (Park et al., arXiv 1904.05068, §3.2.1)."""

    name: ClassVar[str] = "rkd_distance"
    least: ClassVar[int] = 2

    def compare(self, student_nGD: Tensor, teacher_nGD: Tensor, inside_nG: Tensor) -> Tensor:
        """Average over the pairs of different rows."""
        pairs_nGG = _different(inside_nG)
        x_nGG, y_nGG = (_distances(states, pairs_nGG) for states in (student_nGD, teacher_nGD))
        return _mean(functional.smooth_l1_loss(x_nGG, y_nGG, reduction="none"), pairs_nGG, (-2, -1))


@dataclass(frozen=True, kw_only=True)
class RkdAngle(GroupLoss):
    """Huber loss between angle cosines of row triples (Park et al., arXiv 1904.05068, §3.2.2)."""

    name: ClassVar[str] = "rkd_angle"
    least: ClassVar[int] = 3

    def compare(self, student_nGD: Tensor, teacher_nGD: Tensor, inside_nG: Tensor) -> Tensor:
        """Average over triples of different rows; needs ``G`` times the states, ``G³`` cosines."""
        pairs_nGG = _different(inside_nG)
        triples_nGGG = pairs_nGG.unsqueeze(-1) & pairs_nGG.unsqueeze(-2) & pairs_nGG.unsqueeze(-3)
        x_nGGG, y_nGGG = (_angles(states) for states in (student_nGD, teacher_nGD))
        return _mean(functional.smooth_l1_loss(x_nGGG, y_nGGG, reduction="none"), triples_nGGG, (-3, -2, -1))


def _products(states_nGD: Tensor, inside_nG: Tensor) -> Tensor:
    """Return ``[n, G, G]`` scalar products of rows less the mean of those that count.

    The products of other rows are 0.
    """
    inside_nG1 = inside_nG.unsqueeze(-1)
    mean_n1D = torch.where(inside_nG1, states_nGD, 0.0).sum(1, keepdim=True) / inside_nG1.sum(1, keepdim=True).clamp(1)
    centred_nGD = torch.where(inside_nG1, states_nGD - mean_n1D, 0.0)
    return centred_nGD @ centred_nGD.transpose(-2, -1)


def _distances(states_nGD: Tensor, pairs_nGG: Tensor) -> Tensor:
    """Return distances ``[n, G, G]`` over their mean, from differences: products cancel."""
    distance_nGG = torch.cdist(states_nGD, states_nGD, compute_mode="donot_use_mm_for_euclid_dist")
    mean_n = _mean(distance_nGG, pairs_nGG, (-2, -1))
    return distance_nGG / torch.where(mean_n > 0, mean_n, 1.0)[:, None, None]


def _angles(states_nGD: Tensor) -> Tensor:
    """Return cosines ``[n, G, G, G]``: ``[:, j, i, k]`` is the angle at row j; 0 if i or k is j."""
    apart_nGGD = states_nGD.unsqueeze(1) - states_nGD.unsqueeze(2)
    size_nGG1 = _root(apart_nGGD.square().sum(-1, keepdim=True))
    unit_nGGD = apart_nGGD / torch.where(size_nGG1 > 0, size_nGG1, 1.0)
    return unit_nGGD @ unit_nGGD.transpose(-2, -1)


def _different(inside_nG: Tensor) -> Tensor:
    """Return bool ``[n, G, G]``: pairs of two different rows that count."""
    other_GG = ~torch.eye(inside_nG.shape[-1], dtype=torch.bool, device=inside_nG.device)
    return inside_nG.unsqueeze(-1) & inside_nG.unsqueeze(-2) & other_GG


def _mean(values: Tensor, chosen: Tensor, over: tuple[int, ...]) -> Tensor:
    """Return the mean of the chosen values, 0 of none."""
    return torch.where(chosen, values, 0.0).sum(over) / chosen.sum(over).clamp(min=1)


def _root(squares: Tensor) -> Tensor:
    """Return the square root, with gradient 0 at 0."""
    positive = squares > 0
    return torch.where(positive, torch.where(positive, squares, 1.0).sqrt(), 0.0)
