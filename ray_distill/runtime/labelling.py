"""Fill a label store with Ray Data: CPU tasks read and encode, teacher actors answer, CPU tasks write.

A unit that the teacher fails on leaves the pipeline as failed and is labelled by itself (`careful`). Only Arrow blocks
pass between the stages, and rows carry their unit: nothing relies on Ray keeping one unit a block, although it is asked
to. Workers hand back receipts; this driver alone commits them.
"""

import contextlib
import gc
import json
import logging
import time
import traceback
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import ray
import ray.data

from ray_distill.errors import LabelError
from ray_distill.labels.store import LabelStore
from ray_distill.labels.units import Receipt, WorkUnit
from ray_distill.runtime.careful import FailedUnit, relabel
from ray_distill.runtime.cluster import explain, require_bundles
from ray_distill.runtime.console import say
from ray_distill.runtime.label_steps import LabelJob, encode_units, write_units
from ray_distill.runtime.strikes import strikes_actor, told
from ray_distill.runtime.teacher_actors import TeacherActor

#: Units in one Ray Data execution; each is a block, and too many blocks burden the scheduler.
WINDOW = 2000
#: Receipts committed with one log record, and seconds after which fewer are: what a killed driver loses at most.
COMMIT_UNITS, COMMIT_SECONDS = 64, 30.0


@dataclass(frozen=True, kw_only=True)
class Labelled:
    """What one labelling run did."""

    rows: int
    rejected: int
    reasons: dict[str, int]
    bytes_written: int
    seconds: float
    careful: int = 0
    """Units that the teacher failed on and that were labelled by themselves."""
    halved: int = 0
    """Units in which a batch had to be halved."""


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
        LabelError: too many rows could not be labelled, or the teacher fails whatever row it is asked.
        ClusterError: the cluster cannot hold the actors, or a stage failed.
    """
    # Actors must not hold every CPU, or the tasks that read and write beside them starve (they would wait for ever).
    actor = {"CPU": job.resources.cpus, "GPU": job.resources.gpus}
    require_bundles([actor] * job.resources.actors[0] + [{"CPU": 1}], "labelling (teacher actors, and reading beside)")
    # An execution that failed on its first block keeps its actors until its cycles are collected (Ray 2.60); this one
    # would wait for their place for ever.
    gc.collect()
    started = time.monotonic()
    tally: Counter[str] = Counter()
    reasons: Counter[str] = Counter()
    seen = _Seen()
    # Closed at once, however the block ends: what is finished is committed while the store can be reached.
    with (strikes_actor(job.failures.attempts) as strikes,
          contextlib.closing(_committing(store, _windows(job, units, strikes, seen))) as committed):
        for receipt in committed:
            tally.update(rows=receipt.rows, rejected=receipt.rejected, halved=receipt.halved > 0,
                         bytes=sum(item.size for item in receipt.files().values()))
            reasons.update(receipt.reasons)
            progress(receipt.rows + receipt.rejected)
            if tally["rejected"] > max_rejected:
                raise LabelError(_too_many(tally, reasons, max_rejected, receipt))
    return Labelled(rows=tally["rows"], rejected=tally["rejected"], reasons=dict(reasons),
                    bytes_written=tally["bytes"], seconds=time.monotonic() - started, careful=seen.careful,
                    halved=tally["halved"])


@dataclass(kw_only=True)
class _Seen:
    """What a run has seen of its teacher."""

    good: WorkUnit | None = None
    """A unit that it answered."""
    careful: int = 0
    """Units that were labelled with care."""


def _windows(
    job: LabelJob, units: Sequence[WorkUnit], strikes: Any, seen: _Seen
) -> Generator[Receipt, None, None]:
    for start in range(0, len(units), WINDOW):
        yield from _receipts(job, units[start : start + WINDOW], strikes, seen)


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


def _receipts(job: LabelJob, units: Sequence[WorkUnit], strikes: Any, seen: "_Seen") -> Iterator[Receipt]:
    """Label some units, those that the teacher fails on by themselves, and yield their receipts as they come."""
    left = {unit.unit_id: unit for unit in units}
    while left:
        failed: list[FailedUnit] = []
        with contextlib.closing(_pipelined(job, list(left.values()), strikes)) as results:
            for name, receipt, reason in results:
                unit = left.pop(name)
                if receipt is None:
                    failed.append(FailedUnit(unit=unit, reason=reason))
                else:
                    seen.good = unit if receipt.rows else seen.good
                    yield receipt
                if len(failed) >= job.failures.attempts and seen.good is None:
                    break  # nothing but failures so far: first find out whether it is the teacher
        if not failed:
            return
        say(f"label: the teacher failed on {len(failed):,} units, first because {failed[0].reason}; labelling them "
            "with care", failed_units=len(failed))
        for receipt in relabel(job, failed, seen.good):
            seen.careful += 1
            yield receipt
        ray.get(strikes.trust.remote())


def _pipelined(
    job: LabelJob, units: Sequence[WorkUnit], strikes: Any
) -> Generator[tuple[str, Receipt | None, str], None, None]:
    """Run one Ray Data execution over some units; yield each unit's id, and its receipt or why it has none."""
    batches = iter(_pipeline(job, units, strikes).iter_batches(
        batch_size=None, batch_format="pyarrow", prefetch_batches=0))
    try:
        # Closed at once: an execution that is left midway would go on, and hold the teacher's place.
        with contextlib.closing(batches):
            for batch in batches:
                for row in batch.to_pylist():
                    receipt = row["receipt"] and Receipt.from_dict(json.loads(row["receipt"]))
                    yield row["unit"], receipt, row["failed"] or ""
    except BaseException as error:
        # Ray's iterators live on in the frames of a traceback, beyond Ray itself: one that is ended only then starts a
        # new Ray to shut its execution down.
        traceback.clear_frames(error.__traceback__)
        if isinstance(error, ray.exceptions.RayError):
            raise told(strikes) or explain(error, "labelling") from error
        raise


def _pipeline(job: LabelJob, units: Sequence[WorkUnit], strikes: Any) -> Any:
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
        .map_batches(encode_units, fn_kwargs={"job": job, "strikes": strikes}, num_cpus=beside, **one)
        .map_batches(
            TeacherActor, fn_constructor_kwargs={"job": job, "strikes": strikes}, num_cpus=job.resources.cpus,
            num_gpus=job.resources.gpus or None,
            compute=ray.data.ActorPoolStrategy(min_size=least, max_size=most), **one)
        .map_batches(
            write_units, fn_kwargs={"job": job, "units": by_id, "strikes": strikes}, num_cpus=beside, **one))


def _too_many(tally: Counter[str], reasons: Counter[str], limit: int, receipt: Receipt) -> str:
    found = ", ".join(f"{count} × {reason}" for reason, count in reasons.most_common(5))
    return (f"{tally['rejected']} of {tally['rejected'] + tally['rows']} rows so far could not be labelled, more than "
            f"the {limit} that labels.max_bad_fraction allows: {found}; the latest are listed in "
            f"quarantine/{receipt.unit}/ of the store; correct the source or raise the limit")
