"""Run the training stage on one rank: a function from a job to trained models.

`run_arms` is called on every rank with ``torch.distributed`` initialised, by whichever launcher started the ranks; or
in a single process.
"""

import copy
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ray_distill.artifacts import LabelSetRef, SnapshotRef, StudentRef
from ray_distill.config import Campaign, LossConfig, MixtureConfig
from ray_distill.config.identity import identity
from ray_distill.errors import ConfigError
from ray_distill.labels.model.manifest import StoreManifest
from ray_distill.models.core.model import Model
from ray_distill.models.students.build import build_student
from ray_distill.redact import redacted
from ray_distill.snapshots.reader import Snapshot, open_snapshot
from ray_distill.storage import files
from ray_distill.storage.portable import movable
from ray_distill.students.arms import Arm, arm_by_name, arm_rows
from ray_distill.students.calibration.collect import Units, calibrator
from ray_distill.students.checkpoints.store import prune
from ray_distill.students.data.answer_format import LearnFacet, learn_facet
from ray_distill.students.data.build_examples import build_examples
from ray_distill.students.data.examples import Examples, PositionExamples
from ray_distill.students.data.open_data import open_data
from ray_distill.students.data.open_sources import example_columns, open_labels, open_sources
from ray_distill.students.data.resampling import Shares, occurrences
from ray_distill.students.engines.build import build_engine
from ray_distill.students.engines.engine import check_compiler, checkpoint_activations, compile_module
from ray_distill.students.export import export_arm, exported_arm, marker_url
from ray_distill.students.loop.best_result import Best, load_outcome, save_outcome
from ray_distill.students.loop.train_loop import TrainingRun, checkpoints_url, train_run
from ray_distill.students.loop.validation import Validator
from ray_distill.students.measure_start import measure_start
from ray_distill.students.modules.student_module import StudentModule, make_projections
from ray_distill.students.objective.loss_settings import plain_settings, temperatures_of
from ray_distill.students.objective.validate_losses import (
    check_losses,
    check_retained_mass,
    labels_of,
    pairs_of,
    required_layers,
    scales_of,
)
from ray_distill.students.objective.weighted_losses import build_terms, group_of
from ray_distill.students.order.cursor import Index, steps_per_epoch
from ray_distill.students.order.micro_batches import Budget
from ray_distill.students.process_group import Ranks, current_ranks
from ray_distill.students.telemetry.curves import curve_url
from ray_distill.students.telemetry.memory_report import Sizes, memory_explained
from ray_distill.students.telemetry.reporter import Reporter
from ray_distill.tasks.catalogue import get_task

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class TrainingJob:
    """Everything a rank needs for training, as picklable values."""

    config: Campaign
    labels: LabelSetRef
    output: str
    """Folder of the students; a local path must be absolute, because ranks run in other working directories."""
    arms: tuple[str, ...] = ("student", "baseline_hard_labels", "baseline_teacher_hard_labels")
    seed: int = 0
    resume: bool = False
    """Whether exported arms, finished runs and checkpoints are reused; if there are none, training starts anew."""
    teacher_rows_url: str | None = None
    """Parquet with a ``row_id`` column: rows the teacher was fitted on, which it may not teach."""
    ceiling: SnapshotRef | None = field(default=None)
    """The teacher's own labelled rows, for the arm ``ceiling_true_labels``."""
    others: tuple[LabelSetRef, ...] = ()
    """The label sets that ``student.mixture`` names, in its order."""


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
    ceiling: Examples | None
    validation: PositionExamples
    calibration: Units
    judge: Validator
    pairs: Mapping[str, dict[int, int]]
    """Student layer to stored teacher layer, by the name of each loss of hidden states."""
    steps: int
    """Steps of every arm: the configured epochs of the student's examples."""


def run_arms(job: TrainingJob, reporter: Reporter) -> list[StudentRef]:
    """Train and export every arm of a job; return the same references on every rank.

    Arms are trained one after the other with equal steps and equal tuning. Output below ``job.output``:
    ``<arm>/`` (a transformers directory), ``<arm>.json`` (its reference, written last) and, during training,
    ``work/<arm>/``.

    Raises:
        ConfigError: configuration, labels and student do not match.
        TrainingError: a run cannot start or continue.
        TrainingStopped: the reporter requested a stop; the state is saved.
    """
    ranks = current_ranks()
    arms = [arm_by_name(name) for name in job.arms]
    if not job.resume:
        _clear(job, ranks)
    done = {
        arm.name: exported_arm(job.output, arm.name, arm_plan(job, arm), labels=job.labels, ranks=ranks) for arm in arms
    }
    refs = {name: exported for name, exported in done.items() if exported is not None}
    for name, ref in refs.items():
        log.info("%s is already trained: %s is reused", name, ref.url)
    if len(refs) == len(arms):
        return list(refs.values())
    workshop = _open(job, ranks)
    try:
        return [refs.get(arm.name) or _run_arm(workshop, arm, reporter) for arm in arms]
    finally:
        workshop.train.close()


