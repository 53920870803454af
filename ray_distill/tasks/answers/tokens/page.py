"""The review page of language models: words, distance from the teacher, benchmarks.

The distance is shown by position.
"""

from collections.abc import Mapping, Sequence

import pyarrow as pa
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ray_distill.artifacts import EvalReport
from ray_distill.evaluation.report.family_page import LOSS_CAPTION, Section, Tile, Wording, calibration_caption
from ray_distill.evaluation.report.plots import INK, draw_grid, reliability_figure, styled_figure
from ray_distill.evaluation.report.tables import estimate_cell, metric_table
from ray_distill.tasks.answers.tokens import BENCHMARK_PREFIX, TOKENS, WRITTEN
from ray_distill.tasks.answers.tokens.evaluation.measures import BUCKETS, read_documents, reliability
from ray_distill.text import arm_colour, arm_name, ordered_arms

#: Metrics drawn by position in the document: the part of a metric's name before the bucket, and its axis.
_BY_POSITION = {"kl_from_teacher": "KL, nats", "entropy_gap": "entropy gap", "tail_mass_gap": "tail gap"}

_WRITTEN = "Each model's own targets, always the likeliest token, beside the references of some test rows."

WORDING = Wording(
    # Perplexity, a function of NLL, and accuracy, close to agreement, are left out: more do not fit.
    compared=("nll", "ece", "agreement", "kl_from_teacher", "entropy_gap", "tail_mass_gap"),
    elsewhere=WRITTEN.names,
    axis="NLL, nats a token",
    explained="Means are over tokens, intervals over documents. A gap is what a model has more than the teacher, of "
    "entropy or of probability outside the teacher's 64 likeliest tokens: 0 is best.",
    pair=("positions", "reliability"),
    mistakes="Distance from the teacher, and calibration",
    speed="latency of reading a single document, throughput of batches; padding is not a token. Nothing is written.",
    rows="Documents",
    slices="NLL in nats a token, slices of at least 30 documents.",
    captions={
        "nll": "NLL of every model on the same tokens: lower is better.",
        "positions": "Distance from the teacher by position in the document: KL, entropy gap, tail-mass gap.",
        "reliability": calibration_caption("Next-token accuracy"),
        "robustness": "NLL on corrupted texts, the same damage for every model. Damaged text has other tokens than the "
        "clean one at severity 0: compare models, not severities.",
        "loss": LOSS_CAPTION,
    },
    tiles=(
        (Tile(metric="nll", heading="NLL, nats a token"),),
        # The teacher's own KL is 0, so agreement stands where the teacher's value would.
        (Tile(metric="kl_from_teacher", heading="KL from teacher, nats", below="agreement"),),
    ),
    rate=Tile(metric="tokens_per_second", heading="Tokens read a second"),
)


def figures(
    report: EvalReport, *, predictions: Mapping[str, pa.Table], names: Sequence[str], bins: int
) -> dict[str, Figure]:
    """Draw the distance from the teacher by position, if any, and the reliability diagram."""
    curves = {arm: reliability(read_documents(table, bins)) for arm, table in predictions.items()}
    found = {"reliability": reliability_figure(curves, bins, of="confidence of the top token")}
    if any(name.startswith("kl_from_teacher_at_") for name in report.models["student"].metrics):
        found["positions"] = positions_figure(report)
    return found


def sections(
    report: EvalReport, *, predictions: Mapping[str, pa.Table], names: Sequence[str], bins: int
) -> Sequence[Section]:
    """Return the quality of written targets, and the benchmarks, where there are any."""
    written = metric_table(report, WRITTEN.metrics)
    found = [Section(heading="Written targets", explained=_WRITTEN, table=written)] if written["headings"][1:] else []
    return [*found, *_benchmarks(report)]


def _benchmarks(report: EvalReport) -> Sequence[Section]:
    """List one row a figure of lm-evaluation-harness: there may be many."""
    by_arm = {
        arm: {name: found for name, found in report.models[arm].metrics.items() if TOKENS.benchmarks.find(name)}
        for arm in ordered_arms(report.models)
    }
    arms = [arm for arm, metrics in by_arm.items() if metrics]
    rows = [
        {
            "name": name.removeprefix(BENCHMARK_PREFIX),
            "strong": False,
            "cells": [estimate_cell(by_arm[arm].get(name), 3) for arm in arms],
        }
        for name in dict.fromkeys(name for metrics in by_arm.values() for name in metrics)
    ]
    if not rows:
        return ()
    return (
        Section(
            heading="Benchmarks",
            explained="Tasks of lm-evaluation-harness from the campaign's own files.",
            table={"headings": ["Task and metric", *map(arm_name, arms)], "rows": rows},
        ),
    )


def positions_figure(report: EvalReport) -> Figure:
    """Draw KL from the teacher and the gaps by position, of every model except the teacher.

    Positions are those in the document; values have intervals.
    """
    arms = [arm for arm in ordered_arms(report.models) if arm != "teacher"]
    buckets = [
        name for name in BUCKETS if any(f"kl_from_teacher_at_{name}" in report.models[arm].metrics for arm in arms)
    ]
    with styled_figure(5.4, 5.2, rows=3, height_ratios=(2, 1, 1), sharex=True) as (figure, panels):
        for axes, (metric, heading) in zip(panels, _BY_POSITION.items(), strict=True):
            for number, arm in enumerate(arms):
                _dodged(
                    axes,
                    report,
                    arm,
                    metrics=[f"{metric}_at_{name}" for name in buckets],
                    shift=0.09 * (number - (len(arms) - 1) / 2),
                )
            axes.set_ylabel(heading)
            draw_grid(axes, "y")
            if metric == "kl_from_teacher":
                axes.set_ylim(bottom=0)
            else:
                axes.axhline(0, color=INK, linewidth=0.7, alpha=0.5, linestyle=(0, (4, 3)))
        panels[-1].set_xticks(range(len(buckets)), labels=[_bucket_label(name) for name in buckets])
        panels[-1].set_xlabel("position in the document, tokens")
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=2)
    return figure


def _dodged(axes: Axes, report: EvalReport, arm: str, *, metrics: Sequence[str], shift: float) -> None:
    """Draw an arm's values beside those of the others, one place a metric.

    A value without an interval is a point.
    """
    found = [
        (place + shift, report.models[arm].metrics[name])
        for place, name in enumerate(metrics)
        if name in report.models[arm].metrics
    ]
    axes.plot(
        [x for x, _ in found],
        [item.value for _, item in found],
        "o-",
        color=arm_colour(arm),
        markersize=3.5,
        linewidth=0.9,
        label=arm_name(arm),
    )
    for x, item in found:
        axes.plot([x, x], [item.low, item.high], color=arm_colour(arm), linewidth=1.6, solid_capstyle="round")


def _bucket_label(name: str) -> str:
    """Write ``16_63`` as ``16–63``, ``1024_up`` as ``1024 …``."""
    start, _, stop = name.partition("_")
    return f"{start} …" if stop == "up" else f"{start}–{stop}"
