"""Label new rows of newer traffic, and measure its drift from the student's training data."""

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from ray_distill.artifacts import Artifact, LabelSetRef, SnapshotRef
from ray_distill.config import Campaign
from ray_distill.errors import ConfigError
from ray_distill.evaluation.measures.drift import MIN_ROWS, DriftReport, DriftSample, compare
from ray_distill.evaluation.measures.teacher_trust import TeacherTrust
from ray_distill.fingerprint import fingerprint
from ray_distill.labels.model.work_units import WorkUnit
from ray_distill.labels.store.label_store import open_store
from ray_distill.labels.store.reader import open_label_set
from ray_distill.promotion.chain import champion, read_chain
from ray_distill.runtime.core import console
from ray_distill.runtime.core.connection import on_cluster
from ray_distill.runtime.core.session import Session, Stage
from ray_distill.runtime.labelling.bounded_task import run_teacher_task
from ray_distill.runtime.labelling.identify_teacher import TeacherFacts
from ray_distill.runtime.stages import label
from ray_distill.runtime.stages.check_traffic import CHOICE, check_traffic, first_units
from ray_distill.runtime.stages.kept_results import keep_trust, kept_trust, trust_key
from ray_distill.runtime.stages.snapshot import freeze
from ray_distill.snapshots.augment.read_views import without_views
from ray_distill.snapshots.augment.views import PARENT, SPLIT
from ray_distill.snapshots.reader import Snapshot, open_snapshot
from ray_distill.snapshots.sources.columns import MissingColumn
from ray_distill.snapshots.sources.resolve import describe_sources
from ray_distill.tasks.catalogue import get_task
from ray_distill.tracking.base import Run

Classes = npt.NDArray[np.int64]


class RelabelReport(Artifact):
    """Counts of a relabelling run, the check of the teacher, and the drift of the traffic."""

    outcome: Literal["labelled", "teacher_fails"]
    """``teacher_fails``: the teacher does not suit the newer traffic, and nothing was stored."""
    rows_total: int
    rows_reused: int
    """Rows with labels in the store before the run."""
    rows_labelled: int
    """Rows that the teacher labelled in this run."""
    rows_quarantined: int
    """Unusable rows, quarantined during freezing or labelling."""
    new_classes: Mapping[str, int]
    """Rows by label that is not a class of the reference; the commonest. These rows count as unlabelled."""
    snapshot: SnapshotRef
    labels: LabelSetRef | None
    """Labels of the newer traffic; None where the teacher fails."""
    teacher: TeacherTrust | None
    """None where no row was new to the teacher, or where it can answer none of them."""
    drift: DriftReport | None
    """None where the teacher fails, and where there are too few rows to compare."""
    recommendation: str
    """``nothing``, ``relabel`` or ``retrain`` as in `DriftReport`; ``wait`` for more rows, or ``replace_teacher``."""


class _TeacherFails(Exception):
    """Ends a labelling before anything is stored."""


def relabel_source(session: Session, source: str | None) -> RelabelReport:
    """Freeze, label and compare newer traffic; see `campaign.relabel`."""
    reference = session.last("label")
    if reference is None:
        raise ConfigError(
            f"the campaign {session.config.campaign} has no labels yet to compare newer traffic with: "
            "run `ray-distill label` (or `run`) first"
        )
    labels = LabelSetRef.from_dict(reference["result"]["labels"])
    snapshot = _freeze(session.config, source, open_snapshot(labels.snapshot).classes)
    resources = session.config.labels.resources
    with session.stage(
        "relabel", cores=resources.cpus * resources.actors[1] + 1, accelerators=resources.gpus * resources.actors[1]
    ) as stage:
        report = _relabel(session, stage, labels, snapshot)
        _record(stage.run, report)
    key = fingerprint({"snapshot": snapshot.fingerprint, "labels": report.labels and report.labels.fingerprint})
    session.finish("relabel", key, report.to_dict())
    _report(report)
    return report


