"""Metrics against scikit-learn and by hand; intervals that cover, pair and never lie about certainty."""

import math
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from sklearn.metrics import accuracy_score, f1_score, log_loss

from ray_distill.errors import EvaluationError
from ray_distill.evaluation.measures.intervals import Resampling
from ray_distill.tasks.answers.classes.evaluation.measures import compare, measure

HOW = Resampling(seed=3, bootstrap=300, bins=10)


def table(logits, labels=None, counts=None, teacher=None, ids=None):
    logp = log_softmax(logits)
    n = len(logp)
    columns = {
        "row_id": pa.array([int(i).to_bytes(16, "big") for i in (ids if ids is not None else range(n))], pa.binary(16)),
        "logp": pa.array(list(logp.astype(np.float32)), pa.list_(pa.float32())),
        "count": pa.array([1] * n if counts is None else counts, pa.int64()),
    }
    if labels is not None:
        columns["label"] = pa.array(labels, pa.int32())
    if teacher is not None:
        columns["teacher_logp"] = pa.array(list(log_softmax(teacher).astype(np.float32)), pa.list_(pa.float32()))
    return pa.table(columns)


def log_softmax(logits):
    logits = np.asarray(logits, dtype=np.float64)
    return logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)


def noisy(n=400, classes=4, seed=0, signal=1.5):
    rng = np.random.default_rng(seed)
    labels = rng.integers(classes, size=n)
    return rng.normal(size=(n, classes)) + signal * np.eye(classes)[labels], labels


def test_metrics_equal_scikit_learn_with_counts_as_weights():
    """Accuracy, macro-F1 and NLL weigh an example by its count, as scikit-learn's sample_weight does."""
    logits, labels = noisy()
    counts = np.random.default_rng(1).integers(1, 6, size=len(labels))
    measured = measure(table(logits, labels, counts), HOW)
    predicted, p = logits.argmax(1), np.exp(log_softmax(logits))
    assert measured["accuracy"].value == pytest.approx(accuracy_score(labels, predicted, sample_weight=counts))
    assert measured["macro_f1"].value == pytest.approx(
        f1_score(labels, predicted, average="macro", sample_weight=counts)
    )
    assert measured["nll"].value == pytest.approx(log_loss(labels, p, sample_weight=counts), rel=1e-5)
    assert {name: e.n for name, e in measured.items()} == dict.fromkeys(("accuracy", "macro_f1", "nll", "ece"), 400)


def test_ece_by_hand():
    """Two bins, weights 3 and 1: the gaps 0.1 and 0.4 combine to (3·0.1 + 1·0.4) / 4."""
    p = np.array([[0.9, 0.1], [0.6, 0.4]])
    measured = measure(table(np.log(p), [0, 0], [3, 1]), HOW)
    assert measured["ece"].value == pytest.approx((3 * 0.1 + 0.4) / 4, rel=1e-5)


def test_agreement_and_kl_by_hand():
    """KL is teacher against student in nats; agreement compares top classes; both need no label."""
    student, teacher = np.array([[0.5, 0.5], [0.2, 0.8]]), np.array([[0.75, 0.25], [0.4, 0.6]])
    measured = measure(table(np.log(student), teacher=np.log(teacher)), HOW)
    expected = (teacher * np.log(teacher / student)).sum(1).mean()
    assert measured["kl_from_teacher"].value == pytest.approx(expected, rel=1e-5)
    assert measured["agreement"].value == 1.0
    assert set(measured) == {"kl_from_teacher", "agreement"}


def test_unlabelled_rows_count_for_fidelity_only():
    """A null label leaves the row out of quality metrics and in fidelity."""
    logits, labels = noisy(n=50)
    partly = [int(label) if i < 20 else None for i, label in enumerate(labels)]
    measured = measure(table(logits, partly, teacher=logits), HOW)
    assert (measured["accuracy"].n, measured["agreement"].n) == (20, 50)
    assert measured["kl_from_teacher"].value == pytest.approx(0, abs=1e-12)


def test_zero_probability_is_infinite_not_clipped():
    """A true class of probability zero makes NLL inf without an interval; the other metrics stand."""
    logits = np.array([[0.0, -np.inf], [0.0, 0.0], [1.0, 0.0]])
    measured = measure(table(logits, [1, 0, 0], teacher=np.zeros((3, 2))), HOW)
    assert measured["nll"].value == math.inf and math.isnan(measured["nll"].low)
    assert measured["kl_from_teacher"].value == math.inf
    assert measured["accuracy"].value == pytest.approx(2 / 3)
    zero_teacher = measure(table(np.zeros((3, 2)), teacher=logits), HOW)
    assert math.isfinite(zero_teacher["kl_from_teacher"].value)


def test_one_row_has_values_without_intervals():
    """One example says nothing about spread."""
    measured = measure(table([[2.0, 0.0]], [0]), HOW)
    assert measured["accuracy"].value == 1.0 and measured["accuracy"].n == 1
    assert all(math.isnan(e.low) and math.isnan(e.high) for e in measured.values())


