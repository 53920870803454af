"""Run the training stage on one rank: a function from a job to trained models.

`run_arms` is called on every rank with ``torch.distributed`` initialised, by whichever launcher started the ranks; or
in a single process.
"""

import copy
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from torch import nn

from ray_distill.artifacts import StudentRef
from ray_distill.config import CheckpointPolicy
from ray_distill.errors import Diverged
from ray_distill.models.core.checkpoint_files import read_facts
from ray_distill.models.core.model import Model
from ray_distill.redact import redacted
from ray_distill.storage import files
from ray_distill.students.arms import Arm, arm_by_name, arm_rows
from ray_distill.students.calibration.collect import calibrator
from ray_distill.students.checkpoints.store import prune
from ray_distill.students.data.resampling import occurrences
from ray_distill.students.engines.build import build_engine
from ray_distill.students.engines.engine import checkpoint_activations, compile_module
from ray_distill.students.export import VIEWS, export_arm, exported_arm, marker_url
from ray_distill.students.job import TrainingJob, arm_plan, learn_of
from ray_distill.students.loop.best_result import Best, Ended, load_outcome, save_outcome
from ray_distill.students.loop.pace import Pace
from ray_distill.students.loop.train_loop import train_run
from ray_distill.students.loop.training_run import TrainingRun, checkpoints_url
from ray_distill.students.modules.student_module import StudentModule, make_projections
from ray_distill.students.objective.validate_losses import required_layers, scales_of
from ray_distill.students.objective.weighted_losses import build_terms, group_of
from ray_distill.students.order.micro_batches import Budget
from ray_distill.students.process_group import Ranks, current_ranks
from ray_distill.students.recipe import chosen_rate, first_rates, next_rate, probe_steps
from ray_distill.students.telemetry.curves import curve_url
from ray_distill.students.telemetry.memory_report import Sizes, memory_explained
from ray_distill.students.telemetry.reporter import Reporter
from ray_distill.students.workshop import Workshop, open_workshop

log = logging.getLogger(__name__)


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
    workshop = open_workshop(job, ranks)
    pace = workshop.pace
    try:
        for arm in arms:
            if arm.name not in refs:
                refs[arm.name] = _run_arm(workshop, arm, pace, reporter)
            if pace.plateau is not None:  # the first arm decides the steps of all
                ended = _ended(refs[arm.name], ranks)
                pace = pace.cut(ended.steps, ended.decay_from)
        return [refs[arm.name] for arm in arms]
    finally:
        workshop.train.close()


def _ended(ref: StudentRef, ranks: Ranks) -> Ended:
    """Return how long the run of an exported arm was."""
    facts = ranks.share(read_facts(ref.url) if ranks.first else None)
    return Ended(steps=facts["steps"], decay_from=facts["decay_from"])


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