def arm_plan(job: TrainingJob, arm: Arm) -> dict[str, Any]:
    """Return the plan of an arm: everything that determines its result, as plain JSON.

    An arm or run made under another plan is not reused. Labels and rows are identified by their fingerprints,
    independent of their addresses.
    """
    config, losses = job.config, _losses(job.config, arm)
    ceiling = job.ceiling.fingerprint if arm.ceiling and job.ceiling is not None else None
    student = config.student.model_copy(
        update={"losses": losses, "ceiling": ceiling, "mixture": _by_content(config.student.mixture, job.others)}
    )
    plan = identity(student)
    for name, loss in losses.items():  # adds the defaults of the loss, which are not in the configuration
        plan["losses"][name] |= plain_settings(name, loss, _learn(config).LOSSES)
    return {"labels": job.labels.fingerprint, "arm": arm.name, "seed": job.seed, **movable(plan, config.output_url)}


def _by_content(mixture: MixtureConfig | None, others: Sequence[LabelSetRef]) -> MixtureConfig | None:
    """Replace the addresses of label sets by their fingerprints."""
    if mixture is None:
        return None
    named = zip(mixture.others, others, strict=True)
    return mixture.model_copy(
        update={"others": tuple(other.model_copy(update={"labels": ref.fingerprint}) for other, ref in named)}
    )


def _learn(config: Campaign) -> LearnFacet:
    return learn_facet(get_task(config.task).answers)


def _losses(config: Campaign, arm: Arm) -> Mapping[str, LossConfig]:
    return config.student.losses if arm.losses is None else arm.losses


def _clear(job: TrainingJob, ranks: Ranks) -> None:
    """Delete earlier results of these arms; the exported models stay until they are replaced."""
    if ranks.first:
        for name in job.arms:
            files.delete(marker_url(job.output, name))
            files.delete(_work_url(job, name))
            files.delete(curve_url(job.output, name))
    ranks.barrier()


def _work_url(job: TrainingJob, arm: str) -> str:
    return files.join(job.output, "work", arm)


