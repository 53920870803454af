"""The review page of classifiers: words, confusion matrix and reliability diagram."""

from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, to_rgba
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ray_distill.artifacts import EvalReport
from ray_distill.evaluation.measures.calibration import reliability_curve
from ray_distill.evaluation.measures.intervals import Floats
from ray_distill.evaluation.report.family_page import LOSS_CAPTION, Section, Tile, Wording, calibration_caption
from ray_distill.evaluation.report.plots import INK, draw_grid, reliability_figure, styled_figure
from ray_distill.evaluation.report.tables import cell, estimate_cell
from ray_distill.tasks.answers.classes.evaluation.by_class import (
    ClassQuality,
    Confusion,
    class_qualities,
    confusions,
    total_weight,
)
from ray_distill.tasks.answers.classes.evaluation.measures import Scores, read_scores
from ray_distill.text import ARM_COLOURS, NONE, number

#: Classes up to which all pairs are drawn as a matrix; of more, the most confused pairs are drawn.
MOST_CLASSES = 20
FIGURE_PAIRS = 15
#: Rows of the tables of pairs and classes.
TABLE_PAIRS = 20
TABLE_CLASSES = 30
#: Characters of a class's name in a figure.
NAME_LENGTH = 28

WORDING = Wording(
    compared=("accuracy", "macro_f1", "nll", "ece", "agreement", "kl_from_teacher"),
    axis="accuracy",
    pair=("confusion", "confused_pairs", "reliability"),
    mistakes="Errors and calibration",
    speed="latency of single requests, throughput of batches.",
    rows="Rows",
    slices="Accuracy, slices of at least 30 rows.",
    captions={
        "accuracy": "Accuracy of every model on the same rows.",
        "confusion": "The student's predictions, per cent of each true class.",
        "confused_pairs": "The pairs of classes that the student mistakes most: requests of the first class that it "
        "predicts as the second, and their share of all mistakes.",
        "reliability": calibration_caption("Accuracy"),
        "robustness": "Accuracy on corrupted inputs, the same damage for every model; severity 0 is the clean test "
        "split.",
        "loss": LOSS_CAPTION,
    },
    tiles=((Tile(metric="accuracy", heading="accuracy"), Tile(metric="agreement", heading="agreement")),),
)


def figures(
    report: EvalReport, *, predictions: Mapping[str, pa.Table], names: Sequence[str], bins: int
) -> dict[str, Figure]:
    """Return the student's confusions and the reliability diagram of all arms.

    Confusions are a matrix of up to 20 classes, else the most confused pairs.
    """
    labelled = {arm: read_scores(table).labelled for arm, table in predictions.items()}
    curves = {
        arm: reliability_curve(scores.confidence, scores.correct, scores.weight_N, bins)
        for arm, scores in labelled.items()
    }
    found = {"reliability": reliability_figure(curves, bins, of="confidence of the top class")}
    if len(names) <= MOST_CLASSES:
        return {"confusion": confusion_figure(labelled["student"], names), **found}
    pairs = confusions(labelled["student"])
    return {"confused_pairs": pairs_figure(pairs, names), **found} if pairs else found


def sections(
    report: EvalReport, *, predictions: Mapping[str, pa.Table], names: Sequence[str], bins: int
) -> Sequence[Section]:
    """Return the pairs most confused and the results by class; nothing without labelled rows."""
    labelled = read_scores(predictions["student"]).labelled
    if not len(labelled.weight_N):
        return ()
    qualities, pairs = class_qualities(labelled), confusions(labelled)
    return [*([_pairs_section(pairs, qualities, names)] if pairs else []), _class_section(qualities, pairs, names)]


def _pairs_section(pairs: Sequence[Confusion], qualities: Sequence[ClassQuality], names: Sequence[str]) -> Section:
    shown, rows = pairs[:TABLE_PAIRS], {one.label: one.recall.n for one in qualities}
    left = len(pairs) - len(shown)
    share = total_weight(shown) / total_weight(pairs)
    what = (
        f"All {len(pairs):,} pairs that were mistaken."
        if not left
        else (f"The {len(shown)} pairs with most mistakes, {share:.0%} of all; {left:,} further pairs are left out.")
    )
    return Section(
        heading="Pairs most confused",
        explained=f"{what} Shares are of the true class's requests.",
        table={
            "headings": ["True class", "Predicted", "Mistaken rows", "Rows of the class", "Share"],
            "rows": [
                {
                    "name": names[one.label],
                    "cells": [
                        cell(names[one.predicted]),
                        cell(f"{one.rows:,}"),
                        cell(f"{rows[one.label]:,}"),
                        estimate_cell(one.share, 2),
                    ],
                    "strong": False,
                }
                for one in shown
            ],
        },
    )


