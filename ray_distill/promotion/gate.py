"""Compute the verdict on a student from an evaluation report and the gate's config.

The functions are pure: equal reports and configs give equal verdicts. Each rule of the config is a *lead* over its
limit: a number with a 95 % interval, positive when the student keeps the rule. The truth table of a rule:

    the metric (or the figure it is compared with) is missing, NaN or infinite  REJECT, with the metric's name
    the lead's point estimate is negative: the rule is broken                   REJECT
    the point estimate keeps the rule, but the interval's lower end does not,
    or there is no interval                                                     HOLD
    the whole interval keeps the rule                                           PROMOTE

The verdict is the worst of the rules. Rules and their leads, for a metric where higher is better (where lower
is better both sides change sign, and ``relative`` divides):

    min L                 student - L
    max L                 L - student
    relative r            student - r · teacher: paired if the report has the pair
    margin m              student - champion + m: non-inferiority; PROMOTE if there is no champion
    beat arm              student - arm, which must exceed 0: equality is HOLD

``beat`` compares the headline metric of the task's answers. If the config sets no limits, those of the task's
answers apply. Their metric tables define which direction is better.

Efficiency figures are treated as exact. If the report has no paired difference, the two models' own intervals are
combined; the result is wider and therefore cautious.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from ray_distill.artifacts import Decision, Estimate, EvalReport, Verdict
from ray_distill.config import GateConfig, Limit
from ray_distill.config.identity import identity
from ray_distill.errors import PromotionError
from ray_distill.fingerprint import fingerprint
from ray_distill.tasks.catalogue import get_task
from ray_distill.tasks.known_names import unknown_metrics
from ray_distill.text import estimate, short_number

#: Differences of floats up to this size are rounding errors.
ROUNDING = 1e-9
SEVERITY = {Verdict.REJECT: 0, Verdict.HOLD: 1, Verdict.PROMOTE: 2}


@dataclass(frozen=True, kw_only=True)
class Finding:
    """The verdict of one rule, and its reason as a sentence without the full stop."""

    verdict: Verdict
    reason: str


@dataclass(frozen=True, kw_only=True)
class Lead:
    """The distance by which the student keeps a rule, and the cautious end of its interval."""

    value: float
    low: float


def gate_fingerprint(gate: GateConfig, task: str) -> str:
    """Return the fingerprint of a gate's rules, without the place of publication."""
    # The default limits are rules too: if they change, verdicts are computed again.
    limits = {name: identity(limit) for name, limit in limits_of(gate, task).items()}
    return fingerprint({**identity(gate), "limits": limits})


def limits_of(gate: GateConfig, task: str) -> Mapping[str, Limit]:
    """Return the gate's limits, or those of the task's answers if the gate sets none."""
    return gate.limits if gate.limits is not None else get_task(task).answers.limits


def wrong_limits(gate: GateConfig, task: str) -> list[str]:
    """Return one sentence for each limit that does not apply to the task's models."""
    answers, limits = get_task(task).answers, gate.limits or {}
    wrong = unknown_metrics("gate.limits", limits, get_task(task))
    for name, limit in limits.items():
        known = answers.find(name)
        if known is None:
            continue
        if known.higher_is_better is None and (limit.relative is not None or limit.margin is not None):
            wrong.append(
                f"gate.limits.{name}: relative and margin compare with another model, but {name} is best at 0: "
                "use min or max"
            )
    return wrong


def decide(report: EvalReport, gate: GateConfig) -> Decision:
    """Decide what becomes of the report's student.

    Returns:
        The worst finding's verdict, and one sentence per rule, the most severe first.

    Raises:
        PromotionError: the report has no ``student``, or a limit does not apply to the task's models.
    """
    if "student" not in report.models:
        raise PromotionError(
            f"the report {report.url} has no model `student`, only {', '.join(sorted(report.models))}; evaluate again"
        )
    wrong = wrong_limits(gate, report.task)
    if wrong:
        raise PromotionError("\n".join(wrong))
    findings = sorted(_findings(report, gate), key=lambda finding: SEVERITY[finding.verdict])
    rules = gate_fingerprint(gate, report.task)
    if not findings:
        return Decision(
            verdict=Verdict.HOLD,
            reasons=("the gate has no rules, so nothing is established: set gate.limits or gate.beat.",),
            student=report.student,
            report_fingerprint=report.fingerprint,
            gate_fingerprint=rules,
        )
    return Decision(
        verdict=findings[0].verdict,
        reasons=tuple(f"{finding.reason}." for finding in findings),
        student=report.student,
        report_fingerprint=report.fingerprint,
        gate_fingerprint=rules,
    )


def _findings(report: EvalReport, gate: GateConfig) -> Iterator[Finding]:
    for name, limit in limits_of(gate, report.task).items():
        yield from _limit(report, name, limit)
    for arm in gate.beat:
        yield _beat(report, arm, get_task(report.task).answers.headline)


def _limit(report: EvalReport, name: str, limit: Limit) -> Iterator[Finding]:
    student = report.models["student"].figure(name)
    if student is None or not math.isfinite(student.value):
        yield _unmeasured(f"the student's {name}", student)
        return
    shown = f"{name} {estimate(student)}"
    if limit.min is not None:
        lead = Lead(value=student.value - limit.min, low=student.low - limit.min)
        yield _judge(lead, shown, f"the minimum {limit.min:g}")
    if limit.max is not None:
        lead = Lead(value=limit.max - student.value, low=limit.max - student.high)
        yield _judge(lead, shown, f"the maximum {limit.max:g}")
    if limit.relative is not None:
        yield _relative(report, name, student, limit.relative)
    if limit.margin is not None:
        yield _margin(report, name, student, limit.margin)


