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
#: It has to be this share of all that was gained since the first validation: a loss near 0 moves by large shares of
#: itself. And what is gained while the rate falls is enough alone if it is the second share of all.
_OF_ALL, _MUCH_OF_ALL = 0.01, 0.05
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
#: Share of the greatest entropy below which the teacher's distributions are almost one class each.
_ONE_HOT = 0.05


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


def diagnose(
    report: EvalReport, curves: Sequence[ArmCurve], *, open_end: bool, teacher_entropy: float = float("nan")
) -> list[str]:
    """Return findings in plain words, each with the setting that would change it.

    Args:
        report: all measures.
        curves: the arms that were trained for it; one without steps has no findings.
        open_end: whether the training had a budget, not epochs.
        teacher_entropy: mean entropy of the teacher's answers as a share of the greatest one; NaN = not known.
    """
    known = {curve.arm: curve for curve in curves if curve.steps and len(curve.judged) > 0}
    unfinished = {arm: gain for arm, curve in known.items() if (gain := _still_gains(curve)) is not None}
    found = [*_unfinished(known, unfinished, open_end=open_end)]
    student = known.get("student")
    if student is not None:
        found += _over_fitted(student)
        found += _few_rows(report, student)
        if "student" not in unfinished:
            found += _small(report, student)
        found += _behind_choices(report, student, entropy=teacher_entropy, unfinished=bool(unfinished))
    return [*found, *_behind_labels(report)]


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
    gain, losses = min(before) - min(after), [loss for _, loss in curve.judged]
    all_gained = max(losses[0] - min(losses), 0.0)
    share = gain / min(before)
    still = share > (_STILL if curve.ended_open else _STILL_FALLING) and gain > _OF_ALL * all_gained
    much = not curve.ended_open and gain > _MUCH_OF_ALL * all_gained
    return share if still or much else None


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


def _few_rows(report: EvalReport, curve: ArmCurve) -> Iterator[str]:
    rows, task = int(curve.facts["training_rows"]), get_task(report.task)
    if rows < _FEW:
        views = " So are views of these rows (snapshot.augment)." if task.inputs.views else ""
        yield (
            f"{_begun(curve.arm)} was trained on {rows} rows, each {curve.passes_at(curve.last):.3g} times: more "
            f"inputs without labels in snapshot.source, which the teacher then labels, are likeliest to help.{views}"
        )


def _small(report: EvalReport, curve: ArmCurve) -> Iterator[str]:
    behind = _is_behind(report, "teacher")
    first = curve.mean_loss(0, min(1.0, 1 / max(curve.passes_at(curve.last), 1)))
    left = curve.mean_loss(0.9, 1) / first if first > 0 else float("nan")
    if behind and left > _LEFT:
        yield (
            f"{_begun(curve.arm)} is behind its teacher, and its training loss stays at {left:.0%} of that of its "
            "first pass although it has stopped improving: it has too little capacity. A larger student.model would "
            "change that, at a higher cost of each answer."
        )


def _behind_choices(report: EvalReport, curve: ArmCurve, *, entropy: float, unfinished: bool) -> Iterator[str]:
    """Yield why the teacher's distributions taught less than its choices did."""
    if not _is_behind(report, "baseline_teacher_hard_labels"):
        return
    temperature = float(curve.facts.get("losses", {}).get("soft", {}).get("temperature", 1.0))
    at = f"at temperature {temperature:g}"
    if unfinished:
        why = "not all arms have converged, and distributions take longer to learn: raise the steps first"
    elif entropy < _ONE_HOT:
        why = (
            f"the teacher's distributions are almost one class each ({entropy:.1%} of the greatest entropy), so that "
            f"they add little {at}: a higher student.losses.soft.temperature, which labels.signal.temperatures must "
            "declare, shows more of them"
        )
    elif temperature > 1:
        why = f"{at} the student spends much on classes that the teacher refuses: a lower one may do better"
    else:
        why = (
            "the teacher's distributions may be wrong where its choices are right: compare its calibration error, and "
            "try other values of student.losses.soft.temperature and student.losses.hard.weight in a sweep"
        )
    yield f"Soft labels taught less than the teacher's hard labels: {why}."


def _behind_labels(report: EvalReport) -> Iterator[str]:
    """Yield why true labels alone taught more."""
    baseline, headline = report.models.get("baseline_hard_labels"), get_task(report.task).answers.headline
    if baseline is None or not _is_behind(report, "baseline_hard_labels"):
        return
    teacher, own = report.models["teacher"].metrics.get(headline), baseline.metrics.get(headline)
    metric = get_task(report.task).answers.metrics[headline]
    weak = (
        teacher is not None
        and own is not None
        and (own.value - teacher.value) * (1 if metric.higher_is_better else -1) > 0
    )
    yield (
        "True labels alone taught more than the teacher: "
        + (
            f"it is itself worse than the student that they made ({metric.in_text} {teacher.value:.3f} against "
            f"{own.value:.3f}): use a better teacher, or none"
            if weak and teacher is not None and own is not None
            else "raise student.losses.hard.weight, so that true labels count more where there are any, or train longer"
        )
        + "."
    )


def _is_behind(report: EvalReport, arm: str) -> bool:
    """Return whether the student is worse than an arm beyond doubt, by the headline."""
    answers = get_task(report.task).answers
    found = report.comparisons.get(f"{answers.headline}_minus_{arm}")
    if found is None:
        return False
    return bool(found.high < 0 if answers.metrics[answers.headline].higher_is_better else found.low > 0)


def _begun(arm: str) -> str:
    name = _called(arm)
    return f"{name[0].upper()}{name[1:]}"


def _called(arm: str) -> str:
    return _NAMES.get(arm, arm)
