"""Compare the trials of a sweep, and find those that no other one dominates."""

import csv
import io
import json
from collections.abc import Sequence
from typing import Any

from ray_distill.artifacts import Artifact, Efficiency, Estimate, Number, StudentRef


class TrialResult(Artifact):
    """One trial."""

    number: int
    name: str
    verdict: str
    """``finished``, ``stopped`` or ``failed``."""
    changes: dict[str, Any]
    """Its changes to the campaign: dotted path to value."""
    metrics: dict[str, Number] = {}
    """On the validation split: of the weights that are kept; of a stopped trial, when it was stopped."""
    headline: Estimate | None = None
    """`SweepResult.headline` with its interval."""
    epoch: float | None = None
    """Passes over the training rows when these were measured."""
    efficiency: Efficiency | None = None
    """Efficiency of a finished trial's student, or of one of the same shape."""
    student: StudentRef | None = None
    reason: str = ""
    """Why it was stopped, or failed."""
    run_id: str = ""
    same_as: int | None = None
    """The trial whose student this one would have trained again, bit for bit."""
    on_frontier: bool = False
    """No trial is as good, as small and as fast, and better in one of these."""


class SweepResult(Artifact):
    """All trials of a sweep, in the order of the configuration, compared on validation only."""

    url: str
    """Folder of the tables, the figures and the page."""
    objective: str
    more_is_better: bool
    trials: tuple[TrialResult, ...]
    best: int
    """Number of the finished trial with the best objective."""
    validation_rows: int
    headline: str = ""
    """Short name of a proportion that is measured on the validation split too, and has an interval; empty if none."""
    notes: tuple[str, ...] = ()
    tracking_uri: str = ""
    run_id: str = ""
    review: str = ""

    @property
    def own(self) -> tuple[TrialResult, ...]:
        """Trials that are not another one's again."""
        return tuple(trial for trial in self.trials if trial.same_as is None)

    @property
    def winner(self) -> TrialResult:
        """The best trial."""
        return self.trials[self.best - 1]

    def count(self, verdict: str) -> int:
        """Return how many trials ended in this way, each student counted once."""
        return sum(trial.verdict == verdict for trial in self.own)


def pareto(points: Sequence[Sequence[float]]) -> list[bool]:
    """Return which points no other one dominates.

    A point dominates another if it is at most as large in every coordinate and smaller in one.

    Equal points do not dominate each other.
    """

    def dominated(point: Sequence[float]) -> bool:
        return any(other != point and all(a <= b for a, b in zip(other, point, strict=True)) for other in rest)

    rest = [tuple(point) for point in points]
    return [not dominated(point) for point in rest]


def mark_frontier(trials: Sequence[TrialResult], objective: str, *, more_is_better: bool) -> tuple[TrialResult, ...]:
    """Mark the finished trials that no other one dominates.

    The criteria are quality, parameters and median latency.
    """
    sign = -1.0 if more_is_better else 1.0
    able = [trial for trial in trials if trial.verdict == "finished" and trial.efficiency is not None]
    points = [
        (sign * trial.metrics[objective], trial.efficiency.parameters, trial.efficiency.latency_ms_p50)
        for trial in able
        if trial.efficiency is not None
    ]
    marked = {trial.number for trial, best in zip(able, pareto(points), strict=True) if best}
    return tuple(trial.with_changes(on_frontier=trial.number in marked) for trial in trials)


def best_of(trials: Sequence[TrialResult], objective: str, *, more_is_better: bool) -> int:
    """Number of the finished trial with the best objective; of equal ones the first."""
    sign = -1.0 if more_is_better else 1.0
    able = [trial for trial in trials if trial.verdict == "finished" and trial.same_as is None]
    return min(able, key=lambda trial: (sign * trial.metrics[objective], trial.number)).number


def compared_with(trials: Sequence[TrialResult], first: str, objective: str, *, more_is_better: bool) -> str:
    """Describe which trials are better than the one of a name; empty if that has not finished.

    Args:
        trials: all of a sweep.
        first: name of the trial that changes nothing.
        objective: the metric by which trials are compared.
        more_is_better: whether a higher value of it is better.
    """
    base = next((one for one in trials if one.name == first and one.verdict == "finished"), None)
    if base is None:
        return ""
    sign, own = -1.0 if more_is_better else 1.0, base.metrics[objective]
    found: dict[str, list[str]] = {"better": [], "not better": [], "stopped": [], "failed": []}
    for one in (one for one in trials if one.number != base.number):
        if one.verdict != "finished":
            found[one.verdict].append(one.name)
            continue
        kind = "better" if sign * one.metrics[objective] < sign * own else "not better"
        found[kind].append(f"{one.name} ({one.metrics[objective]:.4f})")
    words = "; ".join(
        f"{kind}: {', '.join(names) or 'none'}" for kind, names in found.items() if names or kind == "better"
    )
    return f"Tried beside the configured student ({objective} {own:.4f}): {words}."


def paths_of(trials: Sequence[TrialResult]) -> list[str]:
    """Return everything that some trial changes, in the order of its first appearance."""
    return list(dict.fromkeys(path for trial in trials for path in trial.changes))


def to_csv(result: SweepResult) -> str:
    """Write one row a trial: its changes and its results."""
    paths = paths_of(result.trials)
    measured = sorted({name for trial in result.trials for name in trial.metrics})
    speed = ("parameters", "bytes_on_disk", "latency_ms_p50", "latency_ms_p95", "examples_per_second")
    sink = io.StringIO()
    writer = csv.writer(sink, lineterminator="\n")
    writer.writerow(
        [
            "number",
            "name",
            "verdict",
            "same_as",
            "on_frontier",
            *paths,
            *measured,
            "headline_low",
            "headline_high",
            "epoch",
            *speed,
            "student",
            "run_id",
            "reason",
        ]
    )
    for trial in result.trials:
        cells = [getattr(trial.efficiency, name, None) for name in speed]
        writer.writerow(
            [
                trial.number,
                trial.name,
                trial.verdict,
                trial.same_as,
                trial.on_frontier,
                *(_cell(trial.changes.get(path)) for path in paths),
                *(trial.metrics.get(name) for name in measured),
                *(getattr(trial.headline, name, None) for name in ("low", "high")),
                trial.epoch,
                *cells,
                trial.student and trial.student.url,
                trial.run_id,
                trial.reason,
            ]
        )
    return sink.getvalue()


def _cell(value: Any) -> Any:
    return json.dumps(value) if isinstance(value, list | tuple | dict) else value
