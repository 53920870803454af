"""Measures of a language model from sums a document: token-weighted, with intervals over documents."""

import math
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from ray_distill.errors import EvaluationError
from ray_distill.evaluation.measures.intervals import Resampling
from ray_distill.tasks.answers.tokens.evaluation.measures import (
    BUCKETS,
    compare,
    measure,
    read_documents,
    reliability,
    sum_by_document,
)

HOW = Resampling(seed=0, bootstrap=200, bins=10)
VALUES = ("nll", "correct", "entropy", "confidence", "kl_from_teacher", "agreement", "teacher_entropy", "tail_gap")


def positions(lengths, seed=0):
    """Random values of each position, its document and its place."""
    rng = np.random.default_rng(seed)
    document_P = np.repeat(np.arange(len(lengths)), lengths)
    position_P = np.concatenate([np.arange(length) for length in lengths])
    values = {name: rng.uniform(0.01, 2.0, len(document_P)) for name in VALUES}
    values |= {name: (values[name] > 1).astype(float) for name in ("correct", "agreement")}
    values["confidence"] = rng.uniform(0.0, 1.0, len(document_P))
    return values, document_P, position_P


def table(lengths, *, seed=0, counts=None, without=(), **replaced):
    values, document_P, position_P = positions(lengths, seed)
    values = {name: found for name, found in {**values, **replaced}.items() if name not in without}
    sums = sum_by_document(values, document_P=document_P, position_P=position_P, documents=len(lengths), bins=10)
    return pa.table(
        {
            "row_id": pa.array([i.to_bytes(16, "big") for i in range(len(lengths))], pa.binary(16)),
            "count": pa.array(counts if counts is not None else [1] * len(lengths), pa.int64()),
            **sums,
        }
    )


def test_every_mean_is_over_tokens_weighted_by_count():
    """A document twice as long, or seen twice, weighs twice; perplexity is e to the NLL."""
    lengths, counts = [3, 40, 7], [2, 1, 5]
    values, document_P, _ = positions(lengths)
    weight_P = np.array(counts)[document_P]
    found = measure(table(lengths, counts=counts), HOW)
    for name, column in (
        ("nll", "nll"),
        ("accuracy", "correct"),
        ("agreement", "agreement"),
        ("kl_from_teacher", "kl_from_teacher"),
        ("tail_mass_gap", "tail_gap"),
    ):
        assert found[name].value == pytest.approx(np.average(values[column], weights=weight_P), rel=1e-12)
    assert found["perplexity"].value == pytest.approx(math.exp(found["nll"].value), rel=1e-12)
    gap = np.average(values["entropy"] - values["teacher_entropy"], weights=weight_P)
    assert found["entropy_gap"].value == pytest.approx(gap, rel=1e-12)
    assert all(estimate.n == 3 for estimate in found.values())


def test_ece_is_guo_s_over_all_tokens():
    """The histogram gives the calibration error that the tokens themselves give."""
    lengths = [50, 90]
    values, _, _ = positions(lengths)
    bin_P = (values["confidence"] * 10).astype(int)
    expected = sum(abs((values["confidence"] - values["correct"])[bin_P == b].sum()) for b in range(10)) / 140
    found = measure(table(lengths), HOW)
    assert found["ece"].value == pytest.approx(expected, rel=1e-12)


def test_buckets_split_by_position_and_empty_ones_are_left_out():
    """KL, entropy gap and tail gap of positions 0-15, 16-63, …; a bucket that no document reaches has no metric."""
    lengths = [70, 30, 20]
    values, _, position_P = positions(lengths)
    found = measure(table(lengths), HOW)
    for bucket, (start, stop) in list(BUCKETS.items())[:3]:
        inside = (position_P >= start) & (position_P < stop)
        assert found[f"kl_from_teacher_at_{bucket}"].value == pytest.approx(values["kl_from_teacher"][inside].mean())
        assert found[f"tail_mass_gap_at_{bucket}"].value == pytest.approx(values["tail_gap"][inside].mean())
    assert not any(name.endswith(("256_1023", "1024_up")) for name in found)