def _open(job: TrainingJob, ranks: Ranks) -> Workshop:
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
    losses, training, learn = config.student.losses, config.student.training, _learn(config)
    wrong = [*check_losses(losses, labels_of(manifest), training, learn.LOSSES), *check_compiler(training)]
    if wrong:
        raise ConfigError("\n  ".join(wrong))
    pairs = pairs_of(losses, tuple(manifest.hidden), model, learn.LOSSES)
    layers = tuple(sorted({layer for own in pairs.values() for layer in own.values()}))
    data = open_data(
        open_sources(config, labelled, model, layers=layers, teacher_rows_url=job.teacher_rows_url), training, ranks
    )
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
        ceiling=ceiling,
        validation=data.validation,
        calibration=data.calibration,
        judge=learn.validator(data.validation),
        pairs=pairs,
        steps=math.ceil(training.epochs * steps_per_epoch(len(epoch.rows), training.global_batch)),
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
    answers = _learn(config).answer_format(
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


def _run_arm(workshop: Workshop, arm: Arm, reporter: Reporter) -> StudentRef:
    """Train an arm once for each learning rate and export the best result."""
    runs, learn = _runs(workshop, arm), _learn(workshop.job.config)
    outcomes = [_train_rate(workshop, arm, run, reporter) for run in runs]
    best = min(range(len(runs)), key=lambda i: outcomes[i].score.value)
    log.info("%s: learning rate %g is selected, %s", arm.name, runs[best].rate, outcomes[best].score.metrics)
    ref = export_arm(
        workshop.job.output,
        arm.name,
        workshop.model,
        outcomes[best],
        labels=workshop.job.labels,
        facts=_facts(workshop, arm, runs[best]),
        plan=arm_plan(workshop.job, arm),
        calibrate=calibrator(
            workshop.job.config.student.calibrate, learn.CONFIDENCE, workshop.calibration, runs[best].training
        ),
        decide=partial(learn.fit_decision, validation=workshop.validation, training=runs[best].training),
        ranks=workshop.ranks,
    )
    if workshop.ranks.first and workshop.job.config.student.training.checkpoints.best == 0:
        files.delete(_work_url(workshop.job, arm.name))
    workshop.ranks.barrier()
    return ref


def _runs(workshop: Workshop, arm: Arm) -> list[TrainingRun]:
    training, losses = workshop.job.config.student.training, _losses(workshop.job.config, arm)
    data = workshop.ceiling if arm.ceiling else workshop.train
    assert data is not None
    kinds = _learn(workshop.job.config).LOSSES
    rows = arm_rows(arm.name, losses, data, kinds)
    unknown = arm.ceiling and training.sampling is not None and training.sampling.by == "entropy"  # without a teacher
    epoch = occurrences(
        rows,
        data,
        None if unknown else training.sampling,
        seed=workshop.job.seed,
        shares=None if arm.ceiling else workshop.shares,
    )
    declared = workshop.manifest.distributions.temperatures
    terms = build_terms(
        losses, kinds=kinds, steps=workshop.steps, temperatures=declared, layers=workshop.pairs, scales=scales_of(data)
    )
    Budget.of(training, group_of(terms)).check(data.lengths)
    plan = {**arm_plan(workshop.job, arm), "steps": workshop.steps, "rows": len(epoch.rows)}
    several = len(training.learning_rate) > 1
    names = [f"{arm.name}/rate-{rate:g}" if several else arm.name for rate in training.learning_rate]
    return [
        TrainingRun(
            name=names[number],
            data=data,
            rows=epoch.rows,
            weights=epoch.weights,
            terms=terms,
            url=files.join(_work_url(workshop.job, arm.name), f"run-{number}"),
            curve=curve_url(workshop.job.output, names[number]),
            judge=workshop.judge,
            training=training,
            rate=rate,
            steps=workshop.steps,
            seed=workshop.job.seed,
            plan={**plan, "rate": rate},
            units=None if arm.ceiling else workshop.units,
        )
        for number, rate in enumerate(training.learning_rate)
    ]


def _train_rate(workshop: Workshop, arm: Arm, run: TrainingRun, reporter: Reporter) -> Best:
    """Return a run's best result: the stored one, or that of training it now.

    When resuming, training continues from a checkpoint.
    """
    kept = load_outcome(run.url, run.plan, workshop.ranks) if workshop.job.resume else None
    if kept is not None:
        log.info("%s is already finished", run.name)
        return kept
    training, ranks = run.training, workshop.ranks
    pairs, plain = required_layers(run.terms)
    module = copy.deepcopy(workshop.model.module)
    if training.activation_checkpointing:
        checkpoint_activations(module)
    bundle = StudentModule(
        module,
        make_projections(workshop.model, layers=pairs, widths=run.data.widths, seed=run.seed),
        plain,
        pool=workshop.manifest.pool,
        fuse=_learn(workshop.job.config).FUSED,
    )
    if training.compile is not None:
        compile_module(bundle.computing, training.compile)
    least = run.budget.least(run.data.lengths)
    with memory_explained(run.name, Sizes.of(bundle), training, ranks.world, least=least):
        engine = build_engine(bundle, training, ranks, passes=run.budget.passes(run.order.plan.largest, ranks.world))
        try:
            best = train_run(run, engine, ranks, reporter, resume=workshop.job.resume)
        finally:
            engine.close()
    save_outcome(run.url, best, run.plan, ranks)
    if ranks.first:
        prune(checkpoints_url(run), training.checkpoints, last=0)
    return best


def _facts(workshop: Workshop, arm: Arm, run: TrainingRun) -> dict[str, Any]:
    """Return the facts of an arm for its model card."""
    config, labels, teacher = workshop.job.config, workshop.job.labels, workshop.manifest.teacher
    losses = {name: loss.model_dump(mode="json", exclude_defaults=True) for name, loss in _losses(config, arm).items()}
    mixture = config.student.mixture
    found: dict[str, Any] = redacted(
        {
            "campaign": config.campaign,
            "task": config.task,
            "teacher": teacher.model or "",
            "teacher_fingerprint": teacher.fingerprint,
            "snapshot_fingerprint": labels.snapshot.fingerprint,
            "labels_fingerprint": labels.fingerprint,
            "config_fingerprint": config.fingerprint,
            "seed": run.seed,
            "losses": losses,
            "training_rows": len(np.unique(run.rows)),
            "weigh_by": run.training.weigh_by,
            "steps": run.steps,
            "global_batch": run.training.global_batch,
            "learning_rate": run.rate,
            "precision": run.training.precision,
            **({"ema": run.training.ema} if run.training.ema else {}),
            **({"mixture": mixture.model_dump(mode="json")} if mixture is not None else {}),
        }
    )
    return found
