"""Whether the teacher still knows newer traffic: certain losses count, uncertain ones and trifles do not."""

import numpy as np
import pytest

from ray_distill.artifacts import Estimate
from ray_distill.config import DriftConfig
from ray_distill.evaluation.measures.intervals import wilson
from ray_distill.evaluation.measures.teacher_trust import TrustSample, compare_trust, difference, mean_estimate

CONFIG = DriftConfig()


def _sample(rng, *, rows=200, labelled=0, accuracy=0.95, confidence=0.95, disagreement=None):
    def share(n, p):
        return wilson(float((rng.random(n) < p).mean()), np.ones(n))

    values_N = np.clip(rng.normal(confidence, 0.1, rows), 0, 1)
    return TrustSample(
        rows=rows,
        quality={"accuracy": share(labelled, accuracy)} if labelled else {},
        confidence=mean_estimate(values_N, np.ones(rows)),
        disagreement=None if disagreement is None else share(rows, disagreement),
    )


def test_labels_decide_where_both_samples_have_them():
    """A teacher at 24 % fails however confident it is; one that lost nothing passes however unsure it is."""
    rng = np.random.default_rng(0)
    known = _sample(rng, labelled=150)
    lost = compare_trust(known, _sample(rng, labelled=100, accuracy=0.24, confidence=0.99), CONFIG)
    assert (lost.by, lost.fails, lost.labelled) == ("labels", True, 100)
    assert [finding.name for finding in lost.findings] == ["accuracy"]
    unsure = compare_trust(known, _sample(rng, labelled=100, confidence=0.4), CONFIG)
    assert (unsure.by, unsure.fails) == ("labels", False)


def test_few_labels_leave_the_decision_to_the_confidence():
    """Nineteen labelled rows on either side are too few."""
    rng = np.random.default_rng(1)
    many, few = _sample(rng, labelled=150), _sample(rng, labelled=19, accuracy=0.0, confidence=0.95)
    assert compare_trust(many, few, CONFIG).by == compare_trust(few, many, CONFIG).by == "confidence"
    assert not compare_trust(many, few, CONFIG).fails


def test_a_teacher_does_not_fail_on_a_handful_of_rows():
    """Nineteen rows of one confidence have an interval of width zero."""
    rng = np.random.default_rng(6)
    known, few = _sample(rng), _sample(rng, rows=19, confidence=0.2)
    assert not compare_trust(known, few, CONFIG).fails
    assert compare_trust(known, _sample(rng, rows=20, confidence=0.2), CONFIG).fails


def test_a_loss_of_confidence_needs_a_champion_that_disagrees_more():
    """Harder traffic alone lowers the confidence; without a champion the confidence decides alone."""
    rng = np.random.default_rng(2)
    known, alone = _sample(rng, disagreement=0.05), _sample(rng, confidence=0.6)
    assert compare_trust(known, alone, CONFIG).fails
    assert compare_trust(known, _sample(rng, confidence=0.6, disagreement=0.5), CONFIG).fails
    harder = compare_trust(known, _sample(rng, confidence=0.6, disagreement=0.05), CONFIG)
    assert not harder.fails and [finding.broken for finding in harder.findings] == [True, False]


def test_nothing_is_decided_where_the_input_is_its_own_truth():
    """Other texts lower a language model's accuracy and confidence: both are reported, and no teacher fails."""
    rng = np.random.default_rng(7)
    known, other = (_sample(rng, labelled=100, accuracy=share, confidence=share) for share in (0.8, 0.1))
    found = compare_trust(known, other, CONFIG, decisive=False)
    assert found.findings[0].broken and not found.fails
    bare = (_sample(rng, confidence=share) for share in (0.8, 0.1))
    assert not compare_trust(*bare, CONFIG, decisive=False).fails


def test_a_limit_must_be_broken_by_the_whole_interval():
    """A loss of 0.12 ± 0.2 is no proof of more than 0.1; the same loss on many rows is."""
    config = DriftConfig(max_teacher_loss=0.1)

    def of(value, half):
        found = Estimate(value=value, low=value - half, high=value + half, n=100)
        return TrustSample(rows=100, quality={"accuracy": found}, confidence=found, disagreement=None)

    assert not compare_trust(of(0.9, 0.1), of(0.78, 0.15), config).fails
    assert compare_trust(of(0.9, 0.005), of(0.78, 0.005), config).fails
    assert not compare_trust(of(0.9, 0.005), of(0.85, 0.005), config).fails


def test_a_limit_of_zero_tolerates_no_certain_loss():
    """And a certain gain is no loss."""
    config = DriftConfig(max_teacher_loss=0)
    rng = np.random.default_rng(3)
    low, high = (_sample(rng, labelled=400, accuracy=share) for share in (0.7, 0.9))
    assert compare_trust(high, low, config).fails and not compare_trust(low, high, config).fails


def test_an_unmeasurable_interval_decides_nothing():
    """One effective row has no interval."""
    one = mean_estimate(np.array([0.5]), np.ones(1))
    assert np.isnan(one.low)
    sample = TrustSample(rows=1, quality={}, confidence=one, disagreement=None)
    assert not compare_trust(sample, sample, CONFIG).fails


def test_the_interval_of_a_difference_covers_it():
    """Of 600 pairs of samples 95 % ± 3 % have the true difference of two proportions inside."""
    rng, covered, shares = np.random.default_rng(4), 0, (0.9, 0.8)
    for _ in range(600):
        first, second = (wilson(float((rng.random(80) < p).mean()), np.ones(80)) for p in shares)
        found = difference(second, first)
        covered += found.low <= shares[1] - shares[0] <= found.high
    assert 0.92 <= covered / 600 <= 0.98


def test_a_weight_is_a_repeated_row():
    """The mean is that of the repeated rows; the interval is wider than theirs, because rows are the units."""
    rng = np.random.default_rng(5)
    value_N, weight_N = rng.random(50), rng.integers(1, 5, 50).astype(float)
    found, repeated = mean_estimate(value_N, weight_N), np.repeat(value_N, weight_N.astype(int))
    assert found.value == pytest.approx(repeated.mean())
    assert found.width > mean_estimate(repeated, np.ones(len(repeated))).width
