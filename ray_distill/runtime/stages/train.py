"""Run the training stage: train the student and its baselines from one label set."""

import math
import time
from dataclasses import replace

from ray_distill.artifacts import LabelSetRef, SnapshotRef, StudentRef
from ray_distill.config import Campaign
from ray_distill.errors import ConfigError, StorageError
from ray_distill.evaluation.measures.cost import stage_metrics
from ray_distill.fingerprint import fingerprint
from ray_distill.models.core.checkpoint_files import is_saved
from ray_distill.models.heads.fit_head import fitted_rows_url
from ray_distill.promotion.chain import read_chain
from ray_distill.runtime.core import console
from ray_distill.runtime.core.session import Session, Stage
from ray_distill.runtime.stages import label
from ray_distill.runtime.stages.snapshot import freeze_ceiling, open_for
from ray_distill.runtime.training.label_mixture import mixed_labels
from ray_distill.runtime.training.launch import train_ranks
from ray_distill.runtime.training.prometheus import TrainingGauges
from ray_distill.snapshots.labelled_rows import labelled_rows
from ray_distill.snapshots.reader import open_snapshot
from ray_distill.storage import files
from ray_distill.storage.sealed import read_sealed, write_sealed
from ray_distill.students.arms import arm_by_name, campaign_arms
from ray_distill.students.export import exported_calibration
from ray_distill.students.job import TrainingJob, arm_plan
from ray_distill.students.telemetry.curves import CurveReader, Points, StepMetrics
from ray_distill.tasks.catalogue import get_task
from ray_distill.tracking.base import Dataset

#: Way out where the steps that were recorded are not known.
_CURVES_AGAIN = "delete it, and the curves are recorded again from their first step"
#: Seconds between two reports of the training's cost so far.
COST_SECONDS = 10.0
#: Least share of the training's time between two records of it.
COST_SHARE = 0.02


def absent_arms(config: Campaign, labels: LabelSetRef) -> dict[str, str]:
    """Return why arms of a campaign were not trained, by arm."""
    labelled = labelled_rows(open_snapshot(labels.snapshot).manifest)["train"].labelled
    left = set(campaign_arms(config)) - set(campaign_arms(config, labelled=labelled > 0))
    return {name: f"there is no {name} to beat, because no train row has a true label" for name in left}


def train(session: Session, labels: LabelSetRef, *, resume: bool) -> dict[str, StudentRef]:
    """Train every arm that is not trained yet; return all students by arm."""
    job = _job(session, labels)
    done = session.done("train", fingerprint(_plans(job)))
    if done is not None and resume and all(is_saved(ref["url"]) for ref in done.values()):
        console.report(f"train: {', '.join(done)} are trained already, skipped", skipped="train")
        return {arm: StudentRef.from_dict(ref) for arm, ref in done.items()}
    if not resume:
        _clear(session, job.output)
    training = session.config.student.training
    with session.stage(
        "train",
        cores=training.most_workers * training.cpus,
        accelerators=training.most_workers * training.gpus,
        resumes=resume,
    ) as stage:
        for number, ref in enumerate((labels, *job.others)):
            stage.run.dataset(
                Dataset(
                    name=f"labels-{number}" if number else "labels",
                    digest=ref.fingerprint,
                    source=ref.store,
                    context="training",
                    profile={"log_length": ref.log_length},
                )
            )
        curves = Curves(session, stage, job.output, TrainingGauges(session.config.campaign))
        refs = train_ranks(job, training, on_poll=curves.poll)
        curves.record()
        for trained in refs:
            _record_calibration(stage, trained)
        stage.meter.wrote(sum(item.size for ref in refs for item in files.list_files(ref.url)))
    students = {ref.arm: ref for ref in refs}
    session.finish("train", fingerprint(_plans(job)), {arm: ref.to_dict() for arm, ref in students.items()})
    return students


def _record_calibration(stage: Stage, ref: StudentRef) -> None:
    """Record and report the temperature of an arm, and its calibration error before and after."""
    found = exported_calibration(ref.url)
    if found is None:
        return
    console.report(f"train {ref.arm}: {found.in_words}", arm=ref.arm, temperature=found.temperature)
    figures = {"ece_before": found.ece_before, "ece_after": found.ece_after} if found.rows else {}
    stage.run.metrics(
        {
            f"{ref.arm}_calibration_{name}": value
            for name, value in {"temperature": found.temperature, **figures}.items()
        }
    )


