"""Thresholds that maximise F1 on the validation split, against every threshold tried; and labels that are too rare."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import f1_score

from ray_distill.tasks.answers.labels.thresholds import MIN_ROWS, best_threshold, fit_thresholds


def f1(probability_N: np.ndarray, true_N: np.ndarray, threshold: float) -> float:
    return float(f1_score(true_N, probability_N >= threshold, zero_division=0.0))


@st.composite
def rated(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities with many ties, and a label that applies somewhere."""
    count = draw(st.integers(1, 30))
    values = st.sampled_from([0.0, 1e-9, 0.2, 0.49, 0.5, 0.51, 0.9, 1.0]) | st.floats(0, 1)
    probability = draw(st.lists(values, min_size=count, max_size=count))
    true = draw(st.lists(st.booleans(), min_size=count, max_size=count).filter(any))
    return np.array(probability), np.array(true)


@given(rated())
@settings(max_examples=200, deadline=None)
def test_no_threshold_is_better(case: tuple[np.ndarray, np.ndarray]) -> None:
    """Of all those that decide differently; and ½ is kept if it is as good as any."""
    probability, true = case
    found = best_threshold(probability, true)
    tried = {value: f1(probability, true, value) for value in (*probability, 0.5, 1.1)}
    assert f1(probability, true, found) == pytest.approx(max(tried.values())) and 0 <= found <= 1
    if tried[0.5] == max(tried.values()):
        assert found == 0.5


def test_a_threshold_is_between_two_rows() -> None:
    """In the middle; equal probabilities are decided alike, and the nearest to ½ of several is taken."""
    probability = np.array([0.9, 0.8, 0.3, 0.3, 0.1])
    assert best_threshold(probability, np.array([1, 1, 1, 1, 0], bool)) == pytest.approx(0.2)
    assert best_threshold(probability, np.array([1, 0, 0, 0, 0], bool)) == pytest.approx(0.85)
    assert best_threshold(probability, np.array([1, 1, 0, 0, 0], bool)) == 0.5
    # Two cuts reach 2/3: at 0.2 and at 0.7 (one of two hits in one row, both in four).
    assert best_threshold(np.array([0.8, 0.6, 0.4, 0.2]), np.array([1, 0, 0, 1], bool)) == pytest.approx(0.7)
    assert best_threshold(np.array([0.1, 0.1]), np.array([1, 1], bool)) == pytest.approx(0.05)


def test_labels_of_few_rows_keep_one_half() -> None:
    """None at all, fewer than enough, and those that nearly every row has; others are fitted."""
    rows = 4 * MIN_ROWS
    counts = (0, MIN_ROWS - 1, MIN_ROWS, rows - MIN_ROWS, rows - MIN_ROWS + 1, rows)
    sets = np.stack([np.arange(rows) < count for count in counts], axis=1)
    log_odds = np.tile(np.linspace(-1, -3, rows, dtype=np.float32)[:, None], len(counts))
    found = fit_thresholds(log_odds, sets)
    assert (found == 0.5).tolist() == [True, True, False, False, True, True]
    decided = 1 / (1 + np.exp(-log_odds.astype(np.float64))) >= found
    assert (decided[:, 2:4] == sets[:, 2:4]).all()


def test_certain_models_have_thresholds() -> None:
    """Log-odds of ±infinity are probabilities of 1 and 0."""
    sets = np.arange(2 * MIN_ROWS) % 2 == 0
    log_odds = np.where(sets, np.inf, -np.inf).astype(np.float32)[:, None]
    assert fit_thresholds(log_odds, sets[:, None]).tolist() == [0.5]
