"""One actor between all running trials of a sweep and the driver, which is also the place where trials are compared.

Ray imports this module in processes that only pass things on, so it imports nothing heavy.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence

from ray_distill.errors import DistillError
from ray_distill.runtime.sweep.successive_halving import Judgement, Rungs
from ray_distill.runtime.training.metrics_channel import Mailbox, StepMetrics


class Desk:
    """A mailbox a trial, and the rungs; as an actor it does one thing at a time, so judgements have an order."""

    def __init__(self, rungs: Sequence[float], keep: float, known: Mapping[str, Mapping[float, float]]) -> None:
        """``known``: what trials had at their rungs before this command, by trial."""
        self._boxes: dict[str, Mailbox] = defaultdict(Mailbox)
        self._rungs = Rungs(rungs, keep)
        for trial, values in known.items():
            self._rungs.restore(trial, values)

    def judge(self, trial: str, epoch: float, value: float) -> list[Judgement]:
        """See `Rungs.report`."""
        return self._rungs.report(trial, epoch, value)

    def put(self, trial: str, metrics: list[StepMetrics]) -> None:
        """Leave metrics."""
        self._boxes[trial].put(metrics)

    def finish(self, trial: str, students: list[str]) -> None:
        """Leave the result: StudentRefs as JSON."""
        self._boxes[trial].finish(students)

    def fail(self, trial: str, error: DistillError) -> None:
        """Leave an error of ours; the first one stays."""
        self._boxes[trial].fail(error)

    def take(self) -> dict[str, list[StepMetrics]]:
        """Take the metrics that are there, by trial."""
        found = {trial: box.take()[0] for trial, box in self._boxes.items()}
        return {trial: metrics for trial, metrics in found.items() if metrics}

    def outcomes(self) -> dict[str, tuple[list[str] | None, DistillError | None]]:
        """Result and error of every trial that has one of them."""
        found = {trial: box.outcome() for trial, box in self._boxes.items()}
        return {trial: outcome for trial, outcome in found.items() if any(item is not None for item in outcome)}