def _relabel(session: Session, stage: Stage, labels: LabelSetRef, snapshot: SnapshotRef) -> RelabelReport:
    """Label the new rows, unless the teacher fails on them, and measure the drift."""
    config, opened, store = session.config, open_snapshot(snapshot), open_store(session.config.store_url)
    before, checked = store.coverage(opened), list[TeacherTrust | None]()
    after, new = before, None

    def check(opened: Snapshot, *, facts: TeacherFacts, units: Sequence[WorkUnit]) -> None:
        found = _check(session, labels.snapshot, opened.ref, units=units, facts=facts)
        checked.append(found)
        if found is not None and found.fails:
            raise _TeacherFails

    fails = False
    if before.units:
        try:
            filled = label.fill_store(session, stage, snapshot, check=check, coverage=before)
            new, after = filled.labels, filled.after
        except _TeacherFails:
            fails = True
    else:
        new = store.ref(opened)
    enough = min(open_snapshot(labels.snapshot).manifest.rows.kept, after.rows_reused) >= MIN_ROWS
    drift = (
        None if new is None or not enough else on_cluster(measure_drift, config, labels, new, what="measuring drift")
    )
    return RelabelReport(
        outcome="teacher_fails" if fails else "labelled",
        rows_total=before.rows_total,
        rows_reused=before.rows_reused,
        rows_labelled=after.rows_reused - before.rows_reused,
        rows_quarantined=after.rows_quarantined + opened.manifest.rows.quarantined,
        new_classes={name: rows for read in opened.manifest.labels_read for name, rows in read.unknown.items()},
        snapshot=snapshot,
        labels=new,
        teacher=checked[-1] if checked else None,
        drift=drift,
        recommendation="replace_teacher" if fails else "wait" if drift is None else drift.recommendation,
    )


def _check(
    session: Session, reference: SnapshotRef, current: SnapshotRef, *, units: Sequence[WorkUnit], facts: TeacherFacts
) -> TeacherTrust | None:
    """Check the teacher on the rows to label, in one task on a node with its resources.

    A result that an earlier command kept is used again.
    """
    config, now = session.config, champion(read_chain(session.url("promotion")))
    chosen = first_units(units, CHOICE * config.drift.teacher_rows)
    key = trust_key(config, reference, current, units=chosen, teacher=facts.fingerprint, champion=now)
    found = kept_trust(config, key)
    if found is None:
        found = run_teacher_task(
            check_traffic,
            config,
            reference=reference,
            current=current,
            units=chosen,
            head_url=facts.head_url,
            champion=now,
            labels=config.labels,
            rows=2 * (1 + (now is not None)) * config.drift.teacher_rows,
            what="checking the teacher on newer traffic",
        )
        if found is not None:
            keep_trust(config, key, found)
    else:
        console.report("relabel: the teacher was checked on these rows already, its numbers are used again")
    if found is None:
        console.report(
            "teacher check: the teacher can answer none of the new rows that were chosen, so it was not checked"
        )
    for finding in () if found is None else found.findings:
        console.report(f"teacher check: {finding.sentence}", alarm=finding.broken)
    return found


def _freeze(config: Campaign, source: str | None, classes: tuple[str, ...]) -> SnapshotRef:
    """Freeze newer traffic in the class order of the reference, so that class indices agree.

    Newer traffic needs no labels, groups or times, and its splits may be empty: nothing is trained on it.
    """
    traffic = config.snapshot.traffic_alone()
    columns = traffic.columns.model_copy(
        update={"group": None, "time": None, "slices": (), "label_unknown": "unlabelled"}
    )
    splits = traffic.splits.model_copy(update={"by": "id"})
    changes = {"classes": classes, "columns": columns, "splits": splits, **({"source": source} if source else {})}
    chosen = traffic.model_copy(update=changes)
    describe_sources(chosen)  # report an error about the source before any other work
    try:
        return freeze(config, chosen, empty_splits=True)
    except MissingColumn as missing:
        if missing.part != "label":
            raise
    console.report(f"relabel: the newer traffic has no column {columns.label!r}, so none of its rows has a true label")
    unlabelled = columns.model_copy(update={"label": None})
    return freeze(config, chosen.model_copy(update={"columns": unlabelled}), empty_splits=True)


