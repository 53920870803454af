"""Draw a sweep's figures: parallel coordinates, and quality against size and speed."""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.axis import XAxis, YAxis
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, StrMethodFormatter

from ray_distill.evaluation.report.plots import INK, draw_grid, styled_figure
from ray_distill.evaluation.sweep.compare import SweepResult, TrialResult
from ray_distill.text import ARM_COLOURS, tick_label

BEST, FAILED = ARM_COLOURS["student"], "#c0392b"
#: Background of the numbers on the axes; a page puts its own ground in its place.
GROUND = "#fefefe"
#: From the worst finished trial to the best.
_SHADES = LinearSegmentedColormap.from_list("quality", ["#a3a9b2", "#86a5de", BEST])
#: Above this ratio of the largest to the smallest value an axis is logarithmic.
LOG_RATIO = 10.0
#: Distinct values up to which each has its own tick.
MOST_TICKS = 8
#: Least distance of two ticks, as a share of the axis.
_APART = 0.045


@dataclass(frozen=True, kw_only=True)
class Axis:
    """One upright axis of the parallel coordinates."""

    name: str
    places: tuple[float | None, ...]
    """Height of each trial, 0 to 1; None where it has no value."""
    ticks: tuple[tuple[float, str], ...]


def axes_of(result: SweepResult, values: dict[str, Sequence[Any]]) -> list[Axis]:
    """Return the axes: changed settings, then the objective, parameters and latency.

    Better is up on the last three.

    Args:
        result: the sweep.
        values: what each trial (of ``result.own``) has at each path that is varied.
    """
    trials = result.own
    axes = [make_axis(path.removeprefix("student.").removeprefix("training."), found) for path, found in values.items()]
    objective = [trial.metrics.get(result.objective) for trial in trials]
    axes.append(make_axis(objective_name(result), objective, upside_down=not result.more_is_better))
    for name, field in (("parameters", "parameters"), ("latency p50, ms", "latency_ms_p50")):
        found = [getattr(trial.efficiency, field, None) for trial in trials]
        if any(value is not None for value in found):
            axes.append(make_axis(name, found, upside_down=True))
    return axes


def make_axis(name: str, values: Sequence[Any], *, upside_down: bool = False) -> Axis:
    """Place values on an axis: numbers by size, everything else evenly.

    Values other than numbers keep the order of their first appearance.
    """
    if all(isinstance(value, list) and len(value) == 1 for value in values if value is not None):
        values = [value and value[0] for value in values]  # one learning rate is a list of one
    known = [value for value in values if value is not None]
    if known and all(isinstance(value, int | float) and not isinstance(value, bool) for value in known):
        place = _scale(known)
        distinct = sorted(set(known))
        shown = distinct if len(distinct) <= MOST_TICKS else _round_ticks(distinct, place)
        ticks = [(place(value), tick_label(value)) for value in shown]
    else:
        words = list(dict.fromkeys(_word(value) for value in known))
        at = {word: (number + 0.5) / len(words) for number, word in enumerate(words)}

        def place(value: Any) -> float:
            return at[_word(value)]

        ticks = [(at[word], word if len(word) < 22 else f"{word[:20]}…") for word in words]
    if upside_down:
        ticks = [(1 - height, text) for height, text in ticks]
    heights = tuple(None if value is None else 1 - place(value) if upside_down else place(value) for value in values)
    return Axis(name=name, places=heights, ticks=_thinned(ticks))


