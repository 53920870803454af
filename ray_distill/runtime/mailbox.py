"""Between the first rank and the driver: metrics, the result, or the error that ended it.

Ray imports this module in processes that only pass things on, so it imports nothing heavy.
"""

import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import ray
import ray.train

from ray_distill.errors import DistillError, TrainingError

#: Steps of which a rank sends the metrics together.
SEND_STEPS = 20
#: What another attempt would raise again; what a lost peer makes of the others is a RuntimeError and no defect.
DEFECTS = (TypeError, ValueError, LookupError, AttributeError, ImportError, AssertionError, ZeroDivisionError)


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

    def put(self, metrics: list[StepMetrics]) -> None:
        """Leave metrics."""
        self._metrics += metrics

    def finish(self, students: list[str]) -> None:
        """Leave the result: StudentRefs as JSON."""
        self._students = students

    def fail(self, error: DistillError) -> None:
        """Leave an error of ours; the first one stays."""
        self._error = self._error or error

    def take(self) -> list[StepMetrics]:
        """Take what is there."""
        metrics, self._metrics = self._metrics, []
        return metrics

    def outcome(self) -> tuple[list[str] | None, DistillError | None]:
        """The result and the error."""
        return self._students, self._error


class MailReporter:
    """The training loop's reporter inside Ray Train; only the first rank sends."""

    def __init__(self, mailbox: Any, rank: int):
        self._mailbox, self._rank = mailbox, rank
        self._waiting: list[StepMetrics] = []

    def metrics(self, arm: str, step: int, values: Mapping[str, float]) -> None:
        """Send a step's numbers, several steps at a time."""
        if self._rank == 0:
            self._waiting.append(StepMetrics(arm=arm, step=step, values=dict(values)))
            if len(self._waiting) >= SEND_STEPS:
                self.flush()

    def flush(self) -> None:
        """Send what is waiting."""
        if self._waiting:
            self._mailbox.put.remote(self._waiting)
            self._waiting = []

    def checkpoint(self, value: Mapping[str, Any]) -> None:
        """Tell Ray; the checkpoint itself is in our own storage."""
        self.flush()
        ray.train.report(dict(value))

    def should_stop(self) -> bool:
        """Never: whoever stops the driver stops the ranks, and a resumed run goes on from the last checkpoint."""
        return False


def train_rank(config: dict[str, Any]) -> None:
    """What each rank runs, with its process group initialised by Ray Train; ``config["job"]`` is a pickled job."""
    import torch

    from ray_distill.students.run import run_arms

    torch.set_num_threads(config["threads"])
    rank = ray.train.get_context().get_world_rank()
    reporter = MailReporter(config["mailbox"], rank)
    try:
        students = run_arms(pickle.loads(config["job"]), reporter)
    except DistillError as error:
        ray.get(config["mailbox"].fail.remote(error))
        raise
    except DEFECTS as error:
        ray.get(config["mailbox"].fail.remote(TrainingError(f"training failed: {type(error).__name__}: {error}")))
        raise
    finally:
        reporter.flush()
    if rank == 0:
        ray.get(config["mailbox"].finish.remote([student.to_json() for student in students]))
