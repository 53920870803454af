"""Forecast the stages of a whole campaign, and show beside each what followed.

The latest forecast is kept in ``<output>/state/plan.json``. A stage that has run keeps the forecast from before it ran.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from ray_distill.artifacts import StudentRef
from ray_distill.config import Campaign
from ray_distill.errors import DistillError
from ray_distill.evaluation.measures.cost import StageCost
from ray_distill.promotion.chain import champion, read_chain
from ray_distill.runtime.core import console
from ray_distill.runtime.core.connection import on_cluster
from ray_distill.runtime.core.python_envs import new_process
from ray_distill.runtime.core.session import stage_costs
from ray_distill.runtime.forecast.plan_report import FORECAST_LOST, PlanReport
from ray_distill.runtime.forecast.probe import Piece
from ray_distill.runtime.forecast.stage_forecasts import (
    StageForecast,
    TrainingSize,
    forecast_evaluation,
    forecast_labelling,
    forecast_training,
    with_followed,
    with_settled,
)
from ray_distill.runtime.forecast.time_stages import time_evaluation, time_training
from ray_distill.runtime.stages.judge import requested_corruptions
from ray_distill.runtime.sweep.preset import budgets
from ray_distill.runtime.sweep.resolve_trials import checked_trials, duplicates
from ray_distill.snapshots.reader import Snapshot
from ray_distill.storage import files
from ray_distill.storage.sealed import read_document, write_sealed
from ray_distill.students.arms import campaign_arms
from ray_distill.tasks.catalogue import get_task
from ray_distill.text import duration

T = TypeVar("T")

#: Processes that start one after the other before the first step: the caller of Ray Train, its controller, a rank. Each
#: is taken to start as slowly as the process that timed the steps.
STARTS = 3


@dataclass(frozen=True, kw_only=True)
class Labelled:
    """Some rows of a snapshot with labels, on which training is timed."""

    store_url: str
    pieces: Sequence[Piece]
    head_url: str | None
    """The fitted head of the teacher."""


def forecast_campaign(config: Campaign, opened: Snapshot, report: PlanReport, labelled: Labelled) -> PlanReport:
    """Add the forecasts of all other stages to that of labelling.

    The student's size and the sweep's cost are added too. A stage that cannot be timed becomes a note.
    """
    names = campaign_arms(
        config, labelled=get_task(config.task).answers.is_labelled(opened.manifest.splits["train"].labelled)
    )
    stages, notes = list[StageForecast](), list[str]()
    if report.rows:
        stages.append(forecast_labelling(_label_cost(report), error=report.time_error))
    training, parameters = None, 0
    try:
        training, parameters = _reported("training", lambda: _training(config, opened, labelled, names))
        stages.append(training)
    except DistillError as error:
        notes.append(_untimed("training", error))
    try:
        stages.append(_reported("evaluation", lambda: _evaluation(config, opened, labelled.head_url, len(names))))
    except DistillError as error:
        notes.append(_untimed("evaluation", error))
    url = files.join(config.output_url, "state", "plan.json")
    earlier = read_document(PlanReport, url, FORECAST_LOST).stages if files.exists(url) else ()
    model = config.student.model
    found = report.with_changes(
        student_parameters=parameters,
        student=model.chosen_by or f"from {model.source}{f' {model.model}' if model.model else ''}",
        sweep=_sweep(config, training, len(names)),
        stages=with_followed(stages, earlier, stage_costs(config)),
        notes=(*report.notes, *notes),
    )
    write_sealed(url, found.to_dict())
    return found


def _untimed(what: str, error: DistillError) -> str:
    return f"{what} is not in the forecast, because it could not be timed: {error}"


def _reported(what: str, forecast: Callable[[], T]) -> T:
    console.report(f"plan: timing a few steps of {what}")
    return forecast()


def _sweep(config: Campaign, training: StageForecast | None, arms: int) -> str:
    """Return how many trials the campaign's sweep has, and what they cost at most."""
    if config.sweep is None:
        return ""
    trials = checked_trials(config)
    same = duplicates(trials)
    found = budgets(config, [trial for trial in trials if trial.number not in same])
    words = f"{len(trials)} trials, at most {found:g} × the budget of one student"
    if training is None:
        return words
    share = found / arms
    return (
        f"{words}, beside the campaign: up to {duration(share * training.high)} and "
        f"{share * training.money:.3g} {config.cost.currency}, if all its students are like the configured one"
    )


def _training(
    config: Campaign, opened: Snapshot, labelled: Labelled, names: Sequence[str]
) -> tuple[StageForecast, int]:
    """Return the forecast of training, and the student's parameters."""
    training, splits, began = config.student.training, opened.manifest.splits, time.monotonic()
    times = on_cluster(
        time_training,
        config,
        opened.ref,
        labelled.store_url,
        labelled.pieces,
        arms=names,
        cpus=training.cpus,
        gpus=training.gpus,
        what="timing training",
        options=new_process(),
    )
    started = max(time.monotonic() - began - times.seconds, 0.0)
    size = TrainingSize(
        examples=examples_an_epoch(config, opened),
        validation_rows=splits["validation"].rows,
        student_bytes=times.student_bytes,
    )
    found = forecast_training(
        with_settled(config, opened.manifest),
        times.timed.arms,
        size,
        once=times.opened_seconds + STARTS * started,
        memory_gib=times.timed.memory_gib,
    )
    return found, times.parameters


def examples_an_epoch(config: Campaign, opened: Snapshot) -> int:
    """Return the number of examples of an epoch.

    `students.data.resampling.occurrences` chooses them. The column of counts is read a shard at a time, and only if
    some row came more than once.
    """
    split = opened.manifest.splits["train"]
    if config.student.training.weigh_by == "row" or split.weight == split.rows:
        return split.rows
    shards = [shard for shard in opened.shards if shard.split == "train"]
    counts = (opened.read_shard(shard, ["count"])["count"].to_numpy() for shard in shards)
    return sum(int(np.ceil(count * (split.rows / split.weight) * (1 - 1e-9)).sum()) for count in counts)


def _evaluation(config: Campaign, opened: Snapshot, head_url: str | None, trained: int) -> StageForecast:
    resources, present, began = config.labels.resources, _champion(config), time.monotonic()
    timed = on_cluster(
        time_evaluation,
        config,
        opened.ref,
        head_url,
        cpus=resources.cpus,
        gpus=resources.gpus,
        what="timing evaluation",
        options=new_process(),
    )
    started = max(time.monotonic() - began - timed.seconds, 0.0)
    damaged = len(requested_corruptions(config)) * len(config.evaluation.severities)
    rows = opened.manifest.splits["test"].rows
    return forecast_evaluation(
        config, timed, arms=trained, rows=rows, damaged=damaged, champion=present is not None, once=started
    )


def _champion(config: Campaign) -> StudentRef | None:
    return champion(read_chain(files.join(config.output_url, "promotion")))


def _label_cost(report: PlanReport) -> StageCost:
    return StageCost(
        stage="label",
        wall_seconds=report.seconds,
        core_hours=report.core_hours,
        accelerator_hours=report.accelerator_hours,
        bytes_written=report.bytes_total,
        money=report.money,
        currency=report.currency,
    )
