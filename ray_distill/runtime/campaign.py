"""Run the stages of a campaign: plain functions from references and a config to a reference.

    snapshot ─► (write) ─► label ─► train ─► evaluate ─► promote

Every stage first checks whether it has finished with the same inputs. So the same command resumes a campaign that was
stopped anywhere.
"""

from collections.abc import Mapping

from ray_distill.artifacts import Artifact, Decision, EvalReport, LabelSetRef, Number, SnapshotRef, StudentRef
from ray_distill.config import Campaign, SnapshotConfig
from ray_distill.config.identity import identity
from ray_distill.errors import PromotionError
from ray_distill.evaluation.measures.cost import CostReport
from ray_distill.evaluation.sweep.compare import SweepResult
from ray_distill.fingerprint import fingerprint
from ray_distill.redact import redact
from ray_distill.runtime.core import console
from ray_distill.runtime.core.class_names import classes_key
from ray_distill.runtime.core.session import Session, absolute, open_session
from ray_distill.runtime.forecast.labelled_test_rows import what_test_rows_establish
from ray_distill.runtime.model_checks.decide import decided
from ray_distill.runtime.stages import evaluate as evaluate_stage
from ray_distill.runtime.stages import generate
from ray_distill.runtime.stages import label as label_stage
from ray_distill.runtime.stages import promote as promote_stage
from ray_distill.runtime.stages import train as train_stage
from ray_distill.runtime.stages.follow_chain import AliasReport, follow_chain
from ray_distill.runtime.stages.preflight import names_student, preflight
from ray_distill.runtime.stages.relabel import RelabelReport, relabel_source
from ray_distill.runtime.stages.snapshot import freeze, freeze_ceiling
from ray_distill.runtime.sweep import run_sweep
from ray_distill.runtime.sweep.check_trial_models import check_trial_models
from ray_distill.runtime.sweep.preset import with_preset
from ray_distill.runtime.sweep.resolve_trials import checked_trials
from ray_distill.snapshots.reader import open_snapshot
from ray_distill.snapshots.sources.resolve import describe_sources
from ray_distill.storage import files
from ray_distill.storage.portable import movable
from ray_distill.tasks.catalogue import get_task
from ray_distill.tasks.view_kinds import chosen_kinds, needs_neighbours


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
    with open_session(decided(config)) as session:
        return _snapshot(session)


def write(config: Campaign, snapshot: SnapshotRef) -> SnapshotRef:
    """Let the teacher answer the prompts of a snapshot; return the snapshot of the answers kept.

    That snapshot is then labelled.

    Raises:
        ConfigError: the campaign has no section ``sequences``.
        LabelError: too many prompts got no answer, or the teacher or the scorer fails.
        SnapshotError: the filters leave a split empty.
    """
    with open_session(decided(config)) as session:
        return generate.write(session, snapshot)


def label(config: Campaign, snapshot: SnapshotRef) -> LabelSetRef:
    """Let the teacher label the rows that are not in the store yet.

    Raises:
        TeacherRefused: the teacher is below its floor; nothing was labelled.
        StoreMismatch: the store was made for another teacher or signal.
        DistillError: as `preflight`; the student is checked where `student.model` is given.
    """
    config = _decided(config)
    _report(preflight(config, student=names_student(config)))
    with open_session(config, shared=True) as session:
        return label_stage.label(session, snapshot)


def train(config: Campaign, labels: LabelSetRef, *, resume: bool = True) -> dict[str, StudentRef]:
    """Train the student and its baselines from stored labels; return the students by arm.

    Args:
        config: the campaign.
        labels: the result of `label`.
        resume: keep finished arms and continue from checkpoints; False deletes both.
    """
    config = _decided(config)
    _report(preflight(config, teacher=False))
    with open_session(config) as session:
        return train_stage.train(session, labels, resume=resume)


def evaluate(config: Campaign, students: Mapping[str, StudentRef]) -> EvalReport:
    """Evaluate the student beside teacher, baselines and champion on the test split."""
    with open_session(decided(config)) as session:
        return evaluate_stage.evaluate(session, students)


