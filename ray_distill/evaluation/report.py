"""The review page: one self-contained HTML file, without scripts or anything from elsewhere.

This module turns a report into strings; `report.html.j2` only arranges them. Everything that is not ours is
escaped by the template.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from importlib import resources
from typing import Any

import pyarrow as pa
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup
from matplotlib.figure import Figure

from ray_distill.artifacts import Decision, Estimate, EvalReport
from ray_distill.evaluation import plots
from ray_distill.evaluation.cost import CostReport, StageCost
from ray_distill.evaluation.directions import HIGHER_IS_BETTER
from ray_distill.evaluation.drift import DriftReport

NONE = "–"
_QUALITY: dict[str, tuple[str, int]] = {  # metric: (heading, decimals)
    "accuracy": ("Accuracy", 3), "macro_f1": ("Macro-F1", 3), "nll": ("NLL, nats", 3), "ece": ("ECE", 3),
    "agreement": ("Agreement with teacher", 3), "kl_from_teacher": ("KL from teacher, nats", 3)}
_EFFICIENCY: dict[str, tuple[str, Callable[[Any], str]]] = {
    "parameters": ("Parameters", lambda value: f"{value:,}"),
    "bytes_on_disk": ("On disk, MB", lambda value: f"{value / 1e6:,.2f}"),
    "latency_ms_p50": ("Latency p50, ms", lambda value: f"{value:,.2f}"),
    "latency_ms_p95": ("Latency p95, ms", lambda value: f"{value:,.2f}"),
    "examples_per_second": ("Throughput, examples/s", lambda value: f"{value:,.0f}")}

#: A table as the template draws it: headings, then rows of cells.
Table = dict[str, Any]


def render_report(
    report: EvalReport, *, title: str, classes: Sequence[str], predictions: Mapping[str, pa.Table], bins: int,
    history: plots.History | None = None, decision: Decision | None = None, drift: DriftReport | None = None,
    cost: CostReport | None = None, provenance: Mapping[str, str] | None = None,
) -> str:
    """Render the page.

    Args:
        report: what was measured.
        title: the campaign's name.
        classes: class names in the order of the predictions.
        predictions: by arm, as `judge` got them; the student's makes the confusion matrix.
        bins: of the reliability diagram.
        history: training losses by arm.
        decision: the verdict, once there is one.
        drift: the comparison of snapshots, if one was made.
        cost: the campaign's bill, if it was metered.
        provenance: fingerprints and other facts, by name; the report's and student's own are added.

    Returns:
        HTML, UTF-8 when written.
    """
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(
        resources.files("ray_distill.evaluation").joinpath("report.html.j2").read_text("utf-8"))
    return template.render(
        title=title, decision=decision, tiles=_tiles(report), notes=report.notes, quality=_quality_table(report),
        efficiency=_efficiency_table(report), comparisons=_comparison_table(report), slices=_slice_table(report),
        drift=drift, drift_table=drift and _drift_table(drift), cost=cost, cost_table=cost and _cost_table(cost),
        serving=cost and _serving_table(cost), break_even=cost and _break_even(cost),
        provenance=_provenance(report, provenance or {}),
        figures={name: Markup(plots.figure_svg(figure, name))  # our own SVG, in which matplotlib escaped the text
                 for name, figure in report_figures(report, classes, predictions, bins, history).items()})


def report_figures(
    report: EvalReport, classes: Sequence[str], predictions: Mapping[str, pa.Table], bins: int,
    history: plots.History | None = None,
) -> dict[str, Figure]:
    """All figures that the data allow: ``accuracy``, ``confusion``, ``reliability``, ``loss``, ``robustness``."""
    figures: dict[str, Figure] = {}
    if "accuracy" in report.models["student"].metrics:
        figures["accuracy"] = plots.accuracy_figure(report)
        figures["confusion"] = plots.confusion_figure(predictions["student"], classes)
        figures["reliability"] = plots.reliability_figure(predictions, bins)
    if history:
        figures["loss"] = plots.loss_figure(history)
    if any(model.robustness for model in report.models.values()):
        figures["robustness"] = plots.robustness_figure(report)
    return figures


def _tiles(report: EvalReport) -> list[dict[str, str]]:
    """The headline figures: the student, each beside the teacher's."""
    student, teacher = report.models["student"], report.models.get("teacher")
    metric = "accuracy" if "accuracy" in student.metrics else "agreement"
    tiles = []
    if metric in student.metrics:
        below = f"teacher {_value(teacher.metrics.get(metric), 3)}" if teacher else ""
        tiles.append({"name": metric, "value": _value(student.metrics[metric], 3),
                      "interval": _interval(student.metrics[metric], 3), "below": below})
    for name, (heading, show) in _EFFICIENCY.items():
        if name in ("latency_ms_p95", "bytes_on_disk"):
            continue
        value = getattr(student.efficiency, name)
        below = f"teacher {show(getattr(teacher.efficiency, name))}" if teacher else ""
        tiles.append({"name": heading, "value": show(value), "below": below, "interval": _ratio(report, name)})
    return tiles


