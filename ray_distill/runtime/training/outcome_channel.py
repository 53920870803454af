"""Send results, and errors that end runs, from ranks to the driver through an actor.

Metrics of steps do not pass through the actor: they are files (`students.telemetry.curves`). Ray imports this module in
processes that only forward calls, so it imports no heavy package.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ray_distill.errors import DistillError

if TYPE_CHECKING:
    from ray_distill.runtime.training.prometheus import TrainingGauges

#: Part of the name of a short run that tries a learning rate.
PROBE = "/probe-"
#: Called on the first rank with the step and the metrics of each validation; True = stop.
OnValidation = Callable[[int, Mapping[str, float]], bool]


@dataclass(frozen=True, kw_only=True)
class RunOutcome:
    """Outcome of a run: students, or an error of the package."""

    students: tuple[str, ...] | None = None
    """StudentRefs as JSON."""
    error: DistillError | None = None


class OutcomeChannel:
    """Actor class that stores the outcomes of runs by name."""

    def __init__(self) -> None:
        self._begun: set[str] = set()
        self._outcomes: dict[str, RunOutcome] = {}

    def begin(self, run: str) -> None:
        """Note that a run's ranks are at work."""
        self._begun.add(run)

    def begun(self, run: str) -> bool:
        """Return whether a run's ranks have been at work."""
        return run in self._begun

    def finish(self, run: str, students: tuple[str, ...]) -> None:
        """Store a run's result, unless a rank has failed."""
        self._outcomes.setdefault(run, RunOutcome(students=students))

    def fail(self, run: str, error: DistillError) -> None:
        """Store an error of the package, unless the run has an outcome."""
        self._outcomes.setdefault(run, RunOutcome(error=error))

    def outcomes(self) -> dict[str, RunOutcome]:
        """Return the outcome of every run that has one."""
        return dict(self._outcomes)


class OutcomeChannelHandle:
    """Typed calls of an `OutcomeChannel` actor, from any process of its cluster.

    Raises:
        ray.exceptions.RayError: from every method that waits, if the actor is gone.
    """

    def __init__(self, actor: Any) -> None:
        self._actor = actor

    def begin(self, run: str) -> None:
        """Note that a run's ranks are at work, without waiting."""
        self._actor.begin.remote(run)

    def begun(self, run: str) -> bool:
        """Return whether a run's ranks have been at work."""
        return bool(self._get(self._actor.begun.remote(run)))

    def finish(self, run: str, students: tuple[str, ...]) -> None:
        """Store a run's result."""
        self._get(self._actor.finish.remote(run, students))

    def fail(self, run: str, error: DistillError) -> None:
        """Store an error of the package; the first error is kept."""
        self._get(self._actor.fail.remote(run, error))

    def outcomes(self) -> dict[str, RunOutcome]:
        """Return the outcome of every run that has one."""
        found: dict[str, RunOutcome] = self._get(self._actor.outcomes.remote())
        return found

    def _get(self, answer: Any) -> Any:
        import ray

        return ray.get(answer)


class RankReporter:
    """The training loop's reporter on a rank that Ray has started.

    Args:
        gauges: set at every step; for the first rank.
        on_validation: called after each validation, except those of short runs that try a rate; for the first rank.
        notices: whether Ray Train runs this rank, and can give preemption notices.
    """

    def __init__(
        self,
        *,
        gauges: "TrainingGauges | None" = None,
        on_validation: OnValidation | None = None,
        notices: bool = False,
    ) -> None:
        self._gauges, self._on_validation, self._notices = gauges, on_validation, notices
        self._stop = False
        self._noticed: list[str] = []

    def metrics(self, arm: str, step: int, values: Mapping[str, float]) -> None:
        """Set the gauges; after a validation, call ``on_validation`` for whether to stop."""
        if self._gauges is not None:
            self._gauges.step(arm, step, values)
        if self._on_validation is not None and "epoch" in values and not self._stop and PROBE not in arm:
            self._stop = self._on_validation(step, values)

    def checkpoint(self, value: Mapping[str, Any]) -> None:
        """Do nothing: the checkpoint is in the campaign's storage, and Ray does not record it.

        Ray keeps no report without a checkpoint of its own, and collects a report when it next polls its workers, a
        second or two later; every rank would wait for that.
        """

    def should_stop(self) -> bool:
        """Return whether ``on_validation`` stopped the run; a driver's end itself ends its ranks."""
        return self._stop

    def should_save(self) -> bool:
        """Return whether Ray has a new preemption notice for a node of the ranks.

        The run continues: when the node is lost, Ray Train restarts the ranks where there is room.
        """
        if not self._notices:
            return False
        import ray.train

        notice = ray.train.get_preemption_info()
        if notice is None or notice.preempted_node_ids == self._noticed:
            return False
        self._noticed = notice.preempted_node_ids
        return True
