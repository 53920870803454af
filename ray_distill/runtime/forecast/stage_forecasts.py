"""Forecast time, bytes, memory and money of each stage of a campaign from timed steps; pure."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import ceil, nan
from typing import TYPE_CHECKING

import numpy as np

from ray_distill.artifacts import Artifact, Number
from ray_distill.config import Campaign, TrainingConfig
from ray_distill.evaluation.measures.cost import StageCost, stage_cost
from ray_distill.snapshots.manifest import SnapshotManifest
from ray_distill.students.loop.pace import Pace, pace_of
from ray_distill.students.order.cursor import steps_per_epoch
from ray_distill.students.recipe import FEWEST_RATES, MOST_RATES, probe_steps, settled

if TYPE_CHECKING:  # the plan is shown by processes that need no torch
    from ray_distill.students.time_steps import TimedArm

#: Quantiles of the timed steps between which the time of a step is expected.
LOW, HIGH = 0.1, 0.9
#: Stages that are forecast, in the order in which they run.
STAGES = ("label", "train", "evaluate")


class StageForecast(Artifact):
    """The forecast of a stage, and what followed."""

    stage: str
    seconds: Number
    low: Number
    """Seconds if every step is as fast as the fastest tenth of the timed ones."""
    high: Number
    """Seconds if every step is as slow as the slowest tenth of the timed ones."""
    core_hours: Number
    accelerator_hours: Number
    money: Number
    bytes_written: int
    memory_gib: Number = nan
    """Memory of one process of the stage, as measured while it was timed; NaN if it was not measured."""
    basis: str
    """What was measured, and what was not."""
    followed: StageCost | None = None
    """The cost of the stage so far; None if it has not run."""


@dataclass(frozen=True, kw_only=True)
class Span:
    """Seconds, with a lower and an upper end."""

    mean: float
    low: float
    high: float

    @classmethod
    def of(cls, seconds: Sequence[float]) -> "Span":
        """Return the mean of timings, and the quantiles `LOW` and `HIGH`."""
        low, high = np.quantile(seconds, (LOW, HIGH))
        return cls(mean=float(np.mean(seconds)), low=float(low), high=float(high))

    def __mul__(self, times: float) -> "Span":
        return Span(mean=self.mean * times, low=self.low * times, high=self.high * times)

    def __add__(self, other: "Span") -> "Span":
        return Span(mean=self.mean + other.mean, low=self.low + other.low, high=self.high + other.high)


def exact(seconds: float) -> Span:
    """Return a span without a range."""
    return Span(mean=seconds, low=seconds, high=seconds)


def total_of(spans: Iterable[Span]) -> Span:
    """Return the sum of spans."""
    return sum(spans, exact(0.0))


@dataclass(frozen=True, kw_only=True)
class TrainingSize:
    """The numbers that a training's time is in proportion to."""

    examples: int
    """Examples of an epoch: rows, of which frequent ones count several times."""
    validation_rows: int
    student_bytes: int


def with_settled(config: Campaign, snapshot: SnapshotManifest) -> Campaign:
    """Return the campaign with the settings of its training that the snapshot's rows decide."""
    rows, validated = (snapshot.splits[name].rows for name in ("train", "validation"))
    student = config.student.model_copy(update={"training": settled(config.student.training, rows, validated)})
    return config.model_copy(update={"student": student})


def training_steps(training: TrainingConfig, pace: Pace, examples: int) -> tuple[int, int]:
    """Return the steps of an arm, at least and at most, at all rates or while it tries some.

    Args:
        training: has a batch.
        pace: of the first arm.
        examples: of a pass.
    """
    if rates := len(training.learning_rate):
        return rates * pace.least, rates * pace.steps
    probe = probe_steps(pace.steps, steps_per_epoch(examples, training.global_batch))
    return pace.least + FEWEST_RATES * probe, pace.steps + MOST_RATES * probe


def forecast_training(
    config: Campaign, timed: Sequence["TimedArm"], size: TrainingSize, *, once: float, memory_gib: float
) -> StageForecast:
    """Forecast the training of all arms, each once per learning rate.

    Args:
        config: the campaign.
        timed: times of each arm.
        size: rows and bytes.
        once: seconds before the first step: to start processes, to open the rows and to make the student.
        memory_gib: memory of one rank.
    """
    training = config.student.training
    pace = pace_of(training, size.examples)
    least, steps = training_steps(training, pace, size.examples)
    workers = training.least_workers

    def of(arm: "TimedArm") -> Span:
        validated = size.validation_rows / workers * arm.row_seconds
        step, most = Span.of(arm.step_seconds), ceil(steps / training.evaluate_every)
        fewest = ceil(least / training.evaluate_every)
        return Span(
            mean=step.mean * steps + most * validated,
            low=step.low * least + fewest * validated,
            high=step.high * steps + most * validated,
        )

    seconds, counted = exact(once) + total_of(map(of, timed)), _steps_of(timed)
    open_end = f" of {training.global_batch} examples at most, {pace.least:,} at least," if least < steps else ""
    return _priced(
        config,
        "train",
        seconds,
        cores=training.most_workers * training.cpus,
        accelerators=training.most_workers * training.gpus,
        bytes_written=len(timed) * size.student_bytes,
        memory_gib=memory_gib,
        basis=f"{len(timed)} arms, {pace.steps:,} steps{open_end} each, from {counted} timed steps of one rank alone; "
        "without communication between ranks",
    )


