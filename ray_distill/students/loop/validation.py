"""Measure every arm of a campaign by one rule during training.

The rule depends on the validation split alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from ray_distill.artifacts import Document, Number
from ray_distill.errors import TrainingError
from ray_distill.losses.base import LossBatch, StudentOutput
from ray_distill.losses.fused import HeadRequest
from ray_distill.students.data.examples import Examples, PositionExamples, RowWeights
from ray_distill.students.engines.engine import Engine
from ray_distill.students.objective.weighted_losses import to_device
from ray_distill.students.order.cursor import Index
from ray_distill.students.order.micro_batches import Budget, MicroBatch, micro_batches
from ray_distill.students.process_group import Ranks

#: With fewer labelled validation rows than this, arms are compared by their divergence from the teacher.
MIN_LABELLED = 50


class Score(Document):
    """A student's result on the validation split; less is better."""

    value: float
    """Mean NLL, or mean KL, in nats."""
    metrics: dict[str, Number]


@dataclass(frozen=True, kw_only=True)
class Objective:
    """A metric of a score by which the trials of a sweep may be compared."""

    metric: str
    """Its name in the family's table of metrics, which defines the better side and which metrics are of the teacher."""
    labelled: bool = False
    """True: a mean over the rows with true labels. False: over all rows."""


class Measure(Protocol):
    """Validation measure of a family of answers, as sums over micro-batches and ranks."""

    def head_request(self, batch: LossBatch) -> HeadRequest | None:
        """Return the losses that a fused head computes; None if logits are needed."""

    def sums(self, output: StudentOutput, batch: LossBatch) -> tuple[Tensor, ...]:
        """Return sums over a micro-batch, always of the same shapes.

        Rows with weight 0 do not count.
        """

    def finish(self, sums: Sequence[float]) -> Score:
        """Return the score from the totals over all rows.

        They are the elements of `sums`, one tensor after the other.
        """


@dataclass(frozen=True, kw_only=True)
class Validator:
    """The validation rows that count, and the measure applied to them."""

    data: Examples
    rows: Index
    measure: Measure

    def score(self, engine: Engine, ranks: Ranks, budget: Budget) -> Score:
        """Measure the current student; return the same score on all ranks.

        The ranks share the rows.
        """
        lengths = self.data.lengths
        engine.train(False)
        found: list[list[float]] = []
        with torch.no_grad():
            for micro in micro_batches(
                self.rows,
                rank=ranks.rank,
                world=ranks.world,
                budget=budget,
                lengths_BF=None if lengths is None else lengths[self.rows],
            ):
                inputs, made = self.data.batch(micro.rows, self._weights(micro))
                batch = to_device(made, engine.device)
                output = engine.forward(inputs, self.measure.head_request(batch))
                sums = self.measure.sums(output, batch)
                found.append(torch.cat([value.double().reshape(-1) for value in sums]).tolist())
        engine.train(True)
        return self.measure.finish(ranks.total([sum(column) for column in zip(*found, strict=True)], engine.device))

    def _weights(self, micro: MicroBatch) -> RowWeights:
        """Return the weight of each row: how often it came, 0 for padding."""
        return micro.real if self.data.count is None else (micro.real * self.data.count[micro.rows]).astype(np.float32)


def row_validator(validation: PositionExamples, *, truth: Measure, teacher: Measure) -> Validator:
    """Return the validator of rows that are answered once.

    It reads true labels where `MIN_LABELLED` rows have one, else the teacher.

    Args:
        validation: the validation split.
        truth: measures rows with true labels.
        teacher: measures rows that the teacher may teach.

    Raises:
        TrainingError: neither is there.
    """
    labelled, taught = np.flatnonzero(validation.labelled), np.flatnonzero(validation.distil)
    if len(labelled) >= MIN_LABELLED:
        return Validator(data=validation, rows=labelled, measure=truth)
    if validation.distributions is None or len(taught) == 0:
        raise TrainingError(
            f"the validation split has {len(labelled)} labelled rows (at least {MIN_LABELLED} are needed) and no "
            "teacher labels, so students cannot be compared; label it, or give it more labelled rows"
        )
    return Validator(data=validation, rows=taught, measure=teacher)
