"""Render the report of a forecast for a terminal."""

from collections.abc import Sequence
from math import isnan

from ray_distill.evaluation.measures.cost import StageCost
from ray_distill.labels.sizing.forecast import Breakeven
from ray_distill.labels.sizing.options import Kept, Option
from ray_distill.runtime.core.console import table
from ray_distill.runtime.forecast.plan_report import PlanReport
from ray_distill.runtime.forecast.stage_forecasts import StageForecast
from ray_distill.text import NONE, byte_size, duration


def _split(report: PlanReport, name: str) -> str:
    labelled = f" ({report.labelled[name]:,} labelled)" if name in report.labelled else ""
    return f"{name} {report.splits[name]:,}{labelled}"


def show_plan(report: PlanReport) -> str:
    """Render rows, bytes, time and money, other ways to store the labels, and the break-even."""
    lines = [
        f"rows        {report.rows:,} of {report.rows_total:,} to label in {report.units:,} units, "
        f"{report.rows_reused:,} labelled already"
    ]
    if not report.rows:
        return "\n".join([*lines, *_students(report), "cost        0", *_stages(report), *report.notes])
    hidden = "".join(f", layer {layer} {byte_size(size)}" for layer, size in report.bytes_hidden.items())
    error = f"± {report.time_error:.0%}"
    lines += [
        f"splits      {', '.join(_split(report, name) for name in report.splits)}",
        *_students(report),
        f"probe       {report.probed_rows:,} rows answered",
        f"positions   {report.positions:,}, {report.bytes_a_position:.1f} bytes each",
        f"bytes       {byte_size(report.bytes_total)}: labels {byte_size(report.bytes_labels)}{hidden}",
        f"time        {duration(report.seconds)} {error}, {report.rows_per_second:,.0f} rows/s",
        f"hours       {report.accelerator_hours:.3g} of accelerators, {report.core_hours:.3g} of cores, {error}",
        f"cost        {report.money:.3g} {report.currency} {error}",
    ]
    if report.curve:  # empty where every class is stored, whatever the settings
        lines += [
            "",
            "mass of the k most likely classes (mean, and the value that 95 % of the positions exceed)",
            table([_kept(point) for point in report.curve]),
        ]
    lines += [
        "",
        f"ways to store a position (target {report.target_nats:g} nats)",
        table([_option(option, report) for option in report.options]),
    ]
    lines += [_rank(layer, found) for layer, found in report.ranks.items()]
    if report.break_even is not None:
        lines += ["", _pays(report.break_even, report.currency)]
    return "\n".join([*lines, *_stages(report), *report.notes])


def _students(report: PlanReport) -> list[str]:
    """Return lines about the student and the sweep."""
    counted = f"{report.student_parameters:,} parameters" if report.student_parameters else "not made"
    return [
        *([f"student     {counted}; {report.student}"] if report.student else []),
        *([f"sweep       {report.sweep}"] if report.sweep else []),
    ]


def _stages(report: PlanReport) -> list[str]:
    """Return the table of all stages and their sum, beside what followed."""
    if not report.stages:
        return []
    ran = any(one.followed is not None for one in report.stages)
    rows = [_stage(one, report.currency, ran=ran) for one in report.stages]
    low, high, money = (sum(getattr(one, name) for one in report.stages) for name in ("low", "high", "money"))
    everything = {
        "stage": "campaign",
        "time": duration(sum(one.seconds for one in report.stages)),
        "range": f"{duration(low)} to {duration(high)}",
        "core-hours": f"{sum(one.core_hours for one in report.stages):.3g}",
        "accelerator-hours": f"{sum(one.accelerator_hours for one in report.stages):.3g}",
        "cost": f"{money:.3g} {report.currency}",
        "written": byte_size(sum(one.bytes_written for one in report.stages)),
        "memory": "",
        **({"followed": _followed([one.followed for one in report.stages], report.currency)} if ran else {}),
    }
    bases = [f"{one.stage}: {one.basis}" for one in report.stages]
    return ["", "the whole campaign, with the range of the timed steps", table([*rows, everything]), *bases]


def _stage(one: StageForecast, currency: str, *, ran: bool) -> dict[str, str]:
    return {
        "stage": one.stage,
        "time": duration(one.seconds),
        "range": f"{duration(one.low)} to {duration(one.high)}",
        "core-hours": f"{one.core_hours:.3g}",
        "accelerator-hours": f"{one.accelerator_hours:.3g}",
        "cost": f"{one.money:.3g} {currency}",
        "written": byte_size(one.bytes_written),
        "memory": NONE if isnan(one.memory_gib) else f"{one.memory_gib:.1f} GiB",
        **({"followed": _followed([one.followed], currency)} if ran else {}),
    }


def _followed(costs: Sequence[StageCost | None], currency: str) -> str:
    spent = [cost for cost in costs if cost is not None]
    if not spent:
        return NONE
    money = sum(cost.money for cost in spent)
    return f"{duration(sum(cost.wall_seconds for cost in spent))}, {money:.3g} {currency}"


def _kept(point: Kept) -> dict[str, str]:
    masses = {f"T = {at}": f"{mass:.4f} ({point.low[at]:.4f})" for at, mass in point.mass.items()}
    return {"k": f"{point.k:,}", **masses, "nats lost": f"{point.nats:.1e}"}


def _option(option: Option, report: PlanReport) -> dict[str, str]:
    marks = [
        name
        for name, is_it in (("configured", option == report.options[0]), ("recommended", option == report.recommended))
        if is_it
    ]
    return {
        "estimator": f"{option.estimator}, {option.encoding}",
        "k": f"{option.k:,}" if option.k else NONE,
        "draws": f"{option.draws:,}" if option.draws else NONE,
        "bytes": f"{option.bytes_a_position:.1f}",
        "nats": f"{option.nats:.1e}",
        "noise": f"{option.noise:.1e}" if option.draws else NONE,
        "in all": byte_size(option.total_bytes),
        "": ", ".join(marks),
    }


def _rank(layer: str, found: dict[str, int]) -> str:
    parts = [f"{rank} keep {float(share):.0%}" for share, rank in found.items() if share != "width"]
    return f"layer {layer}: of {found['width']} dimensions {', '.join(parts)} of the variance (labels.hidden.rank)"


def _pays(found: Breakeven, currency: str) -> str:
    verdict = "offline pays" if found.offline_pays else "running the teacher during training is cheaper"
    turn = (
        "never pays: reading the labels costs as much as running the teacher"
        if found.passes_to_pay is None
        else f"pays from {found.passes_to_pay:.1f} passes over the training rows on"
    )
    return (
        f"{verdict} for {found.passes:g} passes (students × epochs): {found.offline_money:.4g} {currency} and "
        f"{found.offline_hours:.3g} h offline, {found.online_money:.4g} {currency} and {found.online_hours:.3g} h "
        f"online; offline {turn}"
    )
