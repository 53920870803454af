"""Validate the trials of a sweep, find duplicates, and plan the folder of each trial."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ray_distill.artifacts import LabelSetRef, SnapshotRef, StudentRef
from ray_distill.config import Campaign
from ray_distill.config.identity import identity
from ray_distill.config.trials import Trial, WrongTrials, expand
from ray_distill.errors import ConfigError, ModelError, TeacherRefused
from ray_distill.evaluation.measures.intervals import Floats
from ray_distill.evaluation.sweep.compare import TrialResult
from ray_distill.fingerprint import fingerprint
from ray_distill.models.core.checkpoint_files import read_facts
from ray_distill.redact import redacted
from ray_distill.runtime.core.class_names import with_teacher_names
from ray_distill.runtime.core.session import absolute
from ray_distill.runtime.model_checks.decide import decided
from ray_distill.runtime.stages.preflight import check, unknown_objective
from ray_distill.runtime.sweep.trial_worker import STOPPED, PlannedTrial, StoppedTrial, read_marker
from ray_distill.runtime.training.label_mixture import mixed_labels
from ray_distill.snapshots.reader import Snapshot
from ray_distill.storage import files
from ray_distill.storage.portable import movable
from ray_distill.students.arms import arm_by_name
from ray_distill.students.data.answer_format import learn_facet
from ray_distill.students.export import exported_arm
from ray_distill.students.job import TrainingJob, arm_plan
from ray_distill.students.loop.validation import MIN_LABELLED, Objective
from ray_distill.students.process_group import Ranks
from ray_distill.tasks.catalogue import get_task
from ray_distill.tasks.metrics import Metric

ARM = "student"


def checked_trials(config: Campaign) -> tuple[Trial, ...]:
    """Return all trials with absolute paths, after checks that else come after labelling.

    Raises:
        ConfigError: there is no sweep, or trials are wrong; the message names all errors by path and trial.
    """
    trials, wrong = [], WrongTrials()
    for trial in expand(config):
        own = with_teacher_names(absolute(trial.config))
        try:
            own = decided(own)
            check(own)
        except (ConfigError, ModelError, TeacherRefused) as error:
            wrong.add(trial.name, error)
        trials.append(replace(trial, config=own))
        rates = trial.config.student.training.learning_rate
        if config.sweep is not None and config.sweep.stop is not None and len(rates) > 1:
            wrong.add(
                trial.name,
                ConfigError(
                    "student.training.learning_rate: a trial that may be stopped has one rate, found "
                    f"{len(rates)}: give one or auto, or sweep over several"
                ),
            )
    wrong.refuse(len(trials), unknown_objective(config))
    return tuple(trials)


def label_key(config: Campaign) -> str:
    """Return the key of a sweep's label set; trials with the same one share their labels."""
    return fingerprint(movable(identity(config.labels), config.output_url))[:12]


def labelling(base: Campaign, trials: Sequence[Trial]) -> dict[str, Campaign]:
    """Return the campaigns that label for trials, by `label_key`.

    Each has the ``labels`` of the first trial with that key. Labels other than the campaign's get a store of their own,
    unless they name one. Seed, snapshot and tracking are the campaign's.
    """
    found: dict[str, Campaign] = {}
    own = label_key(base)
    for trial in trials:
        key, labels = label_key(trial.config), trial.config.labels
        if key not in found:
            if key != own and trial.config.store_url == base.store_url:
                labels = labels.model_copy(update={"store": f"{base.store_url}-{key}"})
            found[key] = base.model_copy(update={"labels": labels})
    return found


def plan_of(trial: Trial, labels: LabelSetRef, output: str, teacher_rows: str | None) -> TrainingJob:
    """Return the training job of a trial; ``output`` is the folder of all trials."""
    job = TrainingJob(
        config=trial.config,
        labels=labels,
        output=output,
        arms=(ARM,),
        seed=trial.config.seed,
        resume=True,
        teacher_rows_url=teacher_rows,
        others=mixed_labels(trial.config),
    )
    return replace(job, output=files.join(output, plan_key(trial, labels)))


def plan_key(trial: Trial, labels: LabelSetRef) -> str:
    """Return the fingerprint of everything that decides a trial's student."""
    config = trial.config
    job = TrainingJob(config=config, labels=labels, output="", seed=config.seed, others=mixed_labels(config))
    return fingerprint(arm_plan(job, arm_by_name(ARM)))[:12]


