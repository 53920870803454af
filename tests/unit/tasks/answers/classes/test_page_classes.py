"""The figures and tables that only classifiers have on the review page."""

import numpy as np
import pyarrow as pa
import pytest

from ray_distill.evaluation.measures.calibration import reliability_curve
from ray_distill.evaluation.report.plots import figure_svg
from ray_distill.tasks.answers.classes import page
from ray_distill.tasks.answers.classes.evaluation.by_class import class_qualities, confusions
from ray_distill.tasks.answers.classes.evaluation.measures import read_scores
from ray_distill.tasks.answers.classes.page import confusion_matrix


def table(label, predicted, classes, count=None):
    """Answers that are sure of ``predicted``."""
    logp_NV = np.full((len(label), classes), -50.0, np.float32)
    logp_NV[np.arange(len(label)), predicted] = 0.0
    return pa.table(
        {
            "row_id": pa.array([i.to_bytes(16, "big") for i in range(len(label))], pa.binary(16)),
            "logp": pa.array(list(logp_NV), pa.list_(pa.float32())),
            "count": pa.array(count or [1] * len(label), pa.int64()),
            "label": pa.array(label, pa.int32()),
        }
    )


def test_confusion_weighs():
    """Counts weigh, in the matrix, the pairs and the reliability curve."""
    scores = read_scores(table([0, 2, 2], [0, 1, 2], 3, count=[2, 3, 4])).labelled
    assert confusion_matrix(scores, 3).tolist() == [[2, 0, 0], [0, 0, 0], [0, 3, 4]]
    (pair,) = confusions(scores)
    assert (pair.label, pair.predicted, pair.rows, pair.weight) == (2, 1, 1, 3)
    assert pair.share.value == pytest.approx(3 / 7)
    confidence, accuracy, share = reliability_curve(scores.confidence, scores.correct, scores.weight_N, 4)
    assert confidence == pytest.approx([1]) and accuracy == pytest.approx([6 / 9]) and share.tolist() == [0, 0, 0, 1]


def test_classes_are_sorted_by_what_is_sure():
    """Thirty wrong of sixty come before one wrong of one, and that before a class that is always right."""
    label = [0] * 60 + [1] + [2] * 60
    predicted = [0] * 30 + [2] * 30 + [2] + [2] * 60
    bad, lone, good = class_qualities(read_scores(table(label, predicted, 4)).labelled)
    assert (bad.label, lone.label, good.label) == (0, 1, 2)
    assert bad.recall.value == 0.5 and bad.precision == 1.0 and bad.f1 == pytest.approx(2 / 3)
    assert lone.recall.n == 1 and np.isnan(lone.precision)
    assert good.recall.value == 1.0 and good.precision == pytest.approx(60 / 91)


@pytest.fixture(scope="module")
def many():
    """A thousand classes of long names, 400 of them with labelled rows, and a quarter of 3,000 answers wrong."""
    rng = np.random.default_rng(0)
    label = rng.integers(400, size=3000)
    predicted = np.where(rng.random(3000) < 0.25, rng.integers(1000, size=3000), label)
    label[:60] = 7
    predicted[label == 7] = 8
    return table(label, predicted, 1000), [f"a class with a long name, number {i}" for i in range(1000)]


def test_a_thousand_classes_make_a_small_page(many):
    """Two tables and a figure of the worst, bounded in bytes; what is left out is stated, with counts."""
    predictions, names = {"student": many[0]}, many[1]
    pairs, classes = page.sections(None, predictions=predictions, names=names, bins=10)
    assert len(pairs.table["rows"]) == page.TABLE_PAIRS and len(classes.table["rows"]) == page.TABLE_CLASSES
    assert pairs.table["rows"][0]["name"] == names[7] and pairs.table["rows"][0]["cells"][0]["value"] == names[8]
    assert "further pairs are left out" in pairs.explained
    assert "30 of 1,000 classes are shown; the recall of the other 370 is" in classes.explained
    assert "600 classes have no labelled test row" in classes.explained
    assert classes.table["rows"][0]["name"] == names[7]
    figures = page.figures(None, predictions=predictions, names=names, bins=10)
    assert set(figures) == {"confused_pairs", "reliability"}
    assert len(figures["confused_pairs"].axes[0].get_yticks()) == page.FIGURE_PAIRS
    size = sum(len(figure_svg(figure, name)) for name, figure in figures.items())
    assert size + len(repr(pairs.table)) + len(repr(classes.table)) < 100_000


def test_a_faultless_student_has_no_pairs():
    """No pair was mistaken, so there is no table and no figure of pairs."""
    label = list(range(30))
    predictions = {"student": table(label, label, 30)}
    (classes,) = page.sections(None, predictions=predictions, names=[str(i) for i in label], bins=10)
    assert "All 30 classes with labelled test rows are shown." in classes.explained
    assert set(page.figures(None, predictions=predictions, names=[str(i) for i in label], bins=10)) == {"reliability"}
