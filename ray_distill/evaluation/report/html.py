"""The review page: one self-contained HTML file, without scripts or anything from elsewhere.

This module turns a report into strings; `report.html.j2` only arranges them. Everything that is not ours is
escaped by the template.
"""

from collections.abc import Callable, Mapping, Sequence
from importlib import resources
from typing import Any

import pyarrow as pa
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup
from matplotlib.figure import Figure

from ray_distill.artifacts import Decision, Estimate, EvalReport
from ray_distill.evaluation.measures import language_model
from ray_distill.evaluation.measures.classification import read_scores
from ray_distill.evaluation.measures.cost import CostReport, StageCost
from ray_distill.evaluation.measures.drift import DriftReport
from ray_distill.evaluation.predict import harness
from ray_distill.evaluation.predict.side_by_side import Written
from ray_distill.evaluation.report import plots
from ray_distill.evaluation.report.wording import CLASSES, Wording, wording
from ray_distill.tasks.catalogue import get_task
from ray_distill.tasks.metrics import Metric
from ray_distill.text import NONE, arm_name, has_interval, number, ordered_arms

_EFFICIENCY: dict[str, tuple[str, Callable[[Any], str]]] = {
    "parameters": ("Parameters", lambda value: f"{value:,}"),
    "bytes_on_disk": ("On disk, MB", lambda value: f"{value / 1e6:,.2f}"),
    "latency_ms_p50": ("Latency p50, ms", lambda value: f"{value:,.2f}"),
    "latency_ms_p95": ("Latency p95, ms", lambda value: f"{value:,.2f}"),
    "examples_per_second": ("Throughput, examples/s", lambda value: f"{value:,.0f}"),
}

#: The two rates: the second is known of language models alone.
_EXAMPLES, _TOKENS = "examples_per_second", "tokens_per_second"

#: A table as the template draws it: headings, then rows of cells.
Table = dict[str, Any]


