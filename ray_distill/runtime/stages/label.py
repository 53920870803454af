"""Run the labelling stage: identify and check the teacher, label missing rows, pin labels."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

from ray_distill.artifacts import Estimate, LabelSetRef, SnapshotRef
from ray_distill.config import Campaign
from ray_distill.config.identity import identity
from ray_distill.errors import LabelError
from ray_distill.fingerprint import fingerprint
from ray_distill.labels.format.fitted_arrays import write_fits
from ray_distill.labels.model.manifest import StoreManifest
from ray_distill.labels.model.work_units import Coverage, WorkUnit
from ray_distill.labels.store.label_store import STORE_LOCK, LabelStore, create_or_open, open_store
from ray_distill.promotion.chain import champion, read_chain
from ray_distill.runtime.core import console
from ray_distill.runtime.core.console import Progress
from ray_distill.runtime.core.session import Session, Stage
from ray_distill.runtime.labelling.bounded_task import rows_of, run_teacher_task, teacher_facts
from ray_distill.runtime.labelling.calibrate_store import CALIBRATION_ROWS, calibrate, with_found
from ray_distill.runtime.labelling.encode_write import LabelJob
from ray_distill.runtime.labelling.identify_teacher import TeacherFacts, make_manifest
from ray_distill.runtime.labelling.label_units import Labelled, label_units
from ray_distill.runtime.labelling.pipeline import require_actors
from ray_distill.runtime.labelling.teacher_quality import TeacherCheck, check_teacher, doubts, refuse_weak_teacher
from ray_distill.runtime.stages.count_views import report_views
from ray_distill.runtime.stages.kept_results import check_key, keep_check, kept_calibration, kept_check
from ray_distill.runtime.stages.snapshot import open_for
from ray_distill.snapshots.labelled_rows import labelled_rows
from ray_distill.snapshots.reader import Snapshot, open_snapshot
from ray_distill.storage import files
from ray_distill.storage.locks import at_work
from ray_distill.storage.portable import movable
from ray_distill.storage.unit_store import MANIFEST_NAME
from ray_distill.tasks.catalogue import get_task
from ray_distill.tracking.base import Dataset, Run


class Check(Protocol):
    """Checks the teacher before rows are labelled."""

    def __call__(self, opened: Snapshot, *, facts: TeacherFacts, units: Sequence[WorkUnit]) -> None:
        """Raise what ends the stage.

        Args:
            opened: the snapshot to label.
            facts: the teacher, with its fitted head if it has one.
            units: what is to be labelled; empty where there is no store yet.
        """


def label(session: Session, snapshot: SnapshotRef) -> LabelSetRef:
    """Label the rows of a snapshot that are not yet in the store, from whatever snapshot."""
    key = key_of(session.config, snapshot)
    done = session.done("label", key)
    if done is not None:
        ref = LabelSetRef.from_dict(done["labels"])
        if _in_store(ref, open_snapshot(snapshot)):
            console.report(f"label: every row is labelled already, skipped ({ref.store})", skipped="label")
            return ref
    labels = session.config.labels
    with session.stage(
        "label",
        cores=labels.resources.cpus * labels.resources.actors[1] + 1,
        accelerators=labels.resources.gpus * labels.resources.actors[1],
    ) as stage:
        filled = fill_store(session, stage, snapshot, check=partial(_check, session, stage.run))
        views = report_views(stage.run, session.config, filled.labels)
    facts = {"rows": filled.labelled.rows, "seconds": filled.labelled.seconds, "views": views}
    session.finish("label", key, {"labels": filled.labels.to_dict(), **facts})
    return filled.labels


def _in_store(ref: LabelSetRef, opened: Snapshot) -> bool:
    """Return whether a store has every row of a snapshot, and the log that a reference pins.

    The store may have been deleted, and filled again by another command.
    """
    if not files.exists(files.join(ref.store, MANIFEST_NAME)):
        return False
    store = open_store(ref.store)
    if store.coverage(opened).units or store.log.length < ref.log_length:
        return False
    return store.log.prefix_digest(ref.log_length) == ref.log_digest


@dataclass(frozen=True, kw_only=True)
class Filled:
    """A store that has all rows of a snapshot."""

    labels: LabelSetRef
    labelled: Labelled
    """Counts of this run."""
    after: Coverage


def fill_store(
    session: Session, stage: Stage, snapshot: SnapshotRef, *, check: Check, coverage: Coverage | None = None
) -> Filled:
    """Label the rows of a snapshot that the store lacks.

    Args:
        session: of the campaign.
        stage: records the labelling.
        snapshot: rows to label.
        check: called before anything is stored, if there are rows to label; what it raises ends the stage.
        coverage: of a store that exists, if it has been computed: reading it takes as long as reading the snapshot.
    """
    config, opened = session.config, open_for(session.config.task, snapshot)
    exists = files.exists(files.join(config.store_url, MANIFEST_NAME))
    if exists:
        open_store(config.store_url).log.check_pins()  # before the teacher is loaded
    else:
        require_actors(config.labels.resources, "labelling")  # before the teacher runs to fit its head or is checked
    # A head fitted again, on newer rows, would be another teacher: a store keeps its first head.
    head_url = head_of(config.store_url) if exists else None
    facts = teacher_facts(config, snapshot, head_url)
    manifest = make_manifest(config, facts)
    store = create_or_open(config.store_url, manifest) if exists else None
    if store is not None:
        coverage = coverage or store.coverage(opened)
    if coverage is None or coverage.units:
        check(opened, facts=facts, units=() if coverage is None else coverage.units)
    if store is None or coverage is None:
        # The store is created after the check, so that a refused teacher leaves no empty store.
        store = _create(stage.run, config, snapshot, manifest)
        coverage = store.coverage(opened)
    record_snapshot(stage.run, opened, "labels")
    labelled = Labelled(rows=0, rejected=0, reasons={}, bytes_written=0, seconds=0.0)
    if coverage.units:
        job = LabelJob(
            task=config.task,
            snapshot=snapshot,
            teacher=config.labels.teacher,
            store_url=config.store_url,
            manifest=store.manifest,
            resources=config.labels.resources,
            failures=config.labels.failures,
        )
        labelled = _label(job, store, coverage, config)
        _record_labelled(stage, labelled)
    left = _require_all(store, opened)
    stage.run.metrics(
        {
            "rows_total": float(coverage.rows_total),
            "rows_reused": float(coverage.rows_reused),
            "rows_quarantined": float(left.rows_quarantined),
        }
    )
    ref = store.ref(opened)
    if coverage.units:
        store.log.pin()
    return Filled(labels=ref, labelled=labelled, after=left)


def _check(session: Session, run: Run, opened: Snapshot, *, facts: TeacherFacts, units: Sequence[WorkUnit]) -> None:
    """Compare the teacher with its floor and with the champion on the calibration split.

    A result that an earlier command kept is used again.

    Raises:
        TeacherRefused: it is below the floor.
    """
    config, now = session.config, champion(read_chain(session.url("promotion")))
    key = check_key(config, opened.ref, facts.fingerprint, now)
    found = kept_check(config, key)
    if found is None:
        found = run_teacher_task(
            check_teacher,
            config,
            opened.ref,
            facts.head_url,
            now,
            labels=config.labels,
            rows=(1 + (now is not None)) * rows_of(opened, "calibration"),
            what="checking the teacher",
        )
        keep_check(config, key, found)
    else:
        console.report("label: the teacher was checked on these rows already, its metrics are used again")
    answers, counts = get_task(config.task).answers, labelled_rows(opened.manifest)["calibration"]
    _record_check(run, found, answers.headline)
    refuse_weak_teacher(found, config.labels.check, config.labels.teacher.model)
    by_class = {name: counts.classes.get(name, 0) for name in opened.classes}
    for line in doubts(found, config.labels.check, rows=answers.rows, classes=by_class):
        console.report(f"teacher check: {line}")


def _require_all(store: LabelStore, opened: Snapshot) -> Coverage:
    """Return the coverage of a snapshot after its labelling.

    Raises:
        LabelError: rows are missing.
    """
    left = store.coverage(opened)
    if left.units:
        raise LabelError(
            f"{store.url}: {left.rows_left} rows are still not labelled after the run; "
            "run it again, and run `ray-distill audit` if rows are still missing"
        )
    return left


def _create(run: Run, config: Campaign, snapshot: SnapshotRef, manifest: StoreManifest) -> LabelStore:
    """Calibrate a new store, create it, and report the cost of its stored form."""
    found = kept_calibration(config, snapshot, manifest) or run_teacher_task(
        calibrate,
        config,
        snapshot,
        manifest,
        labels=config.labels,
        rows=CALIBRATION_ROWS,
        what="fitting the label store",
    )
    digests = write_fits(config.store_url, found.fits)
    store = create_or_open(config.store_url, with_found(manifest, found, digests))
    labels = store.manifest.measured.get("labels", {})
    nats = {f"label_nats_added_t{temperature}": value for temperature, value in labels.get("nats", {}).items()}
    if labels:
        run.metrics({**nats, "label_bytes_a_position": labels["bytes_a_position"]})
        console.report(
            f"label: a position takes {labels['bytes_a_position']:.1f} bytes and its stored form adds "
            + ", ".join(f"{value:.1e} nats at T = {temperature}" for temperature, value in labels["nats"].items()),
            **nats,
        )
    return store


def _label(job: LabelJob, store: LabelStore, coverage: Coverage, config: Campaign) -> Labelled:
    console.report(
        f"label: {coverage.rows_left:,} of {coverage.rows_total:,} rows to label in {len(coverage.units):,} units, "
        f"{coverage.rows_reused:,} are in the store already",
        rows=coverage.rows_left,
    )
    limit = int(config.labels.max_bad_fraction * coverage.rows_total)
    if coverage.rows_quarantined > limit:
        raise LabelError(
            f"{coverage.rows_quarantined} of {coverage.rows_total} rows are in quarantine already, more than the "
            f"{limit} that labels.max_bad_fraction allows: correct the source, or raise the limit"
        )
    # Labellers share a store, of whatever campaigns; `audit --clean` waits for them.
    store_lock = at_work(store.url, STORE_LOCK, f"ray-distill: labelling for {config.campaign}", shared=True)
    with store_lock, Progress("label", coverage.rows_left) as progress:
        return label_units(
            job, store, coverage.units, max_rejected=limit - coverage.rows_quarantined, progress=progress.add
        )


def _record_labelled(stage: Stage, done: Labelled) -> None:
    stage.meter.wrote(done.bytes_written)
    stage.run.metrics(
        {
            "rows_labelled": float(done.rows),
            "rows_newly_quarantined": float(done.rejected),
            "label_bytes": float(done.bytes_written),
            "units_relabelled": float(done.isolated),
            "units_halved": float(done.halved),
        }
    )
    if done.isolated or done.halved:
        console.report(
            f"label: {done.isolated:,} units failed and were relabelled in isolation; {done.halved:,} units needed "
            "smaller batches",
            isolated=done.isolated,
            halved=done.halved,
        )
    if done.rejected:
        reasons = ", ".join(f"{count} × {reason}" for reason, count in sorted(done.reasons.items()))
        console.report(f"label: {done.rejected:,} rows went to quarantine: {reasons}", quarantined=done.rejected)


def _record_check(run: Run, check: TeacherCheck, headline: str) -> None:
    run.metrics(
        {f"calibration_{who}_{name}": value for who, group in _checked(check).items() for name, value in group.items()}
    )
    lines = [
        f"{who}: " + ", ".join(f"{name} {value:.4f}" for name, value in sorted(group.items()))
        for who, group in _checked(check).items()
        if group
    ]
    if headline not in check.teacher:
        console.report(
            "teacher check: no row of the calibration split has a true label, so the teacher's quality is unknown"
        )
    if lines:
        console.report("teacher check on the calibration split — " + "; ".join(lines))


def _checked(check: TeacherCheck) -> dict[str, dict[str, float]]:
    def values(group: Mapping[str, Estimate]) -> dict[str, float]:
        return {name: estimate.value for name, estimate in group.items()}

    return {"teacher": values(check.teacher), "majority": dict(check.trivial), "champion": values(check.champion)}


def record_snapshot(run: Run, opened: Snapshot, context: str) -> None:
    """Record a snapshot as the run's dataset."""
    manifest = opened.manifest
    run.dataset(
        Dataset(
            name="snapshot",
            digest=opened.ref.fingerprint,
            source=opened.ref.url,
            context=context,
            profile={"rows": manifest.rows.kept, "classes": len(manifest.classes)},
        )
    )


