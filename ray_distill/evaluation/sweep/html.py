"""A sweep's page: one self-contained HTML file, without scripts or anything from elsewhere.

Lines of the parallel coordinates answer to the mouse by style sheet and SVG titles alone.
"""

import html
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from ray_distill.evaluation.measures.efficiency import is_unsteady
from ray_distill.evaluation.report.plots import figure_svg
from ray_distill.evaluation.sweep.compare import SweepResult, TrialResult
from ray_distill.evaluation.sweep.plots import GROUND, frontier_figure, objective_name, parallel_figure
from ray_distill.text import NONE, estimate


def render_sweep(
    result: SweepResult, *, title: str, values: dict[str, Sequence[Any]], rerun: str, provenance: Mapping[str, str]
) -> str:
    """Render the page.

    Args:
        result: the sweep.
        title: the campaign's name.
        values: what each trial of ``result.own`` has at each path that is varied.
        rerun: the command that takes the best trial on.
        provenance: fingerprints and other facts, by name.

    Returns:
        HTML, UTF-8 when written.
    """
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(
        resources.files("ray_distill.evaluation.sweep").joinpath("sweep.html.j2").read_text("utf-8")
    )
    # Our own SVG, in which matplotlib, and `_titled`, escaped the text.
    parallel = Markup(_titled(figure_svg(parallel_figure(result, values), "parallel"), result))
    frontier = Markup(figure_svg(frontier_figure(result), "frontier")) if _timed(result) else None
    return template.render(
        title=title,
        result=result,
        parallel=parallel,
        frontier=frontier,
        rerun=rerun,
        provenance=provenance,
        objective=objective_name(result),
        rows=[_row(result, trial) for trial in result.trials],
        tiles=_tiles(result),
        headline=f"{result.headline} (95 % interval)" if result.headline else "",
        NONE=NONE,
    )


def trial_line(result: SweepResult, trial: TrialResult) -> str:
    """Describe a trial in one line."""
    value = trial.metrics.get(result.objective)
    ending = trial.reason or trial.verdict
    shown = "" if value is None else f", {result.objective} {value:.4f}"
    return f"{trial.number}: {trial.name} – {ending}{shown}"


def markdown(result: SweepResult) -> str:
    """Summarise the sweep in Markdown, as the parent run's page shows it."""
    best = result.winner
    beside = "" if best.headline is None else f", {result.headline} {estimate(best.headline)}"
    lines = [
        f"**Best: {_plain(best.name)}** (trial {best.number}), {result.objective} "
        f"{best.metrics[result.objective]:.4f}{beside} on {result.validation_rows} validation rows.",
        "",
        ", ".join(f"{result.count(verdict)} {verdict}" for verdict in ("finished", "stopped", "failed"))
        + ". The page is the artifact `sweep.html`, the table `results.csv`.",
        "",
    ]
    return "\n".join([*lines, *(f"- {note}" for note in result.notes)])


def _plain(name: str) -> str:
    return name.replace("*", r"\*").replace("_", r"\_")


def _timed(result: SweepResult) -> bool:
    return any(trial.efficiency is not None for trial in result.own)


def _titled(svg: str, result: SweepResult) -> str:
    """Give each line its title, which a browser shows beside the mouse.

    The numbers get the page's own ground.
    """
    for trial in result.own:
        group = f'<g id="trial-{trial.number}">'
        svg = svg.replace(group, f"{group}<title>{html.escape(trial_line(result, trial))}</title>")
    return svg.replace(GROUND, "var(--ground)")


def _tiles(result: SweepResult) -> list[dict[str, str]]:
    best = result.winner
    found = [
        {
            "name": f"Best {objective_name(result)}",
            "value": f"{best.metrics[result.objective]:.4f}",
            "below": f"trial {best.number}",
        }
    ]
    if best.headline is not None:
        found.append({"name": f"its {result.headline}", "value": f"{best.headline.value:.3f}", "below": _range(best)})
    if best.efficiency is not None:
        found += [
            {"name": "its parameters", "value": f"{best.efficiency.parameters:,}", "below": ""},
            {
                "name": "its latency p50, ms",
                "value": f"{best.efficiency.latency_ms_p50:,.2f}",
                "below": "busy machine: not comparable" if is_unsteady(best.efficiency) else "",
            },
        ]
    counts = ", ".join(f"{result.count(verdict)} {verdict}" for verdict in ("stopped", "failed"))
    return [*found, {"name": "trials finished", "value": str(result.count("finished")), "below": counts}]


def _range(trial: TrialResult) -> str:
    assert trial.headline is not None
    return f"{trial.headline.low:.3f} to {trial.headline.high:.3f}, {trial.headline.n:,} rows"


def _row(result: SweepResult, trial: TrialResult) -> dict[str, Any]:
    cost, value = trial.efficiency, trial.metrics.get(result.objective)
    verdict = f"as trial {trial.same_as}" if trial.same_as is not None else trial.verdict
    return {
        "number": trial.number,
        "name": trial.name,
        "verdict": verdict,
        "tone": trial.verdict,
        "reason": trial.reason,
        "strong": trial.number == result.best,
        "frontier": trial.on_frontier,
        "cells": [
            NONE if value is None else f"{value:.4f}",
            *([estimate(trial.headline) if trial.headline is not None else NONE] if result.headline else []),
            NONE if trial.epoch is None else f"{trial.epoch:.3g}",
            NONE if cost is None else f"{cost.parameters:,}",
            NONE if cost is None else f"{cost.bytes_on_disk / 1e6:,.2f}",
            NONE if cost is None else f"{cost.latency_ms_p50:,.2f}",
            NONE if cost is None else f"{cost.latency_ms_p95:,.2f}",
        ],
    }
