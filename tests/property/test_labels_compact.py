"""The compact codec: bit for bit where lossless is asked for, within its stated error elsewhere."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ray_distill.errors import CorruptStore, LabelError
from ray_distill.labels.format import parquet_shards
from ray_distill.labels.format.codecs import find_codec
from ray_distill.labels.format.codecs.compact import compact_options, fit_ids
from ray_distill.labels.format.codecs.measure import added_error
from ray_distill.labels.format.codecs.planes import DIRECT, ESCAPE, WIDE_GAP, contexts, escaped, gaps, unescaped, ungaps
from ray_distill.labels.format.codecs.quantise import decode_entropy, decode_odds, encode_entropy, encode_odds
from ray_distill.labels.model import rowids
from ray_distill.labels.model.distributions import Distributions, Draws
from ray_distill.labels.model.part_specs import ESTIMATORS, AnswerSpace, DistributionsSpec
from ray_distill.labels.model.ragged import running
from ray_distill.testing.labels import row_id

FIELDS = ("row_offsets", "position", "entry_offsets", "ids", "logp", "log_tail", "entropy")


def spec_of(estimator, classes, *, lossless=True, temperatures=(1.0, 2.0), exponent=1.0, **options):
    """Distributions that the compact codec stores."""
    return DistributionsSpec(
        space=AnswerSpace(size=classes),
        estimator=estimator,
        k=1,
        draws=4,
        exponent=exponent,
        temperatures=temperatures,
        codec=("compact", 2),
        options=compact_options(temperatures, lossless) | options,
    )


def made(estimator, classes, positions, seed, *, exponent=1.0, from_zero=True, equal=False, sharpness=2.0):
    """Sound distributions of an estimator: rows of ``positions`` positions each, logits from a seed."""
    rng = np.random.default_rng(seed)
    total = int(sum(positions))
    logp_PV = rng.normal(size=(total, classes)) * sharpness
    logp_PV -= np.log(np.exp(logp_PV).sum(axis=1, keepdims=True))
    widest = classes if estimator == "dense" else min(classes - 1, 40)
    counts = np.full(total, widest) if estimator == "dense" or equal else rng.integers(1, widest + 1, total)
    kept = [np.sort(rng.choice(classes, count, replace=False)) for count in counts]
    mask_PV = np.zeros((total, classes), dtype=bool)
    for place, ids in enumerate(kept):
        mask_PV[place, ids] = True
    with np.errstate(divide="ignore"):
        tails = [
            np.log(np.where(mask_PV, 0, np.exp(logp_PV / t)).sum(1)) - np.log(np.exp(logp_PV / t).sum(1))
            for t in (1.0, 2.0)
        ]
    owner_E, ids_E = np.nonzero(mask_PV)
    drawn = (
        None
        if estimator in ("dense", "topk")
        else Draws(
            number=4,
            exponent=exponent,
            count=rng.integers(0, 400, len(ids_E)).astype(np.int32),
            log_normaliser=np.where(estimator == "sampled" and exponent == 1, 0, rng.normal(size=total)).astype(
                np.float32
            ),
        )
    )
    rows = running(np.array(positions, dtype=np.int64))
    start = np.arange(total) - np.repeat(rows[:-1], np.diff(rows))
    return Distributions(
        classes=classes,
        temperatures=(1.0, 2.0),
        row_offsets=rows,
        position=(start if from_zero else start * 3 + 1).astype(np.int32),
        entry_offsets=running(counts),
        ids=ids_E.astype(np.int32),
        logp=logp_PV[owner_E, ids_E].astype(np.float32),
        log_tail=np.stack(tails, axis=1).astype(np.float32),
        entropy=-(np.exp(logp_PV) * logp_PV).sum(1).astype(np.float32),
        draws=drawn,
    )


@st.composite
def given_distributions(draw):
    """``(spec without options, distributions, fits)`` of any estimator and layout."""
    estimator = draw(st.sampled_from(ESTIMATORS))
    classes = draw(st.sampled_from([2, 7, 300, 1000]))
    exponent = draw(st.sampled_from([1.0, 0.5]))
    distributions = made(
        estimator,
        classes,
        draw(st.lists(st.integers(0, 4), max_size=5)),
        draw(st.integers(0, 2**32 - 1)),
        exponent=exponent,
        from_zero=draw(st.booleans()),
        equal=draw(st.booleans()),
    )
    fits = {"ids": fit_ids(distributions, classes)} if draw(st.booleans()) else {}
    return (estimator, classes, exponent), distributions, fits


def ids_of(distributions):
    return rowids.to_numpy(pa.array([row_id(n) for n in range(distributions.rows)], rowids.ROW_ID))


def through_a_file(distributions, spec, fits):
    """Encode to a Parquet file and decode it; twice the same bytes."""
    ids = ids_of(distributions)
    data = parquet_shards.encode_labels(ids, distributions, spec, fits)
    assert data == parquet_shards.encode_labels(ids, distributions, spec, fits)
    found, decoded = parquet_shards.decode_labels(data, spec, fits, "shard")
    np.testing.assert_array_equal(found, ids)
    return decoded


def assert_same(found, expected, fields=FIELDS):
    for name in fields:
        one, other = getattr(found, name), getattr(expected, name)
        assert one.dtype == other.dtype and one.shape == other.shape, name
        assert one.tobytes() == other.tobytes(), name
    assert (found.draws is None) == (expected.draws is None)
    if expected.draws is not None:
        np.testing.assert_array_equal(found.draws.count, expected.draws.count)
        np.testing.assert_array_equal(found.draws.log_normaliser, expected.draws.log_normaliser)
        assert (found.draws.number, found.draws.exponent) == (expected.draws.number, expected.draws.exponent)


@settings(deadline=None, max_examples=60)
@given(given_distributions())
def test_lossless_is_bit_for_bit(case):
    """Every array of every estimator comes back with the same bytes, type and shape; encoding is deterministic."""
    (estimator, classes, exponent), distributions, fits = case
    found = through_a_file(distributions, spec_of(estimator, classes, exponent=exponent), fits)
    if distributions.rows and len(distributions.position):
        assert_same(found, distributions)


@settings(deadline=None, max_examples=60)
@given(given_distributions(), st.sampled_from([255, 65535]))
def test_lossy_keeps_structure_exactly_and_mass_whole(case, levels):
    """Ids, positions, counts are exact; the head sums to 1 less the tail; the tail's odds move by less than 1e-3."""
    (estimator, classes, exponent), distributions, fits = case
    spec = spec_of(estimator, classes, lossless=False, exponent=exponent, levels=levels)
    found = through_a_file(distributions, spec, fits)
    if not len(distributions.position):
        return
    assert_same(found, distributions, FIELDS[:4])
    owner = np.repeat(np.arange(len(found.position)), np.diff(found.entry_offsets))
    heads = np.bincount(owner, np.exp(found.logp.astype(np.float64)), minlength=len(found.position))
    np.testing.assert_allclose(heads + np.exp(found.log_tail[:, 0].astype(np.float64)), 1, atol=2e-6)
    np.testing.assert_allclose(found.log_tail, distributions.log_tail, rtol=2e-3, atol=1e-3)
    np.testing.assert_allclose(found.entropy, distributions.entropy, atol=4e-4)


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 2**32 - 1), st.sampled_from([0.5, 2.0, 5.0]))
def test_lossy_adds_little_at_every_declared_temperature(seed, sharpness):
    """One byte a value adds less than 1e-3 nats at T = 1 and 2 on any logits; 65,535 levels less than 1e-6."""
    distributions = made("topk", 300, [6, 6], seed, equal=True, sharpness=sharpness)
    for levels, most in ((255, 1e-3), (65535, 1e-6)):
        error = added_error(distributions, spec_of("topk", 300, lossless=False, levels=levels), {})
        assert set(error["nats"]) == {"1", "2"}
        assert all(-1e-7 < nats < most for nats in error["nats"].values()), error


