"""Fill a label store with Ray Data: CPU tasks read and encode, teacher actors answer, CPU tasks write.

Only Arrow blocks pass between the stages, and rows carry their unit: nothing relies on Ray keeping one unit a
block, although it is asked to. Workers hand back receipts; this driver alone commits them.
"""

import contextlib
import functools
import json
import logging
import time
import traceback
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import ray
import ray.data

from ray_distill.artifacts import SnapshotRef
from ray_distill.config import Resources, TeacherConfig
from ray_distill.errors import LabelError
from ray_distill.labels.manifest import StoreManifest
from ray_distill.labels.schema import signal_to_table, table_to_rejected, table_to_signal
from ray_distill.labels.store import LabelStore
from ray_distill.labels.units import Receipt, WorkUnit
from ray_distill.labels.writer import write_attempt
from ray_distill.runtime.answering import answer_all, ask_of
from ray_distill.runtime.cluster import explain, require_bundles

#: Units in one Ray Data execution; each is a block, and too many blocks burden the scheduler.
WINDOW = 2000
#: Receipts committed with one log record, and seconds after which fewer are: what a killed driver loses at most.
COMMIT_UNITS, COMMIT_SECONDS = 64, 30.0


@dataclass(frozen=True, kw_only=True)
class LabelJob:
    """Everything the stages need; picklable."""

    task: str
    snapshot: SnapshotRef
    teacher: TeacherConfig
    head_url: str | None
    store_url: str
    manifest: StoreManifest
    resources: Resources


@dataclass(frozen=True, kw_only=True)
class Labelled:
    """What one labelling run did."""

    rows: int
    rejected: int
    reasons: dict[str, int]
    bytes_written: int
    seconds: float


def label_units(
    job: LabelJob, store: LabelStore, units: Sequence[WorkUnit], *, max_rejected: int,
    progress: Callable[[int], None],
) -> Labelled:
    """Label units and commit them as they are done; whatever is committed survives an interruption.

    Args:
        job: what to label, and how.
        store: the open store, made with ``job.manifest``.
        units: from ``store.coverage``.
        max_rejected: rows that may go to quarantine before the run stops.
        progress: called with the number of rows that were just finished.

    Raises:
        LabelError: too many rows could not be labelled.
        ClusterError: the cluster cannot hold the actors, or a stage failed.
    """
    # Actors must not hold every CPU, or the tasks that read and write beside them starve (they would wait for ever).
    actor = {"CPU": job.resources.cpus, "GPU": job.resources.gpus}
    require_bundles([actor] * job.resources.actors[0] + [{"CPU": 1}], "labelling (teacher actors, and reading beside)")
    started = time.monotonic()
    tally: Counter[str] = Counter()
    reasons: Counter[str] = Counter()
    for start in range(0, len(units), WINDOW):
        # Closed at once, however the block ends: what is finished is committed while the store can be reached.
        with contextlib.closing(_committing(store, _receipts(job, units[start : start + WINDOW]))) as committed:
            for receipt in committed:
                tally.update(rows=receipt.rows, rejected=receipt.rejected,
                             bytes=sum(item.size for item in receipt.files().values()))
                reasons.update(receipt.reasons)
                progress(receipt.rows + receipt.rejected)
                if tally["rejected"] > max_rejected:
                    raise LabelError(_too_many(tally, reasons, max_rejected, receipt))
    return Labelled(rows=tally["rows"], rejected=tally["rejected"], reasons=dict(reasons),
                    bytes_written=tally["bytes"], seconds=time.monotonic() - started)


def _committing(store: LabelStore, receipts: Iterator[Receipt]) -> Generator[Receipt, None, None]:
    """Pass receipts on; commit them in groups, and what is left when the run ends, however it ends."""
    waiting: list[Receipt] = []
    last = time.monotonic()
    try:
        for receipt in receipts:
            waiting.append(receipt)
            if len(waiting) >= COMMIT_UNITS or time.monotonic() - last >= COMMIT_SECONDS:
                store.commit(waiting)
                waiting, last = [], time.monotonic()
            yield receipt
    finally:
        if waiting:
            store.commit(waiting)


def _receipts(job: LabelJob, units: Sequence[WorkUnit]) -> Iterator[Receipt]:
    """Run one Ray Data execution over some units and yield their receipts as they come."""
    dataset = _pipeline(job, units)
    try:
        for batch in dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
            for text in batch.column("receipt").to_pylist():
                yield Receipt.from_dict(json.loads(text))
    except BaseException as error:
        # Ray's iterators live on in the frames of a traceback, beyond Ray itself: one that is ended only then starts a
        # new Ray to shut its execution down.
        traceback.clear_frames(error.__traceback__)
        if isinstance(error, ray.exceptions.RayError):
            raise explain(error, "labelling") from error
        raise


