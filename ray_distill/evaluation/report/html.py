"""The review page: one self-contained HTML file, without scripts or anything from elsewhere.

This module turns a report into strings; `report.html.j2` only arranges them. Everything that is not ours is
escaped by the template.
"""

from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any

import pyarrow as pa
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup
from matplotlib.figure import Figure

from ray_distill.artifacts import Calibration, Decision, Estimate, EvalReport
from ray_distill.evaluation.measures.cost import CostReport, StageCost, paid_in_words
from ray_distill.evaluation.measures.drift import DriftReport
from ray_distill.evaluation.predict.texts import Written
from ray_distill.evaluation.report import plots
from ray_distill.evaluation.report.assemble import unsteady_arms
from ray_distill.evaluation.report.family_page import Tile, Wording, page_of
from ray_distill.evaluation.report.tables import Table, cell, estimate_cell, interval_text, metric_table, value_text
from ray_distill.tasks.catalogue import get_task
from ray_distill.tasks.metrics import Metric
from ray_distill.text import NONE, arm_name, ordered_arms

#: Metrics that are sizes, for "smaller" rather than "faster".
_SIZES = ("parameters", "bytes_on_disk")


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
    more_notes: Sequence[str] = (),
    calibrations: Mapping[str, Calibration] | None = None,
    written: Sequence[Written] = (),
) -> str:
    """Render the page.

    Args:
        report: what was measured.
        title: the campaign's name.
        classes: names of what models choose among, in the order of the predictions; empty where a task has none.
        predictions: by arm, as `judge` received them; the student's at least.
        bins: bins of confidence in the figures.
        history: training losses by arm.
        decision: the verdict, once there is one.
        drift: the comparison of snapshots, if one was made.
        cost: the campaign's bill, if it was metered.
        provenance: fingerprints and other facts, by name; the report's and student's own are added.
        more_notes: findings that follow the report's.
        calibrations: how temperatures were fitted, by arm.
        written: what language models wrote, where ``evaluation.prompts`` is set.

    Returns:
        HTML, UTF-8 when written.
    """
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(
        resources.files("ray_distill.evaluation.report").joinpath("report.html.j2").read_text("utf-8")
    )
    page = page_of(report)
    words = page.WORDING
    return template.render(
        title=title,
        decision=decision,
        words=words,
        tiles=_tiles(report, words),
        notes=[*report.notes, *more_notes],
        calibration=_calibration_table(calibrations or {}),
        quality=_quality_table(report, words),
        efficiency=_efficiency_table(report),
        headline=get_task(report.task).answers.headline,
        sections=page.sections(report, predictions=predictions, names=classes, bins=bins),
        comparisons=_comparison_table(report, words),
        slices=_slice_table(report, words),
        drift=drift,
        drift_table=drift and _drift_table(drift),
        cost=cost,
        cost_table=cost and _cost_table(cost),
        serving=cost and _serving_table(cost),
        break_even=cost and f"The campaign {paid_in_words(cost, busy=bool(unsteady_arms(report)))}.",
        provenance=_provenance(report, provenance or {}),
        written=_written(written),
        figures={
            name: Markup(plots.figure_svg(figure, name))  # our own SVG, in which matplotlib escaped the text
            for name, figure in report_figures(report, classes, predictions, bins=bins, history=history).items()
        },
    )


def report_figures(
    report: EvalReport,
    classes: Sequence[str],
    predictions: Mapping[str, pa.Table],
    *,
    bins: int,
    history: plots.History | None = None,
) -> dict[str, Figure]:
    """Return all figures that the data allow, by the names of `Wording.captions`."""
    page, headline = page_of(report), get_task(report.task).answers.headline
    figures = {}
    if headline in report.models["student"].metrics:
        figures[headline] = plots.headline_figure(report, headline, page.WORDING.axis)
        figures |= page.figures(report, predictions=predictions, names=classes, bins=bins)
    if history:
        figures["loss"] = plots.loss_figure(history)
    if any(model.robustness for model in report.models.values()):
        figures["robustness"] = plots.robustness_figure(report, headline, page.WORDING.axis)
    return figures