def duplicates(trials: Sequence[Trial]) -> dict[int, int]:
    """Map the number of each duplicate trial to that of the earlier trial with the same student."""
    first: dict[str, int] = {}
    found = {}
    for trial in trials:
        # Equal settings give equal labels, so duplicates are found before labelling.
        pretended = LabelSetRef(
            store="",
            fingerprint=label_key(trial.config),
            log_length=0,
            log_digest="",
            snapshot=SnapshotRef(url="", fingerprint=""),
        )
        number = first.setdefault(plan_key(trial, pretended), trial.number)
        if number != trial.number:
            found[trial.number] = number
    return found


def objective(config: Campaign, snapshot: Snapshot, label_sets: int) -> str:
    """Return the metric by which trials are compared.

    Raises:
        ConfigError: the configured metric is not measured on this validation split, or is not comparable.
    """
    assert config.sweep is not None
    chosen = config.sweep.objective
    labelled = snapshot.manifest.splits["validation"].labelled
    answers = get_task(config.task).answers
    measured = learn_facet(answers).measured(labelled)
    metric = chosen or measured[0]
    if metric not in measured:
        raise ConfigError(
            f"sweep.objective: {metric} is not measured for {config.task} on a validation split of {labelled} rows "
            f"with true labels (the limit is {MIN_LABELLED}); {' and '.join(measured)} are"
        )
    if label_sets > 1 and metric_of(config.task, metric).of_teacher:
        raise ConfigError(
            f"sweep.objective: {metric} of trials with different labels is of different teachers' answers and cannot "
            f"be compared: give at least {MIN_LABELLED} validation rows true labels, or sweep over one set of labels"
        )
    return metric


def judged_rows(config: Campaign, snapshot: Snapshot, metric: str) -> int:
    """Return the number of validation rows over which the objective is a mean."""
    split = snapshot.manifest.splits["validation"]
    return split.labelled if _objective(config.task, metric).labelled else split.rows


def measured_share(config: Campaign, snapshot: Snapshot) -> str | None:
    """Return the first measured objective that is a proportion; None if there is none."""
    answers = get_task(config.task).answers
    measured = learn_facet(answers).measured(snapshot.manifest.splits["validation"].labelled)
    shares = [name for name in measured if metric_of(config.task, name).proportion]
    return shares[0] if shares else None


def judged_weights(config: Campaign, snapshot: Snapshot, metric: str) -> Floats:
    """Return how often each validation row of an objective came: ``[N]``."""
    labelled = _objective(config.task, metric).labelled
    rows = snapshot.read("validation", columns=["count", "label"] if labelled else ["count"])
    rows = rows.filter(rows["label"].is_valid()) if labelled else rows
    return np.asarray(rows["count"], np.float64)


def metric_of(task: str, metric: str) -> Metric:
    """Return an objective's line in the table of metrics."""
    return get_task(task).answers.metrics[_objective(task, metric).metric]


def more_is_better(task: str, metric: str) -> bool:
    """Return whether a higher value of an objective is better."""
    return bool(metric_of(task, metric).higher_is_better)


def _objective(task: str, metric: str) -> Objective:
    return learn_facet(get_task(task).answers).OBJECTIVES[metric]


def on_disk(planned: PlannedTrial) -> TrialResult | None:
    """Return the result of a trial that ended before this command.

    None means that the trial is still to be trained, or to continue.

    Raises:
        TrainingError: the trial's folder contains a different student.
    """
    job = planned.job
    exported = exported_arm(
        job.output, ARM, arm_plan(job, arm_by_name(ARM)), labels=job.labels, ranks=Ranks(rank=0, world=1)
    )
    if exported is not None:
        return finished(planned, exported)
    stopped = read_marker(job.output, STOPPED, StoppedTrial)
    if stopped is None or stopped.rule != planned.rule:
        return None
    return result_of(planned, "stopped", metrics=stopped.metrics, epoch=stopped.epoch, reason=stopped.reason)


def finished(planned: PlannedTrial, ref: StudentRef) -> TrialResult:
    """Return the result of a trial whose student is exported."""
    facts = read_facts(ref.url)
    return result_of(planned, "finished", metrics=facts["validation"], epoch=facts["best_epoch"], student=ref)


def result_of(planned: PlannedTrial, verdict: str, **more: Any) -> TrialResult:
    """Return the result of a trial that ended; its size, speed and run are added later."""
    trial = planned.trial
    return TrialResult(number=trial.number, name=trial.name, changes=redacted(trial.changes), verdict=verdict, **more)
