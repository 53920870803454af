"""The figures that only classifiers have on the review page."""

import numpy as np
import pyarrow as pa
import pytest

from ray_distill.evaluation.measures.calibration import reliability_curve
from ray_distill.tasks.answers.classes.evaluation.measures import read_scores
from ray_distill.tasks.answers.classes.page import confusion_figure, confusion_matrix, most_confused


def test_confusion_weighs_and_keeps_the_most_confused():
    """Counts weigh; above the limit the classes with the most mistakes stay, in order."""
    predictions = pa.table(
        {
            "row_id": pa.array([i.to_bytes(16, "big") for i in range(3)], pa.binary(16)),
            "logp": pa.array([[0.0, -50, -50], [-50, 0.0, -50], [-50, -50, 0.0]], pa.list_(pa.float32())),
            "count": pa.array([2, 3, 4], pa.int64()),
            "label": pa.array([0, 2, 2], pa.int32()),
        }
    )
    matrix = confusion_matrix(read_scores(predictions), 3)
    assert matrix.tolist() == [[2, 0, 0], [0, 0, 0], [0, 3, 4]]
    assert most_confused(matrix, 2).tolist() == [1, 2]
    scores = read_scores(predictions)
    confidence, accuracy, share = reliability_curve(scores.confidence, scores.correct, scores.weight_N, 4)
    assert confidence == pytest.approx([1]) and accuracy == pytest.approx([6 / 9]) and share.tolist() == [0, 0, 0, 1]


def test_many_classes_still_make_a_readable_matrix():
    """Of 60 classes 20 are shown, and the axis says so."""
    rng = np.random.default_rng(0)
    labels = rng.integers(60, size=200)
    logits = rng.normal(size=(200, 60)) + 5 * np.eye(60)[labels]
    logp = (logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)).astype(np.float32)
    predictions = pa.table(
        {
            "row_id": pa.array([i.to_bytes(16, "big") for i in range(200)], pa.binary(16)),
            "logp": pa.array(list(logp), pa.list_(pa.float32())),
            "count": pa.array([1] * 200, pa.int64()),
            "label": pa.array(labels, pa.int32()),
        }
    )
    figure = confusion_figure(predictions, [f"class {i}" for i in range(60)])
    assert len(figure.axes[0].get_xticks()) == 20 and figure.axes[0].get_xlabel() == "predicted (20 of 60)"
