"""The fitted temperature: known ones are found again, and nothing is fitted to noise."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from ray_distill.students.calibration.fit import GREATEST, LEAST, Confidence, Judged, fitted
from ray_distill.tasks.answers.classes.evaluation.confidence import ClassConfidence
from ray_distill.tasks.answers.labels.evaluation.confidence import LabelConfidence

CLASSES, LABELS = ClassConfidence(), LabelConfidence()
FAMILIES: list[Confidence] = [CLASSES, LABELS]


def drawn(confidence: Confidence, rows: int, temperature: float, *, classes: int = 5, seed: int = 0) -> Judged:
    """Rows whose true classes have the probabilities of the logits at a temperature."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(scale=2.0, size=(rows, classes))
    p = confidence.probabilities(logits / temperature)
    if confidence is LABELS:
        target = (rng.random(p.shape) < p).astype(np.float64)
    else:
        target = np.eye(classes)[(p.cumsum(axis=1) < rng.random((rows, 1))).sum(axis=1).clip(max=classes - 1)]
    return judged(logits, target)


def judged(logits: Any, target: Any, weight: Any = None) -> Judged:
    return Judged(
        logits_NV=np.asarray(logits, np.float32),
        target_NV=np.asarray(target, np.float32),
        weight_N=np.ones(len(logits)) if weight is None else np.asarray(weight, np.float64),
        against="true labels",
    )


@pytest.mark.parametrize("confidence", FAMILIES)
@pytest.mark.parametrize("temperature", [0.4, 1.8, 4.0])
def test_a_known_temperature_is_found_again(confidence: Confidence, temperature: float) -> None:
    """Within the error of the draws; NLL and calibration error fall."""
    found = fitted(drawn(confidence, 8000, temperature), confidence)
    assert found.temperature == pytest.approx(temperature, rel=0.06) and not found.reason
    assert found.nll_after < found.nll_before and found.ece_after < found.ece_before / 2
    assert (found.rows, found.against) == (8000, "true labels")


@pytest.mark.parametrize("confidence", FAMILIES)
def test_the_teachers_probabilities_are_matched(confidence: Confidence) -> None:
    """Of a teacher that is the model at another temperature, to the pull of the prior rows."""
    logits = np.random.default_rng(1).normal(scale=2.0, size=(4000, 4))
    found = fitted(judged(logits, confidence.probabilities(logits / 2.5)), confidence)
    assert found.temperature == pytest.approx(2.5, rel=0.01) and found.ece_after < 0.01


def test_rows_weigh_as_often_as_they_came() -> None:
    """A count is that many rows."""
    rows, count = drawn(CLASSES, 2000, 2.0), np.random.default_rng(2).integers(1, 4, 2000)
    counted = fitted(replace(rows, weight_N=count.astype(np.float64)), CLASSES)
    repeated = fitted(judged(rows.logits_NV.repeat(count, axis=0), rows.target_NV.repeat(count, axis=0)), CLASSES)
    assert counted.temperature == pytest.approx(repeated.temperature, rel=5e-3)
    assert counted.nll_before == pytest.approx(repeated.nll_before, abs=1e-6)
    assert counted.ece_before == pytest.approx(repeated.ece_before, abs=1e-6)


@pytest.mark.parametrize("seed", range(10))
def test_noise_moves_a_calibrated_model_little(seed: int) -> None:
    """It keeps T = 1 with the reason, or the temperature is within what 150 rows can show."""
    found = fitted(drawn(CLASSES, 150, 1.0, seed=seed), CLASSES)
    assert found.temperature == pytest.approx(1.0, rel=0.35)
    assert (found.temperature == 1) == bool(found.reason)
    if found.reason:
        assert "which chance explains" in found.reason and found.ece_after == found.ece_before
        assert "before" not in found.in_words and found.in_words.endswith(f"({found.reason})")


def test_most_calibrated_models_keep_their_logits() -> None:
    """In nine of ten draws of 150 rows, as the test at 95 % promises."""
    kept = [fitted(drawn(CLASSES, 150, 1.0, seed=seed), CLASSES).temperature == 1 for seed in range(60)]
    assert np.mean(kept) >= 0.9


def test_equal_labels_count_once() -> None:
    """Twelve copies of one label are one answer a row: calibrated models keep T = 1; twelve labels show more."""
    kept, found = [], []
    for seed in range(40):
        one = drawn(LABELS, 150, 1.0, classes=1, seed=seed)
        copies = judged(one.logits_NV.repeat(12, axis=1), one.target_NV.repeat(12, axis=1))
        kept.append(fitted(copies, LABELS).temperature == 1)
        found.append(fitted(drawn(LABELS, 150, 1.5, classes=12, seed=seed), LABELS).temperature != 1)
    assert np.mean(kept) >= 0.85 and np.mean(found) >= 0.95


def test_no_mistake_in_few_rows_is_no_proof_of_certainty() -> None:
    """A model that is right 60 times at 0.8 becomes surer of itself, and not certain."""
    logits = np.tile([np.log(0.8 / 0.2), 0.0], (60, 1))
    found = fitted(judged(logits, np.tile([1.0, 0.0], (60, 1))), CLASSES)
    sure = CLASSES.probabilities(logits[:1] / found.temperature).max()
    assert 0.9 < sure < 0.98 and not found.reason


def test_a_model_that_is_always_wrong_is_made_unsure() -> None:
    """No temperature repairs it: the greatest makes its probabilities nearly equal, and is named as a bound."""
    logits = np.tile([8.0, 0.0], (500, 1))
    found = fitted(judged(logits, np.tile([0.0, 1.0], (500, 1))), CLASSES)
    assert found.temperature == GREATEST and found.reason == f"a bound of the search, {LEAST:g} to {GREATEST:g}"
    assert found.nll_after < 1 < found.nll_before


def test_too_few_rows_keep_the_logits() -> None:
    """The reason names the number that is needed, and no figure is made up."""
    found = fitted(None, CLASSES)
    assert (found.temperature, found.rows, found.where) == (1.0, 0, "")
    assert "fewer than 50 rows" in found.reason and np.isnan(found.ece_before)
    assert found.in_words == f"temperature 1: {found.reason}"
    assert type(found).from_dict(found.to_dict()).reason == found.reason


def test_the_last_digits_of_logits_change_nothing() -> None:
    """Batches of another size round otherwise, and the exported bytes stay the same."""
    rows = drawn(CLASSES, 500, 2.0)
    other = replace(rows, logits_NV=rows.logits_NV * np.float32(1 + 1e-7), weight_N=rows.weight_N)
    assert fitted(rows, CLASSES).temperature == fitted(other, CLASSES).temperature


def test_the_error_is_that_of_the_evaluation() -> None:
    """Of the top class, and the mean over labels; with a certain model they follow by hand."""
    sure = np.array([[50.0, 0.0], [50.0, 0.0], [0.0, 50.0], [0.0, 50.0]])
    target = np.array([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0], [0.0, 1.0]])
    assert CLASSES.calibration_error(sure, target, np.ones(4)) == pytest.approx(0.25)
    assert CLASSES.calibration_error(sure, target, np.array([1, 5, 1, 1.0])) == pytest.approx(5 / 8)
    odds = np.array([[50.0, -50.0], [50.0, -50.0]])
    assert LABELS.calibration_error(odds, np.array([[1.0, 0.0], [0.0, 0.0]]), np.ones(2)) == pytest.approx(0.25)