def parallel_figure(result: SweepResult, values: dict[str, Sequence[Any]]) -> Figure:
    """Draw a line a trial through its changes and its results; arguments as `axes_of`.

    Each line is a group with the id ``trial-<number>``.
    """
    columns, trials = axes_of(result, values), result.own
    shade = _shades(result)
    with styled_figure(max(6.4, 1.45 * len(columns)), 4.4) as (figure, (axes,)):
        for at, column in enumerate(columns):
            _draw_axis(axes, at, column, last=at == len(columns) - 1)
        for index, trial in sorted(enumerate(trials), key=lambda item: _rank(result, item[1])):
            heights = [column.places[index] for column in columns]
            points = [(at, height) for at, height in enumerate(heights) if height is not None]
            if points:
                (line,) = axes.plot(*zip(*points, strict=True), **_look(result, trial, shade))
                line.set_gid(f"trial-{trial.number}")
        axes.set(xlim=(-0.4, len(columns) - 0.6), ylim=(-0.04, 1.04), yticks=[])
        axes.set_xticks(range(len(columns)), labels=[_broken(column.name) for column in columns])
        axes.tick_params(axis="x", length=0, pad=8)
        axes.spines[:].set_visible(False)
    return figure


def frontier_figure(result: SweepResult) -> Figure:
    """Draw the objective of finished trials against parameters and against latency.

    Better is up and to the left.

    The same trials are marked in both panels: those that no other one beats in all three at once.
    """
    shown = [trial for trial in result.own if trial.verdict == "finished" and trial.efficiency is not None]
    with styled_figure(7.6, 3.9, columns=2, sharey=True) as (figure, panels):
        for panel, field, name in zip(
            panels, ("parameters", "latency_ms_p50"), ("parameters", "latency p50, ms"), strict=True
        ):
            sizes = [float(getattr(trial.efficiency, field)) for trial in shown]
            for trial, size in zip(shown, sizes, strict=True):
                _mark(panel, trial, size, trial.metrics[result.objective])
            _scale_axis(panel.xaxis, sizes)
            panel.set_xlabel(name)
            panel.margins(0.12)
            draw_grid(panel, "both")
        panels[0].set_ylabel(objective_name(result))
        _scale_axis(panels[0].yaxis, [trial.metrics[result.objective] for trial in shown])
        if not result.more_is_better:
            panels[0].invert_yaxis()
        for label, filled in (("on the frontier", True), ("another is at least as good in all three", False)):
            panels[0].plot([], [], "o", **_marker(filled), label=label)
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=2)
    return figure


def objective_name(result: SweepResult) -> str:
    """Return the objective's name for an axis."""
    return result.objective.replace("_", " ").replace("nll", "NLL, nats").replace("kl", "KL, nats")


def _mark(panel: Axes, trial: TrialResult, x: float, y: float) -> None:
    panel.plot([x], [y], "o", zorder=2 if trial.on_frontier else 3, **_marker(trial.on_frontier))
    if trial.on_frontier:
        panel.annotate(str(trial.number), (x, y), xytext=(5, 4), textcoords="offset points", color=INK, fontsize=8)


def _marker(filled: bool) -> dict[str, Any]:
    return {
        "markersize": 7 if filled else 5,
        "markeredgewidth": 1.1,
        "markerfacecolor": BEST if filled else "none",
        "markeredgecolor": BEST if filled else ARM_COLOURS["teacher"],
    }


def _rank(result: SweepResult, trial: TrialResult) -> tuple[int, float]:
    """Order of drawing: what matters most comes last, on top."""
    order = {"failed": 0, "stopped": 1, "finished": 2}[trial.verdict] + (trial.number == result.best)
    value = trial.metrics.get(result.objective, 0.0)
    return order, value if result.more_is_better else -value


def _shades(result: SweepResult) -> Callable[[TrialResult], float]:
    """Return the place of each finished trial among the others: 0 = the worst, 1 = the best."""
    able = sorted(
        (trial for trial in result.own if trial.verdict == "finished"), key=lambda trial: _rank(result, trial)
    )
    places = {trial.number: at / max(1, len(able) - 1) for at, trial in enumerate(able)}
    return lambda trial: places[trial.number]


