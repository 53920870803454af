"""Compute the verdict on a student from an evaluation report and the gate's config.

The functions are pure: equal reports and configs give equal verdicts. Each rule of the gate (`rules`) is a *lead* over
its limit (`leads`): a number with a 95 % interval, positive when the student keeps the rule. The truth table of a rule:

    the metric (or the figure it is compared with) is missing, NaN or infinite  REJECT, with the metric's name
    the whole interval breaks the rule                                          REJECT
    the interval straddles the limit, or there is no interval                   HOLD, with the rows that would decide
    the whole interval keeps the rule                                           PROMOTE

The verdict is the worst of the rules, so a student that lies exactly on a limit is promoted with a probability of
about 2.5 %, however many rules there are (4 % at worst in simulations, where nearly every row is right). ``beat``
compares the headline metric of the task's answers and must exceed 0 over the whole interval. ``margin`` is kept where
there is no champion.

A champion that breaks rules itself is named. A rule that it breaks over its whole interval does not stop a student that
beats it beyond doubt on the headline metric and is no worse on the rule's metric (``replace_failing_champion``):
otherwise the gate would keep the worse of two models in production. Other rules and unmeasured figures are not excused.

Efficiency figures are treated as exact.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from ray_distill.artifacts import Decision, EvalReport, Verdict
from ray_distill.config import GateConfig
from ray_distill.errors import PromotionError
from ray_distill.evaluation.measures.power import rows_in_words
from ray_distill.promotion.leads import (
    Lead,
    Standing,
    UnmeasuredError,
    difference,
    lead_over,
    measured,
    sign_of,
    standing,
)
from ray_distill.promotion.rules import Rule, changed_defaults, gate_fingerprint, rules_of, wrong_limits
from ray_distill.tasks.catalogue import get_task
from ray_distill.text import arm_name, estimate

SEVERITY = {Verdict.REJECT: 0, Verdict.HOLD: 1, Verdict.PROMOTE: 2}


@dataclass(frozen=True, kw_only=True)
class Finding:
    """The verdict of one rule, and its reason as a sentence without the full stop."""

    verdict: Verdict
    reason: str


def decide(report: EvalReport, gate: GateConfig, absent: Mapping[str, str] | None = None) -> Decision:
    """Decide what becomes of the report's student.

    Args:
        report: the models that were measured.
        gate: the rules.
        absent: why an arm could not be trained, by arm: a rule to beat it is not in force.

    Returns:
        The worst finding's verdict, and one sentence for each rule in force, the most severe first; then sentences
        about a champion that breaks rules, and about defaults that the gate sets aside.

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
    broken, absent = _broken_by_champion(report, gate), absent or {}
    findings = sorted(_findings(report, gate, broken, absent), key=lambda finding: SEVERITY[finding.verdict])
    if not findings:
        findings = [_hold("the gate has no rules, so nothing is established: set gate.limits or gate.beat")]
    reasons = [*(finding.reason for finding in findings), *_remarks(report, gate, broken)]
    reasons += [absent[arm] for arm in gate.beat if arm in absent]
    return Decision(
        verdict=findings[0].verdict,
        reasons=tuple(f"{reason}." for reason in reasons),
        student=report.student,
        report_fingerprint=report.fingerprint,
        gate_fingerprint=gate_fingerprint(gate, report.task),
    )


def _findings(
    report: EvalReport, gate: GateConfig, broken: Mapping[Rule, Standing], absent: Mapping[str, str]
) -> Iterator[Finding]:
    for rule in rules_of(gate, report.task):
        if rule.kind == "margin" and "champion" not in report.models:
            yield _first_student(report, rule)
            continue
        try:
            found = _judge(standing(report, "student", rule), _unit(report, rule.metric))
        except UnmeasuredError as error:
            yield Finding(verdict=Verdict.REJECT, reason=str(error))
            continue
        if found.verdict is not Verdict.PROMOTE and rule in broken and gate.replace_failing_champion:
            found = _excused(report, rule, found) or found
        yield found
    for arm in gate.beat:
        if arm not in absent:
            yield _beat(report, arm)


def _judge(found: Standing, unit: str) -> Finding:
    detail = f": {found.detail}" if found.detail else ""
    if found.lead.kept:
        return Finding(verdict=Verdict.PROMOTE, reason=f"{found.sentence}{detail}")
    if found.lead.broken:
        return Finding(verdict=Verdict.REJECT, reason=f"{found.sentence}{detail}")
    if math.isnan(found.lead.low) or math.isnan(found.lead.high):
        return _hold(f"{found.sentence}, but has no interval{detail}")
    return _hold(f"{found.sentence}, but not over its whole interval{detail}; {_would_decide(found.lead, unit)}")


