"""Run a sweep: label for its trials, train them, and compare their results.

<output>/sweep/trials/<plan>/   a trial's student, or its checkpoints: reused by any sweep with the same trial
<output>/sweep/<key>/           one sweep's tables, figures, page, and the best trial as a campaign of its own
<output>/state/sweep-<key>/     the finished sweep's result, and the runs of the trials
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from ray_distill.artifacts import Efficiency, LabelSetRef, SnapshotRef, StudentRef
from ray_distill.config import Campaign, StopConfig
from ray_distill.config.identity import identity
from ray_distill.config.trials import Trial
from ray_distill.errors import DistillError, TrainingError
from ray_distill.evaluation.measures.cost import SECONDS_AN_HOUR, stage_cost, stage_metrics
from ray_distill.evaluation.measures.efficiency import busy_note
from ray_distill.evaluation.measures.intervals import wilson
from ray_distill.evaluation.sweep.compare import SweepResult, TrialResult, best_of, compared_with, mark_frontier
from ray_distill.fingerprint import fingerprint
from ray_distill.models.core.checkpoint_files import is_saved
from ray_distill.models.heads.fit_head import fitted_rows_url
from ray_distill.redact import redact, redacted
from ray_distill.runtime.core import console
from ray_distill.runtime.core.connection import on_cluster
from ray_distill.runtime.core.session import Session, parent_key
from ray_distill.runtime.stages import label
from ray_distill.runtime.sweep import publish
from ray_distill.runtime.sweep.preset import AS_CONFIGURED
from ray_distill.runtime.sweep.resolve_trials import (
    duplicates,
    judged_rows,
    judged_weights,
    label_key,
    labelling,
    measured_share,
    metric_of,
    more_is_better,
    objective,
    on_disk,
    plan_of,
)
from ray_distill.runtime.sweep.scheduler import Schedule, require_room
from ray_distill.runtime.sweep.time_students import shape_of, time_students
from ray_distill.runtime.sweep.trial_tracking import TrialRuns
from ray_distill.runtime.sweep.trial_worker import PlannedTrial
from ray_distill.snapshots.reader import open_snapshot
from ray_distill.storage import files


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """A sweep with its labels, the trials to train, and the metric of the comparison."""

    session: Session
    key: str
    trials: tuple[Trial, ...]
    planned: tuple[PlannedTrial, ...]
    """Trials without duplicates of earlier trials."""
    same: Mapping[int, int]
    snapshot: SnapshotRef
    labels: Mapping[str, LabelSetRef]
    metric: str

    @property
    def stop(self) -> StopConfig | None:
        """Return the rule that stops a trial."""
        assert self.session.config.sweep is not None
        return self.session.config.sweep.stop


def sweep(session: Session, snapshot: SnapshotRef, trials: Sequence[Trial]) -> SweepResult:
    """Train all trials that are not trained yet, and compare them.

    Raises:
        ConfigError: the objective cannot be measured, or is not comparable between the trials.
        TrainingError: every trial has failed.
        ClusterError: a trial does not fit the cluster.
    """
    key = parent_key(session.config, sweep=True)
    session = replace(session, state=f"state/sweep-{key}")
    found = _plan(session, key, snapshot, trials)
    done_key = fingerprint([[one.key for one in found.planned], found.metric, parent_key(session.config, sweep=True)])
    done = session.done("sweep", done_key)
    if done is not None:
        result = SweepResult.from_dict(done)
        if all(is_saved(trial.student.url) for trial in result.own if trial.student):
            console.report(
                f"sweep: all {len(result.trials)} trials are done already, skipped ({result.url})", skipped="sweep"
            )
            return result
    with TrialRuns(session, session.url(session.state, "runs")) as runs:
        outcomes = _train(found, runs)
        _require_one(found, outcomes)
        result = _compare(found, outcomes, runs)
    publish.publish(session, result, {trial.number: trial for trial in trials}, _facts(found))
    if not result.count("failed"):  # the same command tries failed trials again
        session.finish("sweep", done_key, result.to_dict())
    return result


def _plan(session: Session, key: str, snapshot: SnapshotRef, trials: Sequence[Trial]) -> Sweep:
    """Label for the trials, and plan the folder and task of each."""
    config = session.config
    variants = labelling(config, trials)
    metric = objective(config, open_snapshot(snapshot), len(variants))
    labels = {name: _label(session, name, variant, snapshot) for name, variant in variants.items()}
    same, stop = duplicates(trials), config.sweep and config.sweep.stop
    rule = None if stop is None else fingerprint([identity(stop), metric])
    heads = {name: label.head_of(ref.store) for name, ref in labels.items()}
    fitted = {name: head and fitted_rows_url(head) for name, head in heads.items()}
    planned = [
        _planned(session, trial, variants, labels, fitted=fitted, metric=metric, rule=rule)
        for trial in trials
        if trial.number not in same
    ]
    return Sweep(
        session=session,
        key=key,
        trials=tuple(trials),
        planned=tuple(planned),
        same=same,
        snapshot=snapshot,
        labels=labels,
        metric=metric,
    )


def _label(session: Session, name: str, variant: Campaign, snapshot: SnapshotRef) -> LabelSetRef:
    """Label for one label set.

    Its state is stored apart from the campaign's, unless the labels are the campaign's own.
    """
    own = label_key(session.config) == name
    return label.label(replace(session, config=variant, state="state" if own else f"state/labels-{name}"), snapshot)


def _planned(
    session: Session,
    trial: Trial,
    variants: Mapping[str, Campaign],
    labels: Mapping[str, LabelSetRef],
    *,
    fitted: Mapping[str, str | None],
    metric: str,
    rule: str | None,
) -> PlannedTrial:
    name = label_key(trial.config)
    trial = replace(trial, config=trial.config.model_copy(update={"labels": variants[name].labels}))
    job = plan_of(trial, labels[name], session.url("sweep", "trials"), fitted[name])
    better = more_is_better(session.config.task, metric)
    return PlannedTrial(
        trial=trial, job=job, metric=metric, higher_is_better=better, rule=rule, to_the_end=trial.name == AS_CONFIGURED
    )


def _train(found: Sweep, runs: TrialRuns) -> dict[str, TrialResult]:
    """Train the trials that have not ended; return the result of every trial, by key."""
    config = found.session.config
    assert config.sweep is not None
    outcomes = {one.key: outcome for one in found.planned if (outcome := on_disk(one)) is not None}
    todo = [one for one in found.planned if one.key not in outcomes]
    earlier = [one for one in found.planned if one.key in outcomes]
    for one in earlier:
        runs.earlier(one, outcomes[one.key])
    console.report(
        f"sweep: {len(found.trials)} trials, {len(found.same)} of them duplicates, {len(earlier)} done already, "
        f"{len(todo)} to train",
        trials=len(found.trials),
        done=len(earlier),
        to_train=len(todo),
    )
    if not todo:
        return outcomes
    require_room(todo)

    def ended(one: PlannedTrial, outcome: TrialResult) -> None:
        runs.end(one, outcome)
        outcomes[one.key] = outcome
        _report_ended(found, outcome, len(outcomes))

    schedule = Schedule(
        todo, earlier, found.stop, most=config.sweep.max_concurrent, begun=runs.begin, recorded=runs.record, ended=ended
    )
    started, since = time.time(), time.monotonic()
    try:
        schedule.run()
    finally:
        _keep_cost(
            found.session,
            schedule,
            started=started,
            seconds=time.monotonic() - since,
            written=sum(item.size for one in todo for item in files.list_files(one.job.output)),
        )
    return outcomes


def _report_ended(found: Sweep, result: TrialResult, ended: int) -> None:
    shown = result.reason or f"{found.metric} {result.metrics.get(found.metric):.4g}"
    console.report(
        f"sweep: {result.number} {result.verdict} ({result.name}): {shown}; "
        f"{ended} of {len(found.planned)} trials have ended",
        trial=result.number,
        verdict=result.verdict,
    )


def _keep_cost(session: Session, schedule: Schedule, *, started: float, seconds: float, written: int) -> None:
    """Store the cost of the stage: the resources that its trials have reserved."""
    cores, accelerators = (schedule.hours[name] * SECONDS_AN_HOUR / max(seconds, 1e-9) for name in ("CPU", "GPU"))
    cost = stage_cost(
        "sweep", seconds, cores=cores, accelerators=accelerators, bytes_written=written, prices=session.config.cost
    )
    session.keep_cost(started, cost)
    session.parent.metrics(stage_metrics(cost))


def _require_one(found: Sweep, outcomes: Mapping[str, TrialResult]) -> None:
    """Require a finished trial.

    Raises:
        TrainingError: no trial has finished.
    """
    if any(outcome.verdict == "finished" for outcome in outcomes.values()):
        return
    failed = [one for one in found.planned if outcomes[one.key].verdict == "failed"]
    first = failed[0]  # the first trial at the last rung passes it: without a failure, a trial has finished
    raise TrainingError(
        f"no trial of the sweep has finished: {len(failed)} of {len(found.planned)} failed, the first, "
        f"'{first.trial.name}', with: {outcomes[first.key].reason}"
    )


def _compare(found: Sweep, outcomes: Mapping[str, TrialResult], runs: TrialRuns) -> SweepResult:
    session, better = found.session, more_is_better(found.session.config.task, found.metric)
    speeds, notes = _speeds(found, outcomes)
    own = {
        one.trial.number: outcomes[one.key].with_changes(efficiency=speeds.get(one.key), run_id=runs.run_id(one.key))
        for one in found.planned
    }
    again = {
        trial.number: own[found.same[trial.number]].with_changes(
            number=trial.number, name=trial.name, changes=redacted(trial.changes), same_as=found.same[trial.number]
        )
        for trial in found.trials
        if trial.number in found.same
    }
    headline, everyone = _with_headline(found, own | again)
    marked = mark_frontier([everyone[trial.number] for trial in found.trials], found.metric, more_is_better=better)
    best = best_of(marked, found.metric, more_is_better=better)
    for one in found.planned:
        if outcomes[one.key].verdict == "finished":
            runs.measured(
                one,
                speeds.get(one.key),
                best=one.trial.number == best,
                on_frontier=marked[one.trial.number - 1].on_frontier,
            )
    if tried := compared_with(marked, AS_CONFIGURED, found.metric, more_is_better=better):
        notes.insert(0, tried)
    failed = [trial.number for trial in marked if trial.verdict == "failed"]
    if failed:
        notes.append(
            f"{len(failed)} trial(s) failed (number {', '.join(map(str, failed))}); the same command tries them again"
        )
    return SweepResult(
        url=session.url("sweep", found.key),
        objective=found.metric,
        more_is_better=better,
        trials=marked,
        best=best,
        validation_rows=judged_rows(session.config, open_snapshot(found.snapshot), found.metric),
        headline=headline,
        notes=tuple(notes),
        tracking_uri=redact(session.tracker.uri),
        run_id=session.parent.run_id,
        review=redact(session.tracker.review_url(session.parent.run_id)),
    )


def _with_headline(found: Sweep, trials: Mapping[int, TrialResult]) -> tuple[str, dict[int, TrialResult]]:
    """Return the headline's short name, and the trials with it; empty if there is none."""
    config, snapshot = found.session.config, open_snapshot(found.snapshot)
    share = measured_share(config, snapshot)
    if share is None:
        return "", dict(trials)
    weight_N = judged_weights(config, snapshot, share)
    measured = {
        number: trial.with_changes(headline=wilson(trial.metrics[share], weight_N))
        for number, trial in trials.items()
        if share in trial.metrics
    }
    return metric_of(config.task, share).short, {**trials, **measured}