def render_report(
    report: EvalReport,
    *,
    title: str,
    classes: Sequence[str],
    predictions: Mapping[str, pa.Table],
    bins: int,
    history: plots.History | None = None,
    decision: Decision | None = None,
    drift: DriftReport | None = None,
    cost: CostReport | None = None,
    provenance: Mapping[str, str] | None = None,
    written: Sequence[Written] = (),
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
        written: what language models wrote, where it was asked for.

    Returns:
        HTML, UTF-8 when written.
    """
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(
        resources.files("ray_distill.evaluation.report").joinpath("report.html.j2").read_text("utf-8")
    )
    words = wording(report)
    return template.render(
        title=title,
        decision=decision,
        words=words,
        tiles=_tiles(report, words),
        notes=report.notes,
        quality=_quality_table(report),
        efficiency=_efficiency_table(report, words),
        benchmarks=_benchmark_table(report),
        comparisons=_comparison_table(report, words),
        slices=_slice_table(report, words),
        drift=drift,
        drift_table=drift and _drift_table(drift),
        cost=cost,
        cost_table=cost and _cost_table(cost),
        serving=cost and _serving_table(cost),
        break_even=cost and _break_even(cost),
        provenance=_provenance(report, provenance or {}),
        written=_written(written),
        figures={
            name: Markup(plots.figure_svg(figure, name))  # our own SVG, in which matplotlib escaped the text
            for name, figure in report_figures(report, classes, predictions, bins, history).items()
        },
    )


def report_figures(
    report: EvalReport,
    classes: Sequence[str],
    predictions: Mapping[str, pa.Table],
    bins: int,
    history: plots.History | None = None,
) -> dict[str, Figure]:
    """All figures that the data allow, by the names of `Wording.captions`."""
    figures, words = _quality_figures(report, classes, predictions, bins), wording(report)
    if history:
        figures["loss"] = plots.loss_figure(history)
    if any(model.robustness for model in report.models.values()):
        figures["robustness"] = plots.robustness_figure(report, words.headline, words.axis)
    return figures


def _quality_figures(
    report: EvalReport, classes: Sequence[str], predictions: Mapping[str, pa.Table], bins: int
) -> dict[str, Figure]:
    words, metrics = wording(report), report.models["student"].metrics
    if words.headline not in metrics:
        return {}
    figures = {words.headline: plots.headline_figure(report, words.headline, words.axis)}
    if words is CLASSES:
        curves = {arm: plots.reliability(read_scores(table).labelled, bins) for arm, table in predictions.items()}
        return figures | {
            "confusion": plots.confusion_figure(predictions["student"], classes),
            "reliability": plots.reliability_figure(curves, bins),
        }
    curves = {
        arm: language_model.reliability(language_model.read_documents(table, bins))
        for arm, table in predictions.items()
    }
    if any(name.startswith("kl_from_teacher_at_") for name in metrics):
        figures["positions"] = plots.positions_figure(report)
    return figures | {"reliability": plots.reliability_figure(curves, bins, words.top)}


def _tiles(report: EvalReport, words: Wording) -> list[dict[str, str]]:
    """The headline figures: the student, each beside the teacher's."""
    student, teacher = report.models["student"], report.models.get("teacher")
    first = [next((name for name in tile if name in student.metrics), None) for tile in words.tiles]
    tiles = [_metric_tile(report, name, tile[name]) for name, tile in zip(first, words.tiles, strict=True) if name]
    left_out = ("latency_ms_p95", "bytes_on_disk", *([_EXAMPLES] if _TOKENS in student.metrics else []))
    for name, (heading, show) in _EFFICIENCY.items():
        if name in left_out:
            continue
        value = getattr(student.efficiency, name)
        below = f"teacher {show(getattr(teacher.efficiency, name))}" if teacher else ""
        tiles.append({"name": heading, "value": show(value), "below": below, "interval": _ratio(report, name)})
    if _TOKENS in student.metrics:
        below = f"teacher {_rate(teacher.metrics.get(_TOKENS))}" if teacher else ""
        tiles.append(
            {
                "name": "Tokens read a second",
                "value": _rate(student.metrics[_TOKENS]),
                "below": below,
                "interval": _ratio(report, _EXAMPLES),
            }
        )
    return tiles


def _metric_tile(report: EvalReport, metric: str, name: str) -> dict[str, str]:
    metrics, teacher = report.models["student"].metrics, report.models.get("teacher")
    below = f"teacher {_value(teacher.metrics.get(metric), 3)}" if teacher else ""
    if metric == "kl_from_teacher":  # of the teacher itself it is 0
        below = f"agreement {_value(metrics.get('agreement'), 3)}"
    return {
        "name": name,
        "value": _value(metrics[metric], 3),
        "interval": _interval(metrics[metric], 3),
        "below": below,
    }


def _written(written: Sequence[Written]) -> list[dict[str, Any]]:
    """Each prompt with the answers in the order of the tables, and what did follow it."""
    return [
        {
            "prompt": item.prompt,
            "answers": [
                *({"name": arm_name(arm), "text": item.answers[arm]} for arm in ordered_arms(item.answers)),
                *([{"name": "What did follow", "text": item.reference}] if item.reference is not None else []),
            ],
        }
        for item in written
    ]


def _ratio(report: EvalReport, name: str) -> str:
    """How many times better or worse than the teacher, in words."""
    if "teacher" not in report.models:
        return ""
    ours, theirs = (float(getattr(report.models[arm].efficiency, name)) for arm in ("student", "teacher"))
    if not ours or not theirs:
        return ""
    factor = max(ours / theirs, theirs / ours)
    word = {
        "parameters": ("larger", "smaller"),
        "latency_ms_p50": ("slower", "faster"),
        "examples_per_second": ("faster", "slower"),
    }[name][ours < theirs]
    return "same as teacher" if factor < 1.05 else f"{factor:,.1f}× {word}"


def _quality_table(report: EvalReport) -> Table:
    table, models = get_task(report.task).answers.metrics.metrics, report.models.values()
    shown = [metric for metric in table if any(metric.name in model.metrics for model in models)]
    rows = []
    for arm in ordered_arms(report.models):
        metrics = report.models[arm].metrics
        cells = [_estimate(metrics.get(metric.name), metric.decimals) for metric in shown]
        rows.append({"name": arm_name(arm), "cells": cells, "strong": arm == "student"})
    return {"headings": ["Model", *(metric.heading for metric in shown)], "rows": rows}


def _efficiency_table(report: EvalReport, words: Wording) -> Table:
    tokens, rows = any(_TOKENS in model.metrics for model in report.models.values()), []
    for arm in ordered_arms(report.models):
        model = report.models[arm]
        cells = [_cell(show(getattr(model.efficiency, name))) for name, (_, show) in _EFFICIENCY.items()]
        cells += [_cell(_rate(model.metrics.get(_TOKENS)))] if tokens else []
        rows.append({"name": arm_name(arm), "cells": cells, "strong": arm == "student"})
    headings = [words.rate if name == _EXAMPLES else heading for name, (heading, _) in _EFFICIENCY.items()]
    return {"headings": ["Model", *headings, *(["Tokens/s"] if tokens else [])], "rows": rows}


def _benchmark_table(report: EvalReport) -> Table | None:
    """One row a figure of lm-evaluation-harness: there may be many; None where there is none."""
    by_arm = {
        arm: {name: found for name, found in report.models[arm].metrics.items() if name.startswith(harness.PREFIX)}
        for arm in ordered_arms(report.models)
    }
    arms = [arm for arm, metrics in by_arm.items() if metrics]
    rows = [
        {
            "name": name.removeprefix(harness.PREFIX),
            "strong": False,
            "cells": [_estimate(by_arm[arm].get(name), 3) for arm in arms],
        }
        for name in dict.fromkeys(name for metrics in by_arm.values() for name in metrics)
    ]
    return {"headings": ["Task and metric", *map(arm_name, arms)], "rows": rows} if rows else None


def _comparison_table(report: EvalReport, words: Wording) -> Table:
    """Student minus each other model; a cell is good or bad only where its interval excludes 0."""
    arms = [arm for arm in ordered_arms(report.models) if arm != "student"]
    tables = get_task(report.task).answers.metrics
    names = [name for name in words.compared if any(f"{name}_minus_{arm}" in report.comparisons for arm in arms)]
    rows = []
    for arm in arms:
        cells = [_difference(report.comparisons.get(f"{name}_minus_{arm}"), tables[name]) for name in names]
        rows.append({"name": f"minus {arm_name(arm)}", "cells": cells, "strong": False})
    return {"headings": ["Student", *(tables[name].heading for name in names)], "rows": rows}


def _difference(difference: Estimate | None, metric: Metric) -> dict[str, str]:
    if difference is None:
        return _cell(NONE)
    tone, better = "", metric.higher_is_better
    if better is not None and (difference.low > 0 or difference.high < 0):
        tone = "good" if (difference.low > 0) == better else "bad"
    return _estimate(difference, metric.decimals, sign=True, tone=tone)


def _slice_table(report: EvalReport, words: Wording) -> Table | None:
    student = report.models["student"]
    if not student.slices:
        return None
    arms = [arm for arm in ordered_arms(report.models) if report.models[arm].slices]
    rows = []
    for name, metrics in student.slices.items():
        found = [report.models[arm].slices[name].get(words.headline) for arm in arms]
        count = _cell(f"{max(estimate.n for estimate in metrics.values()):,}")
        rows.append({"name": name, "cells": [count, *(_estimate(item, 3) for item in found)], "strong": False})
    return {"headings": ["Slice", words.rows, *(arm_name(arm) for arm in arms)], "rows": rows}


def _drift_table(drift: DriftReport) -> Table:
    rows = [
        {
            "name": f"{item.name}: {item.statistic}",
            "strong": item.alarm,
            "cells": [
                _cell(f"{item.value:.4f}"),
                _cell(f"{item.threshold:g}"),
                _cell(f"{item.p_value:.2g}"),
                _cell("alarm" if item.alarm else "quiet", tone="bad" if item.alarm else ""),
            ],
        }
        for item in drift.findings
    ]
    return {"headings": ["Test", "Value", "Threshold", "Adjusted p", "Finding"], "rows": rows}


def _cost_table(cost: CostReport) -> Table:
    rows = [_cost_row(stage) for stage in cost.stages]
    return {
        "headings": ["Stage", "Wall, s", "Core-hours", "Accelerator-hours", "Written, MB", cost.total.currency],
        "rows": [*rows, {**_cost_row(cost.total), "strong": True}],
    }


def _cost_row(stage: StageCost) -> dict[str, Any]:
    values = [
        f"{stage.wall_seconds:,.1f}",
        f"{stage.core_hours:,.4f}",
        f"{stage.accelerator_hours:,.4f}",
        f"{stage.bytes_written / 1e6:,.2f}",
        f"{stage.money:,.4f}",
    ]
    return {"name": stage.stage, "cells": [_cell(value) for value in values], "strong": False}


def _serving_table(cost: CostReport) -> Table:
    rows = [
        {"name": arm_name(arm), "strong": arm == "student", "cells": [_cell(f"{cost.per_million[arm]:,.4f}")]}
        for arm in ordered_arms(cost.per_million)
    ]
    return {"headings": ["Serving", f"{cost.total.currency} a million requests"], "rows": rows}


def _break_even(cost: CostReport) -> str:
    if cost.break_even_requests is None:
        return "Serving the student is not cheaper than serving the teacher: the campaign never pays for itself."
    return f"The campaign has paid for itself after {cost.break_even_requests:,} requests."


def _provenance(report: EvalReport, facts: Mapping[str, str]) -> dict[str, str]:
    labels = report.student.labels
    return {
        "report": report.fingerprint,
        "student": report.student.fingerprint,
        "student URL": report.student.url,
        "labels": labels.fingerprint,
        "label store": labels.store,
        "snapshot": labels.snapshot.fingerprint,
        **facts,
    }


def _cell(value: str, below: str = "", tone: str = "") -> dict[str, str]:
    return {"value": value, "below": below, "tone": tone}


def _estimate(estimate: Estimate | None, decimals: int, *, sign: bool = False, tone: str = "") -> dict[str, str]:
    return _cell(_value(estimate, decimals, sign=sign), _interval(estimate, decimals, sign=sign), tone)


def _rate(estimate: Estimate | None) -> str:
    return NONE if estimate is None else f"{estimate.value:,.0f}"


def _value(estimate: Estimate | None, decimals: int, *, sign: bool = False) -> str:
    return NONE if estimate is None else number(estimate.value, decimals, signed=sign)


def _interval(estimate: Estimate | None, decimals: int, *, sign: bool = False) -> str:
    if estimate is None or not has_interval(estimate):
        return ""
    return f"{number(estimate.low, decimals, signed=sign)} … {number(estimate.high, decimals, signed=sign)}"