def store_facts(session: Session, labels: LabelSetRef) -> dict[str, float]:
    """Return the labelled rows of a snapshot, the bytes of its store, and the latest rate.

    A store may have the rows of other snapshots too: they are part of its bytes, never of the campaign's rows.
    """
    store = open_store(labels.store)
    covered = store.coverage(open_snapshot(labels.snapshot))
    last = session.last("label")
    rows, seconds = (0, 0.0) if last is None else (last["result"]["rows"], last["result"]["seconds"])
    return {
        "rows": float(covered.rows_total - covered.rows_left - covered.rows_quarantined),
        "bytes": float(store.ledger.bytes_written(labels.log_length)),
        "rows_per_second": rows / seconds if seconds else 0.0,
    }


def head_of(store_url: str) -> str | None:
    """Return the folder of the fitted head of a store's teacher; None if it has none."""
    return open_store(store_url).manifest.teacher.head


def key_of(config: Campaign, snapshot: SnapshotRef) -> str:
    """Return the key of everything that decides the labels.

    The store is part of the key, because the result refers to it. The teacher's files count by name, size and time, to
    be cheap.
    """
    settings = {
        "snapshot": snapshot.fingerprint,
        "labels": identity(config.labels),
        "store": config.store_url,
        "task": config.task,
        "seed": config.seed,
        "teacher_files": model_files(config.labels.teacher.model),
        "most_entropy": None if config.snapshot.augment is None else config.snapshot.augment.most_entropy,
    }
    return fingerprint(movable(settings, config.output_url))


def model_files(model: str) -> list[Any]:
    """Return a checkpoint's files by name, size and time."""
    if files.is_local(model) and not files.exists(model):
        return []  # a module:function has no files
    return [[item.name, item.size, files.modified(item.url)] for item in files.list_files(model)]