def _ratio(report: EvalReport, name: str) -> str:
    """How many times better or worse than the teacher, in words."""
    if "teacher" not in report.models:
        return ""
    ours, theirs = (float(getattr(report.models[arm].efficiency, name)) for arm in ("student", "teacher"))
    if not ours or not theirs:
        return ""
    factor = max(ours / theirs, theirs / ours)
    word = {"parameters": ("larger", "smaller"), "latency_ms_p50": ("slower", "faster"),
            "examples_per_second": ("faster", "slower")}[name][ours < theirs]
    return "same as teacher" if factor < 1.05 else f"{factor:,.1f}× {word}"


def _quality_table(report: EvalReport) -> Table:
    names = [name for name in _QUALITY if any(name in model.metrics for model in report.models.values())]
    rows = []
    for arm in plots.ordered(report.models):
        metrics = report.models[arm].metrics
        cells = [_estimate(metrics.get(name), _QUALITY[name][1]) for name in names]
        rows.append({"name": plots.label(arm), "cells": cells, "strong": arm == "student"})
    return {"headings": ["Model", *(_QUALITY[name][0] for name in names)], "rows": rows}


def _efficiency_table(report: EvalReport) -> Table:
    rows = []
    for arm in plots.ordered(report.models):
        efficiency = report.models[arm].efficiency
        cells = [_cell(show(getattr(efficiency, name))) for name, (_, show) in _EFFICIENCY.items()]
        rows.append({"name": plots.label(arm), "cells": cells, "strong": arm == "student"})
    return {"headings": ["Model", *(heading for heading, _ in _EFFICIENCY.values())], "rows": rows}


def _comparison_table(report: EvalReport) -> Table:
    """Student minus each other model; a cell is good or bad only where its interval excludes 0."""
    arms = [arm for arm in plots.ordered(report.models) if arm != "student"]
    names = [name for name in _QUALITY if any(f"{name}_minus_{arm}" in report.comparisons for arm in arms)]
    rows = []
    for arm in arms:
        cells = [_difference(report.comparisons.get(f"{name}_minus_{arm}"), name) for name in names]
        rows.append({"name": f"minus {plots.label(arm)}", "cells": cells, "strong": False})
    return {"headings": ["Student", *(_QUALITY[name][0] for name in names)], "rows": rows}


def _difference(difference: Estimate | None, name: str) -> dict[str, str]:
    if difference is None:
        return _cell(NONE)
    tone = ""
    if difference.low > 0 or difference.high < 0:
        tone = "good" if (difference.low > 0) == HIGHER_IS_BETTER[name] else "bad"
    return _estimate(difference, _QUALITY[name][1], sign=True, tone=tone)


