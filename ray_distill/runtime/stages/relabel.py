"""Label new rows of newer traffic, and measure its drift from the student's training data."""

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from ray_distill.artifacts import Artifact, LabelSetRef, SnapshotRef
from ray_distill.config import Campaign
from ray_distill.errors import ConfigError
from ray_distill.evaluation.measures.drift import DriftReport, DriftSample, compare
from ray_distill.evaluation.measures.intervals import Floats
from ray_distill.fingerprint import fingerprint
from ray_distill.labels.model.distributions import Distributions
from ray_distill.labels.model.ragged import owner
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

#: Tokens by which a language model's answers are compared: those with most mass; all others count as one.
TOKENS = 255
Tokens = npt.NDArray[np.int64]


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
        new = open_store(session.config.store_url).ref(snapshot)
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
    chosen = config.snapshot.model_copy(update={"classes": classes, **({"source": source} if source else {})})
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
    before, tokens = _sample(reference, None)
    now, _ = _sample(current, tokens)
    return compare(before, now, config.drift, config.seed)


def _sample(ref: LabelSetRef, tokens: Tokens | None) -> tuple[DriftSample, Tokens | None]:
    """Return a label set's sample and, for a language model, the tokens of its columns.

    ``tokens`` None selects the label set's own commonest tokens.
    """
    labels, opened = open_label_set(ref), open_snapshot(ref.snapshot)
    layer = max(labels.manifest.hidden, default=None)
    pooled = layer is not None and labels.manifest.pool != "token"
    row_ids, signal = labels.read(layers=(layer,) if layer is not None and pooled else ())
    rows, found = _rows(opened, row_ids), signal.distributions
    if not labels.manifest.space.names:
        tokens = commonest_tokens(found) if tokens is None else tokens
        probabilities = token_probabilities(found, tokens)
    else:
        probabilities = class_probabilities(found)
    return DriftSample(
        class_probs=probabilities,
        stats=get_task(labels.manifest.task).inputs.statistics(rows[opened.input_column]),
        embeddings=signal.hidden[layer].values if layer is not None and pooled else None,
        count=np.asarray(rows["count"]),
    ), tokens


def _rows(opened: Snapshot, row_ids: pa.Array) -> pa.Table:
    """Return input and count of the given rows, in their order."""
    columns = ["row_id", opened.input_column, "count"]
    table = pa.concat_tables([opened.read_shard(shard, columns) for shard in opened.shards])
    return table.take(pc.index_in(row_ids, value_set=table["row_id"].combine_chunks()))


def commonest_tokens(distributions: Distributions) -> Tokens:
    """Return the tokens to which a teacher gave most mass, at most `TOKENS`, ascending."""
    mass_V = np.bincount(distributions.ids, np.exp(distributions.logp.astype(np.float64)), distributions.classes)
    return np.sort(np.argsort(-mass_V, kind="stable")[:TOKENS]).astype(np.int64)


def token_probabilities(distributions: Distributions, tokens: Tokens) -> Floats:
    """Return the mean mass of each token, and of the rest, by document.

    The shape is ``[R, len(tokens) + 1]``; the last column is the mass of all other tokens. Only the stored mass counts,
    on both sides of a comparison, so that truncation affects both sides equally.
    """
    rows, last = len(distributions.row_offsets) - 1, len(tokens)
    column_V = np.full(distributions.classes, last, np.int64)
    column_V[tokens] = np.arange(last)
    row_E = owner(distributions.row_offsets)[owner(distributions.entry_offsets)]
    cell_E = row_E * (last + 1) + column_V[distributions.ids]
    mass = np.bincount(cell_E, np.exp(distributions.logp.astype(np.float64)), rows * (last + 1)).reshape(rows, last + 1)
    positions_R1 = np.maximum(np.diff(distributions.row_offsets), 1)[:, None]
    mean_RT = mass / positions_R1
    mean_RT[:, last] = np.maximum(1.0 - mean_RT[:, :last].sum(1), 0.0)  # float32 sums to a little more than 1
    return mean_RT


def class_probabilities(distributions: Distributions) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
    """Return the stored distributions over all classes: ``[P, V]``.

    A tail is spread evenly over the classes not stored.
    """
    positions, classes = len(distributions.position), distributions.classes
    at = owner(distributions.entry_offsets)
    stored = np.diff(distributions.entry_offsets)
    tail = np.exp(distributions.log_tail[:, distributions.temperatures.index(1.0)].astype(np.float64))
    rest = np.where(stored < classes, tail / np.maximum(classes - stored, 1), 0.0)
    full = np.repeat(rest[:, None], classes, axis=1)
    full[at, distributions.ids] = np.exp(distributions.logp.astype(np.float64))
    assert full.shape == (positions, classes)
    return full
