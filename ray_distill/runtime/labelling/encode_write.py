"""Read and encode units, and write their labels: the steps that need no teacher.

The functions run in any worker.
"""

import functools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from ray_distill.artifacts import SnapshotRef
from ray_distill.config import Resources, TeacherConfig
from ray_distill.config.labels import FailuresConfig
from ray_distill.labels.format.arrow_tables import table_to_halved, table_to_rejected, table_to_signal
from ray_distill.labels.model.manifest import StoreManifest
from ray_distill.labels.model.validity import Rejects
from ray_distill.labels.model.work_units import WorkUnit
from ray_distill.labels.store.writer import write_attempt
from ray_distill.runtime.labelling.death_counter import Deaths, counted


@dataclass(frozen=True, kw_only=True)
class LabelJob:
    """Inputs of all steps of labelling; picklable."""

    task: str
    snapshot: SnapshotRef
    teacher: TeacherConfig
    store_url: str
    manifest: StoreManifest
    resources: Resources
    failures: FailuresConfig = FailuresConfig()


def encode_units(block: pa.Table, *, job: LabelJob, deaths: Deaths | None = None) -> pa.Table:
    """Read and encode the rows of the units named in a block; rejected rows stay, with a reason.

    Raises:
        LabelError: this step has killed its process too often, by the count of ``deaths``.
    """
    parts = []
    for text in block.column("unit").to_pylist():
        unit = WorkUnit.from_dict(json.loads(text))
        with counted(deaths, f"reading and encoding rows {unit.start}:{unit.stop} of {unit.shard}", unit.unit_id):
            parts.append(encode_unit(unit, job))
    return pa.concat_tables(parts, promote_options="default")


def encode_unit(unit: WorkUnit, job: LabelJob) -> pa.Table:
    """Return `Encoded.to_table` of a unit's rows with ``unit_id`` and ``reason``.

    ``reason`` is null for rows that are not rejected.
    """
    from ray_distill.tasks.catalogue import get_task

    task = get_task(job.task)
    rows = read_inputs(job.snapshot, unit, task.inputs.column)
    encoded = task.inputs.encode(rows, _processor(job.teacher, job.task))
    table = encoded.to_table().append_column("unit_id", pa.array([unit.unit_id] * encoded.rows, pa.string()))
    table = table.append_column("reason", pa.nulls(encoded.rows, pa.string()))
    if not encoded.rejected:
        return table
    rejected = rejected_table(unit.unit_id, [(row.row_id, row.reason) for row in encoded.rejected])
    return pa.concat_tables([table, rejected], promote_options="default")


def rejected_table(unit_id: str, rejected: Rejects) -> pa.Table:
    """Return the rows of a unit without an answer: ``row_id``, ``unit_id``, ``reason``."""
    return pa.table(
        {
            "row_id": pa.array([row for row, _ in rejected], pa.binary(16)),
            "unit_id": pa.array([unit_id] * len(rejected), pa.string()),
            "reason": pa.array([reason for _, reason in rejected], pa.string()),
        }
    )


def failed_table(unit_id: str, reason: str) -> pa.Table:
    """Return a unit that the teacher failed on, for the driver: ``unit_id``, ``failed``."""
    return pa.table({"unit_id": pa.array([unit_id], pa.string()), "failed": pa.array([reason], pa.string())})


def read_inputs(snapshot: SnapshotRef, unit: WorkUnit, column: str) -> pa.Table:
    """Return ``row_id`` and input of a unit's rows."""
    return _read_shard(snapshot, unit.shard, column).take(pa.array(unit.rows, pa.int64()))


@functools.lru_cache(maxsize=2)
def _read_shard(snapshot: SnapshotRef, name: str, column: str) -> pa.Table:
    """Return a shard's inputs; cached, because a worker often gets the shard's next unit."""
    from ray_distill.snapshots.reader import open_snapshot

    opened = open_snapshot(snapshot)
    return opened.read_shard(opened.shard(name), columns=["row_id", column])


def _processor(teacher: TeacherConfig, task: str) -> Any:
    return _load_processor(teacher.model_dump_json(), task)


@functools.lru_cache(maxsize=1)
def _load_processor(teacher: str, task: str) -> Any:
    from ray_distill.models.io.load import load_processor

    return load_processor(TeacherConfig.model_validate_json(teacher), task=task)


def write_units(
    block: pa.Table, *, job: LabelJob, units: dict[str, WorkUnit], deaths: Deaths | None = None
) -> pa.Table:
    """Write an attempt for every unit in a block.

    Returns:
        One row per unit: ``unit``, and either ``receipt`` (JSON) or, if the teacher failed on the unit, ``failed``.

    Raises:
        LabelError: this step has killed its process too often, by the count of ``deaths``.
    """
    names: Sequence[str] = block.column("unit_id").unique().to_pylist()
    parts = [block.filter(pa.compute.equal(block.column("unit_id"), name)) for name in names]
    failed = [_failed(part) for part in parts]
    receipts = [
        None if reason is not None else _write(units[name], part, job, deaths)
        for name, part, reason in zip(names, parts, failed, strict=True)
    ]
    return pa.table(
        {
            "unit": pa.array(names, pa.string()),
            "receipt": pa.array(receipts, pa.string()),
            "failed": pa.array(failed, pa.string()),
        }
    )


def _failed(part: pa.Table) -> str | None:
    found = part.column("failed").drop_null().to_pylist() if "failed" in part.column_names else []
    return next(iter(found), None)


def _write(unit: WorkUnit, part: pa.Table, job: LabelJob, deaths: Deaths | None) -> str:
    row_ids, signal = table_to_signal(part)
    with counted(deaths, f"writing rows {unit.start}:{unit.stop} of {unit.shard}", unit.unit_id):
        receipt = write_attempt(
            job.store_url,
            job.manifest,
            unit,
            row_ids=row_ids,
            signal=signal,
            rejected=table_to_rejected(part),
            halved=table_to_halved(part),
        )
    return json.dumps(receipt.to_dict())
