"""When a trial is hopeless: asynchronous successive halving in its stopping form (Li et al. 2020, arXiv 1810.05934).

Nobody waits for anybody: a trial that reaches a rung is held against those that have reached it before, and goes on if
it is among the best share of them, itself counted, rounded up. So the first always goes on, and a good trial that
comes late is never stopped for it.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """A trial at a rung."""

    rung: float
    value: float
    place: int
    """1 = the best of those that have reached the rung so far; equal values share a place."""
    of: int
    goes_on: bool


class Rungs:
    """What trials had at each rung."""

    def __init__(self, rungs: Sequence[float], keep: float) -> None:
        """Nobody has reached any of ``rungs`` (epochs, increasing) yet; ``keep`` is the share that goes on."""
        self._keep = keep
        self._found: dict[float, dict[str, float]] = {rung: {} for rung in rungs}

    def restore(self, trial: str, values: Mapping[float, float]) -> None:
        """Take over what a trial had at rungs when they were reached; rungs that are none any more are left out."""
        for rung, value in values.items():
            if rung in self._found:
                self._found[rung][trial] = value

    def report(self, trial: str, epoch: float, value: float) -> list[Judgement]:
        """Judge a trial at each rung that it has reached and not been judged at, up to the first that it fails.

        Args:
            trial: which.
            epoch: passes over its training rows so far.
            value: of the objective; less is better.
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
