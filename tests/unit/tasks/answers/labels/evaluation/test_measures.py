"""Multi-label metrics against scikit-learn and by hand, and where a label has nothing to measure."""

import json
import math
import warnings

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit
from sklearn.metrics import accuracy_score, average_precision_score, f1_score, log_loss

from ray_distill.errors import EvaluationError
from ray_distill.evaluation.measures.intervals import Resampling
from ray_distill.tasks.answers.labels import LABELS
from ray_distill.tasks.answers.labels.evaluation.measures import (
    average_precisions,
    compare,
    label_qualities,
    measure,
    read_scores,
)
from ray_distill.testing.labels import row_id

HOW = Resampling(seed=3, bootstrap=200, bins=10)
QUALITY = {"map", "micro_f1", "macro_f1", "subset_accuracy", "nll", "ece"}


def sets_of(truth):
    return [None if row is None else [int(label) for label in np.flatnonzero(row)] for row in truth]


def table(log_odds, truth=None, counts=None, *, teacher=None, threshold=0.5):
    """Return a table of answers; ``truth`` has a line of 0 and 1 a row, or None."""
    z = np.asarray(log_odds, dtype=np.float32)
    threshold_V = np.broadcast_to(threshold, z.shape[1]).astype(float)
    columns = {
        "row_id": pa.array([row_id(number) for number in range(len(z))], pa.binary(16)),
        "log_odds": pa.array(list(z), pa.list_(pa.float32())),
        "decided": pa.array(sets_of(expit(z.astype(float)) >= threshold_V), pa.list_(pa.int32())),
        "count": pa.array([1] * len(z) if counts is None else counts, pa.int64()),
    }
    if truth is not None:
        columns["label"] = pa.array(sets_of(truth), pa.list_(pa.int32()))
    if teacher is not None:
        t = np.asarray(teacher, dtype=np.float32)
        columns["teacher_log_odds"] = pa.array(list(t), pa.list_(pa.float32()))
        columns["teacher_decided"] = pa.array(sets_of(expit(t) >= 0.5), pa.list_(pa.int32()))
    return pa.table(columns, metadata={"thresholds": json.dumps(threshold_V.tolist())})


def noisy(n=300, classes=5, seed=0):
    rng = np.random.default_rng(seed)
    truth = (rng.random((n, classes)) < np.linspace(0.05, 0.6, classes)).astype(int)
    return np.round(rng.normal(size=(n, classes)) + 2 * truth - 1, 1), truth, rng.integers(1, 6, size=n)


def test_metrics_equal_scikit_learn_with_counts_as_weights():
    """Every metric that scikit-learn has weighs a row by its count; equal scores are among the rows."""
    z, truth, counts = noisy()
    threshold = np.array([0.2, 0.3, 0.5, 0.5, 0.6])
    found = measure(table(z, truth, counts, threshold=threshold), HOW)
    p = expit(z.astype(np.float32).astype(float))
    decided = p >= threshold
    wanted = {
        "map": average_precision_score(truth, p, sample_weight=counts),
        "micro_f1": f1_score(truth, decided, average="micro", sample_weight=counts),
        "macro_f1": f1_score(truth, decided, average="macro", sample_weight=counts),
        "subset_accuracy": accuracy_score(truth, decided, sample_weight=counts),
        "nll": np.mean([log_loss(truth[:, v], p[:, v], sample_weight=counts) for v in range(5)]),
    }
    assert {name: found[name].value for name in wanted} == pytest.approx(wanted)
    assert {name: estimate.n for name, estimate in found.items()} == dict.fromkeys(QUALITY, 300)
    for name, estimate in found.items():
        assert estimate.low < estimate.value < estimate.high, name


def test_ece_is_the_mean_over_labels_by_hand():
    """Label 0: gaps of 0.1 and 0.4 in two bins, weights 3 and 1; label 1 is certain and right."""
    p = np.array([[0.9, 1.0], [0.6, 1.0]])
    with np.errstate(divide="ignore"):
        found = measure(table(np.log(p) - np.log1p(-p), [[1, 1], [1, 1]], [3, 1]), HOW)
    assert found["ece"].value == pytest.approx((3 * 0.1 + 0.4) / 4 / 2, abs=1e-6)


