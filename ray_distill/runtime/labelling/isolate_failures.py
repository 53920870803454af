"""Label the units that the teacher failed on: batch by batch, watched from outside, down to the row at fault.

One actor of its own, which Ray does not restart. The batches are those of the store's plan, so a unit on which a
failure does not come back has the same bytes as ever.
"""

import contextlib
import functools
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import numpy as np
import pyarrow as pa
import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayError

from ray_distill.errors import LabelError
from ray_distill.labels.model.work_units import Receipt, WorkUnit
from ray_distill.runtime.core.connection import explain, on_cluster
from ray_distill.runtime.core.failures import Answers, Failure, Rows, ask_halving, died, timed_out
from ray_distill.runtime.core.python_envs import environment
from ray_distill.runtime.labelling.encode_write import LabelJob, rejected_table, write_units
from ray_distill.runtime.labelling.label_actors import CarefulActor, Plan, TeacherJob

R = TypeVar("R")


@dataclass(frozen=True, kw_only=True)
class FailedUnit:
    """A unit that the pipeline passed on, and why."""

    unit: WorkUnit
    reason: str

    @property
    def text(self) -> str:
        """The unit as JSON."""
        return json.dumps(self.unit.to_dict())


#: A receipt of a failed unit's answers.
Finish = Callable[[FailedUnit, Plan, Answers[pa.Table]], R]


def relabel(job: LabelJob, failed: Sequence[FailedUnit], good: WorkUnit | None) -> Iterator[Receipt]:
    """Label units that the pipeline could not; rows that fail alone go to quarantine.

    Args:
        job: what to label, and how.
        failed: the units.
        good: a unit that this teacher has answered in this run, if there is one.

    Raises:
        LabelError: the teacher fails on whatever row it is asked, also on one it has answered before: then it is
            not the rows, and none of them is put in quarantine for it.
        ClusterError: a part of Ray failed.
    """
    return carefully(job, failed, good, actor=CarefulActor, finish=functools.partial(_labelled, job))


def carefully(
    job: TeacherJob, failed: Sequence[FailedUnit], good: WorkUnit | None, *, actor: type[Any], finish: Finish[R]
) -> Iterator[R]:
    """Have units answered by an actor of its own; `relabel` says of what.

    Args:
        job: handed to the actor.
        failed: the units.
        good: a unit that this teacher has answered in this run, if there is one.
        actor: has `CarefulActor`'s ``ready``, ``plan`` and ``answer``.
        finish: makes a unit's answers a receipt.
    """
    asker = Asker(job, actor)
    with contextlib.closing(asker):
        suspect = Suspect(asker, job.teacher.model, job.failures.attempts, failed, good)
        suspect.clear(failed[0].reason)
        for one in failed:
            yield _answered(asker, suspect, job, one, finish)


def _answered(asker: "Asker", suspect: "Suspect", job: TeacherJob, one: FailedUnit, finish: Finish[R]) -> R:
    plan = asker.plan(one.text)
    planned = {rows.tobytes() for rows in plan.batches}

    def ask(rows: Rows) -> pa.Table | Failure:
        # A first death may be somebody else's doing; a batch that dies twice may be halved at once, down to one row.
        deaths = job.failures.attempts if len(rows) == 1 else 1 + (rows.tobytes() in planned)
        answer = asker.ask(one.text, rows, deaths)
        suspect.saw(one.text, rows, answer)
        return answer

    return finish(one, plan, ask_halving(plan.batches, ask))


def _labelled(job: LabelJob, one: FailedUnit, plan: Plan, found: Answers[pa.Table]) -> Receipt:
    rejected = [(plan.row_ids[row], failure.reason) for row, failure in sorted(found.failed.items())]
    table = pa.concat_tables(
        [*found.parts, rejected_table(one.unit.unit_id, [*plan.rejected, *rejected])], promote_options="default"
    )
    if found.halved:
        table = table.append_column("halved", pa.array(np.full(len(table), found.halved, dtype=np.int32)))
    written = on_cluster(write_units, table, job=job, units={one.unit.unit_id: one.unit}, what="writing labels")
    return Receipt.from_dict(json.loads(written.column("receipt")[0].as_py()))


class Asking(Protocol):
    """Who asks the teacher; see `Asker`."""

    def plan(self, unit: str) -> Plan:
        """How a unit is to be answered."""

    def ask(self, unit: str, rows: Rows, deaths: int) -> pa.Table | Failure:
        """The answer of one batch."""


