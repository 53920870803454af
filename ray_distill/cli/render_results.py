"""Render results for a terminal."""

from ray_distill.artifacts import Estimate, EvalReport
from ray_distill.evaluation.measures.cost import paid_in_words
from ray_distill.evaluation.report.assemble import unsteady_arms
from ray_distill.evaluation.sweep.compare import SweepResult
from ray_distill.labels.tools.audit import AuditReport
from ray_distill.labels.tools.live_agreement import Agreement, Distance
from ray_distill.runtime.campaign import CampaignResult
from ray_distill.runtime.core.console import table
from ray_distill.storage import files
from ray_distill.tasks.catalogue import get_task
from ray_distill.tasks.metrics import Metric
from ray_distill.text import NONE, arm_name, byte_size, estimate, number, ordered_arms
from ray_distill.tracking.none import NullTracker
from ray_distill.tracking.views import ui_command


def show_report(report: EvalReport) -> str:
    """Render a table of the models, their brief metrics and costs, then the report's notes."""
    answers = get_task(report.task).answers
    first, *others = answers.brief
    rows = []
    for arm in ordered_arms(report.models):
        model = report.models[arm]
        rows.append(
            {"": arm_name(arm), f"{first.short} (95 % interval)": _estimate(model.metrics.get(first.name))}
            | {metric.short: _value(model.metrics.get(metric.name)) for metric in others}
            | {metric.short: _cost(metric, model.figure(metric.name)) for metric in answers.efficiency.metrics}
        )
    return "\n".join([table(rows), "", *report.notes])


def show_campaign(result: CampaignResult) -> str:
    """Render a campaign's outcome: models, verdict, costs, URLs, and the command for the review."""
    costs, decision = result.costs, result.decision
    money = f"{costs.total.money:.4f} {costs.total.currency}"
    paid = paid_in_words(costs, busy=bool(unsteady_arms(result.report)))
    page = files.join(result.report.url.rpartition("/")[0], "report.html")
    return "\n".join(
        [
            "",
            show_report(result.report),
            "",
            f"verdict   {decision.verdict}",
            *[f"          {reason}" for reason in decision.reasons],
            f"cost      {money}, {costs.total.wall_seconds:,.0f} s; {paid}",
            f"labels    {result.labels.store} ({result.labelled['rows']:,.0f} rows of this snapshot; the store has "
            f"{byte_size(int(result.labelled['bytes']))})",
            f"student   {result.report.student.url}",
            f"report    {page}",
            *_review(result.tracking_uri, result.review),
        ]
    )


def show_sweep(result: SweepResult) -> str:
    """Render a table of a sweep's trials, the best trial and the URLs."""
    rows = []
    for trial in result.trials:
        cost, value = trial.efficiency, trial.metrics.get(result.objective)
        rows.append(
            {
                "trial": f"{trial.number} {trial.name}",
                "verdict": trial.verdict if trial.same_as is None else f"as {trial.same_as}",
                result.objective: NONE if value is None else f"{value:.4f}",
                **(
                    {f"{result.headline} (95 % interval)": NONE if trial.headline is None else estimate(trial.headline)}
                    if result.headline
                    else {}
                ),
                "parameters": NONE if cost is None else f"{cost.parameters:,}",
                "p50 ms": NONE if cost is None else f"{cost.latency_ms_p50:.2f}",
                "frontier": "●" if trial.on_frontier else "",
            }
        )
    return "\n".join(
        [
            "",
            table(rows),
            "",
            *result.notes,
            f"best      {result.best} {result.winner.name}",
            f"page      {files.join(result.url, 'sweep.html')}",
            f"next      ray-distill run {files.join(result.url, 'best.yaml')}",
            *_review(result.tracking_uri, result.review),
        ]
    )


def _review(tracking_uri: str, address: str) -> list[str]:
    """Return the command that opens the tracking UI, and the address of the runs in it."""
    if tracking_uri == NullTracker.uri:
        return ["review    nothing was recorded, because tracking is off"]
    return [f"review    {ui_command(tracking_uri)}", f"          then {address}"]


def show_audit(report: AuditReport) -> str:
    """Render an audit as lines of name and value, then every problem."""
    found = report.to_dict()
    details = found.pop("details")
    lines = [f"{name:<12}{value}" for name, value in found.items()]
    for kind, names in details.items():
        if isinstance(names, list | tuple):
            lines += [f"{kind}: {name}" for name in names]
        elif isinstance(names, dict):
            lines += [f"{kind}: {name}: {reason}" for name, reason in names.items()]
    if report.missing or report.corrupt:
        lines.append(
            "restore what is missing or corrupt from a copy; without one, set labels.store to a new folder, such as "
            f"{report.store}-2, and label again"
        )
    if report.too_many:
        lines.append(
            f"nothing was deleted: {report.too_many:,} files that no record names are more than a crash leaves. If the "
            "log is whole, `--clean --yes` deletes them"
        )
    return "\n".join(lines)


def show_agreement(found: Agreement) -> str:
    """Render the comparison of a sample labelled again, in the format of `show_audit`."""
    lines = [
        f"live        {found.rows} rows labelled again, {len(found.disagree)} disagree",
        _distances("labels", "total variation", found.stored, found.noise),
    ]
    lines += [
        _distances(f"layer {layer}", "relative distance", distances.stored, distances.noise)
        for layer, distances in sorted(found.hidden.items())
    ]
    return "\n".join([*lines, *(f"disagrees: {row}" for row in found.disagree)])


def _distances(what: str, unit: str, stored: Distance, noise: Distance) -> str:
    return (
        f"{what:<12}{unit} from the store {stored.mean:.1e} (at most {stored.largest:.1e}), between two runs of "
        f"the teacher with different batches {noise.mean:.1e} (at most {noise.largest:.1e})"
    )


def _estimate(found: Estimate | None) -> str:
    return "not measured" if found is None else estimate(found)


def _value(found: Estimate | None) -> str:
    return NONE if found is None else number(found.value, 4)


def _cost(metric: Metric, found: Estimate | None) -> str:
    return NONE if found is None else metric.show(found.value)