def _look(result: SweepResult, trial: TrialResult, shade: Callable[[TrialResult], float]) -> dict[str, Any]:
    if trial.verdict == "failed":
        return {"color": FAILED, "linewidth": 1.0, "linestyle": (0, (1, 2))}
    if trial.verdict == "stopped":
        return {"color": ARM_COLOURS["teacher"], "linewidth": 1.0, "linestyle": (0, (4, 3)), "alpha": 0.8}
    if trial.number == result.best:
        return {"color": BEST, "linewidth": 2.8, "marker": "o", "markersize": 5}
    return {"color": _SHADES(shade(trial)), "linewidth": 1.5}


def _draw_axis(axes: Axes, at: int, column: Axis, *, last: bool) -> None:
    side = 1 if last else -1
    axes.plot([at, at], [0, 1], color=INK, linewidth=0.8, alpha=0.55, zorder=1)
    for height, text in column.ticks:
        axes.plot([at, at + side * 0.03], [height, height], color=INK, linewidth=0.8, alpha=0.55, zorder=1)
        axes.text(
            at + side * 0.06,
            height,
            text,
            ha="left" if last else "right",
            va="center",
            fontsize=7.5,
            color=INK,
            zorder=4,
            bbox={"boxstyle": "round,pad=0.15", "facecolor": GROUND, "edgecolor": "none", "alpha": 0.8},
        )


def _scale(values: Sequence[float]) -> Callable[[float], float]:
    low, high = min(values), max(values)
    if low == high:
        return lambda value: 0.5
    if _wide(values):
        return lambda value: math.log(value / low) / math.log(high / low)
    return lambda value: (value - low) / (high - low)


def _scale_axis(axis: XAxis | YAxis, values: Sequence[float]) -> None:
    """Put plain numbers on an axis, which is logarithmic where values are far apart."""
    if _wide(values):
        (axis.axes.set_xscale if axis.axis_name == "x" else axis.axes.set_yscale)("log")
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_minor_formatter(NullFormatter())
    elif axis.axis_name == "x":  # where labels stand side by side: few, that they do not touch
        axis.set_major_locator(MaxNLocator(5))
    axis.set_major_formatter(StrMethodFormatter("{x:,g}"))


def _wide(values: Sequence[float]) -> bool:
    """Return whether values are for a logarithmic axis."""
    return len(values) > 0 and min(values) > 0 and max(values) / min(values) >= LOG_RATIO


def _round_ticks(values: Sequence[float], place: Callable[[float], float]) -> list[float]:
    """Return both ends and round numbers between them."""
    low, high = values[0], values[-1]
    if _wide(values):
        between: list[float] = [
            10.0**power for power in range(math.ceil(math.log10(low)), math.floor(math.log10(high)) + 1)
        ]
    else:
        between = [float(value) for value in MaxNLocator(nbins=5).tick_values(low, high)]
    inside = [value for value in between if low < value < high and min(place(value), 1 - place(value)) > 2 * _APART]
    return [low, *inside, high]


def _thinned(ticks: Sequence[tuple[float, str]]) -> tuple[tuple[float, str], ...]:
    """Leave out ticks that would cover the one before; both ends stay."""
    ordered = sorted(ticks)
    kept: list[tuple[float, str]] = []
    for tick in ordered:
        if kept and tick[0] - kept[-1][0] < _APART:
            if tick is ordered[-1] and len(kept) > 1:
                kept[-1] = tick
            continue
        kept.append(tick)
    return tuple(kept)


def _word(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _broken(name: str) -> str:
    """Break a dotted name into several lines."""
    parts, lines = name.split("."), [""]
    for part in parts:
        joined = f"{lines[-1]}.{part}" if lines[-1] else part
        if len(joined) <= 16 or not lines[-1]:
            lines[-1] = joined
        else:
            lines.append(f".{part}")
    return "\n".join(lines)


def spread(values: Sequence[Any]) -> bool:
    """Return whether there is something to see: at least two different values."""
    return len({_word(value) for value in values}) > 1
