"""What every loss shares: sparse targets, and the pair (sum, weight) that makes reduction exact."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class SparseTargets:
    """Teacher distributions of N positions, padded to K stored classes, on the student's device.

    The stored mass at temperature T is exact: ``p_T(i) ∝ exp(logp_i / T)`` on the stored classes, scaled to
    ``1 - exp(log_tail_T)`` (MATHS.md §3).
    """

    classes: int
    """Size of the full class set, V."""
    ids_NK: Tensor
    """int64 ``[N, K]``; padding entries hold any valid id. Of a batch that is not on its device yet: int32."""
    logp_NK: Tensor
    """float32 ``[N, K]`` at T = 1; -inf on padding."""
    log_tail_NT: Tensor
    """float32 ``[N, T]``; -inf where nothing is outside the stored classes."""
    temperatures: tuple[float, ...]
    count_NK: Tensor | None = None
    """int32 ``[N, K]``; how often an entry was drawn, 0 where it is exact (``hybrid``) or padding. None: all exact."""
    log_normaliser_N: Tensor | None = None
    """float32 ``[N]``; log Z of the proposal ``r_j = p_j^exponent / Z`` at T = 1. Given exactly where counts are."""
    draws: int = 0
    """Draws a position, where entries were drawn."""
    exponent: float = 1.0
    """a, where entries were drawn."""


@dataclass(frozen=True, kw_only=True)
class LossBatch:
    """One micro-batch as the losses see it. B examples; of a language model, its answered positions."""

    labels_B: Tensor
    """int64 ``[B]``; true class, -1 where unknown."""
    targets: SparseTargets | None = None
    """Teacher distributions, one position an example."""
    distil_B: Tensor
    """bool ``[B]``; False on rows whose soft labels must not be used (the teacher was trained on them)."""
    hidden: Mapping[int, Tensor] = field(default_factory=dict)
    """Teacher states by stored layer: float32 ``[B, D]`` pooled, or ``[B, L, D]`` one a token."""
    hidden_mask_BL: Tensor | None = None
    """bool ``[B, L]``; False on padding. Only with states one a token."""
    row_B: Tensor | None = None
    """int64 ``[B]``, ascending: of a language model, which row of the micro-batch a position belongs to, counted from
    0. None: each example is a row by itself."""
    example_weight_B: Tensor
    """float32 ``[B]``; the row's weight, 0 on padding examples."""


@dataclass(frozen=True, kw_only=True)
class StudentOutput:
    """What the student said for a micro-batch."""

    logits_BV: Tensor
    """``[B, V]``; ``[B, 0]`` where a fused head was asked for losses instead."""
    fused: tuple[Tensor, Tensor, Tensor] | None = None
    """Of a fused head, as it gives them: the total of the parts it was asked for, the sum of each, and the squared
    norms of their gradients, if they were asked for."""
    hidden: Mapping[int, Tensor] = field(default_factory=dict)
    """Student states by student layer, pooled as the teacher's were and already projected to its width:
    ``[B, D]``, or ``[B, L, D]`` one a token."""
    states: Mapping[int, Tensor] = field(default_factory=dict)
    """The same before any projection, for losses that need none."""


@dataclass(frozen=True, kw_only=True)
class Labels:
    """What a store holds, as far as a loss may want to know before the first row is read."""

    temperatures: tuple[float, ...] = (1.0,)
    """The declared ones."""
    drawn: bool = False
    """Whether classes are drawn (``sampled``, ``hybrid``)."""
    hidden: bool = False
    """Whether hidden states are stored."""
    pool: str = "mean"
    """How those are pooled."""
    basis: bool = False
    """Whether they are projected on a PCA basis."""


class Loss(Protocol):
    """A loss gives a sum over examples; the step divides by the *global* weight (MATHS.md §6).

    It is a frozen dataclass whose fields are its settings, by the names a configuration gives them. Some names mean
    the same in every loss, and the run gives their values: ``layers`` (student layer to stored teacher layer; a
    configuration says ``uniform``, ``last`` or the pairs), ``temperature`` (one that the labels declare, which may
    change in steps), ``scales`` (mean squared length of the stored states, by teacher layer; no setting), ``group``
    (rows that the sampler keeps together). Class variables say what else differs: ``follows_labels``, that the loss is
    of true labels; ``projected``, that it wants `StudentOutput.hidden`, not ``states``. A method
    ``check(labels: Labels)`` may refuse labels it cannot be used with, by a ValueError with the reason.
    """

    def weight(self, batch: LossBatch) -> Tensor:
        """Scalar float32: the total weight of the examples this loss counts. A function of the batch only."""

    def __call__(self, output: StudentOutput, batch: LossBatch) -> Tensor:
        """Scalar float32: the weighted sum of the loss over the batch, differentiable in ``output``."""


def teacher_weight(batch: LossBatch) -> Tensor:
    """Weight of each example in losses that follow the teacher: float32 ``[B]``, 0 where it must not teach."""
    return batch.example_weight_B * batch.distil_B


def label_weight(batch: LossBatch) -> Tensor:
    """Weight of each example in losses that follow true labels: float32 ``[B]``, 0 where there is none."""
    return batch.example_weight_B * (batch.labels_B >= 0)


def require_targets(batch: LossBatch, loss: str) -> SparseTargets:
    """The batch's teacher distributions.

    Raises:
        ValueError: the batch has none; ``loss`` names who asks.
    """
    if batch.targets is None:
        raise ValueError(f"the loss {loss!r} needs the teacher's distributions, and the batch has none")
    return batch.targets
