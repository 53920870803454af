"""Fill a label store with Ray Data.

CPU tasks read and encode, teacher actors answer, and CPU tasks write. A unit that the teacher fails on leaves the
pipeline as failed and is labelled in isolation (`isolate_failures`). Only Arrow blocks pass between the stages, and
rows carry their unit: nothing relies on Ray keeping one unit a block, although it is configured to. `pipeline`
schedules the units and commits receipts.
"""

import functools
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from ray_distill.errors import LabelError
from ray_distill.labels.model.work_units import Receipt, WorkUnit
from ray_distill.labels.store.label_store import LabelStore
from ray_distill.runtime.core.connection import on_cluster
from ray_distill.runtime.core.failures import Answers
from ray_distill.runtime.core.python_envs import environment
from ray_distill.runtime.labelling.actors import LabelActor, unit_table
from ray_distill.runtime.labelling.death_counter import Deaths
from ray_distill.runtime.labelling.encode_write import LabelJob, encode_units, write_units
from ray_distill.runtime.labelling.isolate_failures import FailedUnit, isolate
from ray_distill.runtime.labelling.pipeline import Seen, Work, dataset_of, teacher_pool, work_through
from ray_distill.runtime.labelling.teacher_actor import Plan


@dataclass(frozen=True, kw_only=True)
class Labelled:
    """Counts of one labelling run."""

    rows: int
    rejected: int
    reasons: dict[str, int]
    bytes_written: int
    seconds: float
    isolated: int = 0
    """Units that the teacher failed on and that were then labelled in isolation."""
    halved: int = 0
    """Units in which a batch had to be halved."""


def label_units(
    job: LabelJob, store: LabelStore, units: Sequence[WorkUnit], *, max_rejected: int, progress: Callable[[int], None]
) -> Labelled:
    """Label units and commit them as they finish; committed units survive an interruption.

    Args:
        job: the rows to label, and how to label them.
        store: the open store, made with ``job.manifest``.
        units: from ``store.coverage``.
        max_rejected: rows that may go to quarantine before the run stops.
        progress: called with the number of rows that were just finished.

    Raises:
        LabelError: too many rows could not be labelled, or the teacher fails on every row.
        ClusterError: the actors do not fit the cluster, or a stage failed.
    """
    tally: Counter[str] = Counter()
    reasons: Counter[str] = Counter()
    seen = Seen()
    with work_through(_work(job, store), units, seen) as receipts:
        started = time.monotonic()
        for receipt in receipts:
            tally.update(
                rows=receipt.rows, rejected=receipt.rejected, halved=receipt.halved > 0, bytes=receipt.bytes_written
            )
            reasons.update(receipt.reasons)
            progress(receipt.rows + receipt.rejected)
            if tally["rejected"] > max_rejected:
                raise LabelError(_too_many(tally, reasons, max_rejected, receipt))
    return Labelled(
        rows=tally["rows"],
        rejected=tally["rejected"],
        reasons=dict(reasons),
        bytes_written=tally["bytes"],
        seconds=time.monotonic() - started,
        isolated=seen.isolated,
        halved=tally["halved"],
    )


def _work(job: LabelJob, store: LabelStore) -> Work[Receipt]:
    return Work(
        name="label",
        doing="labelling",
        resources=job.resources,
        failures=job.failures,
        pipeline=functools.partial(_pipeline, job),
        read=Receipt.from_dict,
        isolate=functools.partial(_relabel, job),
        commit=store.commit,
    )


def _pipeline(job: LabelJob, units: Sequence[WorkUnit], deaths: Deaths) -> Any:
    by_id = {unit.unit_id: unit for unit in units}
    one = {"batch_size": None, "batch_format": "pyarrow", "zero_copy_batch": True}
    # Ray fuses neighbouring stages with equal resources: a GPU would wait while its own actor reads and tokenizes.
    beside = 0.5 if job.resources.cpus != 0.5 else 0.4
    return (
        dataset_of([{"unit": json.dumps(unit.to_dict())} for unit in units])
        .map_batches(encode_units, fn_kwargs={"job": job, "deaths": deaths}, num_cpus=beside, **one)
        .map_batches(
            LabelActor,
            fn_constructor_kwargs={"job": job, "deaths": deaths},
            **teacher_pool(job.resources),
            **environment(job.teacher),
            **one,
        )
        .map_batches(write_units, fn_kwargs={"job": job, "units": by_id, "deaths": deaths}, num_cpus=beside, **one)
    )


def _relabel(job: LabelJob, failed: Sequence[FailedUnit], good: WorkUnit | None) -> Iterator[Receipt]:
    return isolate(job, failed, good, actor=LabelActor, finish=functools.partial(_relabelled, job))


def _relabelled(job: LabelJob, one: FailedUnit, plan: Plan, found: Answers[pa.Table]) -> Receipt:
    """Write a unit's answers; rows that failed alone go to quarantine."""
    failed = [(plan.row_ids[row], failure.reason) for row, failure in sorted(found.failed.items())]
    table = unit_table(one.unit.unit_id, [*plan.rejected, *failed], found)
    written = on_cluster(write_units, table, job=job, units={one.unit.unit_id: one.unit}, what="writing labels")
    return Receipt.from_dict(json.loads(written.column("receipt")[0].as_py()))


def _too_many(tally: Counter[str], reasons: Counter[str], limit: int, receipt: Receipt) -> str:
    found = ", ".join(f"{count} × {reason}" for reason, count in reasons.most_common(5))
    return (
        f"{tally['rejected']} of {tally['rejected'] + tally['rows']} rows so far could not be labelled, more than "
        f"the {limit} that labels.max_bad_fraction allows: {found}; the latest are listed in "
        f"quarantine/{receipt.unit}/ of the store; correct the source or raise the limit"
    )
