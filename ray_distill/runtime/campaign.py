"""The stages of a campaign, each a plain function from references and a config to a reference; and all of them.

    snapshot ─► (write) ─► label ─► train ─► evaluate ─► promote

Every stage asks first whether it has been done with the same inputs. So a campaign that was stopped anywhere is
run again with the same command, and goes on where it was.
"""

from collections.abc import Mapping

from ray_distill.artifacts import Artifact, Decision, EvalReport, LabelSetRef, Number, SnapshotRef, StudentRef
from ray_distill.config import Campaign, TrainingConfig
from ray_distill.config.identity import identity
from ray_distill.evaluation.measures.cost import CostReport
from ray_distill.evaluation.sweep.compare import SweepResult
from ray_distill.fingerprint import fingerprint
from ray_distill.promotion.gate import limits_of
from ray_distill.runtime.core.console import say
from ray_distill.runtime.core.session import Session, absolute, session
from ray_distill.runtime.stages import evaluate as evaluate_stage
from ray_distill.runtime.stages import generate
from ray_distill.runtime.stages import label as label_stage
from ray_distill.runtime.stages import promote as promote_stage
from ray_distill.runtime.stages import train as train_stage
from ray_distill.runtime.stages.preflight import check
from ray_distill.runtime.stages.relabel import RelabelReport, relabel_source
from ray_distill.runtime.stages.snapshot import freeze
from ray_distill.runtime.sweep import publish, run_sweep
from ray_distill.runtime.sweep.resolve_trials import checked_trials
from ray_distill.snapshots.reader import open_snapshot
from ray_distill.snapshots.sources.resolve import describe_sources
from ray_distill.storage import files
from ray_distill.tasks.catalogue import get_task


class CampaignResult(Artifact):
    """Everything a campaign made, by reference, and the facts a reader wants first."""

    snapshot: SnapshotRef
    """What was labelled: the frozen source, or what the teacher wrote from it."""
    labels: LabelSetRef
    students: dict[str, StudentRef]
    report: EvalReport
    decision: Decision
    costs: CostReport
    labelled: dict[str, Number]
    """``rows``, ``bytes`` and ``rows_per_second`` of the label store."""
    tracking_uri: str
    run_id: str
    review: str
    """Address at which the runs are looked at, once the tracking UI runs."""


def snapshot(config: Campaign) -> SnapshotRef:
    """Freeze the configured source; see `take_snapshot`."""
    with session(config) as held:
        return _snapshot(held)


def write(config: Campaign, snapshot: SnapshotRef) -> SnapshotRef:
    """Let the teacher write behind the prompts of a snapshot; the snapshot of what is kept is then labelled.

    Raises:
        ConfigError: the campaign has no section ``sequences``.
        LabelError: too many prompts got no answer, or the teacher or the scorer fails.
        SnapshotError: the filters leave nothing of a split.
    """
    with session(config) as held:
        return generate.write(held, snapshot)


def label(config: Campaign, snapshot: SnapshotRef) -> LabelSetRef:
    """Let the teacher label what the store does not hold yet.

    Raises:
        TeacherRefused: the teacher is below its floor; nothing was labelled.
        StoreMismatch: the store was made for another teacher or signal.
    """
    with session(config) as held:
        return label_stage.label(held, snapshot)


def train(config: Campaign, labels: LabelSetRef, *, resume: bool = True) -> dict[str, StudentRef]:
    """Train the student and its baselines from stored labels; by arm.

    Args:
        config: the campaign.
        labels: what `label` returned.
        resume: go on from finished arms and checkpoints; False forgets them.
    """
    with session(config) as held:
        return train_stage.train(held, labels, resume=resume)


def evaluate(config: Campaign, students: Mapping[str, StudentRef]) -> EvalReport:
    """Judge the student beside teacher, baselines and champion on the test split."""
    with session(config) as held:
        return evaluate_stage.evaluate(held, students)


def promote(config: Campaign, report: EvalReport) -> Decision:
    """Decide, record the decision, register the student and, on PROMOTE, point the alias at it."""
    with session(config) as held:
        return promote_stage.promote(held, report)


def relabel(config: Campaign, source: str | None = None) -> RelabelReport:
    """Label the new rows of newer traffic, and say whether it has drifted from the campaign's snapshot.

    Args:
        config: the campaign; its snapshot must have been labelled.
        source: file, folder or glob of the newer traffic; default: ``snapshot.source`` read again.
    """
    with session(config) as held:
        return relabel_source(held, source)


