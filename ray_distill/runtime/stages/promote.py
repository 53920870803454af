"""Run the promotion stage: the gate's verdict, decision chain, registry and review page."""

from collections.abc import Sequence
from datetime import UTC, datetime

from ray_distill.artifacts import Decision, EvalReport, StudentRef, Verdict
from ray_distill.errors import EvaluationError, PromotionError, RegistryRefused
from ray_distill.fingerprint import fingerprint
from ray_distill.models.io.trained import open_trained
from ray_distill.promotion.chain import Entry, read_chain, record_decision
from ray_distill.promotion.gate import decide
from ray_distill.promotion.over_compression import over_compression
from ray_distill.promotion.rules import gate_fingerprint
from ray_distill.runtime.core import console
from ray_distill.runtime.core.session import Session, Stage, user
from ray_distill.runtime.stages import evaluate
from ray_distill.runtime.stages.follow_chain import follow_chain, model_name, tags_of
from ray_distill.runtime.stages.train import absent_arms
from ray_distill.students.export import exported_calibration
from ray_distill.tasks.catalogue import get_task
from ray_distill.text import arm_name, ordered_arms
from ray_distill.tracking.views import DESCRIPTION, TITLE

#: Efficiency figures in the table of the parent run.
_COSTS = ("parameters", "latency_ms_p50")


def promote(session: Session, report: EvalReport) -> Decision:
    """Decide about a report's student.

    The decision chain is written first; registry and page follow it, at once or in a later command.
    """
    try:
        evaluate.check_report(report)
    except EvaluationError as error:
        raise PromotionError(str(error)) from error
    chain_url = session.url("promotion")
    gate = session.config.gate
    key = fingerprint(
        {
            "report": report.fingerprint,
            "gate": gate_fingerprint(gate, report.task),
            "published": [model_name(session), gate.alias],
        }
    )
    if session.done("promote", key) is not None:
        decision = _decided(session, read_chain(chain_url), report)
        if decision is not None:
            console.report(f"promote: already decided, skipped ({decision.verdict})", skipped="promote")
            _verify(session, decision)
            return decision
    with session.stage("promote") as stage:
        decision = _decide(session, report)
        for run in (stage.run, session.parent):
            run.tags({"verdict": str(decision.verdict), "reasons": " ".join(decision.reasons)})
        session.parent.tags({TITLE: f"{decision.verdict} {session.config.campaign}"})
        notes = _over_compression(session, report)
        page = evaluate.publish(session, session.parent, report, decision, more_notes=notes)
        session.parent.tags({DESCRIPTION: summary(report, decision, page, more_notes=notes)})
        console.report(f"promote: {decision.verdict} — {' '.join(decision.reasons)}", verdict=str(decision.verdict))
        registered = _register(session, stage, report, decision)
    if registered:
        session.finish("promote", key, decision.to_dict())
    return decision


def _verify(session: Session, decision: Decision) -> None:
    """Report and repair an alias that does not name the chain's champion."""
    try:
        found = follow_chain(session, move=False)
    except PromotionError as error:
        if decision.verdict is Verdict.PROMOTE:
            raise
        console.report(f"promote: the alias could not be compared with the chain: {error}")
    else:
        if found.repaired or found.wrong:
            console.report(f"promote: {found.repaired or found.wrong}")


def _decide(session: Session, report: EvalReport) -> Decision:
    """Return the decision of the chain about this report; without one, decide and record."""
    chain = read_chain(session.url("promotion"))
    decision = _decided(session, chain, report)
    if decision is None:
        with open_trained(report.student):
            pass  # a student that nobody judged is refused before it is in the chain
        decision = decide(report, session.config.gate, absent_arms(session.config, report.student.labels))
        record_decision(
            session.url("promotion"),
            decision,
            against=judged_against(report, chain),
            who=user(),
            time=datetime.now(UTC),
        )
    return decision


def _decided(session: Session, chain: Sequence[Entry], report: EvalReport) -> Decision | None:
    """Return the newest decision if it is about this report, by these limits; else None."""
    newest = chain[-1].decision if chain else None
    expected = (report.fingerprint, gate_fingerprint(session.config.gate, report.task))
    same = newest is not None and (newest.report_fingerprint, newest.gate_fingerprint) == expected
    return newest if same else None


