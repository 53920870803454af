"""Run the stages of a campaign: plain functions from references and a config to a reference.

    snapshot ─► (write) ─► label ─► train ─► evaluate ─► promote

Every stage first checks whether it has finished with the same inputs. So the same command resumes a campaign that was
stopped anywhere.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from ray_distill.artifacts import Artifact, Decision, EvalReport, LabelSetRef, Number, SnapshotRef, StudentRef
from ray_distill.config import Campaign, SnapshotConfig, TrainingConfig
from ray_distill.config.identity import identity
from ray_distill.evaluation.measures.cost import CostReport
from ray_distill.evaluation.sweep.compare import SweepResult
from ray_distill.fingerprint import fingerprint
from ray_distill.promotion.rules import in_words, limits_of
from ray_distill.runtime.core import console
from ray_distill.runtime.core.class_names import classes_key, describe_classes
from ray_distill.runtime.core.session import Session, absolute, open_session, record_line
from ray_distill.runtime.forecast.labelled_test_rows import what_test_rows_establish
from ray_distill.runtime.stages import evaluate as evaluate_stage
from ray_distill.runtime.stages import generate
from ray_distill.runtime.stages import label as label_stage
from ray_distill.runtime.stages import promote as promote_stage
from ray_distill.runtime.stages import train as train_stage
from ray_distill.runtime.stages.judge import requested_corruptions
from ray_distill.runtime.stages.preflight import names_student, preflight
from ray_distill.runtime.stages.relabel import RelabelReport, relabel_source
from ray_distill.runtime.stages.snapshot import freeze
from ray_distill.runtime.sweep import publish, run_sweep
from ray_distill.runtime.sweep.resolve_trials import checked_trials
from ray_distill.snapshots.reader import open_snapshot
from ray_distill.snapshots.sources.resolve import describe_sources
from ray_distill.storage import files
from ray_distill.tasks.catalogue import get_task


class CampaignResult(Artifact):
    """Everything that a campaign made, by reference, and the facts that a reader needs first."""

    snapshot: SnapshotRef
    """The labelled snapshot: the frozen source, or the snapshot that the teacher wrote from it."""
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
    """Address of the runs in the tracking UI, once the UI runs."""


def snapshot(config: Campaign) -> SnapshotRef:
    """Freeze the configured source; see `take_snapshot`."""
    with open_session(config) as session:
        return _snapshot(session)


def write(config: Campaign, snapshot: SnapshotRef) -> SnapshotRef:
    """Let the teacher answer the prompts of a snapshot; return the snapshot of the answers kept.

    That snapshot is then labelled.

    Raises:
        ConfigError: the campaign has no section ``sequences``.
        LabelError: too many prompts got no answer, or the teacher or the scorer fails.
        SnapshotError: the filters leave a split empty.
    """
    with open_session(config) as session:
        return generate.write(session, snapshot)


def label(config: Campaign, snapshot: SnapshotRef) -> LabelSetRef:
    """Let the teacher label the rows that are not in the store yet.

    Raises:
        TeacherRefused: the teacher is below its floor; nothing was labelled.
        StoreMismatch: the store was made for another teacher or signal.
        DistillError: as `preflight`; the student is checked where `student.model` is given.
    """
    _report(preflight(config, student=names_student(config)))
    with open_session(config) as session:
        return label_stage.label(session, snapshot)


def train(config: Campaign, labels: LabelSetRef, *, resume: bool = True) -> dict[str, StudentRef]:
    """Train the student and its baselines from stored labels; return the students by arm.

    Args:
        config: the campaign.
        labels: the result of `label`.
        resume: keep finished arms and continue from checkpoints; False deletes both.
    """
    _report(preflight(config, teacher=False))
    with open_session(config) as session:
        return train_stage.train(session, labels, resume=resume)


def evaluate(config: Campaign, students: Mapping[str, StudentRef]) -> EvalReport:
    """Evaluate the student beside teacher, baselines and champion on the test split."""
    with open_session(config) as session:
        return evaluate_stage.evaluate(session, students)


def promote(config: Campaign, report: EvalReport) -> Decision:
    """Decide, record the decision, register the student and, on PROMOTE, point the alias at it."""
    with open_session(config) as session:
        return promote_stage.promote(session, report)


def relabel(config: Campaign, source: str | None = None) -> RelabelReport:
    """Label the new rows of newer traffic, and measure its drift from the campaign's snapshot.

    Args:
        config: the campaign; its snapshot must have been labelled.
        source: file, folder or glob of the newer traffic; default: ``snapshot.source`` read again.
    """
    preflight(config, student=False)
    with open_session(config) as session:
        return relabel_source(session, source)


def run(config: Campaign) -> CampaignResult:
    """Run all stages; skip finished ones, and report that they were skipped."""
    _report(preflight(config))
    with open_session(config) as session:
        frozen = _snapshot(session)
        if config.sequences is not None:
            frozen = generate.write(session, frozen)
        labels = label_stage.label(session, frozen)
        students = train_stage.train(session, labels, resume=True)
        report = evaluate_stage.evaluate(session, students)
        decision = promote_stage.promote(session, report)
        return CampaignResult(
            snapshot=frozen,
            labels=labels,
            students=students,
            report=report,
            decision=decision,
            costs=evaluate_stage.campaign_costs(session, report),
            labelled=label_stage.store_facts(session, labels),
            tracking_uri=session.tracker.uri,
            run_id=session.parent.run_id,
            review=session.tracker.review_url(session.parent.run_id),
        )


def sweep(config: Campaign) -> SweepResult:
    """Label once, train the trials of the section ``sweep``, and compare them on validation.

    Several trials run at a time. Finished trials are reused; interrupted trials continue from their checkpoints.

    Raises:
        ConfigError: there is no such section, or a trial is wrong; no trial has started.
        TrainingError: every trial has failed.
    """
    trials = checked_trials(config)
    with open_session(config, sweep=True) as session:
        frozen = _snapshot(session)
        if config.sequences is not None:
            frozen = generate.write(session, frozen)
        return run_sweep.sweep(session, frozen, trials)


def plan_sweep(config: Campaign) -> list[str]:
    """Describe what `sweep` would do, one line per trial; run nothing."""
    return [
        *publish.plan_lines(absolute(config), checked_trials(config)),
        f"record     {record_line(absolute(config))}",
    ]


def plan(config: Campaign) -> list[str]:
    """Describe what `run` would do, one line per stage; run nothing."""
    notes = preflight(config, call=True)
    task, damages = get_task(config.task), requested_corruptions(config)
    sources = describe_sources(config.snapshot)
    training, arms = config.student.training, train_stage.arms(config, labelled=_may_teach(config))
    lines = [
        f"snapshot  {_counted(sources)} of {task.inputs.column}{_own(config)}{describe_classes(config)} "
        f"→ {config.output_url}/snapshots",
        *_plan_writing(config),
        f"label     {config.labels.teacher.model}, {config.labels.signal.estimator}, "
        f"T {', '.join(f'{t:g}' for t in config.labels.signal.temperatures)} → {config.store_url}",
        f"train     {', '.join(arms)}: {_workers(training)} × {training.engine} ZeRO "
        f"{training.zero_stage}, {training.precision} → {config.output_url}/students",
        f"evaluate  test split, {len(damages)} corruptions × {len(config.evaluation.severities)} severities",
        _plan_gate(config),
    ]
    lines.append(f"record    {record_line(absolute(config))}")
    return [*lines, *(f"note      {note}" for note in notes)]


def _report(notes: tuple[str, ...]) -> None:
    for note in notes:
        console.report(f"note: {note}")


def _counted(sources: Sequence[Mapping[str, Any]]) -> str:
    """Count the source files of traffic; files of rows to leave out are not sources."""
    counts = Counter(str(source["role"]) for source in sources)
    excluded = f" less the rows of {counts['exclude']} file(s)" if counts["exclude"] else ""
    return f"{counts['source']} source file(s){excluded}"


def _plan_gate(config: Campaign) -> str:
    """Return the rules in force, as the verdict will list them."""
    rules = [f"{name} ({in_words(limit)})" for name, limit in limits_of(config.gate, config.task).items()]
    trained = {*train_stage.arms(config, labelled=_may_teach(config)), "teacher", "champion"}
    rules += [f"beat {arm}" for arm in config.gate.beat if arm in trained]
    return f"promote   {', '.join(rules) or 'no rules, so no verdict but HOLD'}; alias {config.gate.alias}"


def _may_teach(config: Campaign) -> bool:
    """Return whether train rows can have truths: by a column of labels, or by the inputs."""
    return config.snapshot.columns.label is not None or get_task(config.task).answers.is_labelled(0)


def _own(config: Campaign) -> str:
    own = config.snapshot.own_sources
    return "".join(f"; {name} has a source of its own" for name in own)


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
    """Return the key of everything that decides a snapshot.

    Sources count by their files, regardless of the folder. Each file counts by name, size and time, to be cheap.
    """
    return fingerprint(
        {
            "config": identity(_anywhere(config.snapshot)),
            "seed": config.seed,
            "task": config.task,
            "sources": describe_sources(config.snapshot),
            "classes": classes_key(config),
        }
    )


def _anywhere(config: SnapshotConfig) -> SnapshotConfig:
    """Return the settings without the places of the sources."""
    return config.with_sources(lambda _: "").model_copy(update={"source": "", "exclude": ()})


def _snapshot(session: Session) -> SnapshotRef:
    config = session.config
    key = snapshot_key(config)
    done = session.done("snapshot", key)
    if done is not None and files.exists(files.join(done["url"], "snapshot.json")):
        ref = SnapshotRef.from_dict(done)
        console.report(f"snapshot: already taken, skipped ({ref.url})", skipped="snapshot")
        return ref
    with session.stage("snapshot") as stage:
        ref = freeze(config)
        opened = open_snapshot(ref)
        stage.meter.wrote(sum(shard.bytes for shard in opened.shards))
        console.report(opened.summary(), snapshot=ref.url)
        console.report(what_test_rows_establish(config, opened))
        label_stage.record_snapshot(stage.run, opened, "snapshot")
        stage.run.metrics({f"{name}_rows": float(part.rows) for name, part in opened.manifest.splits.items()})
        stage.run.metrics({"quarantined_rows": float(opened.manifest.rows.quarantined)})
    session.finish("snapshot", key, ref.to_dict())
    return ref