def run(config: Campaign) -> CampaignResult:
    """The whole way; stages that are done already are skipped, and said to be."""
    check(config)
    with session(config) as held:
        frozen = _snapshot(held)
        if config.sequences is not None:
            frozen = generate.write(held, frozen)
        labels = label_stage.label(held, frozen)
        students = train_stage.train(held, labels, resume=True)
        report = evaluate_stage.evaluate(held, students)
        decision = promote_stage.promote(held, report)
        return CampaignResult(
            snapshot=frozen,
            labels=labels,
            students=students,
            report=report,
            decision=decision,
            costs=evaluate_stage.campaign_costs(held, report),
            labelled=label_stage.store_facts(held, labels),
            tracking_uri=held.tracker.uri,
            run_id=held.parent.run_id,
            review=held.tracker.review_url(held.parent.run_id),
        )


def sweep(config: Campaign) -> SweepResult:
    """Label once, train the students of the section ``sweep``, several at a time, and compare them on validation.

    Trials that are done already are taken as they are, others go on from their checkpoints.

    Raises:
        ConfigError: there is no such section, or trials are wrong; nothing has been started.
        TrainingError: every trial has failed.
    """
    trials = checked_trials(config)
    with session(config, sweep=True) as held:
        frozen = _snapshot(held)
        if config.sequences is not None:
            frozen = generate.write(held, frozen)
        return run_sweep.sweep(held, frozen, trials)


def plan_sweep(config: Campaign) -> list[str]:
    """What `sweep` would do, without doing it: a line a trial."""
    return [
        *publish.plan_lines(absolute(config), checked_trials(config)),
        f"record     {config.tracking.uri or 'SQLite beside the output'}",
    ]


def plan(config: Campaign) -> list[str]:
    """What `run` would do, without doing it: a line a stage."""
    check(config)
    task, language = get_task(config.task), get_task(config.task).answers.per_token
    damages = (
        config.evaluation.corruptions
        if config.evaluation.corruptions is not None or language
        else tuple(task.inputs.corruptions_of(config))
    )
    sources = describe_sources(config.snapshot)
    training = config.student.training
    lines = [
        f"snapshot  {len(sources)} source file(s) of {task.inputs.column} → {config.output_url}/snapshots",
        *_plan_writing(config),
        f"label     {config.labels.teacher.model}, {config.labels.signal.estimator}, "
        f"T {', '.join(f'{t:g}' for t in config.labels.signal.temperatures)} → {config.store_url}",
        f"train     {', '.join(train_stage.arms(config))}: {_workers(training)} × {training.engine} ZeRO "
        f"{training.zero_stage}, {training.precision} → {config.output_url}/students",
        f"evaluate  test split, {len(damages or ())} corruptions × {len(config.evaluation.severities)} severities",
        f"promote   {', '.join(limits_of(config.gate, config.task))}; alias {config.gate.alias}",
    ]
    return [*lines, f"record    {config.tracking.uri or 'SQLite beside the output'}"]


def _workers(training: TrainingConfig) -> str:
    least, most = training.least_workers, training.most_workers
    return str(least) if least == most else f"{least} to {most}"


def _plan_writing(config: Campaign) -> list[str]:
    settings = config.sequences
    if settings is None:
        return []
    return [
        f"write     {config.labels.teacher.model}, {settings.method}, {settings.candidates} for a prompt of "
        f"{' and '.join(settings.splits)}, up to {settings.new_tokens} tokens, keep {settings.keep} → "
        f"{config.output_url}/sequences"
    ]


def snapshot_key(config: Campaign) -> str:
    """Return the key of everything that decides a snapshot: of sources their files, wherever these lie.

    The files count by name, size and time, to be cheap.
    """
    return fingerprint(
        {
            "config": identity(config.snapshot.model_copy(update={"source": "", "exclude": ()})),
            "seed": config.seed,
            "task": config.task,
            "sources": describe_sources(config.snapshot),
        }
    )


def _snapshot(held: Session) -> SnapshotRef:
    config = held.config
    key = snapshot_key(config)
    done = held.done("snapshot", key)
    if done is not None and files.exists(files.join(done["url"], "snapshot.json")):
        ref = SnapshotRef.from_dict(done)
        say(f"snapshot: already taken, skipped ({ref.url})", skipped="snapshot")
        return ref
    with held.stage("snapshot") as stage:
        ref = freeze(config)
        opened = open_snapshot(ref)
        stage.meter.wrote(sum(shard.bytes for shard in opened.shards))
        say(opened.summary(), snapshot=ref.url)
        label_stage.record_snapshot(stage.run, opened, "snapshot")
        stage.run.metrics({f"{name}_rows": float(part.rows) for name, part in opened.manifest.splits.items()})
        stage.run.metrics({"quarantined_rows": float(opened.manifest.rows.quarantined)})
    held.finish("snapshot", key, ref.to_dict())
    return ref
