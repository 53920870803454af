"""The interface between a training loop and the process that started it."""

from collections.abc import Mapping
from typing import Any, Protocol

from ray_distill.errors import TrainingError


class TrainingStopped(TrainingError):
    """Training stopped on request: the state is saved, and a resumed run continues from it."""


class Reporter(Protocol):
    """Receiver of metrics and checkpoints, and source of stop and save requests.

    Every rank calls every method equally often, so an implementation may be collective. Values are the same on all
    ranks, except times (`step_timer.is_measured`), which are each rank's own.
    """

    def metrics(self, arm: str, step: int, values: Mapping[str, float]) -> None:
        """Report the metrics of one step of an arm; steps count from 1.

        A resumed run reports the steps since its checkpoint again. The permanent record of metrics is in the files of
        `curves`, which the loop writes itself.
        """

    def checkpoint(self, value: Mapping[str, Any]) -> None:
        """Report a completed checkpoint, identified by small plain JSON values."""

    def should_stop(self) -> bool:
        """Return whether to save and stop; True on one rank is enough."""

    def should_save(self) -> bool:
        """Return whether to save now, because some rank's node has a preemption notice.

        The loop calls this method every few seconds.
        """


class SilentReporter:
    """Reports nothing and never requests a stop."""

    def metrics(self, arm: str, step: int, values: Mapping[str, float]) -> None:
        """Drop the metrics."""

    def checkpoint(self, value: Mapping[str, Any]) -> None:
        """Drop the checkpoint's values."""

    def should_stop(self) -> bool:
        """Return False."""
        return False

    def should_save(self) -> bool:
        """Return False."""
        return False