def test_agreement_and_kl_by_hand():
    """KL is the teacher's yes or no against the student's, a label; agreement is of whole sets; both need no truth."""
    student, teacher = np.array([[0.5, 0.1], [0.2, 0.8]]), np.array([[0.75, 0.2], [0.6, 0.9]])
    found = measure(table(logit(student), teacher=logit(teacher)), HOW)
    kl = teacher * np.log(teacher / student) + (1 - teacher) * np.log((1 - teacher) / (1 - student))
    assert found["kl_from_teacher"].value == pytest.approx(kl.mean(), rel=1e-5)
    assert found["agreement"].value == 0.5
    assert set(found) == {"kl_from_teacher", "agreement"}


def logit(p):
    return np.log(p) - np.log1p(-np.asarray(p))


def test_rows_without_a_known_set_count_for_fidelity_only():
    """Null is unknown; an empty set is known: nothing applies."""
    z, truth, _ = noisy(n=50)
    partly = [None if row < 30 else truth[row] * (row % 2) for row in range(50)]
    found = measure(table(z, partly, teacher=z), HOW)
    assert (found["map"].n, found["agreement"].n) == (20, 50)
    assert found["kl_from_teacher"].value == pytest.approx(0, abs=1e-12)
    unknown = measure(table(z, [None] * 50, teacher=z), HOW)
    assert set(unknown) == {"agreement", "kl_from_teacher"}


def test_a_label_that_never_applies_has_no_precision():
    """Its F1 counts where a model decides it all the same, as in scikit-learn with ``zero_division=nan``."""
    z = [[2.0, 1.0, -3.0], [1.0, -2.0, -3.0], [-1.0, -1.0, -3.0]]
    truth = [[1, 0, 0], [1, 0, 0], [0, 0, 0]]
    found = measure(table(z, truth), HOW)
    assert found["map"].value == 1.0
    decided = np.array(z) >= 0
    assert found["macro_f1"].value == f1_score(truth, decided, average="macro", zero_division=np.nan) == 0.5
    rare, never, absent = label_qualities(read_scores(table(z, truth)), 10)
    assert (rare.rows, rare.average_precision, rare.f1, rare.threshold) == (2, 1.0, 1.0, 0.5)
    assert never.f1 == 0.0 and math.isnan(never.average_precision) and math.isnan(absent.f1)


def test_nothing_applies_and_nothing_is_decided():
    """Then there is no precision and no F1 to report, but sets are right and calibration is measured."""
    found = measure(table([[-9.0, -9.0]] * 4, [[0, 0]] * 4), HOW)
    assert set(found) == {"subset_accuracy", "nll", "ece"} and found["subset_accuracy"].value == 1.0


def test_everything_is_decided_everywhere():
    """A model that says yes to all finds everything, and its precision is the share of rows."""
    truth = np.array([[1, 0], [1, 1], [0, 0], [1, 0]])
    found = measure(table(np.full((4, 2), 5.0), truth), HOW)
    assert found["map"].value == pytest.approx((0.75 + 0.25) / 2)
    assert found["micro_f1"].value == pytest.approx(f1_score(truth, np.ones((4, 2)), average="micro"))


def test_one_row_and_one_label():
    """One example gives values without intervals; with V = 1 a set is a yes or no."""
    found = measure(table([[1.5]], [[1]], teacher=[[0.3]]), HOW)
    assert found["map"].value == found["micro_f1"].value == found["subset_accuracy"].value == 1.0
    assert found["agreement"].value == 1.0
    assert all(math.isnan(estimate.low) for estimate in found.values())
    z, truth, counts = noisy(classes=1)
    assert measure(table(z, truth, counts), HOW)["map"].value == pytest.approx(
        average_precision_score(truth[:, 0], z[:, 0], sample_weight=counts)
    )


def test_certainty_of_a_wrong_answer_is_infinite_not_clipped():
    """A certain and right answer costs nothing; the other metrics stand."""
    z = [[math.inf, -math.inf], [0.0, 0.0]]
    right = measure(table(z, [[1, 0], [1, 0]], teacher=z), HOW)
    assert right["nll"].value == pytest.approx(math.log(2) / 2)
    assert right["kl_from_teacher"].value == 0.0
    wrong = measure(table(z, [[0, 1], [1, 0]], teacher=[[0.0, 0.0]] * 2), HOW)
    assert wrong["nll"].value == wrong["kl_from_teacher"].value == math.inf and math.isnan(wrong["nll"].low)
    assert 0 < wrong["map"].value <= 1


