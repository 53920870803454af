"""Compute the learning rate of each step, and when a run has stopped improving.

The rate rises, stays, and falls linearly to 0 over the last steps (warm-up, stable, decay: Hägele et al. 2024, arXiv
2405.18392). So no step before the fall depends on the length of the run, which the validation loss decides on the way.
"""

import math
from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt

from ray_distill.artifacts import Document
from ray_distill.config import BudgetConfig, TrainingConfig
from ray_distill.students.objective.schedules import Shape, rate_after
from ray_distill.students.order.cursor import steps_per_epoch

#: Fewest validations in each of the two parts that are compared.
VALIDATIONS = 6
#: Validations at the full rate of which the median counts.
_AROUND = 5
#: Smallest loss whose logarithm is compared.
_LEAST_LOSS = 1e-9

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


class Progress(Document):
    """State of a run's improvement: a part of each checkpoint."""

    steps: tuple[int, ...] = ()
    """The step of each validation so far, until the rate falls."""
    losses: tuple[float, ...] = ()
    """Its loss."""
    decay_from: int | None = None
    """The step from which the rate falls; None = it is not decided yet."""


@dataclass(frozen=True, kw_only=True)
class Plateau:
    """When a run has stopped improving.

    The losses in the last part of the steps are compared with those in the part before, each part by the mean of the
    logarithms in its middle half. The smallest loss so far would not do: at the full rate the losses of a student with
    batch norms differ several times from one validation to the next, and the luckiest is soon not beaten any more.
    """

    least: int
    """Steps that are taken in any case before the rate falls."""
    window: float
    """Share of the steps so far that the last part has; the part before has the same share of those before it."""
    gain: float
    """Share of the loss by which the last part has to be better."""

    def after(self, progress: Progress, step: int, loss: float) -> Progress:
        """Return the progress after a validation."""
        if progress.decay_from is not None:
            return progress
        steps, losses = (*progress.steps, step), (*progress.losses, loss)
        reached = step >= self.least and self._has_stopped(np.array(steps), np.maximum(losses, _LEAST_LOSS))
        return Progress(steps=steps, losses=losses, decay_from=step if reached else None)

    def _has_stopped(self, steps: Ints, losses: Floats) -> bool:
        middle = steps[-1] * (1 - self.window)
        late, early = losses[steps > middle], losses[(steps <= middle) & (steps > middle * (1 - self.window))]
        if min(len(late), len(early)) < VALIDATIONS:
            return False
        return _middle(late) > _middle(early) + math.log1p(-self.gain)


def _middle(losses: Floats) -> float:
    """Return the mean logarithm of the middle half."""
    cut = len(losses) // 4
    return float(np.log(np.sort(losses)[cut : len(losses) - cut]).mean())


@dataclass(frozen=True, kw_only=True)
class Pace:
    """The rate of each step, relative to the run's learning rate, and the number of steps."""

    steps: int
    """Steps at most."""
    warmup: int
    """Steps over which the rate rises."""
    shape: Shape = "constant"
    """How the rate goes on where the number of steps is fixed."""
    decay: float | None = None
    """Share of the steps before the fall over which the rate falls; None = ``shape`` decides."""
    plateau: Plateau | None = None
    """What may end the run before ``steps``; None = nothing does."""
    decay_from: int | None = None
    """The step from which the rate falls, where it is known before the run."""

    @classmethod
    def fixed(cls, training: TrainingConfig, steps: int) -> Self:
        """Return the pace of a run with a given number of steps."""
        return cls(steps=steps, warmup=round(training.warmup * steps), shape=training.schedule)

    @classmethod
    def open(cls, training: TrainingConfig, budget: BudgetConfig, *, epoch_steps: float, examples: int) -> Self:
        """Return the pace of a run that trains until it has stopped improving.

        Args:
            training: batch and interval of validation are known.
            budget: its limits.
            epoch_steps: steps of a pass.
            examples: examples of a pass.
        """
        least, most = budget.bounds(examples)
        steps = max(1, round(most * epoch_steps))
        return cls(
            steps=steps,
            warmup=round(min(training.warmup * steps, epoch_steps)),
            decay=budget.decay,
            plateau=Plateau(least=round(least * epoch_steps), window=budget.window, gain=budget.gain),
        )

    @property
    def least(self) -> int:
        """Return the fewest steps of a run."""
        if self.plateau is None or self.decay is None:
            return self.steps
        return min(self.steps, round(self.plateau.least * (1 + self.decay)))

    def cut(self, steps: int, decay_from: int | None = None) -> Self:
        """Return the pace of a run of ``steps`` steps that begins like this one.

        The rate falls from ``decay_from``, or where it is None over the configured share at the end.
        """
        assert self.decay is not None
        begins = _latest(steps, self.decay) if decay_from is None else decay_from
        warmup = min(self.warmup, begins // 2 if decay_from is None else begins)
        return type(self)(steps=steps, warmup=warmup, decay=self.decay, decay_from=begins)

    def falls_from(self, progress: Progress) -> int:
        """Return the step from which the rate falls to 0, as far as it is known.

        With a configured shape there is no such step, and the result is the number of steps.
        """
        if progress.decay_from is not None or self.decay is None:
            return self.steps if progress.decay_from is None else progress.decay_from
        return _latest(self.steps, self.decay) if self.decay_from is None else self.decay_from

    def end(self, progress: Progress) -> int:
        """Return the number of steps of the run, as far as it is known."""
        if self.decay is None or progress.decay_from is None:
            return self.steps
        return min(self.steps, progress.decay_from + max(1, round(self.decay * progress.decay_from)))

    def factor(self, step: int, progress: Progress) -> float:
        """Return the factor of the learning rate at a step, from 0."""
        if self.decay is None:
            return rate_after(self.warmup, step, steps=self.steps, shape=self.shape)
        if step < self.warmup:
            return (step + 1) / (self.warmup + 1)
        begins, end = self.falls_from(progress), self.end(progress)
        return 1.0 if step < begins else (end - step) / (end - begins + 1)

    def after(self, progress: Progress, step: int, loss: float) -> Progress:
        """Return the progress after a validation with ``loss`` after ``step`` steps."""
        if self.decay is None or step >= self.falls_from(progress):
            return progress
        if self.plateau is None:
            return Progress(steps=(*progress.steps, step), losses=(*progress.losses, loss))
        return self.plateau.after(progress, step, loss)

    def level(self, progress: Progress, step: int, loss: float) -> float:
        """Return the loss by which a validation is compared with others; less is better.

        At the full rate it is the median of the last validations: weights that were lucky once are no better than those
        around them. While the rate falls, and with a configured shape, it is the loss.

        Args:
            progress: the progress after the validation.
            step: steps so far.
            loss: the loss of the validation.
        """
        if self.decay is None or step > self.falls_from(progress):
            return loss
        return float(np.median(progress.losses[-_AROUND:])) if progress.losses else loss


def pace_of(training: TrainingConfig, examples: int) -> Pace:
    """Return the pace of the first arm.

    Args:
        training: the settings, with a batch and an interval of validation.
        examples: examples of a pass over the student's rows.
    """
    epoch_steps, budget = steps_per_epoch(examples, training.global_batch), training.open_budget
    if budget is None:
        assert training.epochs is not None
        return Pace.fixed(training, math.ceil(training.epochs * epoch_steps))
    return Pace.open(training, budget, epoch_steps=epoch_steps, examples=examples)


def _latest(steps: int, decay: float) -> int:
    """Return the latest step from which the rate may fall, for an end after ``steps``."""
    return int(steps / (1 + decay))
