"""Between the first rank and the driver: metrics, the result, or the error that ended it.

Ray imports this module in processes that only pass things on, so it imports nothing heavy.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ray_distill.errors import DistillError

if TYPE_CHECKING:
    from ray_distill.runtime.training.prometheus import TrainingGauges

#: A rank sends the metrics of so many steps together, or of those of so many seconds.
SEND_STEPS, SEND_SECONDS = 20, 1.0


@dataclass(frozen=True, kw_only=True)
class StepMetrics:
    """Numbers of one step of an arm."""

    arm: str
    step: int
    values: Mapping[str, float]


class Mailbox:
    """An actor between the first rank and the driver: metrics, the result, or the error that ended it."""

    def __init__(self) -> None:
        self._metrics: list[StepMetrics] = []
        self._students: list[str] | None = None
        self._error: DistillError | None = None
        self._begun = False

    def begin(self) -> None:
        """Say that the ranks are at work."""
        self._begun = True

    def begun(self) -> bool:
        """Whether they have said so."""
        return self._begun

    def put(self, metrics: list[StepMetrics]) -> None:
        """Leave metrics."""
        self._metrics += metrics

    def finish(self, students: list[str]) -> None:
        """Leave the result: StudentRefs as JSON."""
        self._students = students

    def fail(self, error: DistillError) -> None:
        """Leave an error of ours; the first one stays."""
        self._error = self._error or error

    def take(self) -> tuple[list[StepMetrics], bool]:
        """Take the metrics that are there; and whether the result is."""
        metrics, self._metrics = self._metrics, []
        return metrics, self._students is not None

    def outcome(self) -> tuple[list[str] | None, DistillError | None]:
        """The result and the error."""
        return self._students, self._error


class Outbox:
    """Metrics that wait on a rank to be sent together."""

    def __init__(self, send: Callable[[list[StepMetrics]], Any]) -> None:
        self._send, self._waiting = send, list[StepMetrics]()
        self._sent_at = time.monotonic()

    def add(self, arm: str, step: int, values: Mapping[str, float]) -> None:
        """Send a step's numbers, by and by."""
        self._waiting.append(StepMetrics(arm=arm, step=step, values=dict(values)))
        if len(self._waiting) >= SEND_STEPS or time.monotonic() - self._sent_at >= SEND_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Send what is waiting."""
        self._sent_at = time.monotonic()
        if self._waiting:
            self._send(self._waiting)
            self._waiting = []


class MailReporter:
    """The training loop's reporter inside Ray Train; only the first rank sends, and sets ``gauges`` at every step."""

    def __init__(self, mailbox: Any, rank: int, gauges: "TrainingGauges | None" = None):
        self._outbox, self._rank, self._gauges = Outbox(mailbox.put.remote), rank, gauges
        self._noticed: list[str] = []

    def metrics(self, arm: str, step: int, values: Mapping[str, float]) -> None:
        """Send a step's numbers, several steps at a time."""
        if self._rank == 0:
            self._outbox.add(arm, step, values)
            if self._gauges is not None:
                self._gauges.step(arm, step, values)

    def repeat(self, arm: str, step: int, values: Mapping[str, float]) -> None:
        """Send them again: the driver takes the later."""
        if self._rank == 0:
            self._outbox.add(arm, step, values)

    def flush(self) -> None:
        """Send what is waiting."""
        self._outbox.flush()

    def checkpoint(self, value: Mapping[str, Any]) -> None:
        """Send what is waiting: a run that goes on from here takes none of these steps again.

        Ray is not told. It keeps no report without a checkpoint of its own, and takes one when it next looks at its
        workers, a second or two later, for which every rank would wait.
        """
        self.flush()

    def should_stop(self) -> bool:
        """Never: whoever stops the driver stops the ranks, and a resumed run goes on from the last checkpoint."""
        return False

    def should_save(self) -> bool:
        """Whether Ray has been told that one of the ranks' nodes is to go; once for each such notice.

        The run goes on: when the node is gone, Ray Train starts the ranks anew where there is room.
        """
        import ray.train

        notice = ray.train.get_preemption_info()
        if notice is None or notice.preempted_node_ids == self._noticed:
            return False
        self._noticed = notice.preempted_node_ids
        return True
