"""Measure by how much a model keeps a rule: its *lead*, positive where the rule is kept.

Leads by kind, for a metric where higher is better (where lower is better the signs change, and ``relative`` divides):

    min L                 model - L
    max L                 L - model
    relative r            model - r · teacher
    teacher_margin m      model - teacher + m
    margin m              model - champion + m
    beat arm              model - arm

Differences are paired where the report has the pair. Without one the two models' own intervals are combined; the result
is wider and therefore cautious.

The interval of ``model - r · teacher`` follows from three intervals of the report, that of the paired difference
``d = model - teacher`` and the two models' own: ``Var(m - r t) = r Var(d) + (1 - r) Var(m) - r (1 - r) Var(t)``, with
half-widths for standard deviations on each side of the estimate (Zou and Donner, Statistics in Medicine 27, 2008).
"""

import math
from dataclasses import dataclass

from ray_distill.artifacts import Estimate, EvalReport
from ray_distill.errors import PromotionError
from ray_distill.evaluation.measures.power import deviation_of, rows_needed
from ray_distill.promotion.rules import Rule
from ray_distill.tasks.catalogue import get_task
from ray_distill.text import estimate, short_number

#: Differences of floats up to this size are rounding errors.
ROUNDING = 1e-9


@dataclass(frozen=True, kw_only=True)
class Lead:
    """The distance by which a model keeps a rule; ``low`` is the cautious end of its interval."""

    value: float
    low: float
    high: float
    n: int

    @property
    def kept(self) -> bool:
        """Whether the whole interval keeps the rule."""
        return self.low >= -ROUNDING

    @property
    def broken(self) -> bool:
        """Whether the whole interval breaks the rule."""
        return self.high < -ROUNDING

    @property
    def rows(self) -> float:
        """Number of rows that would decide if the lead stays as it is; infinite for a lead of 0."""
        half = self.value - self.low if self.value >= 0 else self.high - self.value
        return rows_needed(deviation_of(half, self.n), self.value)


@dataclass(frozen=True, kw_only=True)
class Standing:
    """How a model stands to a rule, as parts of a sentence."""

    lead: Lead
    shown: str
    """The metric with its value and interval."""
    limit: str
    """The value that it must keep."""
    detail: str = ""
    """The difference that decided, where the rule compares two models."""

    @property
    def sentence(self) -> str:
        """Return the standing without its difference: value, verb and limit."""
        return f"{self.shown} {'keeps' if self.lead.value >= -ROUNDING else 'breaks'} {self.limit}"


class UnmeasuredError(PromotionError):
    """A figure that a rule needs is missing or not finite; the message is the reason."""


@dataclass(frozen=True, kw_only=True)
class Difference:
    """One model's metric less another's."""

    estimate: Estimate
    paired: bool

    def in_words(self, name: str, other: str) -> str:
        """Return the two that are compared, their difference, and how it was measured."""
        how = f"on the same {self.estimate.n:,} rows" if self.paired else "not paired"
        return f"{name} minus {other} is {estimate(self.estimate, signed=True)} ({how})"


def standing(report: EvalReport, model: str, rule: Rule) -> Standing:
    """Measure how a model of the report stands to a rule.

    Raises:
        UnmeasuredError: a figure is missing or not finite.
    """
    own = measured(report, model, rule.metric)
    shown = f"{rule.metric} {estimate(own)}"
    if rule.kind == "min":
        lead = Lead(value=own.value - rule.limit, low=own.low - rule.limit, high=own.high - rule.limit, n=own.n)
        return Standing(lead=lead, shown=shown, limit=f"the minimum {rule.limit:g}")
    if rule.kind == "max":
        lead = Lead(value=rule.limit - own.value, low=rule.limit - own.high, high=rule.limit - own.low, n=own.n)
        return Standing(lead=lead, shown=shown, limit=f"the maximum {rule.limit:g}")
    if rule.kind == "relative":
        return _relative(report, model, rule, own)
    return _margin(report, model, rule, own)


def measured(report: EvalReport, model: str, name: str, role: str = "") -> Estimate:
    """Return a model's figure, which is finite.

    Args:
        report: the report.
        model: the arm.
        name: the metric.
        role: why the figure is needed, for the reason; default: nothing.

    Raises:
        UnmeasuredError: it is missing or not finite.
    """
    arm = report.models.get(model)
    found = None if arm is None else arm.figure(name)
    if found is not None and math.isfinite(found.value):
        return found
    state = "is missing from the report" if found is None else f"is {found.value}, not a finite number"
    raise UnmeasuredError(f"the {model}'s {name}{role} {state}: a student is promoted only if it is measured")


