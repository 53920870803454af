"""The processes that hold a teacher: one kind for the pipeline, one for the units that it failed on."""

import contextlib
import functools
import json
import os
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import pyarrow as pa
import ray

from ray_distill.config import Resources, TeacherConfig
from ray_distill.config.labels import FailuresConfig
from ray_distill.errors import DistillError, LabelError
from ray_distill.labels.format.arrow_tables import signal_to_table, table_to_rejected
from ray_distill.labels.format.fitted_arrays import read_fits
from ray_distill.labels.model.validity import split_unusable
from ray_distill.labels.model.work_units import WorkUnit
from ray_distill.runtime.core.failures import Failure, Rows, described, failure_of, timed_out
from ray_distill.runtime.labelling.batching import Limit, answer_unit, ask_of, free_memory, plan
from ray_distill.runtime.labelling.death_counter import LAST_WORD, limit, telling
from ray_distill.runtime.labelling.encode_write import LabelJob, encode_unit, failed_table
from ray_distill.tasks.encoded import Encoded


class TeacherJob(Protocol):
    """What every process that holds a teacher needs to know."""

    @property
    def teacher(self) -> TeacherConfig:
        """The teacher."""

    @property
    def resources(self) -> Resources:
        """What its process takes."""

    @property
    def failures(self) -> FailuresConfig:
        """When it has failed."""


J = TypeVar("J", bound=TeacherJob)


class Loaded(ABC, Generic[J]):
    """A teacher on its device. What goes wrong while loading is kept: raised in a constructor, Ray tells it badly."""

    def __init__(self, job: J):
        self.job = job
        self.error: DistillError | None = None
        try:
            with limit(job.failures.load_seconds, _nothing):
                self._load()
        except DistillError as error:
            self.error = error
        except Exception as error:  # noqa: BLE001 - a teacher may raise anything
            self.error = LabelError(f"the teacher {job.teacher.model} cannot be loaded: {described(error)}")

    def ready(self) -> None:
        """Raise what went wrong while loading."""
        if self.error is not None:
            raise self.error

    @abstractmethod
    def _load(self) -> None:
        """Load the teacher; it may raise anything."""


class _Labels(Loaded[LabelJob]):
    """A teacher that labels."""

    def _load(self) -> None:
        import torch

        from ray_distill.teachers.engines import open_teacher

        torch.set_num_threads(self.job.manifest.threads)
        self.batch = self.job.manifest.batch
        self.teacher = open_teacher(self.job.teacher, task=self.job.task, head_url=self.job.head_url)
        self.ask = ask_of(self.job.manifest, read_fits(self.job.store_url, self.job.manifest.fits))


class PoolActor(Loaded[J]):
    """Answers units in the pipeline; its failures are counted and watched."""

    def __init__(self, job: J, strikes: Any):
        self.strikes = strikes
        self.name = ray.get_runtime_context().get_actor_id()
        refused = ray.get(strikes.loading.remote(self.name))
        if refused is not None:
            self.error = LabelError(
                f"the teacher {job.teacher.model} cannot be loaded: {refused}; look for the kernel's out-of-memory "
                "killer, or give labels.resources more"
            )
            return
        super().__init__(job)
        ray.get(strikes.loaded.remote(self.name))

    def __call__(self, block: pa.Table) -> pa.Table:
        """Answer every unit in a block; a unit that the teacher fails on is passed on as failed."""
        with telling(self.strikes):
            if self.error is not None:
                raise self.error
            tables = [
                self._unit(unit, block.filter(pa.compute.equal(block.column("unit_id"), unit)))
                for unit in block.column("unit_id").unique().to_pylist()
            ]
        return pa.concat_tables(tables, promote_options="default")

    def _unit(self, unit: str, block: pa.Table) -> pa.Table:
        refused: str | None = ray.get(self.strikes.begin.remote(unit, self.name))
        if refused is not None:
            return failed_table(unit, refused)
        answer = self._answered(unit, block)
        # Nobody waits for it: if it is lost, one death too many is counted.
        self.strikes.done.remote(unit, "failed" not in answer.column_names)
        return answer

    @abstractmethod
    def _answer(self, unit: str, block: pa.Table, watched: Limit) -> pa.Table:
        """Answer one unit, entering ``watched`` for each batch; the teacher may raise anything."""

    def _answered(self, unit: str, block: pa.Table) -> pa.Table:
        """Answer one unit, or say why the teacher failed on it."""
        seconds = self.job.failures.batch_seconds
        watched = functools.partial(limit, seconds, functools.partial(self._give_up, unit, timed_out(seconds).reason))
        try:
            return self._answer(unit, block, watched)
        except DistillError:
            raise
        except Exception as error:  # noqa: BLE001 - a teacher may raise anything
            failure = failure_of(error)
            if failure.spent:
                self._give_up(unit, failure.reason)
                os._exit(1)
        free_memory()
        return failed_table(unit, failure.reason)

    def _give_up(self, unit: str, reason: str) -> None:
        with contextlib.suppress(ray.exceptions.RayError):
            ray.get(self.strikes.give_up.remote(unit, reason), timeout=LAST_WORD)


class TeacherActor(_Labels, PoolActor[LabelJob]):
    """Labels units batch by batch."""

    def _answer(self, unit: str, block: pa.Table, watched: Limit) -> pa.Table:
        """Answer one unit in batches of like length; which rows share a batch depends on the unit alone."""
        rejected = table_to_rejected(block)
        encoded = Encoded.from_table(block.filter(pa.compute.is_null(block.column("reason"))))
        row_ids, signal, unusable, halved = answer_unit(self.teacher, encoded, self.ask, self.batch, watched)
        return signal_to_table(row_ids, unit, signal, [*rejected, *unusable], halved)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A unit's rows, encoded."""

    batches: tuple[Rows, ...]
    row_ids: tuple[bytes, ...]
    rejected: tuple[tuple[bytes, str], ...]
    """Rows that could not be encoded, with the reason."""


class CarefulActor(_Labels):
    """Answers any rows of a unit as one batch, and says why it cannot; it holds one unit's inputs."""

    def __init__(self, job: LabelJob):
        super().__init__(job)
        self._unit: tuple[str, pa.Table, Encoded] | None = None

    def plan(self, unit: str) -> Plan:
        """How a unit (JSON) is to be answered."""
        _, table, encoded = self._encoded(unit)
        return Plan(
            batches=tuple(plan(encoded, self.batch)),
            row_ids=tuple(encoded.row_ids.to_pylist()),
            rejected=tuple(table_to_rejected(table)),
        )

    def answer(self, unit: str, rows: Rows) -> pa.Table | Failure:
        """The signal of rows of a unit (JSON), as a table."""
        name, _, encoded = self._encoded(unit)
        part = encoded.take(rows)
        try:
            signal = self.teacher.answer(part, self.ask)
            row_ids, signal, unusable = split_unusable(part.row_ids, signal)
            return signal_to_table(row_ids, name, signal, unusable)
        except DistillError:
            raise
        except Exception as error:  # noqa: BLE001 - a teacher may raise anything
            failure = failure_of(error)
        free_memory()
        return failure

    def _encoded(self, unit: str) -> tuple[str, pa.Table, Encoded]:
        work = WorkUnit.from_dict(json.loads(unit))
        if self._unit is None or self._unit[0] != work.unit_id:
            table = encode_unit(work, self.job)
            encoded = Encoded.from_table(table.filter(pa.compute.is_null(table.column("reason"))))
            self._unit = work.unit_id, table, encoded
        return self._unit


def _nothing() -> None:
    """The process that dies while it loads is counted by `Strikes`."""
