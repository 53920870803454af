"""How a training loop speaks to whoever started it, without knowing who that is."""

import time
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from ray_distill.errors import TrainingError

#: Seconds of a run's numbers that may still be on their way to where they are kept, or were when it was killed: those
#: that a rank sends together, those that wait for the driver, and those that the driver has not written down.
RECENT_SECONDS = 20.0

#: Numbers of steps as plain JSON: arm, step and values of each.
Told = list[tuple[str, int, dict[str, float]]]


class TrainingStopped(TrainingError):
    """A stop was requested: the state is saved, and a resumed run goes on from it."""


class Reporter(Protocol):
    """Every rank calls every method equally often, so an implementation may be collective. Values are the same on all,
    but for times (`timing.is_measured`), which are each rank's own."""

    def metrics(self, arm: str, step: int, values: Mapping[str, float]) -> None:
        """Numbers of one step of an arm; steps count from 1. A resumed run repeats those since its checkpoint."""

    def repeat(self, arm: str, step: int, values: Mapping[str, float]) -> None:
        """Numbers of a step that was taken before the run was killed, which may have been lost with it."""

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

    def repeat(self, arm: str, step: int, values: Mapping[str, float]) -> None:
        """Drop them."""

    def checkpoint(self, value: Mapping[str, Any]) -> None:
        """Drop it."""

    def should_stop(self) -> bool:
        """Never."""
        return False

    def should_save(self) -> bool:
        """Never."""
        return False


class Remembering:
    """A reporter that knows what it has told lately, so that whatever a killed run may go on from can hold it.

    A rank, its node or the driver may die with numbers that nobody has kept, of steps which no resumed run takes again.
    """

    def __init__(self, reporter: Reporter) -> None:
        self._reporter = reporter
        self._told: deque[tuple[float, tuple[str, int, dict[str, float]]]] = deque()

    @property
    def lately(self) -> Told:
        """What was told in the `RECENT_SECONDS` before the last, in order."""
        return [told for _, told in self._told]

    def metrics(self, arm: str, step: int, values: Mapping[str, float]) -> None:
        """Numbers of one step."""
        self._remember(arm, step, values)
        self._reporter.metrics(arm, step, values)

    def repeat(self, told: Sequence[Sequence[Any]]) -> None:
        """Tell again what a run that was killed had told lately: its `lately`."""
        for arm, step, values in told:
            self._remember(arm, step, values)
            self._reporter.repeat(arm, step, values)

    def checkpoint(self, value: Mapping[str, Any]) -> None:
        """A checkpoint is complete."""
        self._reporter.checkpoint(value)

    def should_stop(self) -> bool:
        """Whether to save and stop."""
        return self._reporter.should_stop()

    def should_save(self) -> bool:
        """Whether to save now."""
        return self._reporter.should_save()

    def _remember(self, arm: str, step: int, values: Mapping[str, float]) -> None:
        now = time.monotonic()
        self._told.append((now, (arm, step, dict(values))))
        while now - self._told[0][0] > RECENT_SECONDS:
            self._told.popleft()
