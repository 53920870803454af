"""The actor between all running trials of a sweep and the driver, which also compares trials.

Ray imports this module in processes that only pass things on, so it imports nothing heavy.
"""

from collections.abc import Mapping, Sequence

from ray_distill.runtime.sweep.successive_halving import Judgement, Rungs
from ray_distill.runtime.training.outcome_channel import OutcomeChannel, OutcomeChannelHandle


class Coordinator(OutcomeChannel):
    """An outcome channel with rungs; as an actor it does one thing at a time, so judgements have an order."""

    def __init__(self, rungs: Sequence[float], keep: float, known: Mapping[str, Mapping[float, float]]) -> None:
        """``known``: what trials had at their rungs before this command, by trial."""
        super().__init__()
        self._rungs = Rungs(rungs, keep)
        for trial, values in known.items():
            self._rungs.restore(trial, values)

    def judge(self, trial: str, epoch: float, value: float) -> list[Judgement]:
        """See `Rungs.report`."""
        return self._rungs.report(trial, epoch, value)


class CoordinatorHandle(OutcomeChannelHandle):
    """Typed calls of a `Coordinator` actor."""

    def judge(self, trial: str, epoch: float, value: float) -> list[Judgement]:
        """See `Rungs.report`."""
        found: list[Judgement] = self._get(self._actor.judge.remote(trial, epoch, value))
        return found