def judged_against(report: EvalReport, chain: Sequence[Entry]) -> StudentRef | None:
    """Return the champion that the report compared with.

    It is not the current champion, so that a report that is older than a promotion is refused.

    Raises:
        PromotionError: the report's champion is not in this chain.
    """
    judged = report.models.get("champion")
    if judged is None:
        return None
    for entry in reversed(chain):
        if entry.decision.student.url == judged.url:
            return entry.decision.student
    raise PromotionError(
        f"the report compared with the champion {judged.url}, which is not in the decision chain: evaluate again"
    )


def _register(session: Session, stage: Stage, report: EvalReport, decision: Decision) -> bool:
    """Log and register the student, and let the alias follow; return whether all succeeded.

    Raises:
        PromotionError: a student that was promoted is not registered yet; the same command does it later.
    """
    gate, name = session.config.gate, model_name(session)
    try:
        model_uri = evaluate.log_student(session, report)
        if model_uri is None:
            raise PromotionError("MLflow has not recorded the student's model yet; a warning above names the reason")
        more = {"report": report.url, "verdict": str(decision.verdict)}
        version = session.registry.register(model_uri, name=name, tags=tags_of(report.student, **more))
        stage.run.tags({"registered_model": f"{name} version {version}"})
        promoted = decision.verdict is Verdict.PROMOTE
        found = follow_chain(session, move=promoted)
        if not promoted and (found.repaired or found.wrong):
            console.report(f"promote: {found.repaired or found.wrong}")
    except RegistryRefused as error:
        raise RegistryRefused(
            f"the decision {decision.verdict} is in the chain, but the student is not in the registry: {error}; "
            f"correct what it refuses (gate.model_name is {name}, gate.alias is {gate.alias}), then run "
            "`ray-distill promote`: the same command alone cannot repair it"
        ) from error
    except PromotionError as error:
        # The chain records the decision and is authoritative: an unreachable registry loses nothing.
        late = (
            f"the decision {decision.verdict} is in the chain, but the registry could not record it: {error}; run the "
            "command again to repair it"
        )
        if decision.verdict is Verdict.PROMOTE:
            raise PromotionError(late) from error
        console.report(f"promote: {late}")
        return False
    return True


def _over_compression(session: Session, report: EvalReport) -> list[str]:
    """Report a student that was compressed too far; return the note, or nothing."""
    calibration = exported_calibration(report.student.url)
    found = over_compression(report, session.config.gate, calibration)
    if found:
        console.report(f"promote: {found}")
    return [found] if found else []


def summary(report: EvalReport, decision: Decision, page: str, *, more_notes: Sequence[str] = ()) -> str:
    """Return the parent run's Markdown: verdict, reasons, table of the brief metrics, notes."""
    answers = get_task(report.task).answers
    (first, *others), costs = answers.brief, [answers.efficiency[name] for name in _COSTS]
    headings = ["Model", f"{first.heading} (95 % interval)", *(metric.heading for metric in (*others, *costs))]
    lines = [
        f"## {decision.verdict}",
        "",
        *[f"- {reason}" for reason in decision.reasons],
        "",
        f"| {' | '.join(headings)} |",
        "|" + "---|" * len(headings),
    ]
    for arm in ordered_arms(report.models):
        model = report.models[arm]
        main, more = model.metrics.get(first.name), [model.metrics.get(metric.name) for metric in others]
        cells = [
            f"{main.value:.4f} ({main.low:.4f}–{main.high:.4f})" if main else "not measured",
            *(f"{item.value:.4f}" if item else "not measured" for item in more),
            *(metric.show(getattr(model.efficiency, metric.name)) for metric in costs),
        ]
        lines.append(f"| {' | '.join([arm_name(arm), *cells])} |")
    return "\n".join(
        [
            *lines,
            "",
            *[f"- {note}" for note in (*report.notes, *more_notes)],
            "",
            f"Review page: `report.html` ({page})",
        ]
    )