def _would_decide(lead: Lead, unit: str) -> str:
    if math.isinf(lead.rows):
        return "no number of rows would decide, because the measured value is the limit itself"
    return f"{rows_in_words(lead.rows, unit)} would decide, if the values stay as measured"


def _first_student(report: EvalReport, rule: Rule) -> Finding:
    try:
        own = measured(report, "student", rule.metric)
    except UnmeasuredError as error:
        return Finding(verdict=Verdict.REJECT, reason=str(error))
    reason = f"{rule.metric} {estimate(own)} is compared with no champion: this student would be the first"
    return Finding(verdict=Verdict.PROMOTE, reason=reason)


def _beat(report: EvalReport, arm: str) -> Finding:
    """Require that the student is better than an arm over the whole interval."""
    name = get_task(report.task).answers.headline
    try:
        found = difference(report, "student", arm, name)
    except UnmeasuredError as error:
        return Finding(verdict=Verdict.REJECT, reason=str(error))
    sign = sign_of(report, name)
    lead, shown = lead_over(found, sign), found.in_words(name, f'that of "{arm_name(arm)}" ({arm})')
    side, does = ("exceed", "exceeds") if sign > 0 else ("be below", "is below")
    if lead.low > 0:
        return Finding(verdict=Verdict.PROMOTE, reason=f"{shown}: its whole interval {does} 0")
    if lead.broken:
        return Finding(verdict=Verdict.REJECT, reason=f"{shown}: the student is worse, the difference must {side} 0")
    if math.isnan(lead.low) or math.isnan(lead.high):
        return _hold(f"{shown}: its whole interval must {side} 0, but it has none")
    return _hold(f"{shown}: its whole interval must {side} 0; {_would_decide(lead, _unit(report, name))}")


def _broken_by_champion(report: EvalReport, gate: GateConfig) -> dict[Rule, Standing]:
    """Return the rules that the champion breaks over its whole interval."""
    found = {}
    for rule in rules_of(gate, report.task):
        if rule.kind == "margin" or "champion" not in report.models:
            continue
        try:
            own = standing(report, "champion", rule)
        except UnmeasuredError:
            continue
        if own.lead.broken:
            found[rule] = own
    return found


def _beats_champion(report: EvalReport) -> str:
    """Return the student's lead over the champion in words if it is beyond doubt, else nothing."""
    name = get_task(report.task).answers.headline
    try:
        found = difference(report, "student", "champion", name)
    except UnmeasuredError:
        return ""
    return found.in_words(name, "the champion's") if lead_over(found, sign_of(report, name)).low > 0 else ""


def _excused(report: EvalReport, rule: Rule, found: Finding) -> Finding | None:
    """Return the finding of a rule that the champion breaks too; None if it stops the student."""
    beats, answers = _beats_champion(report), get_task(report.task).answers
    known = answers.find(rule.metric)
    if not beats or known is None or known.higher_is_better is None:
        return None
    if lead_over(difference(report, "student", "champion", rule.metric), sign_of(report, rule.metric)).value < 0:
        return None
    reason = (
        f"{found.reason}; this does not stop the student, because the champion breaks this rule beyond doubt and the "
        f"student beats it: {beats}"
    )
    return Finding(verdict=Verdict.PROMOTE, reason=reason)


def _remarks(report: EvalReport, gate: GateConfig, broken: Mapping[Rule, Standing]) -> Iterator[str]:
    if broken:
        remedy = (
            "a student that beats it beyond doubt may replace it"
            if gate.replace_failing_champion
            else "gate.replace_failing_champion is off, so a student must keep all rules to replace it"
        )
        found = " and ".join(f"{own.sentence}{f' ({own.detail})' if own.detail else ''}" for own in broken.values())
        yield f"the champion breaks the gate's rules itself: its {found}; {remedy}"
    changed = changed_defaults(gate, report.task)
    if changed:
        yield changed


def _unit(report: EvalReport, name: str) -> str:
    """Return the units that a metric is measured over, as a plural noun."""
    answers = get_task(report.task).answers
    known = answers.find(name)
    return "rows" if known is not None and known.of_teacher and answers.truth != "none" else answers.rows


def _hold(reason: str) -> Finding:
    return Finding(verdict=Verdict.HOLD, reason=reason)
