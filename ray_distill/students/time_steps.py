"""Time a few optimiser steps of each arm in one process, to forecast a training.

The rows are some with labels; nothing that is learnt is kept. A step is the share of one rank: time of communication
between ranks, and of DeepSpeed, is not in it.
"""

import copy
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ray_distill.config import Campaign, TrainingConfig
from ray_distill.errors import TrainingError
from ray_distill.labels.model.manifest import StoreManifest
from ray_distill.models.core.model import Model
from ray_distill.students.arms import Arm, arm_by_name, arm_rows
from ray_distill.students.data.answer_format import learn_facet
from ray_distill.students.data.examples import PositionExamples
from ray_distill.students.engines.build import build_engine
from ray_distill.students.engines.engine import Engine
from ray_distill.students.loop.train_loop import take_step
from ray_distill.students.loop.training_run import TrainingRun
from ray_distill.students.loop.validation import Validator
from ray_distill.students.modules.student_module import StudentModule, make_projections
from ray_distill.students.objective.validate_losses import pairs_of, required_layers, scales_of
from ray_distill.students.objective.weighted_losses import build_terms, group_of
from ray_distill.students.order.micro_batches import Budget, share_of
from ray_distill.students.process_group import Ranks
from ray_distill.students.recipe import some_rate
from ray_distill.students.telemetry.step_timer import peak_memory
from ray_distill.tasks.catalogue import get_task

#: Steps that are timed, after one that is not: the first allocates and warms up.
STEPS = 10
ALONE = Ranks(rank=0, world=1)


@dataclass(frozen=True, kw_only=True)
class TimedArm:
    """Times of one arm on one rank."""

    arm: str
    step_seconds: tuple[float, ...]
    """Seconds of each timed step."""
    row_seconds: float
    """Seconds of validation per row."""


@dataclass(frozen=True, kw_only=True)
class TimedTraining:
    """Times of all arms, and the memory of the process."""

    arms: tuple[TimedArm, ...]
    memory_gib: float
    """Peak of the process, or of its device: the student's states and activations, without the training rows."""


def time_arms(
    config: Campaign,
    arms: Sequence[str],
    data: PositionExamples,
    *,
    model: Model,
    manifest: StoreManifest,
    seconds: float,
) -> TimedTraining:
    """Time the arms, each for ``seconds`` at most.

    An arm without rows among the given ones has the times of the student.

    Args:
        config: the campaign.
        arms: names of the arms, ``student`` first.
        data: some rows with labels.
        model: the student; it is not changed.
        manifest: the manifest of the labels.
        seconds: time limit of each arm.
    """
    training, found = _alone(config.student.training), dict[str, TimedArm]()
    for name in arms:
        try:
            found[name] = _time_arm(config, arm_by_name(name), data, model=model, manifest=manifest, seconds=seconds)
        except TrainingError:  # no row has what the arm learns from
            found[name] = found["student"]
    device = torch.device("cuda" if training.gpus else "cpu")
    return TimedTraining(arms=tuple(found.values()), memory_gib=max(peak_memory(ALONE, device).values()))


def _alone(training: TrainingConfig) -> TrainingConfig:
    """Return the settings of one rank by itself: its share of a batch, in plain torch."""
    share = share_of(training.global_batch, training.least_workers)
    return training.model_copy(update={"engine": "torch", "workers": 1, "global_batch": share, "compile": None})


def _time_arm(
    config: Campaign, arm: Arm, data: PositionExamples, *, model: Model, manifest: StoreManifest, seconds: float
) -> TimedArm:
    run, engine = _prepared(config, arm, data, model=model, manifest=manifest)
    try:
        engine.train(True)
        take_step(run, engine, ALONE, 0)
        times, end = list[float](), time.perf_counter() + seconds
        while len(times) < STEPS and (not times or time.perf_counter() < end):
            start = time.perf_counter()
            take_step(run, engine, ALONE, len(times) + 1)
            times.append(time.perf_counter() - start)
        start = time.perf_counter()
        run.judge.score(engine, ALONE, Budget.of(run.training))
        validated = time.perf_counter() - start
    finally:
        engine.close()
    return TimedArm(arm=arm.name, step_seconds=tuple(times), row_seconds=validated / len(run.judge.rows))


def _prepared(
    config: Campaign, arm: Arm, data: PositionExamples, *, model: Model, manifest: StoreManifest
) -> tuple[TrainingRun, Engine]:
    learn, training = learn_facet(get_task(config.task).answers), _alone(config.student.training)
    losses = arm.losses(config.student.losses)
    terms = build_terms(
        losses,
        kinds=learn.LOSSES,
        steps=STEPS + 1,
        temperatures=manifest.distributions.temperatures,
        layers=pairs_of(losses, tuple(manifest.hidden), model, learn.LOSSES),
        scales=scales_of(data),
    )
    projected, plain = required_layers(terms)
    bundle = StudentModule(
        copy.deepcopy(model.module),
        make_projections(model, layers=projected, widths=data.widths, seed=config.seed),
        plain,
        pool=manifest.pool,
        fuse=learn.FUSED,
    )
    judge: Validator = learn.validator(data)
    run = TrainingRun(
        name=arm.name,
        url="",
        curve="",
        data=data,
        rows=arm_rows(arm.name, losses, data, learn.LOSSES),
        terms=terms,
        judge=judge,
        training=training,
        rate=some_rate(training),
        steps=STEPS + 1,
        seed=config.seed,
        plan={},
    )
    passes = Budget.of(training, group_of(terms)).passes(training.global_batch, 1)
    return run, build_engine(bundle, training, ALONE, passes=passes)