def _class_section(qualities: Sequence[ClassQuality], pairs: Sequence[Confusion], names: Sequence[str]) -> Section:
    shown, mistaken = qualities[:TABLE_CLASSES], {one.label: one for one in reversed(pairs)}
    return Section(
        heading="Classes, worst first",
        explained="The student, ordered by the upper end of the interval of recall: surely bad classes come before "
        f"those of few rows. {_left_out(qualities, len(shown), len(names))}",
        table={
            "headings": ["Class", "Rows", "Recall", "Precision", "F1", "Most taken for"],
            "rows": [
                {
                    "name": names[one.label],
                    "cells": [
                        cell(f"{one.recall.n:,}"),
                        estimate_cell(one.recall, 2),
                        cell(NONE if np.isnan(one.precision) else number(one.precision, 2)),
                        cell(number(one.f1 if not np.isnan(one.precision) else 0.0, 2)),
                        cell(names[mistaken[one.label].predicted] if one.label in mistaken else NONE),
                    ],
                    "strong": False,
                }
                for one in shown
            ],
        },
    )


def _left_out(qualities: Sequence[ClassQuality], shown: int, classes: int) -> str:
    """Return sentences about classes that the table lacks, and those without a labelled row."""
    rest, absent = qualities[shown:], classes - len(qualities)
    lines = [f"All {shown} classes with labelled test rows are shown."]
    if rest:
        least = min(one.recall.value for one in rest)
        lines = [
            f"{shown} of {classes:,} classes are shown; the recall of the other {len(rest):,} is at least {least:.2f}."
        ]
    if absent:
        lines.append(f"{absent:,} classes have no labelled test row, so nothing is measured of them.")
    return " ".join(lines)


def pairs_figure(pairs: Sequence[Confusion], names: Sequence[str]) -> Figure:
    """Draw the weights of the most confused pairs as bars, with their shares of all mistakes."""
    shown, total = list(reversed(pairs[:FIGURE_PAIRS])), total_weight(pairs)
    with styled_figure(6.4, 0.8 + 0.27 * len(shown)) as (figure, (axes,)):
        axes.barh(range(len(shown)), [one.weight for one in shown], height=0.66, color=ARM_COLOURS["student"])
        for at, one in enumerate(shown):
            axes.annotate(
                f"{one.weight / total:.0%}",
                (one.weight, at),
                xytext=(4, 0),
                textcoords="offset points",
                va="center",
                fontsize=7.5,
                color=INK,
            )
        axes.set_yticks(
            range(len(shown)), labels=[f"{_short(names[one.label])} → {_short(names[one.predicted])}" for one in shown]
        )
        axes.tick_params(axis="y", length=0)
        axes.set_ylim(-0.6, len(shown) - 0.4)
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.set_xlabel(f"mistaken requests, {len(shown)} of {len(pairs):,} pairs")
        axes.margins(x=0.1)
        draw_grid(axes, "x")
    return figure


def _short(name: str) -> str:
    return name if len(name) <= NAME_LENGTH else f"{name[: NAME_LENGTH - 1]}…"


def confusion_figure(labelled: Scores, classes: Sequence[str]) -> Figure:
    """Draw the shares of each true class that were predicted as each class, of a few classes."""
    matrix_VV = confusion_matrix(labelled, len(classes))
    share_VV = matrix_VV / np.maximum(matrix_VV.sum(axis=1, keepdims=True), 1e-12)
    side = 2.0 + 0.3 * len(classes)
    with styled_figure(side + 0.6, side) as (figure, (axes,)):
        colours = LinearSegmentedColormap.from_list("share", [to_rgba(ARM_COLOURS["student"], a) for a in (0, 1)])
        axes.pcolormesh(share_VV, cmap=colours, vmin=0, vmax=1, edgecolors=to_rgba(INK, 0.08), linewidth=0.5)
        names = [_short(name) for name in classes]
        middle = np.arange(len(names)) + 0.5
        axes.set_xticks(middle, labels=names, rotation=90 if max(map(len, names)) > 2 else 0)
        axes.set_yticks(middle, labels=names)
        axes.tick_params(length=0)
        axes.invert_yaxis()
        axes.set_aspect("equal")
        axes.spines[:].set_visible(False)
        axes.set_xlabel("predicted")
        axes.set_ylabel("true class")
        _annotate(axes, share_VV)
    return figure


def confusion_matrix(scores: Scores, classes: int) -> Floats:
    """Return weighted counts ``[true, predicted]``."""
    cells = scores.label_N * classes + scores.logp_NV.argmax(axis=1)
    flat = np.bincount(cells, weights=scores.weight_N, minlength=classes**2)
    return flat.astype(np.float64, copy=False).reshape(classes, classes)


def _annotate(axes: Axes, share: Floats) -> None:
    """Write shares of at least one per cent into their cells, in per cent."""
    for (row, column), value in np.ndenumerate(share):
        if value >= 0.005:
            axes.text(
                column + 0.5,
                row + 0.5,
                f"{100 * value:.0f}",
                ha="center",
                va="center",
                fontsize=7,
                color="#ffffff" if value > 0.55 else INK,
            )
