"""Answer failed units batch by batch, each within a time limit, down to the row at fault.

The units have one actor of their own, which Ray does not restart. The batches are those of the store's plan, so a unit
on which a failure does not recur has the same bytes as without the failure.
"""

import contextlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import numpy as np
import pyarrow as pa
import ray
from ray.actor import ActorHandle
from ray.exceptions import GetTimeoutError, RayActorError, RayError

from ray_distill.errors import LabelError
from ray_distill.labels.model.work_units import WorkUnit
from ray_distill.runtime.core.connection import explain
from ray_distill.runtime.core.failures import Answers, Failure, Rows, answer_halving, died, timed_out
from ray_distill.runtime.core.python_envs import environment
from ray_distill.runtime.labelling.teacher_actor import Plan, TeacherActor, TeacherJob

R = TypeVar("R")


@dataclass(frozen=True, kw_only=True)
class FailedUnit:
    """A unit that failed in the pipeline, and the reason."""

    unit: WorkUnit
    reason: str

    @property
    def text(self) -> str:
        """Return the unit as JSON."""
        return json.dumps(self.unit.to_dict())


#: Makes a receipt of a failed unit's answers.
Finish = Callable[[FailedUnit, Plan, Answers[pa.Table]], R]


def isolate(
    job: TeacherJob,
    failed: Sequence[FailedUnit],
    good: WorkUnit | None,
    *,
    actor: type[TeacherActor[Any, Any]],
    finish: Finish[R],
) -> Iterator[R]:
    """Let a separate actor answer the units that failed in the pipeline, down to single rows.

    Args:
        job: passed to the actor.
        failed: the units.
        good: a unit that this teacher has answered in this run, if there is one.
        actor: class of the actor.
        finish: makes a receipt of a unit's answers.

    Raises:
        LabelError: the teacher fails on every row, also on a row that it has answered before: then the rows are not at
            fault, and no row goes to quarantine.
        ClusterError: a part of Ray failed.
    """
    teacher = IsolatedTeacher(job, actor)
    with contextlib.closing(teacher):
        check = FaultCheck(teacher, job, failed, good)
        check.require_answer(failed[0].reason)
        for one in failed:
            yield _answered(teacher, check, one, finish)


def _answered(teacher: "IsolatedTeacher", check: "FaultCheck", one: FailedUnit, finish: Finish[R]) -> R:
    plan = teacher.plan(one.text)
    planned = {rows.tobytes() for rows in plan.batches}

    def answer(rows: Rows) -> pa.Table | Failure:
        # A first death may have another cause; a batch on which the process dies twice is halved, down to one row.
        deaths = teacher.job.failures.attempts if len(rows) == 1 else 1 + (rows.tobytes() in planned)
        found = teacher.answer(one.text, rows, deaths)
        check.record(one.text, rows, found)
        return found

    return finish(one, plan, answer_halving(plan.batches, answer))


class UnitTeacher(Protocol):
    """A teacher that answers single batches; see `IsolatedTeacher`."""

    def plan(self, unit: str) -> Plan:
        """Return how a unit is answered."""

    def answer(self, unit: str, rows: Rows, deaths: int) -> pa.Table | Failure:
        """Return the answer of one batch."""


class FaultCheck:
    """Decide whether the rows or the teacher are at fault: a working teacher answers some row."""

    def __init__(self, teacher: UnitTeacher, job: TeacherJob, failed: Sequence[FailedUnit], good: WorkUnit | None):
        self._teacher, self._model, self._attempts = teacher, job.teacher.model, job.failures.attempts
        self._failed = [one.text for one in failed[: self._attempts]]
        self._good = None if good is None else json.dumps(good.to_dict())
        self._answered: tuple[str, Rows] | None = None
        self._streak = 0

    def record(self, unit: str, rows: Rows, answer: pa.Table | Failure) -> None:
        """Record an answer; after `attempts` single rows failed in succession, check the teacher.

        The check is `require_answer`.
        """
        if not isinstance(answer, Failure):
            self._answered, self._streak = (unit, rows[:1]), 0
        elif len(rows) == 1:
            self._streak += 1
            if self._streak % self._attempts == 0:
                self.require_answer(answer.reason)

    def require_answer(self, reason: str) -> None:
        """Require that the teacher answers one row.

        Raises:
            LabelError: the teacher answers none of `attempts` rows, or not the row that it has answered before.
        """
        witnesses = self._witnesses()
        for unit, rows in witnesses:
            answer = self._teacher.answer(unit, rows, deaths=1)
            if not isinstance(answer, Failure):
                self._answered = self._answered or (unit, rows)
                return
            reason = answer.reason
        # Fewer than `attempts` rows prove nothing: they may be the last rows of a store, and bad.
        if len(witnesses) >= self._attempts:
            known = self._good is not None or self._answered is not None
            raise LabelError(
                f"the teacher {self._model} fails on {'a row that it has answered before' if known else 'every row'}, "
                f"{len(witnesses)} times of {len(witnesses)}: {reason}. The teacher or its machine is at fault and not "
                "the rows, so no row was put in quarantine; correct that (check labels.resources and labels.failures) "
                "and run again"
            )

    def _witnesses(self) -> list[tuple[str, Rows]]:
        """Return rows to try: an answered row, repeatedly, or else rows of the failed units."""
        if self._answered is not None:
            return [self._answered] * self._attempts
        if self._good is not None:
            plan = self._teacher.plan(self._good)
            if plan.batches:
                return [(self._good, plan.batches[0][:1])] * self._attempts
        return spread_rows([(unit, self._teacher.plan(unit)) for unit in self._failed], self._attempts)


