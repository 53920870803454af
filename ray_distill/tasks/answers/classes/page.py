"""The review page of classifiers: words, confusion matrix and reliability diagram."""

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, to_rgba
from matplotlib.figure import Figure

from ray_distill.artifacts import EvalReport
from ray_distill.evaluation.measures.calibration import reliability_curve
from ray_distill.evaluation.measures.intervals import Floats
from ray_distill.evaluation.report.family_page import LOSS_CAPTION, Section, Tile, Wording, calibration_caption
from ray_distill.evaluation.report.plots import INK, reliability_figure, styled_figure
from ray_distill.tasks.answers.classes.evaluation.measures import Scores, read_scores
from ray_distill.text import ARM_COLOURS

MOST_CLASSES = 20

WORDING = Wording(
    compared=("accuracy", "macro_f1", "nll", "ece", "agreement", "kl_from_teacher"),
    axis="accuracy",
    pair=("confusion", "reliability"),
    mistakes="Errors and calibration",
    speed="latency of single requests, throughput of batches.",
    rows="Rows",
    slices="Accuracy, slices of at least 30 rows.",
    captions={
        "accuracy": "Accuracy of every model on the same rows.",
        "confusion": "The student's predictions, per cent of each true class.",
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
    """Return the student's confusion matrix and the reliability diagram of all arms."""
    labelled = {arm: read_scores(table).labelled for arm, table in predictions.items()}
    curves = {
        arm: reliability_curve(scores.confidence, scores.correct, scores.weight_N, bins)
        for arm, scores in labelled.items()
    }
    return {
        "confusion": confusion_figure(predictions["student"], names),
        "reliability": reliability_figure(curves, bins, of="confidence of the top class"),
    }


def sections(
    report: EvalReport, *, predictions: Mapping[str, pa.Table], names: Sequence[str], bins: int
) -> Sequence[Section]:
    """Return the tables that only classifiers have: none."""
    return ()


def confusion_figure(predictions: pa.Table, classes: Sequence[str]) -> Figure:
    """Draw the shares of each true class that were predicted as each class.

    Above 20 classes, only the most confused 20 are drawn.
    """
    matrix_VV = confusion_matrix(read_scores(predictions).labelled, len(classes))
    shown = most_confused(matrix_VV, MOST_CLASSES)
    share = matrix_VV / np.maximum(matrix_VV.sum(axis=1, keepdims=True), 1e-12)
    side = 2.0 + 0.3 * len(shown)
    with styled_figure(side + 0.6, side) as (figure, (axes,)):
        colours = LinearSegmentedColormap.from_list("share", [to_rgba(ARM_COLOURS["student"], a) for a in (0, 1)])
        axes.pcolormesh(
            share[np.ix_(shown, shown)], cmap=colours, vmin=0, vmax=1, edgecolors=to_rgba(INK, 0.08), linewidth=0.5
        )
        names = [classes[v] for v in shown]
        middle = np.arange(len(shown)) + 0.5
        axes.set_xticks(middle, labels=names, rotation=90 if max(map(len, names)) > 2 else 0)
        axes.set_yticks(middle, labels=names)
        axes.tick_params(length=0)
        axes.invert_yaxis()
        axes.set_aspect("equal")
        axes.spines[:].set_visible(False)
        axes.set_xlabel("predicted" if len(shown) == len(classes) else f"predicted ({len(shown)} of {len(classes)})")
        axes.set_ylabel("true class")
        _annotate(axes, share[np.ix_(shown, shown)])
    return figure


def confusion_matrix(scores: Scores, classes: int) -> Floats:
    """Return weighted counts ``[true, predicted]``."""
    cells = scores.label_N * classes + scores.logp_NV.argmax(axis=1)
    flat = np.bincount(cells, weights=scores.weight_N, minlength=classes**2)
    return flat.astype(np.float64, copy=False).reshape(classes, classes)


def most_confused(matrix_VV: Floats, most: int) -> npt.NDArray[np.intp]:
    """Return the ``most`` classes with the most mistakes, in class order; all if fewer."""
    mistakes_V = matrix_VV.sum(axis=0) + matrix_VV.sum(axis=1) - 2 * np.diag(matrix_VV)
    return np.sort(np.argsort(-mistakes_V, kind="stable")[:most])


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