def _steps_of(timed: Sequence["TimedArm"]) -> int:
    return sum(len(arm.step_seconds) for arm in timed)


@dataclass(frozen=True, kw_only=True)
class TimedEvaluation:
    """Times of evaluation, on the teacher and an untrained student."""

    load_seconds: Mapping[str, float]
    """Seconds to load a model, by ``teacher`` and ``student``."""
    row_seconds: Mapping[str, tuple[float, ...]]
    """Seconds of an answer per row, by the same names, a value for each timed batch of rows."""
    measure_seconds: float
    """Seconds to measure one model's answers, with their intervals, per row."""
    request_seconds: float
    """Seconds of one timed request to each of both models together."""
    memory_gib: float
    seconds: float
    """Seconds of the whole task, without the start of its process."""


def forecast_evaluation(
    config: Campaign, timed: TimedEvaluation, *, arms: int, rows: int, damaged: int, champion: bool, once: float
) -> StageForecast:
    """Forecast the evaluation of teacher, arms and champion.

    Args:
        config: the campaign.
        timed: the measured times.
        arms: trained models.
        rows: rows of the test split.
        damaged: passes over the rows with corrupted inputs, by teacher, student and champion.
        champion: whether there is a model in production, which counts like a student.
        once: seconds to start the process.
    """
    resources, students = config.labels.resources, arms + champion
    teacher, student = (Span.of(timed.row_seconds[name]) for name in ("teacher", "student"))
    answers = teacher + student * students
    shown = teacher + student * (1 + champion)
    measured = exact(timed.measure_seconds * rows) * (1 + students + damaged * (2 + champion))
    seconds = (
        exact(once + timed.load_seconds["teacher"] + students * timed.load_seconds["student"])
        + answers * rows
        + shown * (rows * damaged)
        + measured
        + exact(timed.request_seconds * config.evaluation.latency_requests * (1 + students) / 2)
    )
    return _priced(
        config,
        "evaluate",
        seconds,
        cores=resources.cpus,
        accelerators=resources.gpus,
        bytes_written=0,
        memory_gib=timed.memory_gib,
        basis=f"{1 + students} models, {rows:,} test rows, {damaged} further passes with corrupted inputs; without "
        "written texts and benchmarks",
    )


def forecast_labelling(cost: StageCost, *, error: float) -> StageForecast:
    """Return the forecast of `label`; ``error`` is the relative error of its time."""
    return StageForecast(
        stage="label",
        seconds=cost.wall_seconds,
        low=cost.wall_seconds * (1 - error),
        high=cost.wall_seconds * (1 + error),
        core_hours=cost.core_hours,
        accelerator_hours=cost.accelerator_hours,
        money=cost.money,
        bytes_written=cost.bytes_written,
        basis="a rehearsal with the probed rows",
    )


def _priced(
    config: Campaign,
    stage: str,
    seconds: Span,
    *,
    cores: float,
    accelerators: float,
    bytes_written: int,
    memory_gib: float,
    basis: str,
) -> StageForecast:
    cost = stage_cost(
        stage, seconds.mean, cores=cores, accelerators=accelerators, bytes_written=bytes_written, prices=config.cost
    )
    return StageForecast(
        stage=stage,
        seconds=seconds.mean,
        low=seconds.low,
        high=seconds.high,
        core_hours=cost.core_hours,
        accelerator_hours=cost.accelerator_hours,
        money=cost.money,
        bytes_written=bytes_written,
        memory_gib=memory_gib,
        basis=basis,
    )


def with_followed(
    stages: Sequence[StageForecast], earlier: Sequence[StageForecast], costs: Sequence[StageCost]
) -> tuple[StageForecast, ...]:
    """Return forecasts beside what followed.

    A stage that has run keeps the forecast that was made before it ran.

    Args:
        stages: forecasts made now.
        earlier: forecasts of an earlier plan.
        costs: costs of the stages that have run.
    """
    before, spent = {one.stage: one for one in earlier}, {cost.stage: cost for cost in costs}
    found = {one.stage: before.get(one.stage, one) if one.stage in spent else one for one in stages}
    found |= {name: one for name, one in before.items() if name not in found and name in spent}
    ordered = sorted(found.values(), key=lambda one: STAGES.index(one.stage))
    return tuple(one.with_changes(followed=spent.get(one.stage)) for one in ordered)