def _pipeline(job: LabelJob, units: Sequence[WorkUnit]) -> Any:
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    context.target_max_block_size = None  # a unit stays one block however large its features are
    least, most = job.resources.actors
    items = [{"unit": json.dumps(unit.to_dict())} for unit in units]
    by_id = {unit.unit_id: unit for unit in units}
    one = {"batch_size": None, "batch_format": "pyarrow", "zero_copy_batch": True}
    # Ray fuses neighbours that ask for the same: a GPU would wait for its own actor to read and tokenise.
    beside = 0.5 if job.resources.cpus != 0.5 else 0.4
    return (
        ray.data.from_items(items, override_num_blocks=len(items))
        .map_batches(encode_units, fn_kwargs={"job": job}, num_cpus=beside, **one)
        .map_batches(
            TeacherActor, fn_constructor_kwargs={"job": job}, num_cpus=job.resources.cpus,
            num_gpus=job.resources.gpus or None,
            compute=ray.data.ActorPoolStrategy(min_size=least, max_size=most), **one)
        .map_batches(write_units, fn_kwargs={"job": job, "units": by_id}, num_cpus=beside, **one))


def encode_units(block: pa.Table, *, job: LabelJob) -> pa.Table:
    """Read and encode the rows of the units named in a block; rejected rows stay, with a reason."""
    parts = [_encode(WorkUnit.from_dict(json.loads(text)), job) for text in block.column("unit").to_pylist()]
    return pa.concat_tables(parts, promote_options="default")


def _encode(unit: WorkUnit, job: LabelJob) -> pa.Table:
    from ray_distill.tasks.catalogue import TASKS

    task = TASKS[job.task]
    rows = _read_shard(job.snapshot, unit.shard, task.input_column).take(pa.array(unit.rows, pa.int64()))
    encoded = task.encode(rows, _processor(job.teacher, job.task))
    table = encoded.to_table().append_column("unit_id", pa.array([unit.unit_id] * encoded.rows, pa.string()))
    table = table.append_column("reason", pa.nulls(encoded.rows, pa.string()))
    if not encoded.rejected:
        return table
    rejected = pa.table({
        "row_id": pa.array([row.row_id for row in encoded.rejected], pa.binary(16)),
        "unit_id": pa.array([unit.unit_id] * len(encoded.rejected), pa.string()),
        "reason": pa.array([row.reason for row in encoded.rejected], pa.string())})
    return pa.concat_tables([table, rejected], promote_options="default")


@functools.lru_cache(maxsize=2)
def _read_shard(snapshot: SnapshotRef, name: str, column: str) -> pa.Table:
    """A shard's inputs; a worker process that gets the next unit of the same shard does not read it again."""
    from ray_distill.snapshots.reader import open_snapshot

    opened = open_snapshot(snapshot)
    return opened.read_shard(opened.shard(name), columns=["row_id", column])


def _processor(teacher: TeacherConfig, task: str) -> Any:
    return _load_processor(teacher.model_dump_json(), task)


@functools.lru_cache(maxsize=1)
def _load_processor(teacher: str, task: str) -> Any:
    from ray_distill.models.load import load_processor

    return load_processor(TeacherConfig.model_validate_json(teacher), task=task)


class TeacherActor:
    """A teacher on its device, answering units batch by batch."""

    def __init__(self, job: LabelJob):
        import torch

        from ray_distill.teachers.transformers_teacher import open_teacher

        torch.set_num_threads(job.manifest.threads)
        self.batch = job.manifest.batch
        self.teacher = open_teacher(job.teacher, task=job.task, head_url=job.head_url)
        self.ask = ask_of(job.manifest)

    def __call__(self, block: pa.Table) -> pa.Table:
        """Answer every unit in a block."""
        tables = [self._unit(unit, block.filter(pa.compute.equal(block.column("unit_id"), unit)))
                  for unit in block.column("unit_id").unique().to_pylist()]
        return pa.concat_tables(tables, promote_options="default")

    def _unit(self, unit: str, block: pa.Table) -> pa.Table:
        """Answer one unit in batches of like length; which rows share a batch depends on the unit alone."""
        from ray_distill.tasks.base import Encoded

        rejected = table_to_rejected(block)
        encoded = Encoded.from_table(block.filter(pa.compute.is_null(block.column("reason"))))
        row_ids, signal, unusable = answer_all(self.teacher, encoded, self.ask, self.batch)
        return signal_to_table(row_ids, unit, signal, [*rejected, *unusable])


def write_units(block: pa.Table, *, job: LabelJob, units: dict[str, WorkUnit]) -> pa.Table:
    """Write an attempt for every unit in a block; one receipt a unit."""
    receipts = []
    for name in block.column("unit_id").unique().to_pylist():
        part = block.filter(pa.compute.equal(block.column("unit_id"), name))
        row_ids, signal = table_to_signal(part)
        receipt = write_attempt(
            job.store_url, job.manifest, units[name], row_ids, signal, table_to_rejected(part))
        receipts.append(json.dumps(receipt.to_dict()))
    return pa.table({"receipt": pa.array(receipts, pa.string())})


def _too_many(tally: Counter[str], reasons: Counter[str], limit: int, receipt: Receipt) -> str:
    found = ", ".join(f"{count} × {reason}" for reason, count in reasons.most_common(5))
    return (f"{tally['rejected']} of {tally['rejected'] + tally['rows']} rows so far could not be labelled, more than "
            f"the {limit} that labels.max_bad_fraction allows: {found}; the latest are listed in "
            f"quarantine/{receipt.unit}/ of the store; correct the source or raise the limit")