def test_lossless_adds_nothing():
    """The measure itself is 0 where nothing is lost."""
    distributions = made("topk", 300, [5, 5], 0)
    error = added_error(distributions, spec_of("topk", 300), {})
    assert error["nats"] == {"1": 0.0, "2": 0.0} and error["max_abs_dlogp"] == 0.0 and error["bytes_a_position"] > 0


def test_probabilities_of_zero_and_empty_tails_stay_exact():
    """A masked class stays -inf and a tail of nothing stays -inf, lossy too; a certain class stays at 0 to rounding."""
    sound = made("topk", 7, [1, 1], 3, equal=True)
    logp = np.full(len(sound.logp), -np.inf, dtype=np.float32)
    logp[sound.entry_offsets[:-1]] = 0
    certain = replace(sound, logp=logp, log_tail=np.full_like(sound.log_tail, -np.inf))
    found = through_a_file(certain, spec_of("topk", 7, lossless=False), {})
    np.testing.assert_allclose(found.logp, logp, atol=1e-7)
    np.testing.assert_array_equal(found.log_tail, certain.log_tail)


def test_a_tiny_head_keeps_its_relative_mass():
    """Where the tail holds almost all, the head's mass is right to 1e-3 of itself, not of 1."""
    sound = made("topk", 7, [1], 3, equal=True)
    tiny = np.full(len(sound.logp), -30.0, dtype=np.float32)
    found = through_a_file(
        replace(sound, logp=tiny, log_tail=np.zeros_like(sound.log_tail)), spec_of("topk", 7, lossless=False), {}
    )
    np.testing.assert_allclose(found.logp, tiny, atol=5e-3)


