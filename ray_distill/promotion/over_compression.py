"""Name a student that keeps its answers and not how sure it is of them: compressed too far."""

from ray_distill.artifacts import Calibration, EvalReport
from ray_distill.config import GateConfig
from ray_distill.promotion.leads import ROUNDING, Standing, UnmeasuredError, standing
from ray_distill.promotion.rules import Rule, rules_of
from ray_distill.tasks.catalogue import get_task


def over_compression(report: EvalReport, gate: GateConfig, calibration: Calibration | None) -> str:
    """Return a note on a student that keeps the headline's limits and not those of calibration.

    The margin is the gate's, else the task's. Values count as measured; the verdict states how sure they are.

    Args:
        report: the measured models.
        gate: the rules.
        calibration: how the student's temperature was fitted; None if it is exported as trained.

    Returns:
        Sentences; empty where the student is not such a one, or where that was not measured.
    """
    answers = get_task(report.task).answers
    kept = [rule for rule in rules_of(gate, report.task) if rule.metric == answers.headline and rule.kind != "margin"]
    margin = _margin(report, gate)
    try:
        if margin is None or not kept or not all(_keeps(standing(report, "student", rule)) for rule in kept):
            return ""
        found = standing(report, "student", margin)
    except UnmeasuredError:
        return ""
    if _keeps(found):
        return ""
    doubt = "" if found.lead.broken else ", if not beyond doubt"
    return (
        f"Over-compression: the student keeps the limits of {answers.headline}, and its probabilities are worse than "
        f"the teacher's{doubt}: {found.detail}. {_remedy(calibration)}"
    )


def _margin(report: EvalReport, gate: GateConfig) -> Rule | None:
    name = get_task(report.task).answers.calibration
    own = gate.model_copy(update={"limits": {}})  # the task's defaults alone
    rules = [*rules_of(gate, report.task), *rules_of(own, report.task)]
    return next((rule for rule in rules if (rule.metric, rule.kind) == (name, "teacher_margin")), None)


def _keeps(found: Standing) -> bool:
    return found.lead.value >= -ROUNDING


def _remedy(calibration: Calibration | None) -> str:
    more = "give the student more parameters (student.model) or train it on more rows"
    if calibration is None:
        return f"It is exported as trained (student.calibrate): calibrate it, or {more}."
    if not calibration.rows:
        return f"It has no temperature, because {calibration.reason}: raise snapshot.splits.calibration, or {more}."
    return (
        f"Its temperature, {calibration.temperature:g}, was fitted on {calibration.rows:,} rows and does not repair "
        f"that: {more}; or raise snapshot.splits.calibration."
    )
