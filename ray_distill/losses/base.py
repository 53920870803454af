"""Define what all losses share: sparse targets, and the pair (sum, weight)."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

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
    """int64 ``[N, K]``; padding entries have any valid id. int32 before the batch is moved to its device."""
    logp_NK: Tensor
    """float32 ``[N, K]`` at T = 1; -inf on padding."""
    log_tail_NT: Tensor
    """float32 ``[N, T]``; -inf where nothing is outside the stored classes."""
    temperatures: tuple[float, ...]
    count_NK: Tensor | None = None
    """int32 ``[N, K]``; how often an entry was drawn, 0 where it is exact (``hybrid``) or padding. None: all exact."""
    log_odds_NK: Tensor | None = None
    """float32 ``[N, K]``: z of independent yes or no by class (``bernoulli``), whose probability at T is σ(z/T). None:
    one distribution over exclusive classes."""
    log_normaliser_N: Tensor | None = None
    """float32 ``[N]``; log Z of the proposal ``r_j = p_j^exponent / Z`` at T = 1. Given exactly where counts are."""
    draws: int = 0
    """Draws a position, where entries were drawn."""
    exponent: float = 1.0
    """a, where entries were drawn."""


@dataclass(frozen=True, kw_only=True)
class LossBatch:
    """Inputs of the losses for a micro-batch of B examples: the answered positions."""

    labels_B: Tensor
    """int64 ``[B]``: true class, -1 where unknown. Or ``[B, V]``: 1 where a class applies and 0 where it does not, -1
    in the whole line where that is unknown."""
    targets: SparseTargets | None = None
    """Teacher distributions, one position an example."""
    distil_B: Tensor
    """bool ``[B]``; False on rows whose soft labels must not be used (the teacher was trained on them)."""
    hidden: Mapping[int, Tensor] = field(default_factory=dict)
    """Teacher states by stored layer: float32 ``[B, D]`` pooled, or ``[B, L, D]`` one a token."""
    hidden_mask_BL: Tensor | None = None
    """bool ``[B, L]``; False on padding. Only with states one a token."""
    row_B: Tensor | None = None
    """int64 ``[B]``, ascending: the row of the micro-batch that a position belongs to, counted from 0. None: each
    example is a row by itself."""
    example_weight_B: Tensor
    """float32 ``[B]``; the row's weight, 0 on padding examples."""


@dataclass(frozen=True, kw_only=True)
class StudentOutput:
    """Outputs of the student for a micro-batch."""

    logits_BV: Tensor
    """``[B, V]``; ``[B, 0]`` where a fused head computed losses instead."""
    fused: tuple[Tensor, Tensor, Tensor] | None = None
    """Results of a fused head: the total of the requested parts, the sum of each, and the squared norms of their
    gradients, where they were requested."""
    hidden: Mapping[int, Tensor] = field(default_factory=dict)
    """Student states by student layer, pooled as the teacher's were and already projected to its width:
    ``[B, D]``, or ``[B, L, D]`` one a token."""
    states: Mapping[int, Tensor] = field(default_factory=dict)
    """The same before any projection, for losses that need none."""


@dataclass(frozen=True, kw_only=True)
class Labels:
    """Describe a label store, so that a loss can refuse it before the first row is read."""

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


class Loss(ABC):
    """Return a sum over examples; the step divides by the *global* weight (MATHS.md §6).

    A loss is a frozen dataclass whose fields are its settings, under the names of the configuration. Four field names
    mean the same in every loss, and the run computes their values: ``layers`` (student layer to stored teacher layer;
    configured as ``uniform``, ``last`` or the pairs), ``temperature`` (one that the labels declare; it may change in
    steps), ``scales`` (mean squared length of the stored states by teacher layer; not a setting), and ``group`` (rows
    that the sampler keeps together). Everything else that a run reads of a loss is declared here.
    """

    follows_labels: ClassVar[bool] = False
    """True: trains on true labels. False: follows the teacher."""
    projected: ClassVar[bool] = False
    """True: reads `StudentOutput.hidden`. False: reads `StudentOutput.states`, where it reads states at all."""
    any_temperature: ClassVar[bool] = False
    """True: reads the teacher at any temperature. False: only at those that the labels declare."""

    @abstractmethod
    def weight(self, batch: LossBatch) -> Tensor:
        """Return the total weight of the batch: a scalar float32, a function of the batch only."""

    @abstractmethod
    def __call__(self, output: StudentOutput, batch: LossBatch) -> Tensor:
        """Return the weighted sum over the batch: scalar float32, differentiable in ``output``."""

    def check(self, labels: Labels) -> None:
        """Refuse labels that the loss cannot use; the default accepts all.

        Raises:
            ValueError: the reason.
        """
        return

    def layer_pairs(self) -> Mapping[int, int]:
        """Return student layer → stored teacher layer; empty where no hidden states are compared."""
        return {}

    def group_rows(self) -> int | None:
        """Return how many rows the sampler must keep together; None where rows are not compared."""
        return None


def teacher_weight(batch: LossBatch) -> Tensor:
    """Return each example's weight in losses that follow the teacher: ``[B]``, 0 if excluded."""
    return batch.example_weight_B * batch.distil_B


def label_weight(batch: LossBatch) -> Tensor:
    """Return the weight of each example in losses on true labels: ``[B]``, 0 without a label."""
    known = batch.labels_B >= 0
    return batch.example_weight_B * (known if known.ndim == 1 else known.flatten(1).all(-1))


def require_targets(batch: LossBatch, loss: str) -> SparseTargets:
    """Return the batch's teacher distributions.

    Raises:
        ValueError: the batch has none; ``loss`` is the name in the message.
    """
    if batch.targets is None:
        raise ValueError(f"the loss {loss!r} needs the teacher's distributions, and the batch has none")
    return batch.targets
