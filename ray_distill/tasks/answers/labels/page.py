"""The review page of multi-label models: words, quality by label, calibration."""

from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa
from matplotlib.figure import Figure

from ray_distill.artifacts import EvalReport
from ray_distill.evaluation.measures.calibration import Curve, reliability_curve
from ray_distill.evaluation.report.family_page import LOSS_CAPTION, Section, Tile, Wording
from ray_distill.evaluation.report.plots import draw_grid, reliability_figure, styled_figure
from ray_distill.evaluation.report.tables import cell, metric_table
from ray_distill.tasks.answers.labels import LABELS
from ray_distill.tasks.answers.labels.evaluation.measures import (
    LabelQuality,
    Scores,
    average_precisions,
    label_qualities,
    read_scores,
)
from ray_distill.tasks.answers.labels.evaluation.predictions import probabilities
from ray_distill.text import NONE, arm_colour, arm_name, number

#: Labels that the figure and the table have at most: those of most rows.
FIGURE_LABELS = 30
TABLE_LABELS = 100

#: Metrics of the sets that models decide with their thresholds.
DECIDED = ("micro_f1", "macro_f1", "subset_accuracy", "agreement")

WORDING = Wording(
    # Likeness to the teacher is left out: more columns do not fit.
    compared=("map", "micro_f1", "macro_f1", "subset_accuracy", "nll", "ece"),
    elsewhere=DECIDED,
    axis="mAP",
    explained="mAP and ECE are means over labels, NLL and KL means over rows and labels.",
    pair=("labels", "reliability"),
    mistakes="Quality by label, and calibration",
    speed="latency of single requests, throughput of batches.",
    rows="Rows",
    slices="mAP, slices of at least 30 rows.",
    captions={
        "map": "mAP of every model on the same rows.",
        "labels": f"Average precision of each label; above {FIGURE_LABELS} labels, of those with most rows.",
        "reliability": "How often a label applies against the probability that the model gave it, all labels together; "
        "on the dashed line a model is calibrated. Below: how often the student gave each probability.",
        "robustness": "mAP on corrupted inputs, the same damage for every model; severity 0 is the clean test split.",
        "loss": LOSS_CAPTION,
    },
    tiles=(
        (Tile(metric="map", heading="mean average precision"), Tile(metric="agreement", heading="same set as teacher")),
    ),
)


def figures(
    report: EvalReport, *, predictions: Mapping[str, pa.Table], names: Sequence[str], bins: int
) -> dict[str, Figure]:
    """Return the student's precision by label beside the teacher's, and the reliability diagram."""
    labelled = {arm: read_scores(table).labelled for arm, table in predictions.items()}
    return {
        "labels": precision_figure(labelled["student"], names),
        "reliability": reliability_figure(
            {arm: reliability(scores, bins) for arm, scores in labelled.items()},
            bins,
            of="probability of a label",
            share="share of rows that have it",
        ),
    }


def sections(
    report: EvalReport, *, predictions: Mapping[str, pa.Table], names: Sequence[str], bins: int
) -> Sequence[Section]:
    """Return the tables of decided sets and, where rows are labelled, of quality by label."""
    decided = Section(
        heading="Decided sets",
        explained="A label is in a model's set where its probability is at least the label's threshold. A student's "
        "are fitted on the validation split; any other model's are 0.5, unless its checkpoint has some.",
        table=metric_table(report, [LABELS.metrics[name] for name in DECIDED]),
    )
    scores = read_scores(predictions["student"])
    return [decided, *([_by_label(scores, names, bins)] if len(scores.labelled.weight_N) else [])]


def _by_label(scores: Scores, names: Sequence[str], bins: int) -> Section:
    qualities = label_qualities(scores, bins)
    shown = most_rows(qualities, TABLE_LABELS)
    what = (
        f"The student on the {len(shown)} labels with most rows, of {len(names)}"
        if len(shown) < len(names)
        else ("The student on every label")
    )
    return Section(
        heading="Labels",
        explained=f"{what}. Rows are those of the test split to which the label applies.",
        table={
            "headings": ["Label", "Rows", "AP", "F1", "Threshold", "ECE"],
            "rows": [_row(names[label], qualities[label]) for label in shown],
        },
    )


def precision_figure(scores: Scores, names: Sequence[str]) -> Figure:
    """Draw the average precision of each label: the student's beside its teacher's."""
    rows_V = scores.truth_NV.sum(axis=0)
    shown = np.sort(np.argsort(-rows_V, kind="stable")[:FIGURE_LABELS])[::-1]
    log_odds = {"teacher": scores.teacher_log_odds_NV, "student": scores.log_odds_NV}
    with styled_figure(5.4, 1.2 + 0.24 * len(shown)) as (figure, (axes,)):
        for arm, log_odds_NV in log_odds.items():
            if log_odds_NV is not None:
                precision_V = average_precisions(scores.truth_NV, log_odds_NV)(scores.weight_N[None, :])[0]
                axes.plot(
                    precision_V[shown],
                    np.arange(len(shown)),
                    "o",
                    color=arm_colour(arm),
                    markersize=6 if arm == "student" else 4.5,
                    label=arm_name(arm),
                )
        axes.set_yticks(range(len(shown)), labels=[names[label] for label in shown])
        axes.set(xlim=(0, 1.02), ylim=(-0.6, len(shown) - 0.4), xlabel="average precision")
        axes.tick_params(axis="y", length=0)
        draw_grid(axes, "both")
        figure.legend(loc="outside lower center", ncols=2)
    return figure


def reliability(scores: Scores, bins: int) -> Curve:
    """Return the reliability curve of all decisions together."""
    p_NV = probabilities(scores.log_odds_NV)
    weight_NV = np.broadcast_to(scores.weight_N[:, None], p_NV.shape)
    return reliability_curve(p_NV.ravel(), scores.truth_NV.ravel().astype(np.float64), weight_NV.ravel(), bins)


def most_rows(qualities: Sequence[LabelQuality], most: int) -> list[int]:
    """Return the ``most`` labels that apply to most rows, in class order; all if fewer."""
    return sorted(sorted(range(len(qualities)), key=lambda label: -qualities[label].rows)[:most])


def _row(name: str, quality: LabelQuality) -> dict[str, object]:
    values = (quality.average_precision, quality.f1, quality.threshold, quality.ece)
    shown = [NONE if np.isnan(value) else number(value, 3) for value in values]
    return {"name": name, "cells": [cell(f"{quality.rows:,}"), *map(cell, shown)], "strong": False}
