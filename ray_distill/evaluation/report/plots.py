"""Draw a report's figures as matplotlib `Figure` objects.

No global state is used, any back end works, and nothing is shown.

Each figure is drawn in one ink colour plus a colour an arm. As inline SVG the ink becomes ``currentColor``
and the ground transparent, so that one figure suits a light page, a dark page and paper; as PNG it is black
on white.
"""

import io
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ray_distill.artifacts import Estimate, EvalReport
from ray_distill.evaluation.measures.calibration import Curve
from ray_distill.text import arm_colour, arm_name, ordered_arms

INK = "#1f2329"
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.labelsize": 9,
    "axes.edgecolor": INK,
    "text.color": INK,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "legend.frameon": False,
    "lines.linewidth": 1.6,
    "text.parse_math": False,
}

#: Training losses by arm: (step, loss) in order.
History = Mapping[str, Sequence[tuple[int, float]]]


def headline_figure(report: EvalReport, metric: str, axis: str) -> Figure:
    """Draw one metric of every model with its 95 % interval, under the name ``axis``."""
    arms = [arm for arm in ordered_arms(report.models) if metric in report.models[arm].metrics]
    with styled_figure(6.4, 0.8 + 0.36 * len(arms)) as (figure, (axes,)):
        for y, arm in enumerate(reversed(arms)):
            estimate = report.models[arm].metrics[metric]
            axes.plot(
                [estimate.low, estimate.high], [y, y], color=arm_colour(arm), linewidth=2.2, solid_capstyle="round"
            )
            axes.plot([estimate.value], [y], "o", color=arm_colour(arm), markersize=6.5)
        axes.set_yticks(range(len(arms)), labels=[arm_name(arm) for arm in reversed(arms)])
        axes.set_ylim(-0.6, len(arms) - 0.4)
        axes.tick_params(axis="y", length=0)
        axes.set_xlabel(f"{axis}, 95 % interval")
        draw_grid(axes, "x")
    return figure


def reliability_figure(curves: Mapping[str, Curve], bins: int, *, of: str, share: str = "accuracy") -> Figure:
    """Draw frequencies against claimed probabilities, by arm.

    Below is how often the student claimed each.

    Args:
        curves: by arm.
        bins: number of bins.
        of: name of the probability.
        share: name of the frequency.
    """
    with styled_figure(5.4, 5.2, rows=2, height_ratios=(4, 1), sharex=True) as (figure, (axes, below)):
        axes.plot([0, 1], [0, 1], color=INK, linewidth=0.7, alpha=0.5, linestyle=(0, (4, 3)))
        for arm in ordered_arms(curves):
            claimed, found, weight = curves[arm]
            axes.plot(claimed, found, "o-", color=arm_colour(arm), markersize=3.5, label=arm_name(arm))
            if arm == "student":
                below.bar((np.arange(bins) + 0.5) / bins, weight, width=0.9 / bins, color=arm_colour(arm))
        axes.set(xlim=(0, 1.02), ylim=(0, 1.02), ylabel=share)
        below.set(xlabel=of, ylabel="share", yticks=(0, 0.5, 1), ylim=(0, 1))
        handles, labels = axes.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=2)
        draw_grid(axes, "both")
    return figure


def loss_figure(history: History) -> Figure:
    """Draw the training loss by step, by arm."""
    with styled_figure(6.4, 3.2) as (figure, (axes,)):
        for arm in ordered_arms(history):
            steps = np.array(history[arm], dtype=np.float64).reshape(-1, 2)
            axes.plot(steps[:, 0], steps[:, 1], color=arm_colour(arm), label=arm_name(arm))
        axes.set(xlabel="step", ylabel="training loss (each arm's own)")
        axes.set_ylim(bottom=0)
        figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=2)
        draw_grid(axes, "y")
    return figure


def robustness_figure(report: EvalReport, metric: str, axis: str) -> Figure:
    """Draw one metric by severity (0 = clean), one panel a corruption, with 95 % intervals."""
    kinds = sorted({kind for model in report.models.values() for kind in model.robustness})
    with styled_figure(1.2 + 2.3 * len(kinds), 3.2, columns=len(kinds), sharey=True) as (figure, panels):
        for kind, axes in zip(kinds, panels, strict=True):
            for arm in ordered_arms(report.models):
                points = _severities(report, arm, kind, metric)
                if len(points) > 1:
                    _interval_line(axes, points, arm)
            axes.set_title(kind)
            axes.set_xlabel("severity")
            draw_grid(axes, "y")
        panels[0].set_ylabel(axis)
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=4 if len(kinds) > 2 else 2)
    return figure


def figure_svg(figure: Figure, salt: str) -> str:
    """Return inline SVG on a transparent ground whose ink is ``currentColor``.

    ``salt`` keeps ids on one page distinct.
    """
    buffer = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": salt, "svg.fonttype": "none"}), _any_script():
        figure.savefig(
            buffer, format="svg", transparent=True, metadata=dict.fromkeys(("Date", "Creator", "Format", "Type"))
        )
    text = buffer.getvalue()
    text = re.sub(r"<!--.*?-->|<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    text = re.sub(r' id="[A-Za-z0-9]+_\d+"', "", text)
    return re.sub(r"\n\s*", "\n", text.replace(INK, "currentColor"))


def figure_png(figure: Figure) -> bytes:
    """Return a PNG on white, 160 dots an inch."""
    buffer = io.BytesIO()
    with _any_script():
        figure.savefig(buffer, format="png", dpi=160, facecolor="white")
    return buffer.getvalue()


@contextmanager
def styled_figure(
    width: float,
    height: float,
    *,
    rows: int = 1,
    columns: int = 1,
    height_ratios: Sequence[float] | None = None,
    sharex: bool = False,
    sharey: bool = False,
) -> Iterator[tuple[Figure, list[Axes]]]:
    """Yield a figure and its axes, row by row, in the project's style; sizes in inches."""
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        grid = figure.subplots(rows, columns, squeeze=False, height_ratios=height_ratios, sharex=sharex, sharey=sharey)
        yield figure, list(grid.flat)


@contextmanager
def _any_script() -> Iterator[None]:
    """Silence warnings about missing glyphs while the block runs.

    Class names may be in any script; a browser has the glyphs that matplotlib's own font lacks.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        yield


def _severities(report: EvalReport, arm: str, kind: str, metric: str) -> list[tuple[int, Estimate]]:
    model = report.models[arm]
    measured = [(0, model.metrics)] + [(int(s), metrics) for s, metrics in model.robustness.get(kind, {}).items()]
    return sorted((s, metrics[metric]) for s, metrics in measured if metric in metrics)


def _interval_line(axes: Axes, points: Sequence[tuple[int, Estimate]], arm: str) -> None:
    severity = [s for s, _ in points]
    axes.plot(severity, [e.value for _, e in points], "o-", color=arm_colour(arm), markersize=3.5, label=arm_name(arm))
    axes.fill_between(
        severity,
        [e.low for _, e in points],
        [e.high for _, e in points],
        color=arm_colour(arm),
        alpha=0.13,
        linewidth=0,
    )
    axes.set_xticks(severity)


def draw_grid(axes: Axes, which: Literal["x", "y", "both"]) -> None:
    """Draw thin lines behind the data."""
    axes.grid(axis=which, color=INK, alpha=0.12, linewidth=0.6)
    axes.set_axisbelow(True)
