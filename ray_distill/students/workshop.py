"""Open what all arms of a training share: rows, labels, student and number of steps."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from ray_distill.config import Campaign, LossConfig, TrainingConfig
from ray_distill.errors import ConfigError
from ray_distill.labels.model.manifest import StoreManifest
from ray_distill.models.core.model import Model
from ray_distill.models.students.build import build_student
from ray_distill.snapshots.reader import Snapshot, open_snapshot
from ray_distill.students.arms import arm_rows
from ray_distill.students.calibration.collect import Units
from ray_distill.students.data.build_examples import build_examples
from ray_distill.students.data.examples import Examples, PositionExamples
from ray_distill.students.data.open_data import open_data
from ray_distill.students.data.open_sources import example_columns, open_labels, open_sources
from ray_distill.students.data.resampling import Shares, occurrences
from ray_distill.students.engines.engine import check_compiler
from ray_distill.students.job import TrainingJob, learn_of
from ray_distill.students.loop.pace import Pace, pace_of
from ray_distill.students.loop.validation import Validator
from ray_distill.students.measure_start import measure_start
from ray_distill.students.objective.choose_temperature import chosen_temperature, needs_temperature, with_temperature
from ray_distill.students.objective.loss_settings import temperatures_of
from ray_distill.students.objective.validate_losses import check_losses, check_retained_mass, labels_of, pairs_of
from ray_distill.students.order.cursor import Index
from ray_distill.students.order.micro_batches import Budget
from ray_distill.students.process_group import Ranks
from ray_distill.students.recipe import settled
from ray_distill.tasks.catalogue import get_task


@dataclass(frozen=True, kw_only=True)
class Workshop:
    """State that all arms of a job share."""

    job: TrainingJob
    ranks: Ranks
    model: Model
    manifest: StoreManifest
    train: Examples
    units: Index | None
    """Number of the first row of each unit of ``train``."""
    shares: Shares | None
    """Shares of the mixed sources."""
    views: Mapping[str, Any] | None
    """Counts of the campaign's own views, as `SnapshotManifest.view_counts`."""
    ceiling: Examples | None
    validation: PositionExamples
    calibration: Units
    judge: Validator
    losses: Mapping[str, LossConfig]
    """Of the student, with the temperature that its labels decide."""
    pairs: Mapping[str, dict[int, int]]
    """Student layer to stored teacher layer, by the name of each loss of hidden states."""
    training: TrainingConfig
    """The settings, with those that the rows decide; learning rates may still be left to each arm."""
    pace: Pace
    """Of the first arm, whose steps are those of all arms."""


def open_workshop(job: TrainingJob, ranks: Ranks) -> Workshop:
    """Read snapshots and labels, build the student, and prepare the state that all arms share."""
    config = job.config
    labelled = open_labels(config, (job.labels, *job.others))
    snapshot, manifest = labelled[0][0], labelled[0][1].manifest
    model = build_student(
        config.student.model,
        task=config.task,
        classes=manifest.space.names,
        teacher=config.labels.teacher,
        seed=job.seed,
        measured=measure_start(config, snapshot, manifest.teacher, output=job.output, ranks=ranks),
    )
    losses, learn = config.student.losses, learn_of(config)
    training = settled(
        config.student.training, *(snapshot.manifest.splits[name].rows for name in ("train", "validation"))
    )
    wrong = [*check_losses(losses, labels_of(manifest), training, learn.LOSSES), *check_compiler(training)]
    if wrong:
        raise ConfigError("\n  ".join(wrong))
    pairs = pairs_of(losses, tuple(manifest.hidden), model, learn.LOSSES)
    layers = tuple(sorted({layer for own in pairs.values() for layer in own.values()}))
    data = open_data(
        open_sources(config, labelled, model, layers=layers, teacher_rows_url=job.teacher_rows_url), training, ranks
    )
    if needs_temperature(losses):
        mixed = config.student.mixture is not None
        decided = 1.0 if mixed else chosen_temperature(data.calibration, confidence=learn.CONFIDENCE)
        losses = with_temperature(losses, decided)
    train, mixture = data.train, config.student.mixture
    rows = arm_rows("student", losses, train, learn.LOSSES)
    shares = Shares(starts=data.sources, weights=mixture.weights) if mixture and mixture.how == "source" else None
    epoch = occurrences(rows, train, training.sampling, seed=job.seed, shares=shares)
    ceiling = _ceiling(job, config, snapshot, model=model, manifest=manifest)
    for own in (data.validation, *([] if ceiling is None else [ceiling])):
        Budget.of(training).check(own.lengths)
    for temperature in temperatures_of(losses, manifest.distributions.temperatures, learn.LOSSES):
        check_retained_mass(train, rows, temperature)
    return Workshop(
        job=job,
        ranks=ranks,
        model=model,
        manifest=manifest,
        train=train,
        units=data.units,
        shares=shares,
        views=snapshot.manifest.view_counts,
        ceiling=ceiling,
        validation=data.validation,
        calibration=data.calibration,
        judge=learn.validator(data.validation),
        losses=losses,
        pairs=pairs,
        training=training,
        pace=pace_of(training, len(epoch.rows)),
    )


def _ceiling(
    job: TrainingJob, config: Campaign, snapshot: Snapshot, *, model: Model, manifest: StoreManifest
) -> PositionExamples | None:
    """Return the teacher's own labelled rows, without those on which the campaign is evaluated."""
    if "ceiling_true_labels" not in job.arms:
        return None
    if job.ceiling is None:
        raise ConfigError("the arm ceiling_true_labels needs the teacher's labelled rows: set student.ceiling")
    source, task = open_snapshot(job.ceiling), get_task(config.task)
    answers = learn_of(config).answer_format(
        task=task, model=model, manifest=manifest, snapshot_classes=source.classes, training=config.student.training
    )
    columns = list(example_columns(task, answers, config.student.training))
    table = pa.concat_tables([source.read(split, columns) for split in ("train", "validation", "calibration", "test")])
    for column in answers.truth_columns:
        table = table.filter(pc.is_valid(table[column]))
    for split in ("validation", "calibration", "test"):
        evaluated = snapshot.read(split, ["row_id"])["row_id"].combine_chunks()
        table = table.filter(pc.invert(pc.is_in(table["row_id"], value_set=evaluated)))
    return build_examples(table, answers=answers, processor=model.processor, labels=None, name="ceiling")