def _relative(report: EvalReport, name: str, student: Estimate, relative: float) -> Finding:
    """Require a share of the teacher's value.

    If lower is better, require at most the teacher's value divided by the share.
    """
    if relative == 0:
        return Finding(verdict=Verdict.PROMOTE, reason=f"{name} {estimate(student)} may be anything: relative is 0")
    teacher = _metric_of(report, "teacher", name)
    if teacher is None or not math.isfinite(teacher.value):
        return _unmeasured(f"the teacher's {name}, with which the student's is compared,", teacher)
    sign = _sign(report, name)
    factor = relative if sign > 0 else 1 / relative
    limit = factor * teacher.value
    paired = report.comparisons.get(f"{name}_minus_teacher")
    if paired is not None and math.isfinite(paired.value):
        low = _low(paired, sign) + sign * (teacher.value - limit)
    else:
        low = sign * (_end(student, -sign) - factor * _end(teacher, sign))
    rule = f"{short_number(limit)}, which is {relative:g} of the teacher's {short_number(teacher.value)}"
    if sign < 0:
        rule = f"{short_number(limit)}, which is the teacher's {short_number(teacher.value)} over {relative:g}"
    return _judge(Lead(value=sign * (student.value - limit), low=low), f"{name} {estimate(student)}", rule)


def _margin(report: EvalReport, name: str, student: Estimate, margin: float) -> Finding:
    """Require that the student is not worse than the champion by more than the margin."""
    if "champion" not in report.models:
        return Finding(
            verdict=Verdict.PROMOTE,
            reason=f"{name} {estimate(student)} is compared with no champion: this student would be the first",
        )
    champion = _metric_of(report, "champion", name)
    if champion is None or not math.isfinite(champion.value):
        return _unmeasured(f"the champion's {name}, with which the student's is compared,", champion)
    difference, sign = _difference(report, name, arm="champion", student=student, other=champion), _sign(report, name)
    lead = Lead(value=sign * difference.value + margin, low=_low(difference, sign) + margin)
    shown = f"{name} minus the champion's is {estimate(difference, signed=True)}, which"
    return _judge(lead, shown, f"the margin of {-sign * margin:+g}")


def _beat(report: EvalReport, arm: str, name: str) -> Finding:
    """Require that the student is better than an arm over the whole interval."""
    values = {who: _metric_of(report, who, name) for who in ("student", arm)}
    student, other = values["student"], values[arm]
    if student is None or not math.isfinite(student.value):
        return _unmeasured(f"the student's {name}", student)
    if other is None or not math.isfinite(other.value):
        return _unmeasured(f"the {name} of {arm}, which the student must beat,", other)
    difference, sign = _difference(report, name, arm=arm, student=student, other=other), _sign(report, name)
    shown = f"{name} minus that of {arm} is {estimate(difference, signed=True)}"
    side = "exceed" if sign > 0 else "be below"
    if sign * difference.value < 0:
        return Finding(verdict=Verdict.REJECT, reason=f"{shown}: the student is worse, the difference must {side} 0")
    if not _low(difference, sign) > 0:
        return Finding(verdict=Verdict.HOLD, reason=f"{shown}: its whole interval must {side} 0")
    side = "exceeds" if sign > 0 else "is below"
    return Finding(verdict=Verdict.PROMOTE, reason=f"{shown}: its whole interval {side} 0")


def _judge(lead: Lead, shown: str, rule: str) -> Finding:
    if not lead.value >= -ROUNDING:
        return Finding(verdict=Verdict.REJECT, reason=f"{shown} breaks {rule}")
    if math.isnan(lead.low):
        return Finding(verdict=Verdict.HOLD, reason=f"{shown} keeps {rule}, but has no interval")
    if lead.low < -ROUNDING:
        return Finding(verdict=Verdict.HOLD, reason=f"{shown} keeps {rule}, but not over its whole interval")
    return Finding(verdict=Verdict.PROMOTE, reason=f"{shown} keeps {rule}")


def _unmeasured(what: str, found: Estimate | None) -> Finding:
    state = "is missing from the report" if found is None else f"is {found.value}, not a finite number"
    return Finding(verdict=Verdict.REJECT, reason=f"{what} {state}: a student is promoted only if it is measured")


def _difference(report: EvalReport, name: str, *, arm: str, student: Estimate, other: Estimate) -> Estimate:
    """Return student minus arm: paired if reported, else from the two separate intervals."""
    paired = report.comparisons.get(f"{name}_minus_{arm}")
    if paired is not None and math.isfinite(paired.value):
        return paired
    return Estimate(
        value=student.value - other.value,
        low=student.low - other.high,
        high=student.high - other.low,
        n=min(student.n, other.n),
    )


def _metric_of(report: EvalReport, arm: str, name: str) -> Estimate | None:
    model = report.models.get(arm)
    return None if model is None else model.figure(name)


def _sign(report: EvalReport, name: str) -> int:
    """Return 1 if higher is better, -1 if lower is; `wrong_limits` has refused other metrics."""
    known = get_task(report.task).answers.find(name)
    assert known is not None and known.higher_is_better is not None, name
    return 1 if known.higher_is_better else -1


def _low(difference: Estimate, sign: int) -> float:
    """Return the cautious end of a difference, with its sign changed if lower is better."""
    return difference.low if sign > 0 else -difference.high


def _end(estimate: Estimate, sign: int) -> float:
    return estimate.high if sign > 0 else estimate.low