def _run_arm(workshop: Workshop, arm: Arm, pace: Pace, reporter: Reporter) -> StudentRef:
    """Train an arm once for each learning rate and export the best result."""
    learn, run = learn_of(workshop.job.config), _run(workshop, arm, pace)
    given, tried = workshop.training.learning_rate, dict[float, float]()
    if not given:
        tried = _tried_rates(workshop, arm, run, reporter)
        given = (chosen_rate(tried, _longer(run)),)
    runs = [_at_rate(workshop, run, number, given) for number in range(len(given))]
    outcomes = [_train_rate(workshop, arm, run, reporter) for run in runs]
    best = min(range(len(runs)), key=lambda i: outcomes[i].score.value)
    log.info("%s: learning rate %g is selected, %s", arm.name, runs[best].rate, outcomes[best].score.metrics)
    ref = export_arm(
        workshop.job.output,
        arm.name,
        workshop.model,
        outcomes[best],
        labels=workshop.job.labels,
        facts=_facts(workshop, arm, runs[best], outcome=outcomes[best], tried=tried),
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


def _run(workshop: Workshop, arm: Arm, pace: Pace) -> TrainingRun:
    """Return an arm's run without its learning rate."""
    job, training = workshop.job, workshop.training
    losses, kinds = arm.losses(workshop.losses), learn_of(job.config).LOSSES
    data = workshop.ceiling if arm.ceiling else workshop.train
    assert data is not None
    unknown = arm.ceiling and training.sampling is not None and training.sampling.by == "entropy"  # without a teacher
    epoch = occurrences(
        arm_rows(arm.name, losses, data, kinds),
        data,
        None if unknown else training.sampling,
        seed=job.seed,
        shares=None if arm.ceiling else workshop.shares,
    )
    terms = build_terms(
        losses,
        kinds=kinds,
        steps=pace.steps,
        temperatures=workshop.manifest.distributions.temperatures,
        layers=workshop.pairs,
        scales=scales_of(data),
    )
    Budget.of(training, group_of(terms)).check(data.lengths)
    return TrainingRun(
        name=arm.name,
        data=data,
        rows=epoch.rows,
        weights=epoch.weights,
        terms=terms,
        url=files.join(_work_url(job, arm.name), "run"),
        curve=curve_url(job.output, arm.name),
        judge=workshop.judge,
        training=training,
        rate=math.nan,
        steps=pace.steps,
        open_pace=pace,
        seed=job.seed,
        plan={**arm_plan(job, arm), "steps": pace.steps, "decay_from": pace.decay_from, "rows": len(epoch.rows)},
        units=None if arm.ceiling else workshop.units,
    )


def _at_rate(workshop: Workshop, run: TrainingRun, number: int, rates: Sequence[float]) -> TrainingRun:
    """Return a run at one of an arm's rates; of several, each has its own name."""
    rate = rates[number]
    name = f"{run.name}/rate-{rate:g}" if len(rates) > 1 else run.name
    return replace(
        run,
        name=name,
        url=f"{run.url}-{number}",
        curve=curve_url(workshop.job.output, name),
        rate=rate,
        plan={**run.plan, "rate": rate},
    )


def _tried_rates(workshop: Workshop, arm: Arm, run: TrainingRun, reporter: Reporter) -> dict[float, float]:
    """Return the validation loss of a short run at each of a few learning rates.

    It is infinite where the run diverged.

    Raises:
        Diverged: the training diverged at every rate.
    """
    found: dict[float, float] = {}
    rates = list(first_rates(*_size_and_source(workshop.model)))
    while rates:
        probe = _probe(run, rates[0], workshop.job.output)
        try:
            found[probe.rate] = _train_rate(workshop, arm, probe, reporter).score.value
        except Diverged as error:
            found[probe.rate], failed = math.inf, error
            log.info("%s: %s", probe.name, error)
        rates = rates[1:]
        if not rates and (more := next_rate(found, _longer(run))) is not None:
            rates = [more]
    if not any(map(math.isfinite, found.values())):
        raise failed
    log.info("%s: validation losses by learning rate: %s", arm.name, found)
    return found


def _longer(run: TrainingRun) -> float:
    """Return how many times longer a run is at most than one that tries a rate."""
    return run.steps / probe_steps(run.steps, run.epoch_steps)


def _size_and_source(model: Model) -> tuple[int, str]:
    """Return a student's parameters without embeddings, and its source; see `first_rates`."""
    source = "adapters" if "lora" in model.describe else str(model.describe.get("source", ""))
    embeddings = {id(part.weight) for part in model.module.modules() if isinstance(part, nn.Embedding)}
    return sum(one.numel() for one in model.module.parameters() if id(one) not in embeddings), source


def _probe(run: TrainingRun, rate: float, output: str) -> TrainingRun:
    """Return a short run that tries a learning rate.

    The rate rises and falls as in the whole run, in fewer steps.

    Args:
        run: the whole run.
        rate: the learning rate.
        output: folder of the students.
    """
    steps = probe_steps(run.steps, run.epoch_steps)
    name, pace = f"{run.name}/probe-{rate:g}", run.pace
    training = run.training.model_copy(
        update={"evaluate_every": steps, "checkpoints": CheckpointPolicy(last=1), "patience": 0}
    )
    return replace(
        run,
        name=name,
        url=f"{run.url}-probe-{rate:g}",
        curve=curve_url(output, name),
        training=training,
        rate=rate,
        steps=steps,
        open_pace=Pace.fixed(training, steps) if pace.decay is None else pace.cut(steps),
        plan={**run.plan, "steps": steps, "rate": rate},
    )


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
        fuse=learn_of(workshop.job.config).FUSED,
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


def _rows_by_teacher(run: TrainingRun) -> dict[str, int]:
    """Return how many rows of a run the teacher teaches, and how many true labels do."""
    rows, by_labels = np.unique(run.rows), [term.loss.follows_labels for term in run.terms]
    return {
        "rows_by_teacher": 0 if all(by_labels) else int(run.data.distil[rows].sum()),
        "rows_by_true_labels": int(run.data.labelled[rows].sum()) if any(by_labels) else 0,
    }


def _facts(
    workshop: Workshop, arm: Arm, run: TrainingRun, *, outcome: Best, tried: Mapping[float, float]
) -> dict[str, Any]:
    """Return the facts of an arm for its model card."""
    assert outcome.ended is not None
    config, labels, teacher = workshop.job.config, workshop.job.labels, workshop.manifest.teacher
    losses = {
        name: loss.model_dump(mode="json", exclude_defaults=True) for name, loss in arm.losses(workshop.losses).items()
    }
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
            **_rows_by_teacher(run),
            **({} if workshop.views is None or arm.ceiling else {VIEWS: workshop.views}),
            "weigh_by": run.training.weigh_by,
            "steps": outcome.ended.steps,
            "decay_from": outcome.ended.decay_from,
            "most_steps": workshop.pace.steps,
            "passes": round(outcome.ended.steps / run.epoch_steps, 3),
            "best_epoch": outcome.step / run.epoch_steps,
            "global_batch": run.training.global_batch,
            "learning_rate": run.rate,
            **(
                {"tried_rates": {f"{rate:g}": loss if math.isfinite(loss) else None for rate, loss in tried.items()}}
                if tried
                else {}
            ),
            "precision": run.training.precision,
            **({"ema": run.training.ema} if run.training.ema else {}),
            **({"mixture": mixture.model_dump(mode="json")} if mixture is not None else {}),
        }
    )
    return found