def _tiles(report: EvalReport, words: Wording) -> list[dict[str, str]]:
    """Return the headline figures: the student, each beside the teacher's."""
    student, tables = report.models["student"], get_task(report.task).answers
    first = [next((tile for tile in group if tile.metric in student.metrics), None) for group in words.tiles]
    tiles = [_quality_tile(report, tile) for tile in first if tile]
    costs = [
        Tile(metric=name, heading=tables.efficiency[name].heading)
        for name in ("parameters", "latency_ms_p50", "examples_per_second")
    ]
    if words.rate is not None and words.rate.metric in student.metrics:
        costs[-1] = words.rate
    return [*tiles, *(_cost_tile(report, tile) for tile in costs)]


def _quality_tile(report: EvalReport, tile: Tile) -> dict[str, str]:
    metrics, teacher = report.models["student"].metrics, report.models.get("teacher")
    decimals = get_task(report.task).answers.metrics[tile.metric].decimals
    below = f"teacher {value_text(teacher.metrics.get(tile.metric), decimals)}" if teacher else ""
    if tile.below:
        below = f"{tile.below} {value_text(metrics.get(tile.below), 3)}"
    return {
        "name": tile.heading,
        "value": value_text(metrics[tile.metric], decimals),
        "interval": interval_text(metrics[tile.metric], decimals),
        "below": below,
    }


def _cost_tile(report: EvalReport, tile: Tile) -> dict[str, str]:
    metric = get_task(report.task).answers.efficiency[tile.metric]
    shown = {arm: _shown(metric, model.figure(metric.name)) for arm, model in report.models.items()}
    below = f"teacher {shown['teacher']}" if "teacher" in shown else ""
    compared = _ratio(report, metric)
    if metric.name not in _SIZES and unsteady_arms(report):
        compared = "busy machine: not comparable"
    return {"name": tile.heading, "value": shown["student"], "below": below, "interval": compared}


def _shown(metric: Metric, estimate: Estimate | None) -> str:
    return NONE if estimate is None else metric.show(estimate.value)


def _written(written: Sequence[Written]) -> list[dict[str, Any]]:
    """Return each prompt with the answers in the order of the tables, and its true continuation."""
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


def _ratio(report: EvalReport, metric: Metric) -> str:
    """Return in words how many times better or worse than the teacher a figure is."""
    figures = [report.models[arm].figure(metric.name) for arm in ("student", "teacher") if arm in report.models]
    student, teacher = [figure.value for figure in figures if figure] if len(figures) == 2 else (0, 0)
    if not student or not teacher:
        return ""
    factor, less = max(student / teacher, teacher / student), student < teacher
    if metric.name in _SIZES:
        word = "smaller" if less else "larger"
    else:
        word = "faster" if less == (metric.better == "less") else "slower"
    return "same as teacher" if factor < 1.05 else f"{factor:,.1f}× {word}"


def _quality_table(report: EvalReport, words: Wording) -> Table:
    table = get_task(report.task).answers.metrics.metrics
    return metric_table(report, [metric for metric in table if metric.name not in words.elsewhere])


def _efficiency_table(report: EvalReport) -> Table:
    table, models = get_task(report.task).answers.efficiency.metrics, report.models.values()
    shown = [metric for metric in table if any(model.figure(metric.name) for model in models)]
    rows = []
    for arm in ordered_arms(report.models):
        cells = [cell(_shown(metric, report.models[arm].figure(metric.name))) for metric in shown]
        rows.append({"name": arm_name(arm), "cells": cells, "strong": arm == "student"})
    return {"headings": ["Model", *(metric.heading for metric in shown)], "rows": rows}


