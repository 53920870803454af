"""Define the actors that run a labelling or a generating teacher."""

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from ray_distill.artifacts import SnapshotRef
from ray_distill.config import Resources, SequencesConfig, TeacherConfig
from ray_distill.config.labels import FailuresConfig
from ray_distill.labels.format.arrow_tables import signal_to_table, table_to_rejected
from ray_distill.labels.format.fitted_arrays import read_fits
from ray_distill.labels.model.validity import Rejects, split_unusable
from ray_distill.labels.model.work_units import WorkUnit
from ray_distill.runtime.core.failures import Answers, Rows
from ray_distill.runtime.labelling.batching import plan, request_of
from ray_distill.runtime.labelling.encode_write import LabelJob, encode_unit, read_inputs, rejected_table
from ray_distill.runtime.labelling.teacher_actor import Plan, TeacherActor
from ray_distill.sequences import attempts
from ray_distill.sequences.generator import Generator
from ray_distill.sequences.units import write_attempt
from ray_distill.tasks.encoded import Encoded

if TYPE_CHECKING:
    from ray_distill.teachers.author import Prompts


@dataclass(frozen=True, kw_only=True)
class UnitInputs:
    """A unit's encoded rows."""

    unit: str
    encoded: Encoded
    rejected: Rejects
    """Rows that could not be encoded, with the reason."""


class LabelActor(TeacherActor[LabelJob, UnitInputs]):
    """Label units in batches of similar length; the unit alone decides which rows share a batch."""

    def _load(self) -> None:
        import torch

        from ray_distill.teachers.engines import open_stored_teacher

        torch.set_num_threads(self.job.manifest.threads)
        self.teacher = open_stored_teacher(self.job.teacher, self.job.manifest.teacher, task=self.job.task)
        self.request = request_of(self.job.manifest, read_fits(self.job.store_url, self.job.manifest.fits))

    def _encode(self, unit: WorkUnit) -> UnitInputs:
        return self._encoded(unit.unit_id, encode_unit(unit, self.job))

    def _encoded(self, unit: str, block: pa.Table) -> UnitInputs:
        encoded = Encoded.from_table(block.filter(pa.compute.is_null(block.column("reason"))))
        return UnitInputs(unit=unit, encoded=encoded, rejected=table_to_rejected(block))

    def _plan(self, inputs: UnitInputs) -> Plan:
        return Plan(
            batches=tuple(plan(inputs.encoded, self.job.manifest.batch)),
            row_ids=tuple(inputs.encoded.row_ids.to_pylist()),
            rejected=tuple(inputs.rejected),
        )

    def _answer(self, inputs: UnitInputs, rows: Rows) -> pa.Table:
        part = inputs.encoded.take(rows)
        row_ids, signal, unusable = split_unusable(part.row_ids, self.teacher.answer(part, self.request))
        return signal_to_table(row_ids, inputs.unit, signal, unusable)

    def _finish(self, unit: str, inputs: UnitInputs, found: Answers[pa.Table]) -> pa.Table:
        return unit_table(unit, inputs.rejected, found)


def unit_table(unit: str, rejected: Rejects, found: Answers[pa.Table]) -> pa.Table:
    """Join a unit's answers and rejected rows for `encode_write.write_units`.

    The table is marked if a batch was halved.
    """
    table = pa.concat_tables([*found.parts, rejected_table(unit, rejected)], promote_options="default")
    if not found.halved:
        return table
    return table.append_column("halved", pa.array(np.full(len(table), found.halved, dtype=np.int32)))


@dataclass(frozen=True, kw_only=True)
class WriteJob:
    """Inputs of a writing run; picklable."""

    snapshot: SnapshotRef
    task: str
    teacher: TeacherConfig
    settings: SequencesConfig
    generator: Generator
    store_url: str
    resources: Resources

    @property
    def failures(self) -> FailuresConfig:
        """Return the failure settings."""
        return self.settings.failures


@dataclass(frozen=True, kw_only=True)
class UnitPrompts:
    """A unit's encoded prompts."""

    work: WorkUnit
    prompts: "Prompts"


class GenerateActor(TeacherActor[WriteJob, UnitPrompts]):
    """Generate texts for whole units and store them.

    Storing is not a step of its own, because its time is negligible beside generation.
    """

    def __call__(self, block: pa.Table) -> pa.Table:
        """Return ``unit`` and either ``receipt`` (JSON) or, if the teacher failed, ``failed``."""
        found = super().__call__(block)
        columns = {"unit": found["unit_id"], **{name: found[name] for name in found.column_names if name != "unit_id"}}
        for name in ("receipt", "failed"):
            columns.setdefault(name, pa.nulls(len(found), pa.string()))
        return pa.table({name: columns[name] for name in ("unit", "receipt", "failed")})

    def _load(self) -> None:
        import torch

        from ray_distill.teachers.author import open_author

        torch.set_num_threads(self.job.generator.threads)
        self.author = open_author(self.job.teacher, self.job.settings, task=self.job.task, seed=self.job.generator.seed)
        self.job.generator.require_teacher(self.author.model.fingerprint)

    def _encode(self, unit: WorkUnit) -> UnitPrompts:
        return UnitPrompts(work=unit, prompts=self.author.encode(read_inputs(self.job.snapshot, unit, "text")))

    def _encoded(self, unit: str, block: pa.Table) -> UnitPrompts:
        return self._encode(WorkUnit.from_dict(json.loads(block["work"][0].as_py())))

    def _plan(self, inputs: UnitPrompts) -> Plan:
        return Plan(
            batches=tuple(inputs.prompts.plan(self.job.generator.prompts_a_batch)),
            row_ids=tuple(row.ljust(16, b"\0") for row in inputs.prompts.row_ids.tolist()),
            rejected=tuple(inputs.prompts.rejected),
        )

    def _answer(self, inputs: UnitPrompts, rows: Rows) -> pa.Table:
        return self.author.write(inputs.prompts, rows)

    def _finish(self, unit: str, inputs: UnitPrompts, found: Answers[pa.Table]) -> pa.Table:
        table = pa.concat_tables([*found.parts, attempts.rejected_table(inputs.prompts.rejected)])
        receipt = write_attempt(self.job.store_url, self.job.generator, inputs.work, table, halved=found.halved)
        return pa.table(
            {
                "unit_id": pa.array([unit], pa.string()),
                "receipt": pa.array([json.dumps(receipt.to_dict())], pa.string()),
            }
        )
