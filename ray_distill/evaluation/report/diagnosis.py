"""Read the curves of a training for its faults, and the settings that would change them."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ray_distill.artifacts import EvalReport
from ray_distill.tasks.catalogue import get_task
from ray_distill.text import duration

#: Names of arms in a sentence.
_NAMES = {
    "student": "the student",
    "baseline_hard_labels": "the baseline on true labels",
    "baseline_teacher_hard_labels": "the baseline on the teacher's hard labels",
    "ceiling_true_labels": "the ceiling",
}
#: The validation loss by which arms are judged is the first of these that a curve has.
_JUDGED = ("validation_nll", "validation_kl")
#: Share of the loss that has to be gained in the last part of a training for it to be still improving: at the full
#: rate, and where the rate falls meanwhile, which gains something in every training.
_STILL, _STILL_FALLING = 0.05, 0.2
#: Fewest validations in that part, and before it.
_VALIDATIONS = 3
#: That part: the last third of the steps, or of those at the full rate where its fall was decided on the way.
_PART = 2 / 3
#: A best step before this share of the steps, and a loss at the end that is so many times the best, are over-fitting.
_EARLY, _WORSE = 0.7, 1.1
#: Share of the training loss of the first pass that is left where a student has too little capacity to learn more.
_LEFT = 0.5
#: Train rows below which there are few, whatever is trained on them.
_FEW = 500


@dataclass(frozen=True, kw_only=True)
class ArmCurve:
    """The training of one arm."""

    arm: str
    facts: Mapping[str, Any]
    """The facts of its card: rows, steps, passes, best epoch, rate."""
    steps: Mapping[int, Mapping[str, float]]
    """Metrics by step, from 1."""

    @property
    def judged(self) -> list[tuple[int, float]]:
        """Return step and loss of each validation."""
        name = next((one for one in _JUDGED if any(one in values for values in self.steps.values())), "")
        return sorted((step, values[name]) for step, values in self.steps.items() if name in values)

    @property
    def last(self) -> int:
        """Return the last step."""
        return max(self.steps)

    @property
    def ended_open(self) -> bool:
        """Return whether the arm had an open end, and ended at the most steps that it was given."""
        most, falls = self.facts.get("most_steps", 0), self.facts.get("decay_from", self.last)
        return bool(falls < self.last and self.last >= most)

    @property
    def seconds(self) -> float:
        """Return the seconds of its steps."""
        return sum(values.get("seconds_step", 0.0) for values in self.steps.values())

    def passes_at(self, step: float) -> float:
        """Return the passes over its rows after a step."""
        return float(self.facts["passes"]) * step / max(int(self.facts["steps"]), 1)

    def mean_loss(self, begin: float, end: float) -> float:
        """Return the mean training loss between two shares of the steps; NaN = there is none."""
        low, high = begin * self.last, end * self.last
        found = [values["loss"] for step, values in self.steps.items() if low < step <= high and "loss" in values]
        return float(np.mean(found)) if found else float("nan")


def diagnose(report: EvalReport, curves: Sequence[ArmCurve], *, open_end: bool) -> list[str]:
    """Return findings in plain words, each with the setting that would change it.

    Args:
        report: all measures.
        curves: the arms that were trained for it; one without steps has no findings.
        open_end: whether the training had a budget, not epochs.
    """
    known = {curve.arm: curve for curve in curves if curve.steps and len(curve.judged) > 0}
    unfinished = {arm: gain for arm, curve in known.items() if (gain := _still_gains(curve)) is not None}
    found = [*_unfinished(known, unfinished, open_end=open_end)]
    student = known.get("student")
    if student is not None:
        found += _over_fitted(student)
        found += _few_rows(student)
        if "student" not in unfinished:
            found += _small(report, student)
    return found


def _still_gains(curve: ArmCurve) -> float | None:
    """Return the share of the loss that the last part gained; None = it has converged.

    Where the fall of the rate was decided on the way, the training had stopped improving before. Where it ended at its
    most steps, only those at the full rate count, because every fall of the rate gains something.
    """
    falls = int(curve.facts.get("decay_from", curve.last))
    if falls < curve.last and not curve.ended_open:
        return None
    end = falls if curve.ended_open else curve.last
    before = [loss for step, loss in curve.judged if step <= _PART * end]
    after = [loss for step, loss in curve.judged if _PART * end < step <= end]
    if min(len(before), len(after)) < _VALIDATIONS or min(before) <= 0:
        return None
    gain = 1 - min(after) / min(before)
    return gain if gain > (_STILL if curve.ended_open else _STILL_FALLING) else None


def _unfinished(known: Mapping[str, ArmCurve], gains: Mapping[str, float], *, open_end: bool) -> Iterator[str]:
    if not gains:
        return
    setting = "student.training.budget (passes, examples)" if open_end else "student.training.epochs"
    named = ", ".join(f"{_called(arm)} ({gain:.0%} of its loss)" for arm, gain in gains.items())
    longest = max((known[arm] for arm in gains), key=lambda curve: curve.seconds)
    compared = "" if set(gains) == set(known) else "; the verdict compares arms of which not all have converged"
    yield (
        f"Validation losses still fell in the last third of {longest.passes_at(longest.last):.3g} passes: {named}"
        f"{compared}. Raise {setting}: twice the steps take about {duration(longest.seconds)} more for each arm."
    )


def _over_fitted(curve: ArmCurve) -> Iterator[str]:
    # The exported step, not that of the smallest loss, which is luck where losses are noisy.
    step = int(curve.facts.get("best_step", curve.last))
    best, last = dict(curve.judged).get(step, float("nan")), curve.judged[-1][1]
    if step > _EARLY * curve.last or not last >= _WORSE * best:
        return
    before, after = curve.mean_loss(0, step / curve.last), curve.mean_loss(0.9, 1)
    if not after < before:
        return
    yield (
        f"{_begun(curve.arm)} over-fits since step {step} of {curve.last}: its validation loss rose from {best:.3g} to "
        f"{last:.3g} while its training loss went on falling. The weights of that step are exported; more train rows, "
        "or a higher student.training.weight_decay, would let it learn longer."
    )


def _few_rows(curve: ArmCurve) -> Iterator[str]:
    rows = int(curve.facts["training_rows"])
    if rows < _FEW:
        yield (
            f"{_begun(curve.arm)} was trained on {rows} rows, each {curve.passes_at(curve.last):.3g} times: more "
            "inputs without labels in snapshot.source, which the teacher then labels, are likeliest to help."
        )


def _small(report: EvalReport, curve: ArmCurve) -> Iterator[str]:
    answers = get_task(report.task).answers
    loss = report.comparisons.get(f"{answers.headline}_minus_teacher")
    if loss is None:
        return
    higher = answers.metrics[answers.headline].higher_is_better
    behind = loss.high < 0 if higher else loss.low > 0
    first = curve.mean_loss(0, min(1.0, 1 / max(curve.passes_at(curve.last), 1)))
    left = curve.mean_loss(0.9, 1) / first if first > 0 else float("nan")
    if behind and left > _LEFT:
        yield (
            f"{_begun(curve.arm)} is behind its teacher, and its training loss stays at {left:.0%} of that of its "
            "first pass although it has stopped improving: it has too little capacity. A larger student.model would "
            "change that, at a higher cost of each answer."
        )


def _begun(arm: str) -> str:
    name = _called(arm)
    return f"{name[0].upper()}{name[1:]}"


def _called(arm: str) -> str:
    return _NAMES.get(arm, arm)