def _comparison_table(report: EvalReport, words: Wording) -> Table:
    """Return the table of student minus each other model.

    A cell is good or bad only where its interval excludes 0.
    """
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
        return cell(NONE)
    tone, better = "", metric.higher_is_better
    if better is not None and (difference.low > 0 or difference.high < 0):
        tone = "good" if (difference.low > 0) == better else "bad"
    return estimate_cell(difference, metric.decimals, sign=True, tone=tone)


def _calibration_table(calibrations: Mapping[str, Calibration]) -> Table | None:
    """Return the arms' temperatures, with NLL and calibration error before and after, if any."""
    if not calibrations:
        return None
    rows, reasons = [], any(found.reason for found in calibrations.values())
    for arm in ordered_arms(calibrations):
        found = calibrations[arm]
        figures = [
            cell(f"{found.temperature:g}"),
            *(
                cell(f"{value:.4f}" if found.rows else NONE)
                for value in (found.ece_before, found.ece_after, found.nll_before, found.nll_after)
            ),
            cell(f"{found.rows:,}", below=found.against),
            *([cell(found.reason or NONE)] if reasons else []),
        ]
        rows.append({"name": arm_name(arm), "cells": figures, "strong": arm == "student"})
    headings = ["Model", "Temperature", "ECE before", "ECE after", "NLL before", "NLL after", "Rows"]
    return {"headings": [*headings, *(["Remark"] if reasons else [])], "rows": rows}


def _slice_table(report: EvalReport, words: Wording) -> Table | None:
    student = report.models["student"]
    if not student.slices:
        return None
    arms = [arm for arm in ordered_arms(report.models) if report.models[arm].slices]
    rows = []
    for name, metrics in student.slices.items():
        found = [report.models[arm].slices[name].get(get_task(report.task).answers.headline) for arm in arms]
        count = cell(f"{max(estimate.n for estimate in metrics.values()):,}")
        rows.append({"name": name, "cells": [count, *(estimate_cell(item, 3) for item in found)], "strong": False})
    return {"headings": ["Slice", words.rows, *(arm_name(arm) for arm in arms)], "rows": rows}


def _drift_table(drift: DriftReport) -> Table:
    rows = [
        {
            "name": f"{item.name}: {item.statistic}",
            "strong": item.alarm,
            "cells": [
                cell(f"{item.value:.4f}"),
                cell(f"{item.threshold:g}"),
                cell(f"{item.p_value:.2g}"),
                cell("alarm" if item.alarm else "quiet", tone="bad" if item.alarm else ""),
            ],
        }
        for item in drift.findings
    ]
    return {"headings": ["Test", "Value", "Threshold", "Adjusted p", "Finding"], "rows": rows}


def _cost_table(cost: CostReport) -> Table:
    headings = ["Stage", "Wall, s", "Core-hours", "Accelerator-hours", "Written, MB", cost.total.currency]
    rows = [*(_cost_row(stage) for stage in cost.stages), {**_cost_row(cost.total), "strong": True}]
    if cost.forecast:
        headings.append("Forecast by plan, s")
        for row in rows:
            row["cells"].append(cell(f"{cost.forecast[row['name']]:,.1f}" if row["name"] in cost.forecast else NONE))
    return {"headings": headings, "rows": rows}


def _cost_row(stage: StageCost) -> dict[str, Any]:
    values = [
        f"{stage.wall_seconds:,.1f}",
        f"{stage.core_hours:,.4f}",
        f"{stage.accelerator_hours:,.4f}",
        f"{stage.bytes_written / 1e6:,.2f}",
        f"{stage.money:,.4f}",
    ]
    return {"name": stage.stage, "cells": [cell(value) for value in values], "strong": False}


def _serving_table(cost: CostReport) -> Table:
    rows = [
        {"name": arm_name(arm), "strong": arm == "student", "cells": [cell(f"{cost.per_million[arm]:,.4f}")]}
        for arm in ordered_arms(cost.per_million)
    ]
    return {"headings": ["Serving", f"{cost.total.currency} a million requests"], "rows": rows}


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
