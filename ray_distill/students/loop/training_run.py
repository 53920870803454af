"""Define one run of a training, and make the batches of its steps."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from ray_distill.config import TrainingConfig
from ray_distill.losses.base import LossBatch
from ray_distill.storage import files
from ray_distill.students.data.examples import Examples
from ray_distill.students.loop.pace import Pace
from ray_distill.students.loop.validation import Validator
from ray_distill.students.objective.weighted_losses import Term, group_of
from ray_distill.students.order.cursor import Index, steps_per_epoch
from ray_distill.students.order.epoch_order import Order, Plan, units_of
from ray_distill.students.order.micro_batches import Budget, MicroBatch, micro_batches
from ray_distill.students.process_group import Ranks
from ray_distill.tasks.encoded import Batch

#: The micro-batches of a step on one rank, before they are moved to its device.
Batches = list[tuple[Batch, LossBatch]]


@dataclass(frozen=True, kw_only=True)
class TrainingRun:
    """Everything that decides a trial's result, except the initial weights of the bundle."""

    name: str
    """Name under which metrics are reported: the arm, with its learning rate if there are several."""
    url: str
    """Folder of the trial; its checkpoints are below."""
    curve: str
    """Folder of the trial's curve; see `students.telemetry.curves`."""
    data: Examples
    rows: Index
    """Rows of ``data`` on which the trial trains, ascending; some are there several times."""
    terms: tuple[Term, ...]
    judge: Validator
    training: TrainingConfig
    rate: float
    steps: int
    """Steps at most."""
    seed: int
    plan: Mapping[str, Any]
    """The plan that a checkpoint must have, as plain JSON."""
    open_pace: Pace | None = None
    """What decides rate and end; None = the steps are fixed, and the configured schedule gives the rate."""
    units: Index | None = None
    """``[U+1]`` first row in ``data`` of each unit that is read whole; None = all rows are one unit."""
    weights: npt.NDArray[np.float32] | None = None
    """Weight in the losses of each element of ``rows``; None = all weigh 1."""

    @cached_property
    def order(self) -> Order:
        """The rows of each step, as places in ``rows``."""
        units, training = units_of(self.rows, self.units), self.training
        return Order(Plan(units=units, global_batch=training.global_batch, mixed=training.shuffle_units), self.seed)

    @cached_property
    def pace(self) -> Pace:
        """Return what decides the learning rate of a step, and the end of the run."""
        return self.open_pace or Pace.fixed(self.training, self.steps)

    @property
    def epoch_steps(self) -> int:
        """Return the steps of a pass over the rows."""
        return steps_per_epoch(len(self.rows), self.training.global_batch)

    @cached_property
    def budget(self) -> Budget:
        """The limits of a forward pass."""
        return Budget.of(self.training, group_of(self.terms))


def checkpoints_url(run: TrainingRun) -> str:
    """Return the folder of a trial's checkpoints."""
    return files.join(run.url, "checkpoints")


def micros_of(run: TrainingRun, ranks: Ranks, step: int) -> list[MicroBatch]:
    """Return this rank's micro-batches of a step, as rows of the data."""
    slots, budget = np.arange(run.order.size(step), dtype=np.int64), run.budget
    lengths = run.data.lengths
    found = micro_batches(
        slots,
        rank=ranks.rank,
        world=ranks.world,
        budget=budget,
        lengths_BF=lengths[run.rows[run.order.batch(step)]] if budget.tokens and lengths is not None else None,
    )
    return [_placed(run, micro, run.order.rows_at(step, micro.rows)) for micro in found]


def _placed(run: TrainingRun, micro: MicroBatch, places: Index) -> MicroBatch:
    weight = None if run.weights is None else run.weights[places]
    return MicroBatch(rows=run.rows[places], real=micro.real, weight=weight)


def batches_of(run: TrainingRun, ranks: Ranks, step: int) -> Batches:
    """Make this rank's micro-batches of a step.

    They depend on the step alone, so a thread may prefetch them.
    """

    def rows_of(step: int) -> Index:
        slots = np.arange(run.order.size(step), dtype=np.int64)
        own = run.budget.share(slots, rank=ranks.rank, world=ranks.world)
        return run.rows[run.order.rows_at(step, own.rows)]

    run.data.prepare(step, rows_of, run.steps)
    return [run.data.batch(micro.rows, micro.weights) for micro in micros_of(run, ranks, step)]