def _clear(session: Session, folder: str) -> None:
    """Delete the models trained with these settings, but never a model that a decision names.

    Raises:
        ConfigError: a model in the folder is in the decision chain.
    """
    for entry in read_chain(session.url("promotion")):
        if entry.decision.student.url.startswith(folder + "/"):
            raise ConfigError(
                f"{folder} contains a model that was decided on ({entry.decision.verdict}, {entry.time}): "
                "training anew would destroy it; change the seed or another setting instead"
            )
    files.delete(folder)


class Curves:
    """Record curves and cost of a running training.

    The ranks write the curves, of which `Points` go to the tracker, and validations to the terminal. The object stores
    which steps a run in the tracker has, so that a continued run gets each step once.
    """

    def __init__(self, session: Session, stage: Stage, output: str, gauges: TrainingGauges | None = None):
        self._run, self._url = stage.run, session.url("state", "recorded.json")
        self._meter, self._gauges = stage.meter, gauges
        self._began, self._priced_at, self._recorded_at = time.monotonic(), -math.inf, -math.inf
        self._points = Points(session.config.tracking.every)
        kept = read_sealed(self._url, _CURVES_AGAIN) if files.exists(self._url) else {}
        known = kept.get("steps") if kept.get("run_id") == self._run.run_id else None
        self._reader = CurveReader(output, known=known)

    def poll(self) -> None:
        """Record new steps; if the storage fails, the next call records them."""
        try:
            self.record()
        except StorageError as error:
            console.report(f"train: the curves cannot be read now: {error}")
        if time.monotonic() - self._priced_at > COST_SECONDS:
            self._report_cost()

    def record(self) -> None:
        """Record new steps.

        Raises:
            StorageError: the curves cannot be read.
        """
        found = self._reader.new()
        for one in found:
            prefix = one.arm.replace("/", "_")
            self._run.metrics({f"{prefix}_{name}": value for name, value in self._points.of(one).items()}, one.step)
            if "validation_nll" in one.values or one.step == 1:
                _show(one)
        if found:
            write_sealed(self._url, {"run_id": self._run.run_id, "steps": self._reader.known})

    def _report_cost(self) -> None:
        """Report the cost so far, and record it under the names and step of the stage's final cost.

        MLflow shows the later value, so the final cost replaces this one. It keeps every value, so a long training is
        recorded at longer and longer intervals.
        """
        self._priced_at, cost = time.monotonic(), self._meter.so_far
        if self._priced_at - self._recorded_at > COST_SHARE * (self._priced_at - self._began):
            self._recorded_at = self._priced_at
            self._run.metrics(stage_metrics(cost))
        if self._gauges is not None:
            self._gauges.cost(cost)


def _show(metrics: StepMetrics) -> None:
    numbers = "  ".join(
        f"{name} {value:.4g}"
        for name, value in sorted(metrics.values.items())
        if not name.startswith(("seconds_", "peak_memory_"))
    )
    console.report(f"train {metrics.arm} step {metrics.step}: {numbers}", arm=metrics.arm, step=metrics.step)


def refuse_large_batch(config: Campaign, snapshot: SnapshotRef) -> None:
    """Refuse a configured batch that no step could fill.

    Rows of a mixture come from other snapshots too.

    Raises:
        ConfigError: the train split has fewer rows.
    """
    training, rows = config.student.training, open_for(config.task, snapshot).manifest.splits["train"].rows
    if config.student.mixture is None and rows < training.global_batch:
        raise ConfigError(
            f"student.training.global_batch: {training.global_batch} examples are more than the {rows:,} train rows of "
            f"{snapshot.url}: set it to {rows // 4 or 1} or less, so that an epoch has several steps"
        )


def _job(session: Session, labels: LabelSetRef) -> TrainingJob:
    config = session.config
    refuse_large_batch(config, labels.snapshot)
    opened = open_for(config.task, labels.snapshot)
    labelled = get_task(config.task).answers.is_labelled(opened.manifest.splits["train"].labelled)
    head = label.head_of(labels.store)
    job = TrainingJob(
        config=config,
        labels=labels,
        output="",
        seed=config.seed,
        resume=True,
        arms=campaign_arms(config, labelled=labelled),
        ceiling=freeze_ceiling(config, opened.classes),
        others=mixed_labels(config),
        teacher_rows_url=fitted_rows_url(head) if head else None,
    )
    # Another plan has another folder, so that models of an earlier configuration keep their references.
    folder = session.url("students", fingerprint(_plans(job))[:12])
    return replace(job, output=folder)


def _plans(job: TrainingJob) -> dict[str, object]:
    return {name: arm_plan(job, arm_by_name(name)) for name in job.arms}
