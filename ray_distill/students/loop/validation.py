"""Measure every arm of a campaign by one rule during training.

The rule depends on the validation split alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ray_distill.losses.base import LossBatch, StudentOutput
from ray_distill.losses.fused import HeadRequest
from ray_distill.students.data.examples import Examples
from ray_distill.students.engines.engine import Engine
from ray_distill.students.objective.weighted_losses import to_device
from ray_distill.students.order.cursor import Index
from ray_distill.students.order.micro_batches import Budget, micro_batches
from ray_distill.students.process_group import Ranks

#: With fewer labelled validation rows than this, arms are compared by their divergence from the teacher.
MIN_LABELLED = 50


@dataclass(frozen=True, kw_only=True)
class Score:
    """A student's result on the validation split; less is better."""

    value: float
    """Mean NLL, or mean KL, in nats."""
    metrics: dict[str, float]


class Measure(Protocol):
    """Validation measure of a family of answers, as sums over micro-batches and ranks."""

    def head_request(self, batch: LossBatch) -> HeadRequest | None:
        """Return the losses that a fused head computes; None if logits are needed."""

    def sums(self, output: StudentOutput, batch: LossBatch) -> tuple[Tensor, ...]:
        """Return scalars of a micro-batch, always equally many; rows with weight 0 do not count."""

    def finish(self, sums: Sequence[float]) -> Score:
        """Return the score, from the totals over all rows."""


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
                inputs, made = self.data.batch(micro.rows, micro.real)
                batch = to_device(made, engine.device)
                output = engine.forward(inputs, self.measure.head_request(batch))
                found.append([float(value) for value in self.measure.sums(output, batch)])
        engine.train(True)
        return self.measure.finish(ranks.total([sum(column) for column in zip(*found, strict=True)], engine.device))