@given(
    st.lists(
        st.sampled_from([0, 1, DIRECT - 1, DIRECT, ESCAPE - 1, ESCAPE, 500, WIDE_GAP - 1, WIDE_GAP, 2**31 - 2]),
        max_size=12,
    ),
    st.integers(0, 12),
)
def test_every_escape_comes_back(values, cut):
    """Numbers around each threshold, in two rows cut anywhere, come back from gaps and from escaped bytes."""
    numbers = np.array(values, dtype=np.int64)
    offsets = np.array([0, min(cut, len(values)), len(values)], dtype=np.int64)
    quarter = contexts(offsets)
    found = ungaps(pa.table(gaps("ids", numbers, offsets, quarter)), "ids", offsets, quarter)
    np.testing.assert_array_equal(found, numbers)
    np.testing.assert_array_equal(unescaped(pa.table(escaped("n", numbers, offsets)), "n", offsets), numbers)


def test_a_vocabulary_of_2_to_the_31_is_stored():
    """Class ids up to 2^31 - 2 come back; ranks need no table without a fitted order."""
    few = made("topk", 7, [2], 1, equal=True)
    ids = np.tile(np.array([0, 5, 70_000, 2**20, 2**30, 2**31 - 2], dtype=np.int32), 2)
    wide = replace(few, classes=2**31 - 1, ids=ids)
    assert_same(through_a_file(wide, spec_of("topk", 2**31 - 1), {}), wide)


@given(st.floats(-16000, 16000))
def test_odds_keep_their_relative_precision(odds):
    """Log-odds come back within 1e-3, growing with their size outwards; both infinities are exact."""
    found = decode_odds(encode_odds(np.array([odds, -np.inf, np.inf])))
    assert abs(found[0] - odds) <= 1e-3 * max(1, abs(odds) / 2) and found[1] == -np.inf and found[2] == np.inf


@given(st.floats(0, 1), st.sampled_from([2, 49152, 2**31 - 1]))
def test_entropy_keeps_its_precision(share, classes):
    """Entropies come back within 4e-4 nats up to the largest vocabulary."""
    entropy = np.array([share * np.log(classes)])
    assert abs(decode_entropy(encode_entropy(entropy, classes), classes)[0] - entropy[0]) < 4e-4


def test_the_fitted_order_is_by_count_then_id():
    """Frequent classes first, equals by id, classes that were never stored last."""
    few = made("topk", 7, [1], 1, equal=True)
    ids = np.array([1, 4, 5, 4, 5, 6], dtype=np.int32)
    order = fit_ids(replace(few, ids=ids), 7)
    assert order.dtype == np.int32 and order.tolist() == [4, 5, 1, 6, 0, 2, 3]


COLUMNS = {
    "topk": [
        "layout",
        "position",
        "entries",
        "ids.0",
        "ids.3",
        "ids.low",
        "logp",
        "log_tail.0",
        "log_tail.1",
        "entropy.0",
        "entropy.1",
    ],
    "hybrid": ["count", "count.wide", "log_normaliser.3"],
    "sampled": ["count", "count.more"],
    "dense": ["logp", "entropy.0"],
}