def _slice_table(report: EvalReport) -> Table | None:
    student = report.models["student"]
    if not student.slices:
        return None
    arms = [arm for arm in plots.ordered(report.models) if report.models[arm].slices]
    rows = []
    for name, metrics in student.slices.items():
        found = [report.models[arm].slices[name].get("accuracy") for arm in arms]
        count = _cell(f"{max(estimate.n for estimate in metrics.values()):,}")
        rows.append({"name": name, "cells": [count, *(_estimate(item, 3) for item in found)], "strong": False})
    return {"headings": ["Slice", "Rows", *(plots.label(arm) for arm in arms)], "rows": rows}


def _drift_table(drift: DriftReport) -> Table:
    rows = [{"name": f"{item.name}: {item.statistic}", "strong": item.alarm, "cells": [
        _cell(f"{item.value:.4f}"), _cell(f"{item.threshold:g}"), _cell(f"{item.p_value:.2g}"),
        _cell("alarm" if item.alarm else "quiet", tone="bad" if item.alarm else ""),
    ]} for item in drift.findings]
    return {"headings": ["Test", "Value", "Threshold", "Adjusted p", "Finding"], "rows": rows}


def _cost_table(cost: CostReport) -> Table:
    rows = [_cost_row(stage) for stage in cost.stages]
    return {"headings": ["Stage", "Wall, s", "Core-hours", "Accelerator-hours", "Written, MB", cost.total.currency],
            "rows": [*rows, {**_cost_row(cost.total), "strong": True}]}


def _cost_row(stage: StageCost) -> dict[str, Any]:
    values = [f"{stage.wall_seconds:,.1f}", f"{stage.core_hours:,.4f}", f"{stage.accelerator_hours:,.4f}",
              f"{stage.bytes_written / 1e6:,.2f}", f"{stage.money:,.4f}"]
    return {"name": stage.stage, "cells": [_cell(value) for value in values], "strong": False}


def _serving_table(cost: CostReport) -> Table:
    rows = [{"name": plots.label(arm), "strong": arm == "student", "cells": [
        _cell(f"{cost.per_million[arm]:,.4f}")]} for arm in plots.ordered(cost.per_million)]
    return {"headings": ["Serving", f"{cost.total.currency} a million requests"], "rows": rows}


def _break_even(cost: CostReport) -> str:
    if cost.break_even_requests is None:
        return "Serving the student is not cheaper than serving the teacher: the campaign never pays for itself."
    return f"The campaign has paid for itself after {cost.break_even_requests:,} requests."


def _provenance(report: EvalReport, facts: Mapping[str, str]) -> dict[str, str]:
    labels = report.student.labels
    return {"report": report.fingerprint, "student": report.student.fingerprint, "student URL": report.student.url,
            "labels": labels.fingerprint, "label store": labels.store, "snapshot": labels.snapshot.fingerprint, **facts}


def _cell(value: str, below: str = "", tone: str = "") -> dict[str, str]:
    return {"value": value, "below": below, "tone": tone}


def _estimate(estimate: Estimate | None, decimals: int, *, sign: bool = False, tone: str = "") -> dict[str, str]:
    return _cell(_value(estimate, decimals, sign=sign), _interval(estimate, decimals, sign=sign), tone)


def _value(estimate: Estimate | None, decimals: int, *, sign: bool = False) -> str:
    return NONE if estimate is None else _number(estimate.value, decimals, sign)


def _interval(estimate: Estimate | None, decimals: int, *, sign: bool = False) -> str:
    if estimate is None or math.isnan(estimate.low) or math.isnan(estimate.high):
        return ""
    return f"{_number(estimate.low, decimals, sign)} … {_number(estimate.high, decimals, sign)}"


def _number(value: float, decimals: int, sign: bool) -> str:
    if math.isnan(value):
        return "not measured"
    text = f"{value:+,.{decimals}f}" if sign else f"{value:,.{decimals}f}"
    return text.replace("-", "−").replace("inf", "∞")
