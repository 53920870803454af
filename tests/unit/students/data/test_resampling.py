"""Rows that come more often than others: exactly as many in all, in the share that is asked for, from a seed alone."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_distill.config import SamplingConfig
from ray_distill.errors import ConfigError
from ray_distill.labels.model.distributions import Distributions
from ray_distill.labels.model.ragged import RaggedArray, running
from ray_distill.students.data import resampling
from ray_distill.students.data.examples import PositionExamples
from ray_distill.students.data.resampling import (
    Occurrences,
    Shares,
    class_weights,
    entropy_weights,
    occurrences,
    resampled,
    shared,
    systematic,
)
from ray_distill.tasks.answers.classes.learn import ClassFormat
from ray_distill.tasks.answers.tokens.learn import TokenFormat
from ray_distill.tasks.catalogue import TASKS
from ray_distill.tasks.encoded import Encoded


def classifier(labels: list[int], entropy: list[float]) -> PositionExamples:
    """A set whose truth and entropies alone are read."""
    count = len(labels)
    steps = np.arange(count + 1, dtype=np.int64)
    return PositionExamples(
        format=ClassFormat(
            task=TASKS["text_classification"], student_classes=(), store_classes=(), snapshot_classes=()
        ),
        encoded=Encoded(row_ids=pa.array([bytes(16)] * count, pa.binary(16)), features={}),
        answered=RaggedArray(values=np.zeros(count, np.int32), offsets=steps),
        truth=RaggedArray(values=np.array(labels, np.int32), offsets=steps),
        stored=steps[:-1],
        distil=np.ones(count, np.bool_),
        distributions=Distributions(
            classes=2,
            temperatures=(1.0,),
            row_offsets=steps,
            position=np.zeros(count, np.int32),
            entry_offsets=steps,
            ids=np.ones(count, np.int32),
            logp=np.zeros(count, np.float32),
            log_tail=np.zeros((count, 1), np.float32),
            entropy=np.array(entropy, np.float32),
        ),
    )


def rows_of(*classes: list[int]) -> RaggedArray:
    """The classes of each row."""
    return RaggedArray(
        values=np.array([number for row in classes for number in row], np.int64),
        offsets=running(np.array([*map(len, classes)])),
    )


def by(kind: str, power: float = 1.0) -> SamplingConfig:
    return SamplingConfig.model_validate({"by": kind, "power": power})


@given(st.lists(st.floats(0.001, 1000) | st.just(float("nan")), min_size=1, max_size=200), st.integers(0, 2**31))
def test_as_many_rows_as_before_each_near_its_share(weights: list[float], seed: int) -> None:
    """A row of c times the mean comes ⌊c⌋ or ⌈c⌉ times; one that is not known, once or so."""
    weight = np.array(weights)
    counts = systematic(weight, seed)
    assert counts.sum() == len(weight)
    known = ~np.isnan(weight)
    mean = weight[known].mean() if known.any() else 1.0
    share = np.where(known, weight, mean) / mean
    share *= len(weight) / share.sum()
    assert (counts >= np.floor(share - 1e-6)).all() and (counts <= np.ceil(share + 1e-6)).all()
    assert (counts == systematic(weight, seed)).all()


def test_over_seeds_the_mean_is_the_share() -> None:
    """No row is favoured beyond its weight: the mean of 4,000 seeds is within four standard errors of it."""
    weight = np.array([0.2, 1.7, 0.5, 2.6, 1.0])
    found = np.mean([systematic(weight, seed) for seed in range(4000)], axis=0)
    share = weight * 5 / weight.sum()
    part = share % 1
    assert (abs(found - share) <= 4 * np.sqrt(part * (1 - part) / 4000) + 1e-9).all()


def test_classes_come_equally_often() -> None:
    """Of 90 and 10 rows each class gets 50 at power 1, and 75 to 25 at power 0.5; the rows stay ascending."""
    data = classifier([0] * 90 + [1] * 10, [1.0] * 100)
    rows = resampled(np.arange(100), data, by("class"), seed=3)
    assert len(rows) == 100 and (np.diff(rows) >= 0).all()
    assert [(rows < 90).sum(), (rows >= 90).sum()] == [50, 50]
    half = resampled(np.arange(100), data, by("class", 0.5), seed=3)
    assert abs(int((half < 90).sum()) - 75) <= 1


def test_uncertain_rows_come_more_often() -> None:
    """In proportion to the entropy's power; what the teacher is certain of need not come at all."""
    data = classifier([0] * 4, [0.0, 1.0, 1.0, 2.0])
    assert np.bincount(resampled(np.arange(4), data, by("entropy"), seed=0), minlength=4).tolist() == [0, 1, 1, 2]
    assert entropy_weights(np.array([2.0]), 2.0).tolist() == [4.0]
    assert (resampled(np.arange(4), classifier([0] * 4, [0.0] * 4), by("entropy"), seed=0) == np.arange(4)).all()


