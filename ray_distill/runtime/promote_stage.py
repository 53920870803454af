"""The promotion stage: the gate's verdict, the decision chain, the registry, the review page."""

from collections.abc import Sequence
from datetime import UTC, datetime

from ray_distill.artifacts import Decision, EvalReport, StudentRef, Verdict
from ray_distill.errors import PromotionError
from ray_distill.promotion.chain import Entry, check_alias, read_chain, record_decision
from ray_distill.promotion.gate import decide
from ray_distill.runtime import evaluate_stage
from ray_distill.runtime.console import say
from ray_distill.runtime.session import Session, Stage, user
from ray_distill.tracking.views import DESCRIPTION


def promote(held: Session, report: EvalReport) -> Decision:
    """Decide about a report's student. The chain is written first: an alias follows it and can be repaired."""
    gate, chain_url = held.config.gate, held.url("promotion")
    chain = read_chain(chain_url)
    if chain and chain[-1].decision.report_fingerprint == report.fingerprint:
        decision = chain[-1].decision
        say(f"promote: already decided, skipped ({decision.verdict})", skipped="promote")
        return decision
    decision = decide(report, gate)
    with held.stage("promote") as stage:
        record_decision(chain_url, decision, against=judged_against(report, chain), who=user(), time=datetime.now(UTC))
        _register(held, stage, report, decision)
        for run in (stage.run, held.parent):
            run.tags({"verdict": str(decision.verdict), "reasons": " ".join(decision.reasons)})
        page = evaluate_stage.publish(held, held.parent, report, decision)
        held.parent.tags({DESCRIPTION: summary(report, decision, page)})
    say(f"promote: {decision.verdict} — {' '.join(decision.reasons)}", verdict=str(decision.verdict))
    return decision


def judged_against(report: EvalReport, chain: Sequence[Entry]) -> StudentRef | None:
    """The champion the report compared with: not today's, so that a report a promotion has overtaken is refused.

    Raises:
        PromotionError: the report's champion is not in this chain.
    """
    judged = report.models.get("champion")
    if judged is None:
        return None
    for entry in reversed(chain):
        if entry.decision.student.url == judged.url:
            return entry.decision.student
    raise PromotionError(f"the report compared with the champion {judged.url}, which the decision chain does not know: "
                         "evaluate again")


def _register(held: Session, stage: Stage, report: EvalReport, decision: Decision) -> None:
    """Register the student, and let the alias follow the chain; without the server both are left to a later run."""
    last = held.last("evaluate")
    model_uri = None if last is None else last["result"]["model"]
    if model_uri is None:
        say("promote: the student was not logged as a model (the tracking server was away): the decision stands in the "
            "chain; `ray-distill promote` registers it later")
        return
    gate = held.config.gate
    name = gate.model_name or held.config.campaign
    try:
        version = held.registry.register(model_uri, name=name, tags={
            "student": report.student.to_json(), "report": report.url, "verdict": str(decision.verdict)})
        stage.run.tags({"registered_model": f"{name} version {version}"})
        if decision.verdict is Verdict.PROMOTE:
            held.registry.set_alias(name, gate.alias, version)
        _report_alias(held, name, gate.alias)
    except PromotionError as error:
        # The decision is recorded in the chain, which is the truth: a registry that is away loses nothing.
        say(f"promote: the registry could not follow the decision: {error}; run the command again to repair it")


def _report_alias(held: Session, name: str, alias: str) -> None:
    version = held.registry.alias(name, alias)
    text = None if version is None else held.registry.tags(name, version).get("student")
    state = check_alias(read_chain(held.url("promotion")), None if text is None else StudentRef.from_json(text))
    if not state.agree:
        say(f"promote: {state.sentence}")


def summary(report: EvalReport, decision: Decision, page: str) -> str:
    """The parent run's Markdown: verdict, reasons, the models side by side."""
    lines = [f"## {decision.verdict}", "", *[f"- {reason}" for reason in decision.reasons], "",
             "| model | accuracy (95 % interval) | ECE | parameters | latency p50, ms |", "|---|---|---|---|---|"]
    for arm, model in report.models.items():
        accuracy, ece = model.metrics.get("accuracy"), model.metrics.get("ece")
        shown = f"{accuracy.value:.4f} ({accuracy.low:.4f}–{accuracy.high:.4f})" if accuracy else "not measured"
        cost = model.efficiency
        lines.append(f"| {arm} | {shown} | {f'{ece.value:.4f}' if ece else 'not measured'} | {cost.parameters:,} | "
                     f"{cost.latency_ms_p50:.2f} |")
    return "\n".join([*lines, "", *[f"- {note}" for note in report.notes], "", f"Review page: `report.html` ({page})"])
