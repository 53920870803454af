"""Define the actor between a sweep's running trials and the driver; it also compares trials.

Ray imports this module in processes that only forward calls, so it imports no heavy package.
"""

from collections.abc import Mapping, Sequence

from ray_distill.runtime.sweep.successive_halving import Judgement, Rungs
from ray_distill.runtime.training.outcome_channel import OutcomeChannel, OutcomeChannelHandle


class Coordinator(OutcomeChannel):
    """An outcome channel with rungs; its actor makes one judgement at a time, in order."""

    def __init__(self, rungs: Sequence[float], keep: float, known: Mapping[str, Mapping[float, float]]) -> None:
        """Restore ``known``, the values of trials at their rungs before this command, by trial."""
        super().__init__()
        self._rungs = Rungs(rungs, keep)
        for trial, values in known.items():
            self._rungs.restore(trial, values)

    def judge(self, trial: str, epoch: float, value: float) -> list[Judgement]:
        """Call `Rungs.report`."""
        return self._rungs.report(trial, epoch, value)


class CoordinatorHandle(OutcomeChannelHandle):
    """Typed calls of a `Coordinator` actor."""

    def judge(self, trial: str, epoch: float, value: float) -> list[Judgement]:
        """Call `Coordinator.judge`."""
        found: list[Judgement] = self._get(self._actor.judge.remote(trial, epoch, value))
        return found