def difference(report: EvalReport, model: str, arm: str, name: str) -> Difference:
    """Return a model's metric less another arm's, paired if the report has the pair.

    Raises:
        UnmeasuredError: one of both was not measured.
    """
    own = measured(report, model, name)
    other = measured(report, arm, name, ", with which the student's is compared,")
    paired = None
    if model == "student":
        paired = report.comparisons.get(f"{name}_minus_{arm}")
    elif (model, arm) == ("champion", "teacher"):
        paired = report.champion_minus_teacher.get(name)
    if paired is not None and math.isfinite(paired.value):
        return Difference(estimate=paired, paired=True)
    separate = Estimate(
        value=own.value - other.value, low=own.low - other.high, high=own.high - other.low, n=min(own.n, other.n)
    )
    return Difference(estimate=separate, paired=False)


def lead_over(found: Difference, sign: int, margin: float = 0.0) -> Lead:
    """Return the lead of a difference: ``sign`` is 1 where higher is better, else -1."""
    ends = found.estimate.low, found.estimate.high
    low, high = ends if sign > 0 else (-ends[1], -ends[0])
    return Lead(value=sign * found.estimate.value + margin, low=low + margin, high=high + margin, n=found.estimate.n)


def sign_of(report: EvalReport, name: str) -> int:
    """Return 1 if higher is better, -1 if lower is; `wrong_limits` has refused other metrics."""
    known = get_task(report.task).answers.find(name)
    assert known is not None and known.higher_is_better is not None, name
    return 1 if known.higher_is_better else -1


def _relative(report: EvalReport, model: str, rule: Rule, own: Estimate) -> Standing:
    """Require a share of the teacher's value, or the value over the share if lower is better."""
    sign, shown = sign_of(report, rule.metric), f"{rule.metric} {estimate(own)}"
    if rule.limit == 0:
        lead = Lead(value=0.0, low=0.0, high=0.0, n=own.n)
        return Standing(lead=lead, shown=shown, limit="any value: relative is 0")
    found = difference(report, model, "teacher", rule.metric)
    teacher = measured(report, "teacher", rule.metric)
    factor = rule.limit if sign > 0 else 1 / rule.limit
    value = sign * (own.value - factor * teacher.value)
    worse, better = (_half_width(own, teacher, found, factor=factor, side=side) for side in (-sign, sign))
    share = f"{rule.limit:g} of the teacher's {short_number(teacher.value)}"
    if sign < 0:
        share = f"the teacher's {short_number(teacher.value)} over {rule.limit:g}"
    allowed = short_number((factor - 1) * teacher.value, signed=True)
    compared = found.in_words(rule.metric, "the teacher's")
    return Standing(
        lead=Lead(value=value, low=value - worse, high=value + better, n=found.estimate.n),
        shown=shown,
        limit=f"{short_number(factor * teacher.value)}, which is {share}",
        detail=f"{compared}, {allowed} is allowed",
    )


def _half_width(own: Estimate, teacher: Estimate, found: Difference, *, factor: float, side: int) -> float:
    """Return the reach of the interval of ``own - factor · teacher`` above (1) or below (-1)."""
    half_own, half_teacher = _reach(own, side), _reach(teacher, -side)
    if not found.paired:
        return half_own + factor * half_teacher
    half = _reach(found.estimate, side)
    square = factor * half**2 + (1 - factor) * half_own**2 - factor * (1 - factor) * half_teacher**2
    # Intervals of different methods can disagree by so much that no variance is left.
    return half if square <= 0 else math.sqrt(square)


def _reach(found: Estimate, side: int) -> float:
    return found.high - found.value if side > 0 else found.value - found.low


def _margin(report: EvalReport, model: str, rule: Rule, own: Estimate) -> Standing:
    """Require that the model is not worse than teacher or champion by more than the margin."""
    arm = "champion" if rule.kind == "margin" else "teacher"
    found, sign = difference(report, model, arm, rule.metric), sign_of(report, rule.metric)
    other = measured(report, arm, rule.metric)
    worst, compared = short_number(other.value - sign * rule.limit), found.in_words(rule.metric, f"the {arm}'s")
    return Standing(
        lead=lead_over(found, sign, rule.limit),
        shown=f"{rule.metric} {estimate(own)}",
        limit=f"{worst}, which is the {arm}'s {short_number(other.value)} with a margin of {rule.limit:g}",
        detail=f"{compared}, {-sign * rule.limit:+g} is allowed",
    )