def test_tables_that_cannot_be_are_refused():
    """NaN, a label outside of the model's, another number of the teacher's labels, other rows in a comparison."""
    with pytest.raises(EvaluationError, match="row 1 is not a number"):
        measure(table([[0.0], [math.nan]], [[1], [0]]), HOW)
    with pytest.raises(EvaluationError, match="label 2 lies outside the model's 2 labels"):
        measure(table([[0.0, 1.0]], [[0, 1, 1]]), HOW)
    with pytest.raises(EvaluationError, match="3 classes, the model with 2"):
        measure(table([[0.0, 1.0]], teacher=[[0.0, 1.0, 2.0]]), HOW)
    pair = table([[0.0], [1.0]], [[1], [0]])
    with pytest.raises(EvaluationError, match="same rows"):
        compare(pair, pair.take([1, 0]), HOW)


def test_a_paired_difference_of_a_better_model_is_beyond_doubt():
    """Every metric both have, with the sign of the student; the same model differs by nothing."""
    z, truth, counts = noisy()
    worse = z + np.random.default_rng(1).normal(scale=2, size=z.shape)
    better, other = table(z, truth, counts, teacher=z), table(worse, truth, counts, teacher=z)
    found = compare(better, other, HOW)
    assert set(found) == QUALITY | {"agreement", "kl_from_teacher"}
    assert found["map"].low > 0 and found["nll"].high < 0 and found["subset_accuracy"].low > 0
    assert {name: estimate.value for name, estimate in compare(better, better, HOW).items()} == dict.fromkeys(found, 0)


@st.composite
def answers(draw):
    n, classes = draw(st.integers(1, 10)), draw(st.integers(1, 4))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    spread = draw(st.sampled_from([0.0, 1.0, 30.0]))
    truth = [None if rng.random() < 0.2 else rng.random(classes) < 0.4 for _ in range(n)]
    z, teacher = (np.round(spread * rng.normal(size=(n, classes)), 1) for _ in range(2))
    return table(
        z, truth, rng.integers(1, 5, size=n), teacher=teacher, threshold=draw(st.sampled_from([0.0, 0.5, 1.0]))
    )


@settings(max_examples=40, deadline=None)
@given(answers(), st.integers(0, 2**32 - 1))
def test_what_must_hold_whatever_the_answers(found, seed):
    """Values lie in their domains and intervals; a count is worth as many rows; the order of rows does not matter."""
    measured, counts = measure(found, HOW), found["count"].to_numpy()
    for name, estimate in measured.items():
        assert 0 <= estimate.value <= LABELS.metrics[name].high
        assert math.isnan(estimate.low) or estimate.low <= estimate.value <= estimate.high
    repeated = found.take(np.repeat(np.arange(len(counts)), counts))
    at = found.column_names.index("count")
    repeated = repeated.set_column(at, "count", pa.array(np.ones(counts.sum(), np.int64)))
    for other in (repeated, found.take(np.random.default_rng(seed).permutation(len(counts)))):
        again = {name: estimate.value for name, estimate in measure(other, HOW).items()}
        assert again == pytest.approx({name: estimate.value for name, estimate in measured.items()}, abs=1e-12)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 30), st.integers(0, 2**32 - 1))
def test_average_precision_equals_scikit_learn_for_any_ties_and_weights(n, seed):
    """A resample's weights may be 0; a label without positives of positive weight has no value."""
    rng = np.random.default_rng(seed)
    truth, scores = (rng.random((n, 3)) < 0.3).astype(np.int8), rng.integers(0, 4, (n, 3)).astype(float)
    weights = rng.integers(0, 3, (5, n)).astype(float)
    found = average_precisions(truth, scores)(weights)
    for weight, row in zip(weights, found, strict=True):
        for label, value in enumerate(row):
            if not weight @ truth[:, label]:
                assert math.isnan(value)
                continue
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                wanted = average_precision_score(truth[:, label], scores[:, label], sample_weight=weight)
            assert value == pytest.approx(wanted)
