"""The processes that hold a teacher which writes; see `teacher_actors` for those that hold one which labels."""

import json
from dataclasses import dataclass

import pyarrow as pa

from ray_distill.artifacts import SnapshotRef
from ray_distill.config import Resources, SequencesConfig, TeacherConfig
from ray_distill.config.labels import FailuresConfig
from ray_distill.errors import DistillError
from ray_distill.labels.model.work_units import WorkUnit
from ray_distill.runtime.core.failures import Failure, Rows, ask_halving, failure_of
from ray_distill.runtime.labelling.batching import Limit, free_memory, or_memory
from ray_distill.runtime.labelling.encode_write import read_inputs
from ray_distill.runtime.labelling.label_actors import Loaded, Plan, PoolActor
from ray_distill.sequences.attempts import rejected_table
from ray_distill.sequences.generator import Generator
from ray_distill.sequences.units import write_attempt


@dataclass(frozen=True, kw_only=True)
class WriteJob:
    """Everything that writing needs; picklable."""

    snapshot: SnapshotRef
    task: str
    teacher: TeacherConfig
    settings: SequencesConfig
    generator: Generator
    store_url: str
    resources: Resources

    @property
    def failures(self) -> FailuresConfig:
        """When the teacher has failed."""
        return self.settings.failures


class _Authors(Loaded[WriteJob]):
    """A teacher that writes."""

    def _load(self) -> None:
        import torch

        from ray_distill.teachers.author import open_author

        torch.set_num_threads(self.job.generator.threads)
        self.author = open_author(self.job.teacher, self.job.settings, task=self.job.task, seed=self.job.generator.seed)


class AuthorActor(_Authors, PoolActor[WriteJob]):
    """Writes for whole units, and stores what it wrote: generating takes so long that nothing beside it counts."""

    def __call__(self, block: pa.Table) -> pa.Table:
        """``unit``, and either ``receipt`` (JSON) or, where the teacher failed on it, ``failed``."""
        found = super().__call__(block)
        columns = {"unit": found["unit_id"], **{name: found[name] for name in found.column_names if name != "unit_id"}}
        for name in ("receipt", "failed"):
            columns.setdefault(name, pa.nulls(len(found), pa.string()))
        return pa.table({name: columns[name] for name in ("unit", "receipt", "failed")})

    def _answer(self, unit: str, block: pa.Table, watched: Limit) -> pa.Table:
        """Write for one unit, batch by batch; a batch that does not fit into memory is halved."""
        work = WorkUnit.from_dict(json.loads(block["work"][0].as_py()))
        prompts = self.author.encode(read_inputs(self.job.snapshot, work, "text"))

        def one(rows: Rows) -> pa.Table | Failure:
            with watched():
                return or_memory(lambda: self.author.write(prompts, rows), len(rows))

        found = ask_halving(prompts.plan(self.job.generator.prompts_a_batch), one)
        table = pa.concat_tables([*found.parts, rejected_table(prompts.rejected)])
        receipt = write_attempt(self.job.store_url, self.job.generator, work, table, found.halved)
        return pa.table(
            {
                "unit_id": pa.array([unit], pa.string()),
                "receipt": pa.array([json.dumps(receipt.to_dict())], pa.string()),
            }
        )


class CarefulAuthor(_Authors):
    """Writes for any prompts of a unit as one batch, and says why it cannot; see `CarefulActor`."""

    def plan(self, unit: str) -> Plan:
        """How a unit (JSON) is to be written."""
        prompts = self.author.encode(self._rows(unit))
        return Plan(
            batches=tuple(prompts.plan(self.job.generator.prompts_a_batch)),
            row_ids=tuple(row.ljust(16, b"\0") for row in prompts.row_ids.tolist()),
            rejected=tuple(prompts.rejected),
        )

    def answer(self, unit: str, rows: Rows) -> pa.Table | Failure:
        """What is written for some prompts of a unit (JSON)."""
        try:
            return self.author.write(self.author.encode(self._rows(unit)), rows)
        except DistillError:
            raise
        except Exception as error:  # noqa: BLE001 - a teacher may raise anything
            failure = failure_of(error)
        free_memory()
        return failure

    def _rows(self, unit: str) -> pa.Table:
        return read_inputs(self.job.snapshot, WorkUnit.from_dict(json.loads(unit)), "text")