def promote(config: Campaign, report: EvalReport) -> Decision:
    """Decide, record the decision, register the student and, on PROMOTE, point the alias at it."""
    with open_session(decided(config)) as session:
        return promote_stage.promote(session, report)


def verify_alias(config: Campaign) -> AliasReport:
    """Compare the registry's alias with the decision chain, and point it at the champion.

    Raises:
        PromotionError: the alias names a version, and the chain has promoted no student.
    """
    with open_session(decided(config)) as session:
        found = follow_chain(session, move=True)
    if found.wrong:
        raise PromotionError(found.wrong)
    return found


def relabel(config: Campaign, source: str | None = None) -> RelabelReport:
    """Label the new rows of newer traffic, and measure its drift from the campaign's snapshot.

    Args:
        config: the campaign; its snapshot must have been labelled.
        source: file, folder or glob of the newer traffic; default: ``snapshot.source`` read again.
    """
    config = decided(config)
    preflight(config, student=False)
    with open_session(config) as session:
        return relabel_source(session, source)


def run(config: Campaign) -> CampaignResult:
    """Run all stages; skip finished ones, and report that they were skipped."""
    config = _decided(config)
    _report(preflight(config))
    with open_session(config) as session:
        frozen = _snapshot(session)
        if config.sequences is not None:
            frozen = generate.write(session, frozen)
        train_stage.refuse_large_batch(session.config, frozen)
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
            tracking_uri=redact(session.tracker.uri),
            run_id=session.parent.run_id,
            review=redact(session.tracker.review_url(session.parent.run_id)),
        )


def sweep(config: Campaign) -> SweepResult:
    """Label once, train the trials of the section ``sweep``, and compare them on validation.

    Several trials run at a time. Finished trials are reused; interrupted trials continue from their checkpoints.

    Raises:
        ConfigError: there is no such section, a trial's settings are wrong, or no student can be trained.
        DistillError: the teacher cannot be used; no trial has started.
        TrainingError: every trial has failed.
    """
    config = with_preset(_decided(config))
    trials = checked_trials(config)
    _report(check_trial_models(absolute(config), trials))
    with open_session(config, sweep=True) as session:
        frozen = _snapshot(session)
        if config.sequences is not None:
            frozen = generate.write(session, frozen)
        for trial in trials:
            train_stage.refuse_large_batch(trial.config, frozen)
        return run_sweep.sweep(session, frozen, trials)


def _decided(config: Campaign) -> Campaign:
    """Return `decided`, and report what was chosen."""
    found = decided(config)
    if found.student.model is not config.student.model:
        console.report(f"student: {found.student.model.chosen_by}")
    return found


def _report(notes: tuple[str, ...]) -> None:
    for note in notes:
        console.report(f"note: {note}")


def snapshot_key(config: Campaign) -> str:
    """Return the key of everything that decides a snapshot.

    Sources count by their files, of which each counts by name, size and time, to be cheap; and so does the teacher if
    views are made of its embeddings.
    """
    task, teacher = get_task(config.task), config.labels.teacher.model
    settings = {
        "config": identity(_anywhere(config.snapshot)),
        "seed": config.seed,
        "task": config.task,
        "sources": describe_sources(config.snapshot),
        "classes": classes_key(config),
        "views": [[one.name, one.strength] for one in chosen_kinds(config, task)],
        **({"teacher_files": label_stage.model_files(teacher)} if needs_neighbours(config, task) else {}),
    }
    return fingerprint(movable(settings, files.absolute(config.output_url)))


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
        freeze_ceiling(config, opened.classes)  # `train` reads it: what is wrong with it is reported before labelling
        console.report(opened.summary(), snapshot=ref.url)
        console.report(what_test_rows_establish(config, opened))
        label_stage.record_snapshot(stage.run, opened, "snapshot")
        stage.run.metrics({f"{name}_rows": float(part.rows) for name, part in opened.manifest.splits.items()})
        stage.run.metrics({"quarantined_rows": float(opened.manifest.rows.quarantined)})
    session.finish("snapshot", key, ref.to_dict())
    return ref