def spread_rows(plans: Sequence[tuple[str, Plan]], count: int) -> list[tuple[str, Rows]]:
    """Return up to ``count`` rows, spread over all units and lengths."""
    each = [(unit, np.concatenate([np.zeros(0, np.int64), *plan.batches])) for unit, plan in plans]
    chosen = [(unit, rows[at * len(rows) // count :][:1]) for at in range(count) for unit, rows in each if len(rows)]
    distinct = {(unit, int(rows[0])): (unit, rows) for unit, rows in chosen}
    return list(distinct.values())[:count]


@dataclass(frozen=True, kw_only=True)
class IsolatedActor:
    """A `TeacherActor` without a death counter, as the driver calls it."""

    actor: ActorHandle

    def ready(self) -> None:
        """Wait until the teacher is loaded.

        There is no limit here: the process limits its own loading, and may first wait for its resources.
        """
        ray.get(self.actor.ready.remote())

    def plan(self, unit: str, *, seconds: float) -> Plan:
        """Call `TeacherActor.plan`."""
        plan: Plan = ray.get(self.actor.plan.remote(unit), timeout=seconds)
        return plan

    def answer(self, unit: str, rows: Rows, *, seconds: float) -> pa.Table | Failure:
        """Call `TeacherActor.answer`."""
        answer: pa.Table | Failure = ray.get(self.actor.answer.remote(unit, rows), timeout=seconds)
        return answer

    def kill(self) -> None:
        """End the process."""
        ray.kill(self.actor)


class IsolatedTeacher:
    """A teacher in a separate, replaceable process; every call has a time limit."""

    def __init__(self, job: TeacherJob, kind: type[TeacherActor[Any, Any]]):
        self.job = job
        self._kind = kind
        self._actor: IsolatedActor | None = None

    def answer(self, unit: str, rows: Rows, deaths: int) -> pa.Table | Failure:
        """Return the answer of one batch; try ``deaths`` times if the batch kills the process."""
        answer = self._once(unit, rows)
        for _ in range(deaths - 1):
            if not isinstance(answer, Failure) or answer.kind != "died":
                break
            answer = self._once(unit, rows)
        return answer

    def plan(self, unit: str) -> Plan:
        """Return how a unit is answered."""
        left = self.job.failures.attempts
        while True:
            try:
                return self._ready().plan(unit, seconds=self.job.failures.load_seconds)
            except RayActorError as error:
                self.close()
                left -= 1
                if not left:
                    raise explain(error, "encoding a unit") from error
            except RayError as error:
                raise explain(error, "encoding a unit") from error

    def _once(self, unit: str, rows: Rows) -> pa.Table | Failure:
        # Encode the inputs first: the time limit is for the teacher.
        self.plan(unit)
        seconds = self.job.failures.batch_seconds
        try:
            answer = self._ready().answer(unit, rows, seconds=seconds)
        except GetTimeoutError:
            answer = timed_out(seconds)
        except RayActorError:
            answer = died()
        except RayError as error:
            raise explain(error, "labelling") from error
        if isinstance(answer, Failure) and answer.spent:
            self.close()
        return answer

    def _ready(self) -> IsolatedActor:
        """Return an actor that has loaded the teacher.

        Raises:
            LabelError: the teacher cannot be loaded, or its process died too often while loading it.
        """
        for _ in range(self.job.failures.attempts):
            if self._actor is not None:
                return self._actor
            made = self._start()
            try:
                made.ready()
                self._actor = made
            except RayActorError:
                made.kill()
            except RayError as error:
                raise explain(error, "loading the teacher") from error
        if self._actor is None:
            raise LabelError(
                f"the teacher {self.job.teacher.model} cannot be loaded: the process died "
                f"{self.job.failures.attempts} times in a row while it loaded the teacher"
            )
        return self._actor

    def _start(self) -> IsolatedActor:
        resources = self.job.resources
        options = environment(self.job.teacher)
        made = ray.remote(self._kind).options(
            num_cpus=resources.cpus, num_gpus=resources.gpus, max_restarts=0, **options
        )
        return IsolatedActor(actor=made.remote(self.job))

    def close(self) -> None:
        """End the process."""
        if self._actor is not None:
            self._actor.kill()
            self._actor = None
