"""Label new rows of newer traffic, and measure its drift from the student's training data."""

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from ray_distill.artifacts import Artifact, LabelSetRef, SnapshotRef
from ray_distill.config import Campaign
from ray_distill.errors import ConfigError
from ray_distill.evaluation.measures.drift import DriftReport, DriftSample, compare
from ray_distill.fingerprint import fingerprint
from ray_distill.labels.store.label_store import open_store
from ray_distill.labels.store.reader import open_label_set
from ray_distill.runtime.core import console
from ray_distill.runtime.core.connection import on_cluster
from ray_distill.runtime.core.session import Session
from ray_distill.runtime.stages import label
from ray_distill.runtime.stages.snapshot import freeze
from ray_distill.snapshots.reader import Snapshot, open_snapshot
from ray_distill.snapshots.sources.resolve import describe_sources
from ray_distill.tasks.catalogue import get_task

Classes = npt.NDArray[np.int64]


class RelabelReport(Artifact):
    """Counts and drift of a relabelling run."""

    rows_total: int
    rows_reused: int
    """Rows with labels in the store before the run."""
    rows_labelled: int
    """Rows that the teacher labelled in this run."""
    rows_quarantined: int
    """Unusable rows, quarantined during freezing or labelling."""
    snapshot: SnapshotRef
    labels: LabelSetRef
    drift: DriftReport


def relabel_source(session: Session, source: str | None) -> RelabelReport:
    """Freeze, label and compare newer traffic; see `campaign.relabel`."""
    reference = session.last("label")
    if reference is None:
        raise ConfigError(
            f"the campaign {session.config.campaign} has no labels yet to compare newer traffic with: "
            "run `ray-distill label` (or `run`) first"
        )
    labels = LabelSetRef.from_dict(reference["result"]["labels"])
    snapshot = _freeze(session, source, open_snapshot(labels.snapshot).classes)
    opened = open_snapshot(snapshot)
    resources = session.config.labels.resources
    with session.stage(
        "relabel", cores=resources.cpus * resources.actors[1] + 1, accelerators=resources.gpus * resources.actors[1]
    ) as stage:
        before = open_store(session.config.store_url).coverage(opened)
        new = open_store(session.config.store_url).ref(opened)
        if before.units:
            new, _, before = label.fill_store(session, stage, snapshot, check=False)
        after = open_store(session.config.store_url).coverage(opened)
        drift = on_cluster(measure_drift, session.config, labels, new, what="measuring drift")
        report = RelabelReport(
            rows_total=before.rows_total,
            rows_reused=before.rows_reused,
            rows_labelled=after.rows_reused - before.rows_reused,
            rows_quarantined=after.rows_quarantined + opened.manifest.rows.quarantined,
            snapshot=snapshot,
            labels=new,
            drift=drift,
        )
        stage.run.metrics(
            {
                name: float(getattr(report, name))
                for name in ("rows_total", "rows_reused", "rows_labelled", "rows_quarantined")
            }
        )
        stage.run.metrics({f"drift_{finding.name}": finding.value for finding in drift.findings})
        stage.run.tags({"drift": "alarm" if drift.alarm else "none", "recommendation": drift.recommendation})
    key = fingerprint({"snapshot": snapshot.fingerprint, "labels": new.fingerprint})
    session.finish("relabel", key, report.to_dict())
    _report(report)
    return report


def _freeze(session: Session, source: str | None, classes: tuple[str, ...]) -> SnapshotRef:
    """Freeze newer traffic in the class order of the reference, so that class indices agree."""
    config = session.config
    alone = config.snapshot.traffic_alone()
    chosen = alone.model_copy(update={"classes": classes, **({"source": source} if source else {})})
    describe_sources(chosen)  # report an error about the source before any other work
    return freeze(config, chosen)


def _report(report: RelabelReport) -> None:
    console.report(
        f"relabel: {report.rows_total:,} rows, {report.rows_reused:,} reused, {report.rows_labelled:,} labelled, "
        f"{report.rows_quarantined:,} in quarantine"
    )
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
    if opened.manifest.own:
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
    """Return the ids of the rows that are traffic, not of a source of their own."""
    shards = [shard for shard in opened.shards if shard.split not in opened.manifest.own]
    return pa.concat_tables([opened.read_shard(shard, ["row_id"]) for shard in shards])["row_id"].combine_chunks()


def _rows(opened: Snapshot, row_ids: pa.Array) -> pa.Table:
    """Return input and count of the given rows, in their order."""
    columns = ["row_id", opened.input_column, "count"]
    table = pa.concat_tables([opened.read_shard(shard, columns) for shard in opened.shards])
    return table.take(pc.index_in(row_ids, value_set=table["row_id"].combine_chunks()))
