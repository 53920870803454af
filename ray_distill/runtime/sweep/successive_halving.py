"""Stop hopeless trials by asynchronous successive halving, in its stopping form.

The rule is of Li et al. 2020 (arXiv 1810.05934). No trial waits for another: a trial that reaches a rung is compared
with the trials that have reached it before, and continues if it is among the best share of them, itself counted,
rounded up. So the first trial at a rung always continues, and a good trial is never stopped for reaching a rung late.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """Comparison of a trial at a rung."""

    rung: float
    value: float
    place: int
    """Rank among the trials that have reached the rung so far, 1 = best; equal values share a place."""
    of: int
    goes_on: bool


class Rungs:
    """Values of the trials at each rung."""

    def __init__(self, rungs: Sequence[float], keep: float) -> None:
        """Create empty ``rungs`` (epochs, increasing); ``keep`` is the share that continues."""
        self._keep = keep
        self._found: dict[float, dict[str, float]] = {rung: {} for rung in rungs}

    def restore(self, trial: str, values: Mapping[float, float]) -> None:
        """Restore a trial's values at the rungs that it reached; ignore rungs that no longer exist."""
        for rung, value in values.items():
            if rung in self._found:
                self._found[rung][trial] = value

    def report(self, trial: str, epoch: float, value: float) -> list[Judgement]:
        """Judge a trial at each newly reached rung, up to the first that it fails.

        Args:
            trial: the trial's key.
            epoch: passes over its training rows so far.
            value: value of the objective; less is better.
        """
        made = []
        for rung, found in self._found.items():
            if rung > epoch or trial in found:
                continue
            found[trial] = value
            place = 1 + sum(other < value for other in found.values())
            made.append(
                Judgement(
                    rung=rung,
                    value=value,
                    place=place,
                    of=len(found),
                    goes_on=place <= math.ceil(self._keep * len(found) - 1e-9),
                )
            )
            if not made[-1].goes_on:
                break
        return made