@pytest.mark.parametrize(("estimator", "column"), [(name, column) for name in COLUMNS for column in COLUMNS[name]])
def test_columns_that_disagree_are_corrupt(estimator, column):
    """A column that is missing, of another type, too short, too long or moved between rows is CorruptStore."""
    distributions = made(estimator, 20_000 if estimator != "dense" else 7, [2, 3], 5, from_zero=False)
    spec = spec_of(estimator, distributions.classes, lossless=False)
    table = pa.table(
        {
            "row_id": pa.array([row_id(n) for n in range(2)], rowids.ROW_ID),
            **find_codec(("compact", 2)).encode(distributions, spec, {}),
        }
    )
    at = table.column_names.index(column)
    others = [pa.array([1.5, 2.5])]
    if column != "layout":
        first, second = table.column(column).to_pylist()
        others += [
            pa.array(pair, pa.large_binary())
            for pair in ((first, second[:-1]), (first, second + b"\0"), (first + second[:1], second[1:]), (b"", b""))
        ]
    for changed in (table.drop_columns([column]), *(table.set_column(at, column, other) for other in others)):
        with pytest.raises(CorruptStore, match="shard: column "):
            parquet_shards.decode_labels(parquet_shards.to_parquet(changed), spec, {}, "shard")


@settings(deadline=None, max_examples=150)
@given(st.data(), st.sampled_from(ESTIMATORS), st.booleans())
def test_changed_bytes_decode_or_are_corrupt(data, estimator, lossless):
    """Any byte of any cell changed, any cell cut: sound arrays or CorruptStore, never another error."""
    distributions = made(estimator, 300, [2, 3], 7, equal=data.draw(st.booleans()))
    spec = spec_of(estimator, 300, lossless=lossless)
    fits = {"ids": fit_ids(distributions, 300)}
    columns = dict(find_codec(("compact", 2)).encode(distributions, spec, fits))
    name = data.draw(st.sampled_from(sorted(columns)))
    values = columns[name].to_pylist()
    row = data.draw(st.integers(0, 1))
    if name == "layout":
        values[row] = data.draw(st.integers(0, 255))
    elif values[row]:
        place = data.draw(st.integers(0, len(values[row]) - 1))
        values[row] = values[row][:place] + data.draw(st.binary(max_size=2)) + values[row][place + 1 :]
    columns[name] = pa.array(values, columns[name].type)
    try:
        found = find_codec(("compact", 2)).decode(pa.table(columns), spec, fits)
    except CorruptStore:
        return
    assert found.rows == 2 and (not len(found.ids) or (found.ids.min() >= 0 and found.ids.max() < 300))


def test_a_foreign_order_of_ids_is_refused():
    """A fitted array that does not name each class once is corrupt on reading and an error on writing."""
    distributions = made("topk", 300, [2], 1)
    spec = spec_of("topk", 300)
    good = {"ids": fit_ids(distributions, 300)}
    data = parquet_shards.encode_labels(ids_of(distributions), distributions, spec, good)
    for bad in (good["ids"][:-1], np.zeros(300, np.int32), good["ids"].astype(np.int64), good["ids"] + 1):
        with pytest.raises(CorruptStore, match="names each class once"):
            parquet_shards.decode_labels(data, spec, {"ids": bad}, "shard")
        with pytest.raises(LabelError, match="names each class once"):
            parquet_shards.encode_labels(ids_of(distributions), distributions, spec, {"ids": bad})


@pytest.mark.parametrize("change", [{"levels": 1}, {"levels": 70000}, {"power": 0}, {"power": "x"}, {"lossless": 1}])
def test_unusable_options_are_refused(change):
    """Options outside their ranges are named; nothing is stored."""
    distributions = made("topk", 7, [1], 1)
    with pytest.raises(LabelError, match="needs options"):
        through_a_file(
            distributions,
            spec_of("topk", 7, lossless=False, **change)
            if "lossless" not in change
            else spec_of("topk", 7).with_changes(options=change),
            {},
        )


def test_what_bins_cannot_say_is_refused():
    """Bins are of probabilities that sum to 1, and NaN is not a label."""
    distributions = made("topk", 7, [1], 1)
    with pytest.raises(LabelError, match="family bernoulli needs estimator and codec dense"):
        spec_of("dense", 7).with_changes(family="bernoulli")
    with pytest.raises(LabelError, match="NaN"):
        through_a_file(
            replace(distributions, logp=distributions.logp * np.float32("nan")), spec_of("topk", 7, lossless=False), {}
        )
