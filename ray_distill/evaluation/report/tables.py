"""Cells and tables as the page's template draws them."""

from collections.abc import Sequence
from typing import Any

from ray_distill.artifacts import Estimate, EvalReport
from ray_distill.tasks.metrics import Metric
from ray_distill.text import NONE, arm_name, has_interval, number, ordered_arms

#: ``headings``, then ``rows``: each a ``name``, ``cells`` and whether it is ``strong``.
Table = dict[str, Any]


def metric_table(report: EvalReport, metrics: Sequence[Metric]) -> Table:
    """Return a row an arm, a column a metric that was measured of any of them."""
    models = report.models.values()
    shown = [metric for metric in metrics if any(metric.name in model.metrics for model in models)]
    rows = []
    for arm in ordered_arms(report.models):
        found = report.models[arm].metrics
        cells = [estimate_cell(found.get(metric.name), metric.decimals) for metric in shown]
        rows.append({"name": arm_name(arm), "cells": cells, "strong": arm == "student"})
    return {"headings": ["Model", *(metric.heading for metric in shown)], "rows": rows}


def cell(value: str, below: str = "", tone: str = "") -> dict[str, str]:
    """Return a cell: a value, the small print below it, and ``good`` or ``bad`` as its tone."""
    return {"value": value, "below": below, "tone": tone}


def estimate_cell(estimate: Estimate | None, decimals: int, *, sign: bool = False, tone: str = "") -> dict[str, str]:
    """Return a cell of an estimate with its interval below."""
    return cell(value_text(estimate, decimals, sign=sign), interval_text(estimate, decimals, sign=sign), tone)


def value_text(estimate: Estimate | None, decimals: int, *, sign: bool = False) -> str:
    """Return an estimate's value, a dash where there is none."""
    return NONE if estimate is None else number(estimate.value, decimals, signed=sign)


def interval_text(estimate: Estimate | None, decimals: int, *, sign: bool = False) -> str:
    """Return an estimate's interval, nothing where there is none."""
    if estimate is None or not has_interval(estimate):
        return ""
    return f"{number(estimate.low, decimals, signed=sign)} … {number(estimate.high, decimals, signed=sign)}"
