"""The interface between a training loop and the process that started it."""

from collections.abc import Mapping
from typing import Any, Protocol

from ray_distill.errors import TrainingError


class TrainingStopped(TrainingError):
    """A stop was requested: the state is saved, and a resumed run goes on from it."""


class Reporter(Protocol):
    """Every rank calls every method equally often, so an implementation may be collective. Values are the same on all,
    but for times (`timing.is_measured`), which are each rank's own."""

    def metrics(self, arm: str, step: int, values: Mapping[str, float]) -> None:
        """Report numbers of one step of an arm; steps count from 1. A resumed run repeats those since its checkpoint.

        What is kept of them are the files of `curves`, which the loop writes itself.
        """

    def checkpoint(self, value: Mapping[str, Any]) -> None:
        """A checkpoint is complete: small plain JSON values that say which."""

    def should_stop(self) -> bool:
        """Whether to save and stop; one rank's yes is enough."""

    def should_save(self) -> bool:
        """Whether to save now, because some rank's machine is about to be taken away. Asked every few seconds."""


class SilentReporter:
    """Reports nothing and never stops."""

    def metrics(self, arm: str, step: int, values: Mapping[str, float]) -> None:
        """Drop them."""

    def checkpoint(self, value: Mapping[str, Any]) -> None:
        """Drop it."""

    def should_stop(self) -> bool:
        """Never."""
        return False

    def should_save(self) -> bool:
        """Never."""
        return False
