"""Count worker deaths by unit, and end a worker that exceeds its time limit.

Ray retries for ever a task whose process died, and must, because a killed worker or a lost node is not the task's
fault. So an actor outside of the dying processes counts units that were begun and never ended, and refuses a unit with
too many deaths to the next process.
"""

import contextlib
import faulthandler
import os
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import ray
from ray.actor import ActorHandle
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from ray_distill.errors import DistillError, LabelError

#: Seconds beyond its limit after which a process that cannot run Python is ended; and seconds for its last report.
GRACE, LAST_REPORT = 5.0, 10.0


class DeathCounter:
    """Count deaths by unit, and deaths while loading; one actor per labelling run."""

    def __init__(self, attempts: int):
        self._attempts = attempts
        self._open: dict[str, str] = {}
        """Units and steps that were begun and not ended, with their actors."""
        self._died: Counter[str] = Counter()
        self._given_up: dict[str, str] = {}
        self._died_beside: Counter[str] = Counter()
        self._answered = False
        self._loading: set[str] = set()
        self._died_loading = 0
        self._error: DistillError | None = None

    def loading(self, actor: str) -> str | None:
        """Note that an actor will load the teacher; return a reason if it must not."""
        for unit in [unit for unit, by in self._open.items() if by == actor]:
            self._count_death(unit)  # Ray restarts an actor under its old name
        self._died_loading += actor in self._loading
        self._loading.add(actor)
        if self._died_loading < self._attempts:
            return None
        return f"the process died {self._died_loading} times in a row while it loaded the teacher"

    def loaded(self, actor: str) -> None:
        """Note that an actor has loaded the teacher, or has reported why it cannot."""
        self._loading.discard(actor)
        self._died_loading = 0

    def _count_death(self, unit: str) -> None:
        self._died[unit] += 1
        del self._open[unit]

    def begin(self, unit: str, actor: str) -> str | None:
        """Note that an actor will answer a unit; return a reason if it must not."""
        if unit in self._open:
            self._count_death(unit)
        if self._died[unit] >= self._attempts:
            self._given_up[unit] = f"the teacher's process died {self._died[unit]} times on the unit"
        if unit in self._given_up:
            return self._given_up[unit]
        failures = self._died.total() + len(self._given_up)
        if not self._answered and failures >= self._attempts:
            return "the teacher has failed on every unit before this one"
        self._open[unit] = actor
        return None

    def done(self, unit: str, answered: bool = False) -> None:
        """Note that the process survived a unit or step, answered or not."""
        self._open.pop(unit, None)
        self._answered = self._answered or answered

    def give_up(self, unit: str, reason: str) -> None:
        """Note that a process will end itself because of a unit, which must not be tried again."""
        self._open.pop(unit, None)
        self._given_up[unit] = reason

    def step(self, name: str) -> str | None:
        """Note that a step beside the teacher begins; return a reason if it must not."""
        if name in self._open:
            self._died_beside[name] += 1
        self._open[name] = ""
        if self._died_beside[name] < self._attempts:
            return None
        return f"the process died {self._died_beside[name]} times"

    def fail(self, error: DistillError) -> None:
        """Store an error of the package that ends the run; the first error is kept."""
        self._error = self._error or error

    def error(self) -> DistillError | None:
        """Return the error that ended the run; Ray Data passes exceptions on as text."""
        return self._error

    def trust(self) -> None:
        """Note that the teacher works, so that failures belong to the units."""
        self._answered = True


@dataclass(frozen=True, kw_only=True)
class Deaths:
    """The `DeathCounter` actor of a run, as workers and the driver call it; picklable."""

    actor: ActorHandle

    def loading(self, actor: str) -> str | None:
        """Call `DeathCounter.loading`."""
        refused: str | None = ray.get(self.actor.loading.remote(actor))
        return refused

    def loaded(self, actor: str) -> None:
        """Call `DeathCounter.loaded`."""
        ray.get(self.actor.loaded.remote(actor))

    def begin(self, unit: str, actor: str) -> str | None:
        """Call `DeathCounter.begin`."""
        refused: str | None = ray.get(self.actor.begin.remote(unit, actor))
        return refused

    def done(self, unit: str, *, answered: bool = False) -> None:
        """Call `DeathCounter.done` without waiting; a lost call counts one death too many."""
        self.actor.done.remote(unit, answered)

    def give_up(self, unit: str, reason: str) -> None:
        """Call `DeathCounter.give_up` within `LAST_REPORT` seconds, because the process will end."""
        with contextlib.suppress(ray.exceptions.RayError):
            ray.get(self.actor.give_up.remote(unit, reason), timeout=LAST_REPORT)

    def step(self, name: str) -> str | None:
        """Call `DeathCounter.step`."""
        refused: str | None = ray.get(self.actor.step.remote(name))
        return refused

    def fail(self, error: DistillError) -> None:
        """Call `DeathCounter.fail`."""
        ray.get(self.actor.fail.remote(error))

    def error(self) -> DistillError | None:
        """Call `DeathCounter.error`; None if the actor does not answer."""
        try:
            error: DistillError | None = ray.get(self.actor.error.remote(), timeout=LAST_REPORT)
        except ray.exceptions.RayError:
            return None
        return error

    def trust(self) -> None:
        """Call `DeathCounter.trust`."""
        ray.get(self.actor.trust.remote())


@contextlib.contextmanager
def counted_deaths(attempts: int) -> Iterator[Deaths]:
    """Start a `DeathCounter` actor on the driver's node, which outlives lost worker nodes."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
    made = (
        ray.remote(DeathCounter)
        .options(num_cpus=0, max_restarts=-1, max_task_retries=-1, scheduling_strategy=here)
        .remote(attempts)
    )
    try:
        yield Deaths(actor=made)
    finally:
        ray.kill(made)


@contextlib.contextmanager
def counted(deaths: Deaths | None, what: str, unit: str) -> Iterator[None]:
    """Count the deaths of a step beside the teacher; ``deaths`` None counts nothing.

    Raises:
        LabelError: the step has killed its process too often.
    """
    if deaths is None:
        yield
        return
    refused = deaths.step(f"{what} ({unit})")
    with reporting(deaths):
        if refused is not None:
            raise LabelError(
                f"{what}: {refused}; check the kernel's log for its out-of-memory killer, give the machine more "
                "memory or make units smaller (labels.unit_bytes)"
            )
        try:
            yield
        finally:
            deaths.done(f"{what} ({unit})")


@contextlib.contextmanager
def reporting(deaths: Deaths) -> Iterator[None]:
    """Report an error of the package to ``deaths`` and raise it.

    The report is needed because Ray Data passes errors on as text.
    """
    try:
        yield
    except DistillError as error:
        deaths.fail(error)
        raise


@contextlib.contextmanager
def limit(seconds: float, report: Callable[[], None], grace: float = GRACE) -> Iterator[None]:
    """End this process if the block exceeds its time limit: native code cannot be interrupted.

    Args:
        seconds: the time limit.
        report: called before the end, from another thread.
        grace: seconds beyond the limit after which the process ends without a report, if the block never releases the
            GIL.
    """
    timer = threading.Timer(seconds, _end, [report])
    timer.daemon = True
    with open(os.devnull, "w") as nowhere:
        faulthandler.dump_traceback_later(seconds + grace, exit=True, file=nowhere)
        timer.start()
        try:
            yield
        finally:
            timer.cancel()
            faulthandler.cancel_dump_traceback_later()


def _end(report: Callable[[], None]) -> None:
    try:
        report()
    finally:
        os._exit(1)
