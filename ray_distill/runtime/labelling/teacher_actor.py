"""Define the base class of processes that run a teacher, in the pipeline or isolated."""

import functools
import json
import os
from abc import ABC, abstractmethod
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import pyarrow as pa
import ray

from ray_distill.config import Resources, TeacherConfig
from ray_distill.config.labels import FailuresConfig
from ray_distill.errors import DistillError, LabelError
from ray_distill.labels.model.work_units import WorkUnit
from ray_distill.runtime.core.failures import Answers, Failure, Rows, answer_halving, described, failure_of, timed_out
from ray_distill.runtime.labelling.batching import free_memory, try_answer
from ray_distill.runtime.labelling.death_counter import Deaths, limit, reporting
from ray_distill.runtime.labelling.encode_write import failed_table


class TeacherJob(Protocol):
    """Inputs of every process that runs a teacher."""

    @property
    def teacher(self) -> TeacherConfig:
        """Return the teacher's configuration."""

    @property
    def resources(self) -> Resources:
        """Return the resources of the process."""

    @property
    def failures(self) -> FailuresConfig:
        """Return the failure settings."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The planned batches of a unit."""

    batches: tuple[Rows, ...]
    row_ids: tuple[bytes, ...]
    rejected: tuple[tuple[bytes, str], ...]
    """Rows that could not be encoded, with the reason."""


J = TypeVar("J", bound=TeacherJob)
#: Inputs of a unit, encoded.
I = TypeVar("I")  # noqa: E741 - one letter, as the other type variables


class TeacherActor(ABC, Generic[J, I]):
    """A teacher on its device.

    With a death counter, the object is an actor of the pipeline and is called with blocks; without one, it is isolated
    and answers single batches through `plan` and `answer`. Loading errors are stored and raised later, because Ray
    reports constructor exceptions poorly.
    """

    def __init__(self, job: J, deaths: Deaths | None = None):
        self.job, self.deaths = job, deaths
        self.error: DistillError | None = None
        self._inputs: tuple[str, I] | None = None
        self._name = "" if deaths is None else ray.get_runtime_context().get_actor_id() or ""
        refused = None if deaths is None else deaths.loading(self._name)
        if refused is not None:
            self.error = LabelError(
                f"the teacher {job.teacher.model} cannot be loaded: {refused}; check the kernel's log for its "
                "out-of-memory killer, or raise labels.resources"
            )
            return
        self._load_within_limit()
        if deaths is not None:
            deaths.loaded(self._name)

    def ready(self) -> None:
        """Raise the stored loading error, if there is one."""
        if self.error is not None:
            raise self.error

    def plan(self, unit: str) -> Plan:
        """Return the planned batches of a unit (JSON)."""
        return self._plan(self._read(unit))

    def answer(self, unit: str, rows: Rows) -> pa.Table | Failure:
        """Return the answer for rows of a unit (JSON) as one batch, or its failure."""
        inputs = self._read(unit)
        return try_answer(lambda: self._answer(inputs, rows), len(rows), isolated=True)

    def __call__(self, block: pa.Table) -> pa.Table:
        """Answer every unit in a block; a unit that the teacher fails on is passed on as failed."""
        assert self.deaths is not None, "only an actor of the pipeline is called with blocks"
        with reporting(self.deaths):
            self.ready()
            tables = [
                self._counted(self.deaths, unit, block.filter(pa.compute.equal(block.column("unit_id"), unit)))
                for unit in block.column("unit_id").unique().to_pylist()
            ]
        return pa.concat_tables(tables, promote_options="default")

    def answer_block(self, unit: str, block: pa.Table) -> pa.Table:
        """Answer one unit batch by batch; halve a batch that does not fit into memory.

        Raises:
            Exception: any error of the teacher.
        """
        inputs = self._encoded(unit, block)
        plan = self._plan(inputs)

        def answer(rows: Rows) -> pa.Table | Failure:
            with self._limited(unit):
                return try_answer(lambda: self._answer(inputs, rows), len(rows))

        return self._finish(unit, inputs, answer_halving(plan.batches, answer))

    @abstractmethod
    def _load(self) -> None:
        """Load the teacher; may raise any exception."""

    @abstractmethod
    def _encode(self, unit: WorkUnit) -> I:
        """Read and encode a unit's inputs."""

    @abstractmethod
    def _encoded(self, unit: str, block: pa.Table) -> I:
        """Return a unit's inputs from its block in the pipeline."""

    @abstractmethod
    def _plan(self, inputs: I) -> Plan:
        """Plan the batches, which depend on the unit alone."""

    @abstractmethod
    def _answer(self, inputs: I, rows: Rows) -> pa.Table:
        """Let the teacher answer one batch; may raise any exception."""

    @abstractmethod
    def _finish(self, unit: str, inputs: I, found: Answers[pa.Table]) -> pa.Table:
        """Return the table that the pipeline passes on for an answered unit."""

    def _load_within_limit(self) -> None:
        try:
            with limit(self.job.failures.load_seconds, _nothing):
                self._load()
        except DistillError as error:
            self.error = error
        except Exception as error:  # noqa: BLE001 - a teacher may raise anything
            self.error = LabelError(f"the teacher {self.job.teacher.model} cannot be loaded: {described(error)}")

    def _read(self, unit: str) -> I:
        """Return a unit's encoded inputs; those of the last unit are cached."""
        if self._inputs is None or self._inputs[0] != unit:
            self._inputs = unit, self._encode(WorkUnit.from_dict(json.loads(unit)))
        return self._inputs[1]

    def _counted(self, deaths: Deaths, unit: str, block: pa.Table) -> pa.Table:
        refused = deaths.begin(unit, self._name)
        if refused is not None:
            return failed_table(unit, refused)
        answer = self._guarded(unit, block)
        deaths.done(unit, answered="failed" not in answer.column_names)
        return answer

    def _guarded(self, unit: str, block: pa.Table) -> pa.Table:
        """Answer one unit, or return the reason why the teacher failed on it."""
        try:
            return self.answer_block(unit, block)
        except DistillError:
            raise
        except Exception as error:  # noqa: BLE001 - a teacher may raise anything
            failure = failure_of(error)
            if failure.spent:
                self._give_up(unit, failure.reason)
                os._exit(1)
        free_memory()
        return failed_table(unit, failure.reason)

    def _limited(self, unit: str) -> AbstractContextManager[None]:
        """Return the time limit of one batch."""
        seconds = self.job.failures.batch_seconds
        return limit(seconds, functools.partial(self._give_up, unit, timed_out(seconds).reason))

    def _give_up(self, unit: str, reason: str) -> None:
        if self.deaths is not None:
            self.deaths.give_up(unit, reason)


def _nothing() -> None:
    """Report nothing: a process that dies while it loads is counted by `DeathCounter`."""