def _record(run: Run, report: RelabelReport) -> None:
    """Record counts, findings and recommendation as metrics and tags of the run."""
    counts = ("rows_total", "rows_reused", "rows_labelled", "rows_quarantined")
    run.metrics({name: float(getattr(report, name)) for name in counts})
    tags = {"outcome": report.outcome, "recommendation": report.recommendation}
    if report.teacher is not None:
        run.metrics(
            {f"teacher_{found.name.replace(' ', '_')}": found.current.value for found in report.teacher.findings}
        )
    if report.drift is not None:
        run.metrics({f"drift_{found.name}": found.value for found in report.drift.findings})
        tags["drift"] = "alarm" if report.drift.alarm else "none"
    run.tags(tags)


def _report(report: RelabelReport) -> None:
    if report.new_classes:
        names = ", ".join(f"{name!r} ({rows:,} rows)" for name, rows in report.new_classes.items())
        console.report(f"relabel: labels that are not a class of the campaign, whose rows count as unlabelled: {names}")
    if report.outcome == "teacher_fails":
        assert report.teacher is not None
        console.report(
            f"relabel: THE TEACHER FAILS on newer traffic by its {report.teacher.by}, so nothing was labelled. "
            "Inspect the new inputs first (an import that changed them?), then use a teacher that suits them; "
            "drift.max_teacher_loss and drift.max_confidence_loss set what is tolerated",
            alarm=True,
        )
        return
    console.report(
        f"relabel: {report.rows_total:,} rows, {report.rows_reused:,} reused, {report.rows_labelled:,} labelled, "
        f"{report.rows_quarantined:,} in quarantine"
    )
    if report.drift is None:
        console.report(f"drift: fewer than {MIN_ROWS} rows on a side, so nothing was compared; recommended: wait")
        return
    for finding in report.drift.findings:
        console.report(f"drift{' ALARM' if finding.alarm else ''}: {finding.sentence}", alarm=finding.alarm)
    console.report(
        f"drift: {'alarm' if report.drift.alarm else 'no alarm'}; recommended: {report.drift.recommendation}"
    )


def measure_drift(config: Campaign, reference: LabelSetRef, current: LabelSetRef) -> DriftReport:
    """Compare two label sets of one store by teacher's classes, inputs and stored embeddings."""
    before, classes = _sample(reference, None)
    now, _ = _sample(current, classes)
    return compare(before, now, config.drift, config.seed)


def _sample(ref: LabelSetRef, classes: Classes | None) -> tuple[DriftSample, Classes | None]:
    """Return a label set's sample, and the classes of its columns; see `StoreFacet.shares`."""
    labels, opened = open_label_set(ref), open_snapshot(ref.snapshot)
    layer = max(labels.manifest.hidden, default=None)
    pooled = layer is not None and labels.manifest.pool != "token"
    row_ids, signal = labels.read(layers=(layer,) if layer is not None and pooled else ())
    if opened.manifest.own or opened.manifest.view_counts is not None:
        traffic = np.flatnonzero(pc.is_in(row_ids, value_set=_traffic(opened)).to_numpy(zero_copy_only=False))
        row_ids, signal = row_ids.take(pa.array(traffic)), signal.take(traffic)
    rows, task = _rows(opened, row_ids), get_task(labels.manifest.task)
    probabilities, classes = task.answers.store.shares(signal.distributions, classes)
    return DriftSample(
        class_probs=probabilities,
        stats=task.inputs.statistics(rows[opened.input_column]),
        embeddings=signal.hidden[layer].values if layer is not None and pooled else None,
        count=np.asarray(rows["count"]),
    ), classes


def _traffic(opened: Snapshot) -> pa.Array:
    """Return the ids of the rows that are traffic, neither of a source of their own nor views."""
    tables = list[pa.Table]()
    for shard in opened.shards:
        if shard.split not in opened.manifest.own:
            views = shard.split == SPLIT and opened.manifest.view_counts is not None
            rows = opened.read_shard(shard, ["row_id", PARENT] if views else ["row_id"])
            tables.append(without_views(rows).select(["row_id"]))
    return pa.concat_tables(tables)["row_id"].combine_chunks()


def _rows(opened: Snapshot, row_ids: pa.Array) -> pa.Table:
    """Return input and count of the given rows, in their order."""
    columns = ["row_id", opened.input_column, "count"]
    table = pa.concat_tables([opened.read_shard(shard, columns) for shard in opened.shards])
    return table.take(pc.index_in(row_ids, value_set=table["row_id"].combine_chunks()))