def _speeds(found: Sweep, outcomes: Mapping[str, TrialResult]) -> tuple[dict[str, Efficiency], list[str]]:
    """Return size and speed of finished trials, by key, and notes.

    Students of equal shape, which differ only in their weights, are timed once.
    """
    config, resources = found.session.config, found.session.config.labels.resources
    shapes: dict[str, list[tuple[PlannedTrial, StudentRef]]] = {}
    for one in found.planned:
        student = outcomes[one.key].student
        if student is not None:
            shapes.setdefault(shape_of(student), []).append((one, student))
    timed_ones = {shape: members[0][1] for shape, members in shapes.items()}
    try:
        timed = on_cluster(
            time_students,
            config,
            found.snapshot,
            timed_ones,
            threads=max(1, int(resources.cpus)),
            cpus=resources.cpus,
            gpus=resources.gpus,
            what="timing the students",
        )
    except DistillError as error:  # the trials are worth more than their timings
        console.report(f"sweep: the students could not be timed: {error}")
        return {}, [f"Size and latency are missing, so there is no frontier: {error}"]
    speeds = {one.key: timed[shape] for shape, members in shapes.items() for one, _ in members}
    return speeds, [note] if (note := busy_note(timed.values())) else []


def _facts(found: Sweep) -> dict[str, str]:
    sets = {
        f"labels {name}" if len(found.labels) > 1 else "labels": f"{ref.fingerprint} at {ref.store}"
        for name, ref in found.labels.items()
    }
    stop = found.stop
    rule = (
        "none"
        if stop is None
        else (f"rungs at {', '.join(f'{rung:g}' for rung in stop.rungs)} epochs, {stop.keep:.3g} go on")
    )
    return {
        "configuration": found.session.config.fingerprint,
        "stopping": rule,
        "snapshot": f"{found.snapshot.fingerprint} at {found.snapshot.url}",
        **sets,
    }
