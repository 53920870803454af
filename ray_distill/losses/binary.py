"""Compare independent sigmoids, one a class: divergences and cross-entropies (MATHS.md §2).

Each class has two buckets, yes and no: there is no softmax over the classes and no tail. The loss of a row is the
*mean* over its V classes. The sum, V times that, would be the divergence of the joint distribution, but it grows with
the number of classes. The mean is in nats a decision, at most log 2 for a student that is unsure of everything,
whatever V is: its weight beside losses of hidden states and its learning rate need not be chosen again for every V.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from ray_distill.losses.base import (
    Loss,
    LossBatch,
    SparseTargets,
    StudentOutput,
    label_weight,
    require_targets,
    teacher_weight,
)
from ray_distill.losses.divergences import build_divergence

#: Greatest size of a teacher's log-odds over T. Beyond it float32 has no probability between σ and 0 or 1, and certain
#: teachers (±infinity) would make divergences infinite that divide by the teacher's probability.
CERTAIN = 100.0


@dataclass(frozen=True, kw_only=True)
class BinarySoft(Loss):
    """``T² · mean_v D(σ(z_v/T), σ(s_v/T))``, D over the two buckets of a class.

    z are the teacher's log-odds, s the student's logits. Everything is stored, so that the temperature need not be one
    that the labels declare. The factor T² keeps the gradient's scale as T grows (Hinton et al., arXiv 1503.02531, §2).

    ``divergence`` is one of `DIVERGENCES`, by name or as ``{name: {parameter: value}}``. None of them distinguishes yes
    from no; ``adaptive_kl`` is the mean of forward and reverse KL here, because both buckets have the same gap.

    Raises (when called):
        ValueError: the batch has no targets, or targets without log-odds.
    """

    temperature: float = 1.0
    divergence: str | Mapping[str, Mapping[str, float]] = "forward_kl"

    any_temperature: ClassVar[bool] = True

    def __post_init__(self) -> None:
        build_divergence(self.divergence)
        if not 0 < self.temperature < math.inf:
            raise ValueError(f"the loss 'soft' needs a temperature greater than 0, found {self.temperature:g}")

    def weight(self, batch: LossBatch) -> Tensor:
        """Return the total weight of the examples that the teacher may teach."""
        return teacher_weight(batch).sum()

    def __call__(self, output: StudentOutput, batch: LossBatch) -> Tensor:
        """Return the weighted sum over examples, in nats a class times T²."""
        each_N = self.divergences(output.logits_BV, require_targets(batch, "soft"))
        return self.temperature**2 * (each_N * teacher_weight(batch)).sum()

    def divergences(self, logits_NV: Tensor, targets: SparseTargets) -> Tensor:
        """Return the mean divergence over the classes ``[N]``, without the factor T²."""
        scaled_NV = (require_log_odds(targets, "soft") / self.temperature).clamp(-CERTAIN, CERTAIN)
        logp, logq = _masses(scaled_NV), _masses(stored_logits(logits_NV, targets) / self.temperature)
        compare = build_divergence(self.divergence)
        return compare(logp.to(logq.dtype), logq).view(scaled_NV.shape).mean(-1)


@dataclass(frozen=True, kw_only=True)
class BinaryHard(Loss):
    """Binary cross-entropy with the set of true classes; unknown sets have no weight."""

    follows_labels: ClassVar[bool] = True

    def weight(self, batch: LossBatch) -> Tensor:
        """Return the total weight of the examples whose set is known."""
        return label_weight(batch).sum()

    def __call__(self, output: StudentOutput, batch: LossBatch) -> Tensor:
        """Return the weighted sum over examples, in nats a class.

        Raises:
            ValueError: the labels are not one of 1, 0 and -1 a class.
        """
        logits_BV, labels_BV = output.logits_BV, batch.labels_B
        if labels_BV.shape != logits_BV.shape:
            raise ValueError(
                f"the loss 'hard' needs true labels of shape {tuple(logits_BV.shape)}, one a class, and found "
                f"{tuple(labels_BV.shape)}"
            )
        return (cross_entropies(logits_BV, labels_BV.clamp(min=0)) * label_weight(batch)).sum()


@dataclass(frozen=True, kw_only=True)
class BinaryTeacherHard(Loss):
    """Binary cross-entropy with the classes that the teacher gives a probability of at least ½."""

    def weight(self, batch: LossBatch) -> Tensor:
        """Return the total weight of the examples that the teacher may teach."""
        return teacher_weight(batch).sum()

    def __call__(self, output: StudentOutput, batch: LossBatch) -> Tensor:
        """Return the weighted sum over examples, in nats a class."""
        targets = require_targets(batch, "teacher_hard")
        decided_NV = require_log_odds(targets, "teacher_hard") >= 0
        each_N = cross_entropies(stored_logits(output.logits_BV, targets), decided_NV)
        return (each_N * teacher_weight(batch)).sum()


def cross_entropies(logits_NV: Tensor, labels_NV: Tensor) -> Tensor:
    """Return the mean binary cross-entropy over the classes ``[N]``, in at least float32.

    Args:
        logits_NV: of the student.
        labels_NV: 1 or True where a class applies, else 0 or False.
    """
    wide_NV = logits_NV.to(torch.promote_types(logits_NV.dtype, torch.float32))
    target_NV = labels_NV.to(wide_NV.dtype)
    return functional.binary_cross_entropy_with_logits(wide_NV, target_NV, reduction="none").mean(-1)


def stored_logits(logits_NV: Tensor, targets: SparseTargets) -> Tensor:
    """Return the student's logits ``[N, V]`` in the stored order, in at least float32."""
    return logits_NV.to(torch.promote_types(logits_NV.dtype, torch.float32)).gather(-1, targets.ids_NK)


def require_log_odds(targets: SparseTargets, loss: str) -> Tensor:
    """Return the teacher's log-odds ``[N, V]``.

    Raises:
        ValueError: the targets are distributions over exclusive classes.
    """
    if targets.log_odds_NK is None:
        raise ValueError(f"the loss {loss!r} compares yes or no by class, and the labels are one distribution a row")
    return targets.log_odds_NK


def _masses(log_odds_NV: Tensor) -> Tensor:
    """Return log-probabilities of yes and no ``[N·V, 2]``, both exact however certain they are."""
    return torch.stack([functional.logsigmoid(log_odds_NV), functional.logsigmoid(-log_odds_NV)], -1).flatten(0, -2)
