"""Drift: silent on two halves of one snapshot, loud on a shift that matters, indifferent to a trifle."""

import numpy as np
import pytest
from scipy import stats as scipy_stats
from sklearn.metrics import roc_auc_score

from ray_distill.config import DriftConfig
from ray_distill.errors import EvaluationError
from ray_distill.evaluation.measures.drift import (
    DriftReport,
    DriftSample,
    compare,
    holm,
    jensen_shannon,
    kolmogorov_smirnov,
    weighted_auc,
)

CONFIG = DriftConfig()


def sample(rng, n=150, classes=(0.4, 0.3, 0.2, 0.1), length=50.0, shift=0.0, width=8, counts=False):
    label = rng.choice(len(classes), size=n, p=classes)
    logits = 3 * np.eye(len(classes))[label] + rng.normal(size=(n, len(classes)))
    probs = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    return DriftSample(
        class_probs=probs,
        stats={"characters": rng.poisson(length, n).astype(float), "words": rng.normal(size=n)},
        embeddings=rng.normal(size=(n, width)) + shift,
        count=rng.geometric(0.5, n) if counts else np.ones(n, dtype=np.int64),
    )


def take(whole, index):
    return DriftSample(
        class_probs=whole.class_probs[index],
        embeddings=whole.embeddings[index],
        stats={name: values[index] for name, values in whole.stats.items()},
        count=whole.count[index],
    )


def test_two_halves_of_one_snapshot_raise_no_alarm():
    """Over 25 seeds, rows weighted by count, not one false alarm and nothing to do."""
    for seed in range(25):
        rng = np.random.default_rng(seed)
        whole = sample(rng, n=240, counts=True)
        order = rng.permutation(240)
        report = compare(take(whole, order[:120]), take(whole, order[120:]), CONFIG, seed)
        assert not report.alarm and report.recommendation == "nothing", [f.sentence for f in report.findings]


def test_p_values_are_uniform_enough_without_drift():
    """Over 60 seeds the class test's raw p-value falls below 0.2 about a fifth of the time."""
    low = 0
    config = DriftConfig(alpha=0.05)
    for seed in range(60):
        rng = np.random.default_rng(1000 + seed)
        halves = [sample(rng, n=60, width=2) for _ in range(2)]
        bare = [DriftSample(class_probs=h.class_probs, stats={}, embeddings=None, count=h.count) for h in halves]
        low += compare(*bare, config, seed).findings[0].p_value <= 0.2
    assert 3 <= low <= 22


@pytest.mark.parametrize("seed", range(5))
def test_shifted_classes_raise_the_alarm(seed):
    """Other class shares alone: the classes are named, and labels on the new rows are asked for."""
    rng = np.random.default_rng(seed)
    report = compare(sample(rng), sample(rng, classes=(0.1, 0.2, 0.3, 0.4)), CONFIG, seed)
    assert report.alarm and report.recommendation == "relabel"
    assert [f.name for f in report.findings if f.alarm] == ["classes"]
    assert "classes moved" in report.findings[0].sentence


@pytest.mark.parametrize(
    ("change", "alarms", "recommendation"),
    [
        ({"length": 80.0}, ["input:characters"], "relabel"),
        ({"shift": 0.6}, ["embeddings"], "retrain"),
        ({"length": 80.0, "classes": (0.1, 0.2, 0.3, 0.4)}, ["classes", "input:characters"], "retrain"),
    ],
)
def test_each_change_is_named_and_weighed(change, alarms, recommendation):
    """Longer inputs, other embeddings, two kinds at once: each by its name, each with the rule's consequence."""
    rng = np.random.default_rng(5)
    report = compare(sample(rng), sample(rng, **change), CONFIG, 5)
    assert [f.name for f in report.findings if f.alarm] == alarms
    assert report.recommendation == recommendation