def test_single_class_is_perfect_and_calibrated():
    """A model with one class is right, certain and calibrated."""
    measured = measure(table(np.zeros((5, 1)), [0] * 5), HOW)
    assert [measured[m].value for m in ("accuracy", "macro_f1", "nll", "ece")] == [1.0, 1.0, 0.0, 0.0]


def test_all_correct_is_not_certain():
    """Thirty right of thirty still leaves room below 1."""
    measured = measure(table(np.tile([5.0, 0.0], (30, 1)), [0] * 30), HOW)
    assert 0.85 < measured["accuracy"].low < 0.95 and measured["accuracy"].high == 1.0


def test_heavy_row_widens_the_interval():
    """One row of count 1000 among 100 leaves little effective evidence."""
    logits, labels = noisy(n=101)
    even = measure(table(logits, labels), HOW)["accuracy"]
    heavy = measure(table(logits, labels, [1000] + [1] * 100), HOW)["accuracy"]
    assert heavy.width > 3 * even.width


def test_same_seed_same_interval():
    """Intervals are a function of data and seed."""
    logits, labels = noisy()
    first, again = (measure(table(logits, labels), HOW) for _ in range(2))
    assert first == again
    assert first != measure(table(logits, labels), replace(HOW, seed=4))


@pytest.mark.parametrize("metric", ["macro_f1", "nll", "ece"])
def test_bootstrap_interval_has_the_spread_of_repeated_sampling(metric):
    """The interval's width matches ±1.96 standard deviations over fresh samples, within a third."""
    values, widths = [], []
    for seed in range(60):
        logits, labels = noisy(n=300, seed=seed)
        measured = measure(table(logits, labels), Resampling(seed=0, bootstrap=200, bins=10))[metric]
        values.append(measured.value)
        widths.append(measured.width)
        assert measured.low <= measured.value <= measured.high
    assert np.mean(widths) == pytest.approx(3.92 * np.std(values), rel=0.34)


def test_paired_difference_is_tighter_than_independent_intervals():
    """Two models that mostly agree differ with far less doubt than their own intervals suggest."""
    logits, labels = noisy(n=500)
    better = logits + 0.3 * np.eye(4)[labels]
    ours, theirs = table(better, labels, teacher=logits), table(logits, labels, teacher=logits)
    difference = compare(ours, theirs, HOW)
    a, b = (measure(t, HOW) for t in (ours, theirs))
    for metric in ("accuracy", "nll"):
        assert difference[metric].value == pytest.approx(a[metric].value - b[metric].value)
        assert difference[metric].width < 0.7 * (a[metric].width + b[metric].width)
    assert difference["accuracy"].low > 0 and difference["nll"].high < 0
    assert set(difference) == {"accuracy", "macro_f1", "nll", "ece", "agreement", "kl_from_teacher"}


def test_a_model_against_itself_differs_by_nothing_but_is_not_certain():
    """Identical predictions: difference 0, with an interval around it."""
    logits, labels = noisy(n=100)
    difference = compare(table(logits, labels), table(logits, labels), HOW)
    assert difference["accuracy"].value == 0 and difference["accuracy"].low < 0 < difference["accuracy"].high
    assert difference["nll"].value == 0


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: table(np.zeros((0, 2)), []), "no predictions"),
        (
            lambda: table([[0.0, 0.0]], [0]).set_column(1, "logp", pa.array([[math.nan, 0.0]], pa.list_(pa.float32()))),
            "not a number",
        ),
        (lambda: table([[0.0, 0.0]], [2]), "outside the model's 2 classes"),
        (lambda: table([[0.0, 0.0]], [0], [0]), "counts must be positive"),
        (lambda: table([[0.0, 0.0]], teacher=[[0.0, 0.0, 0.0]]), "teacher answers with 3 classes"),
        (
            lambda: table([[0.0, 0.0]], [0]).set_column(1, "logp", pa.array([[3.0, 4.0]], pa.list_(pa.float32()))),
            "not logits",
        ),
        (
            lambda: table([[0.0, 0.0], [0.0, 0.0]], [0, 0]).set_column(
                1, "logp", pa.array([[0.0], [-0.7, -0.7]], pa.list_(pa.float32()))
            ),
            "same number of classes",
        ),
    ],
)
def test_unusable_predictions_are_refused(make, message):
    """Each impossible table is an error that says what is wrong with it."""
    with pytest.raises(EvaluationError, match=message):
        measure(make(), HOW)


def test_different_rows_cannot_be_paired():
    """Pairing needs the same row ids in the same order."""
    logits, labels = noisy(n=5)
    with pytest.raises(EvaluationError, match="same rows"):
        compare(table(logits, labels), table(logits, labels, ids=[1, 0, 2, 3, 4]), HOW)