def test_a_bucket_that_few_documents_reach_has_a_value_without_an_interval():
    """Where a resample may hold none of it, nothing can be said of how sure the value is."""
    found = measure(table([70, *[20] * 30]), HOW)
    assert math.isfinite(found["kl_from_teacher_at_64_255"].value)
    assert math.isnan(found["kl_from_teacher_at_64_255"].low)
    assert found["kl_from_teacher_at_16_63"].low < found["kl_from_teacher_at_16_63"].high


def test_intervals_are_over_documents_not_tokens():
    """When all tokens of a document are alike, longer documents make no interval narrower."""
    rng = np.random.default_rng(3)
    level = rng.uniform(1, 3, 60)
    widths = []
    for length in (5, 500):
        found = measure(table([length] * 60, nll=np.repeat(level, length)), HOW)["nll"]
        assert found.low < found.value < found.high
        widths.append(found.width)
    assert widths[0] == pytest.approx(widths[1], rel=1e-9)


def test_the_interval_of_a_mean_holds_the_truth_as_often_as_it_says():
    """Of 200 samples of 60 documents, the true mean lies inside in about 95 %: at least 88 %."""
    rng, inside = np.random.default_rng(4), 0
    for _ in range(200):
        lengths = np.full(60, 4)
        level = rng.normal(2.0, 0.5, 60)
        found = measure(table(lengths, nll=np.repeat(level, 4)), HOW)["nll"]
        inside += found.low <= 2.0 <= found.high
    assert inside >= 176


def test_metrics_that_need_a_teacher_are_absent_without_one():
    """A teacher on its own is measured by NLL, perplexity, accuracy and calibration alone."""
    bare = table([9, 9], without=("kl_from_teacher", "agreement", "teacher_entropy", "tail_gap"))
    assert set(measure(bare, HOW)) == {"nll", "perplexity", "accuracy", "ece"}


def test_paired_differences_are_narrower_than_two_intervals():
    """The same resamples of the same documents: what both find hard does not widen the difference."""
    rng = np.random.default_rng(5)
    lengths = [8] * 80
    hard = np.repeat(rng.uniform(1, 5, 80), 8)
    better, worse = table(lengths, nll=hard), table(lengths, nll=hard + 0.1 + rng.normal(0, 0.02, 640))
    difference = compare(better, worse, HOW)["nll"]
    assert difference.low < difference.value < difference.high < 0
    assert difference.value == pytest.approx(-0.1, abs=0.01)
    assert difference.width < measure(better, HOW)["nll"].width / 20
    assert set(compare(better, worse, HOW)) == set(measure(better, HOW))


def test_an_infinite_loss_stays_infinite_and_has_no_interval():
    """A token that was given no probability costs infinity, not a clipped number; what is finite keeps its interval."""
    lengths = [4] * 10
    nll = np.full(40, 1.0)
    nll[7] = np.inf
    found = measure(table(lengths, nll=nll), HOW)
    assert found["nll"].value == found["perplexity"].value == math.inf
    assert math.isnan(found["nll"].low)
    assert math.isfinite(found["kl_from_teacher"].low)


def test_what_cannot_be_is_an_error_that_names_it():
    """No documents, NaN, other bins, other documents or other tokens are refused."""
    good = table([5, 6])
    nll = np.full(11, 1.0)
    nll[6] = np.nan
    for predictions, how, words in (
        (good.slice(0, 0), HOW, "no predictions"),
        (table([5, 6], nll=nll), HOW, "nll of document 1"),
        (good, replace(HOW, bins=15), "10 calibration bins, 15"),
        (good.drop_columns("nll"), HOW, "lack nll"),
    ):
        with pytest.raises(EvaluationError, match=words):
            measure(predictions, how)
    with pytest.raises(EvaluationError, match="row ids"):
        compare(good, good.take([1, 0]), HOW)
    with pytest.raises(EvaluationError, match="numbers of positions"):
        compare(good, table([6, 6]), HOW)


def test_reliability_reads_the_histogram():
    """Mean confidence and accuracy of the bins that hold tokens, and shares that sum to 1."""
    confidence, accuracy, share = reliability(
        read_documents(
            table([4], confidence=np.array([0.05, 0.07, 0.95, 0.97]), correct=np.array([0.0, 1.0, 1.0, 1.0])), 10
        )
    )
    assert confidence == pytest.approx([0.06, 0.96])
    assert accuracy == pytest.approx([0.5, 1.0])
    assert share == pytest.approx([0.5, *[0.0] * 8, 0.5])