def test_sources_have_their_shares() -> None:
    """Of 30 and 10 rows at weights 1 and 3, the epoch's 40 are 10 and 30; rows of one source as they are sampled."""
    shares = Shares(starts=np.array([0, 30, 40]), weights=(1.0, 3.0))
    data = classifier([0] * 10 + [1] * 30, [1.0] * 40)
    rows = resampled(np.arange(40), data, None, seed=5, shares=shares)
    assert [(rows < 30).sum(), (rows >= 30).sum()] == [10, 30]
    both = resampled(np.arange(40), data, by("class"), seed=5, shares=shares)
    assert [(both < 10).sum(), ((both >= 10) & (both < 30)).sum(), (both >= 30).sum()] == [6, 4, 30]
    alone = resampled(np.arange(30, 40), data, None, seed=5, shares=shares)  # nothing is learnt from the first
    assert (alone == np.arange(30, 40)).all()


@given(
    sizes=st.lists(st.integers(0, 40), min_size=1, max_size=4).filter(any),
    seed=st.integers(0, 100),
    chunk=st.integers(1, 9),
)
def test_many_rows_are_shared_a_few_at_a_time(sizes: list[int], seed: int, chunk: int) -> None:
    """As many rows as before, each of a source as often as the others of it, however they are parted."""
    starts, weights = np.append(0, np.cumsum(sizes)), tuple(0.5 + n for n in range(len(sizes)))
    rows, shares = np.arange(starts[-1]), Shares(starts=starts, weights=weights)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(resampling, "_CHUNK", chunk)
        found = resampled(rows, None, None, seed=seed, shares=shares)  # type: ignore[arg-type]
    assert len(found) == len(rows)
    total = sum(weight for weight, size in zip(weights, sizes, strict=True) if size)
    for number, size in enumerate(sizes):
        own = found[(found >= starts[number]) & (found < starts[number + 1])]
        wanted = len(rows) * weights[number] / total
        assert not size or abs(len(own) - wanted) <= 1
        counts = np.bincount(own - starts[number], minlength=size)
        assert not size or counts.max() - counts.min() <= 1


def test_what_is_not_known_weighs_as_the_rest_of_its_source() -> None:
    """NaN is the mean of the others of its source, not of all; a source without anything known is even."""
    shares = Shares(starts=np.array([0, 3, 5]), weights=(1.0, 1.0))
    weight = np.array([1.0, 3.0, np.nan, np.nan, np.nan])
    assert shared(weight, np.arange(5), shares) == pytest.approx([1 / 6, 1 / 2, 1 / 3, 1 / 2, 1 / 2])


def test_rows_without_truth_have_the_class_of_the_teacher() -> None:
    """Its first choice; of 90 true rows of class 0 and 10 that the teacher calls 1, each gets half of the epoch."""
    data = classifier([0] * 90 + [-1] * 10, [1.0] * 100)
    classes = data.sampling_classes()
    assert classes.values.tolist() == [0] * 90 + [1] * 10 and classes.offsets.tolist() == list(range(101))
    rows = resampled(np.arange(100), data, by("class"), seed=3)
    assert [(rows < 90).sum(), (rows >= 90).sum()] == [50, 50]


def test_without_sampling_rows_stay() -> None:
    """Each once, untouched."""
    rows = np.array([1, 5, 7])
    assert resampled(rows, classifier([0] * 8, [1.0] * 8), None, seed=0) is rows


def test_unknown_classes_weigh_as_the_others_on_average() -> None:
    """A class that is not known is none."""
    weight = class_weights(rows_of([0], [0], [1], []), 1.0)
    assert weight[:3].tolist() == [0.5, 0.5, 1.0] and np.isnan(weight[3])
    assert np.isnan(class_weights(rows_of([], []), 1.0)).all()