class Suspect:
    """The question whether the rows are at fault or the teacher: a row that it must be able to answer decides."""

    def __init__(self, asker: "Asking", model: str, attempts: int, failed: Sequence[FailedUnit], good: WorkUnit | None):
        self._asker, self._model, self._attempts = asker, model, attempts
        self._failed = [one.text for one in failed[:attempts]]
        self._good = None if good is None else json.dumps(good.to_dict())
        self._answered: tuple[str, Rows] | None = None
        self._streak = 0

    def saw(self, unit: str, rows: Rows, answer: pa.Table | Failure) -> None:
        """Take note of an answer; after so many rows in a row that failed alone, the teacher is asked another."""
        if not isinstance(answer, Failure):
            self._answered, self._streak = (unit, rows[:1]), 0
        elif len(rows) == 1:
            self._streak += 1
            if self._streak % self._attempts == 0:
                self.clear(answer.reason)

    def clear(self, reason: str) -> None:
        """Have the teacher answer one row.

        Raises:
            LabelError: it answers none of `attempts` rows, or not the one that it has answered before.
        """
        witnesses = self._witnesses()
        for unit, rows in witnesses:
            answer = self._asker.ask(unit, rows, deaths=1)
            if not isinstance(answer, Failure):
                self._answered = self._answered or (unit, rows)
                return
            reason = answer.reason
        # Fewer rows than that prove nothing: they may be the last of a store, and bad.
        if len(witnesses) >= self._attempts:
            known = self._good is not None or self._answered is not None
            raise LabelError(
                f"the teacher {self._model} fails on {'a row that it has answered before' if known else 'every row'}, "
                f"{len(witnesses)} times of {len(witnesses)}: {reason}. It is the teacher or its machine and not the "
                "rows, so none was put in quarantine for it; mend that (look at labels.resources and labels.failures) "
                "and run again"
            )

    def _witnesses(self) -> list[tuple[str, Rows]]:
        """Rows to ask about: one that was answered, as often as it takes, or else some of the units that failed."""
        if self._answered is not None:
            return [self._answered] * self._attempts
        if self._good is not None:
            plan = self._asker.plan(self._good)
            if plan.batches:
                return [(self._good, plan.batches[0][:1])] * self._attempts
        return spread([(unit, self._asker.plan(unit)) for unit in self._failed], self._attempts)


def spread(plans: Sequence[tuple[str, Plan]], count: int) -> list[tuple[str, Rows]]:
    """Up to ``count`` rows from as many units as there are, and of all lengths."""
    each = [(unit, np.concatenate([np.zeros(0, np.int64), *plan.batches])) for unit, plan in plans]
    chosen = [(unit, rows[at * len(rows) // count :][:1]) for at in range(count) for unit, rows in each if len(rows)]
    distinct = {(unit, int(rows[0])): (unit, rows) for unit, rows in chosen}
    return list(distinct.values())[:count]


class Asker:
    """A teacher in a process of its own, replaced when it is spent; every call is bounded in time."""

    def __init__(self, job: TeacherJob, kind: type[Any] = CarefulActor):
        self._job, self._kind, self._actor = job, kind, None

    def ask(self, unit: str, rows: Rows, deaths: int) -> pa.Table | Failure:
        """The answer of one batch; what kills the process is tried again in a fresh one, ``deaths`` times in all."""
        answer = self._once(unit, rows)
        for _ in range(deaths - 1):
            if not isinstance(answer, Failure) or answer.kind != "died":
                break
            answer = self._once(unit, rows)
        return answer

    def plan(self, unit: str) -> Plan:
        """How a unit is to be answered."""
        left = self._job.failures.attempts
        while True:
            try:
                plan: Plan = ray.get(self._ready().plan.remote(unit), timeout=self._job.failures.load_seconds)
                return plan
            except RayActorError as error:
                self.close()
                left -= 1
                if not left:
                    raise explain(error, "encoding a unit") from error
            except RayError as error:
                raise explain(error, "encoding a unit") from error

    def _once(self, unit: str, rows: Rows) -> pa.Table | Failure:
        # The inputs first: the time limit is for the teacher.
        self.plan(unit)
        seconds = self._job.failures.batch_seconds
        try:
            answer: pa.Table | Failure = ray.get(self._ready().answer.remote(unit, rows), timeout=seconds)
        except GetTimeoutError:
            answer = timed_out(seconds)
        except RayActorError:
            answer = died()
        except RayError as error:
            raise explain(error, "labelling") from error
        if isinstance(answer, Failure) and answer.spent:
            self.close()
        return answer

    def _ready(self) -> Any:
        """An actor that has loaded the teacher.

        Raises:
            LabelError: the teacher cannot be loaded, or its process died so often while loading it.
        """
        for _ in range(self._job.failures.attempts):
            if self._actor is not None:
                return self._actor
            resources = self._job.resources
            made = (
                ray.remote(self._kind)
                .options(
                    num_cpus=resources.cpus, num_gpus=resources.gpus, max_restarts=0, **environment(self._job.teacher)
                )
                .remote(self._job)
            )
            try:
                # Without a limit: the process watches itself while it loads, and may have to wait for its place.
                ray.get(made.ready.remote())
                self._actor = made
            except RayActorError:
                ray.kill(made)
            except RayError as error:
                raise explain(error, "loading the teacher") from error
        if self._actor is None:
            raise LabelError(
                f"the teacher {self._job.teacher.model} cannot be loaded: the process died "
                f"{self._job.failures.attempts} times in a row while it loaded the teacher"
            )
        return self._actor

    def close(self) -> None:
        """End the process."""
        if self._actor is not None:
            ray.kill(self._actor)
            self._actor = None