def test_a_sure_trifle_is_no_alarm():
    """With many rows a shift of a thousandth of a nat is certain, and still too little to matter."""
    rng = np.random.default_rng(0)
    bare = [
        DriftSample(class_probs=s.class_probs, stats={}, embeddings=None, count=s.count)
        for s in (sample(rng, 4000), sample(rng, 4000, classes=(0.36, 0.34, 0.2, 0.1)))
    ]
    report = compare(*bare, CONFIG, 0)
    assert report.findings[0].p_value <= 0.01 and not report.alarm
    assert "too little to matter" in report.findings[0].sentence


def test_counts_weigh():
    """The same rows with other counts are other traffic."""
    rng = np.random.default_rng(3)
    one = sample(rng, n=300)
    top = one.class_probs.argmax(1)
    heavy = DriftSample(class_probs=one.class_probs, stats=one.stats, embeddings=None, count=np.where(top == 3, 12, 1))
    plain = DriftSample(class_probs=one.class_probs, stats=one.stats, embeddings=None, count=one.count)
    assert [f.name for f in compare(plain, heavy, CONFIG, 0).findings if f.alarm] == ["classes"]


def test_rows_in_both_samples_do_not_hide_the_new_ones():
    """Four fifths of the rows are shared; the far-off remainder still shows in the embeddings."""
    rng = np.random.default_rng(4)
    whole = sample(rng, n=400)
    new = sample(rng, n=200, shift=4.0)
    mixed = DriftSample(
        class_probs=np.concatenate([whole.class_probs[:200], new.class_probs]),
        stats={k: np.concatenate([v[:200], new.stats[k]]) for k, v in whole.stats.items()},
        embeddings=np.concatenate([whole.embeddings[:200], new.embeddings]),
        count=np.ones(400, dtype=np.int64),
    )
    report = compare(whole, mixed, CONFIG, 0)
    assert [f.name for f in report.findings if f.alarm] == ["embeddings"]


def test_the_same_seed_gives_the_same_report_and_json_keeps_it():
    """A report is a function of samples, config and seed, and survives JSON."""
    first, second = (
        compare(sample(np.random.default_rng(0)), sample(np.random.default_rng(1)), CONFIG, 9) for _ in range(2)
    )
    assert first == second == DriftReport.from_json(first.to_json())


def test_statistics_match_scipy_and_scikit_learn():
    """The weighted tests with equal weights are the textbook ones."""
    rng = np.random.default_rng(2)
    a, b = rng.normal(size=80), rng.normal(0.4, 1, size=120)
    one, other = np.ones(80), np.ones(120)
    distance, p_value = kolmogorov_smirnov(a, b, one, other)
    expected = scipy_stats.ks_2samp(a, b, method="exact")
    assert distance == pytest.approx(expected.statistic) and p_value == pytest.approx(expected.pvalue, rel=0.15)
    scores, labels = np.round(np.concatenate([a, b]), 1), np.repeat([0, 1], [80, 120])
    weight = rng.integers(1, 4, size=200).astype(float)
    auc = weighted_auc(scores[:80], scores[80:], weight[:80], weight[80:])
    assert auc == pytest.approx(roc_auc_score(labels, scores, sample_weight=weight))
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert jensen_shannon(np.array([1.0, 0.0]), np.array([0.0, 1.0])) == pytest.approx(np.log(2))


def test_equal_statistics_do_not_drift():
    """A constant statistic (all images of one size) has distance 0 and p-value 1."""
    assert kolmogorov_smirnov(np.ones(30), np.ones(40), np.ones(30), np.ones(40)) == (0.0, 1.0)


@pytest.mark.parametrize(
    ("change", "message"),
    [({"n": 5}, "at least 20 rows"), ({"classes": (0.5, 0.5)}, "4 and 2 classes"), ({"width": 3}, "width 8 and 3")],
)
def test_incomparable_samples_are_refused(change, message):
    """Too few rows, other classes, other embeddings."""
    rng = np.random.default_rng(0)
    with pytest.raises(EvaluationError, match=message):
        compare(sample(rng), sample(rng, **change), CONFIG, 0)