def test_a_row_of_several_classes_weighs_as_its_rarest() -> None:
    """Class 0 has four rows, 1 has two and 2 one; unknown rows anywhere between them."""
    weight = class_weights(rows_of([], [0, 1], [0], [], [2, 0], [1, 0], []), 1.0)
    assert np.array_equal(weight, [np.nan, 1 / 2, 1 / 4, np.nan, 1, 1 / 2, np.nan], equal_nan=True)


def test_what_cannot_be_told_is_refused() -> None:
    """An engine without entropies; a language model has no classes."""
    documents = replace(classifier([0, 1], [1.0, 1.0]), format=TokenFormat(task=TASKS["causal_lm"], vocabulary=2))
    with pytest.raises(ConfigError, match="the labels contain no entropies: the teacher's engine"):
        resampled(np.arange(2), classifier([0, 1], [np.nan, np.nan]), by("entropy"), seed=0)
    with pytest.raises(ConfigError, match="by: class is for classifiers"):
        resampled(np.arange(2), documents, by("class"), seed=0)


def counted(count: list[int], labels: list[int] | None = None) -> PositionExamples:
    """Rows of one class, or of these, that came several times."""
    return replace(classifier(labels or [0] * len(count), [1.0] * len(count)), count=np.array(count))


def totals(found: Occurrences, rows: int) -> list[float]:
    """Each row's share of the weight of an epoch."""
    found_R = np.bincount(found.rows, weights=found.weights, minlength=rows)
    return (found_R / found_R.sum()).tolist()


@given(st.lists(st.integers(1, 10**6), min_size=1, max_size=60))
def test_a_row_has_the_share_of_its_count(count: list[int]) -> None:
    """The weights of an epoch are in proportion to the counts; no example weighs more than the mean; none is left out;
    there are at most twice as many examples as rows."""
    found = occurrences(np.arange(len(count)), counted(count), None, seed=1)
    assert totals(found, len(count)) == pytest.approx(np.array(count) / np.sum(count), rel=1e-5)
    weights = np.ones(len(found.rows)) if found.weights is None else found.weights
    assert weights.max() <= weights.sum() / len(count) * (1 + 1e-5)
    assert len(count) <= len(found.rows) <= 2 * len(count) and (np.diff(found.rows) >= 0).all()


def test_rows_that_came_equally_often_are_as_if_they_came_once() -> None:
    """No weights, and each row once."""
    found = occurrences(np.arange(4), counted([3, 3, 3, 3]), None, seed=1)
    assert found.rows.tolist() == [0, 1, 2, 3] and found.weights is None


def test_few_duplicates_are_repeated() -> None:
    """A row that came three times among many single ones is there three times, with the weight of the others."""
    found = occurrences(np.arange(99), counted([3] + [1] * 98), None, seed=1)
    assert np.bincount(found.rows).tolist() == [3] + [1] * 98 and found.weights is None


def test_ten_rows_with_most_of_the_traffic_have_most_of_the_gradient() -> None:
    """Ten of 310 rows came 400 times: 93 % of the traffic, and 93 % of the mean over batches of 32, each of which is
    divided by its own weight; by rows they would have 3 %."""
    count = [400] * 10 + [1] * 300
    found = occurrences(np.arange(310), counted(count), None, seed=1)
    assert found.weights is not None
    orders = [np.random.default_rng(epoch).permutation(len(found.rows)) for epoch in range(40)]
    batches = [batch for order in orders for batch in np.split(order, range(32, len(order), 32))]
    shares = [found.weights[some][found.rows[some] < 10].sum() / found.weights[some].sum() for some in batches]
    assert np.mean(shares) == pytest.approx(4000 / 4300, abs=0.005)


def test_classes_are_sampled_by_how_often_their_rows_came() -> None:
    """power 1: every class has the same total, and inside a class a row has the share of its count."""
    found = occurrences(np.arange(6), counted([10, 30, 1, 1, 1, 1], [0, 0, 1, 1, 1, 1]), by("class"), seed=3)
    assert totals(found, 6) == pytest.approx([1 / 8, 3 / 8, 1 / 8, 1 / 8, 1 / 8, 1 / 8])


def test_sources_keep_their_shares_whatever_the_counts() -> None:
    """Rows of the second source came 100 times each: its share is the configured one."""
    data, shares = counted([1] * 6 + [2] + [100] * 3), Shares(starts=np.array([0, 6, 10]), weights=(1.0, 3.0))
    found = totals(occurrences(np.arange(10), data, None, seed=1, shares=shares), 10)
    assert sum(found[:6]) == pytest.approx(0.25) and found[6] == pytest.approx(0.75 * 2 / 302)
