"""Codecs and tables give back exactly what they were given, whatever the raggedness."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ray_distill.errors import CorruptStore, LabelError
from ray_distill.labels.format import hidden_states as hidden_states
from ray_distill.labels.format import parquet_shards
from ray_distill.labels.format.arrow_tables import signal_to_table, table_to_rejected, table_to_signal
from ray_distill.labels.format.codecs import find_codec
from ray_distill.labels.format.dtypes import narrow, widen
from ray_distill.labels.model import rowids
from ray_distill.labels.model.distributions import Distributions, mass
from ray_distill.labels.model.part_specs import VectorsSpec
from ray_distill.labels.model.ragged import running
from ray_distill.labels.model.signal import Vectors, concat_signals, signal_of
from ray_distill.labels.model.validity import split_unusable
from ray_distill.testing.labels import fake_manifest, row_id

FIELDS = ("row_offsets", "position", "entry_offsets", "ids", "logp", "log_tail", "entropy")


@st.composite
def signals(draw, estimator=None, classes=7, layers=(0, 3)):
    """Sound signals with ragged positions and entries, and ragged hidden states; seeds shrink towards simplicity."""
    estimator = estimator or draw(st.sampled_from(["dense", "topk"]))
    positions = draw(st.lists(st.integers(0, 4), max_size=6))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    total = sum(positions)
    counts = np.full(total, classes) if estimator == "dense" else rng.integers(1, classes, total)
    ids = [np.sort(rng.choice(classes, count, replace=False)) for count in counts]
    p_PV = rng.dirichlet(np.ones(classes), total).astype(np.float64)
    tail = np.array([1 - p[kept].sum() for p, kept in zip(p_PV, ids, strict=True)])
    with np.errstate(divide="ignore"):
        log_tail = np.log(np.where(counts == classes, 0, np.maximum(tail, 0)))
    distributions = Distributions(
        classes=classes,
        temperatures=(1.0, 2.0),
        row_offsets=running(np.array(positions, dtype=np.int64)),
        position=rng.integers(0, 1000, total).astype(np.int32),
        entry_offsets=running(counts),
        ids=np.concatenate([np.empty(0), *ids]).astype(np.int32),
        logp=np.log(np.concatenate([np.empty(0), *(p[k] for p, k in zip(p_PV, ids, strict=True))])).astype(np.float32),
        log_tail=np.stack([log_tail, log_tail], axis=1).astype(np.float32).reshape(total, 2),
        entropy=rng.random(total).astype(np.float32),
    )
    vectors = {layer: rng.integers(0, 3, len(positions)) for layer in layers}
    hidden = {
        layer: Vectors(offsets=running(n), values=rng.normal(size=(int(n.sum()), 3 + layer)).astype(np.float32))
        for layer, n in vectors.items()
    }
    return signal_of(distributions=distributions, hidden=hidden)


def ids_of(signal, start=0):
    return pa.array([row_id(start + n) for n in range(signal.distributions.rows)], rowids.ROW_ID)


def assert_equal(found, expected):
    if not expected.distributions.rows:  # a table without rows cannot know temperatures or widths
        assert found.distributions.rows == 0 and all(hidden.rows == 0 for hidden in found.hidden.values())
        return
    for name in FIELDS:
        np.testing.assert_array_equal(getattr(found.distributions, name), getattr(expected.distributions, name), name)
    assert (found.distributions.classes, found.distributions.temperatures) == (
        expected.distributions.classes,
        expected.distributions.temperatures,
    )
    assert list(found.hidden) == list(expected.hidden)
    for layer, hidden in expected.hidden.items():
        np.testing.assert_array_equal(found.hidden[layer].offsets, hidden.offsets)
        np.testing.assert_array_equal(found.hidden[layer].values.reshape(-1), hidden.values.reshape(-1))


@settings(deadline=None, max_examples=40)
@given(st.data(), st.sampled_from([("dense", 2), ("topk", 2)]))
def test_a_codec_is_lossless_and_deterministic(data, key):
    """Decoding gives the same arrays bit for bit, encoding twice the same bytes, through a Parquet file."""
    signal = data.draw(signals(estimator=key[0]))
    spec = fake_manifest(estimator=key[0], classes=7, k=3).distributions.with_changes(codec=key)
    ids = rowids.to_numpy(ids_of(signal))
    encoded = parquet_shards.encode_labels(ids, signal.distributions, spec, {})
    assert encoded == parquet_shards.encode_labels(ids, signal.distributions, spec, {})
    found, distributions = parquet_shards.decode_labels(encoded, spec, {}, "shard")
    np.testing.assert_array_equal(found, ids)
    assert_equal(signal_of(distributions=distributions), signal_of(distributions=signal.distributions))


@settings(deadline=None, max_examples=40)
@given(signals(), st.sampled_from(["float32", "float16", "bfloat16"]))
def test_hidden_states_keep_their_shape_and_lose_only_the_types_rounding(signal, dtype):
    """RaggedArray vectors come back row by row, within half a unit in the last place of the stored type."""
    relative = {"float32": 0, "float16": 2**-11, "bfloat16": 2**-8}[dtype]
    ids = rowids.to_numpy(ids_of(signal))
    for hidden in signal.hidden.values():
        spec = VectorsSpec(layer=1, dtype=dtype)
        data = hidden_states.encode_hidden(ids, hidden, spec, {})
        found_ids, found = hidden_states.decode_hidden(data, spec, {}, "shard")
        np.testing.assert_array_equal(found_ids, ids)
        np.testing.assert_array_equal(found.offsets, hidden.offsets)
        np.testing.assert_allclose(
            found.values.reshape(-1), hidden.values.reshape(-1), rtol=relative, atol=2**-24 if relative else 0
        )


@given(st.lists(st.floats(-(2.0**127), 2.0**127, width=32), min_size=1))
def test_bfloat16_is_rounded_to_nearest_even(values):
    """The 16 bits are those of the nearest bfloat16, ties to even, found by brute force over its two neighbours."""
    given_values = np.array(values, dtype=np.float32)
    stored = widen(narrow(given_values, "bfloat16"), "bfloat16")
    low = (given_values.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)
    high = ((given_values.view(np.uint32) & np.uint32(0xFFFF0000)) + np.uint32(0x10000)).view(np.float32)
    down, up = np.abs(low.astype(np.float64) - given_values), np.abs(high.astype(np.float64) - given_values)
    even = (low.view(np.uint32) >> np.uint32(16)) % 2 == 0
    np.testing.assert_array_equal(stored, np.where((down < up) | ((down == up) & even), low, high))


def test_bfloat16_overflow_is_refused():
    """The largest float32 rounds to infinity in bfloat16: an error, not infinity."""
    with pytest.raises(LabelError, match="does not fit bfloat16: set labels.hidden.dtype to float32"):
        narrow(np.array([3.4e38], dtype=np.float32), "bfloat16")


@settings(deadline=None, max_examples=40)
@given(signals(), signals(), st.data())
def test_tables_survive_slicing_and_concatenation(first, second, data):
    """Any cut of any concatenation of tables holds exactly the rows of that cut, without schema metadata."""
    whole = pa.concat_tables(
        [signal_to_table(ids_of(first), "u1", first), signal_to_table(ids_of(second, 100), "u1", second)]
    )
    whole = whole.replace_schema_metadata(None)
    start = data.draw(st.integers(0, len(whole)))
    stop = data.draw(st.integers(start, len(whole)))
    row_ids, found = table_to_signal(whole.slice(start, stop - start))
    assert row_ids.to_pylist() == (ids_of(first).to_pylist() + ids_of(second, 100).to_pylist())[start:stop]
    assert_equal(found, concat_signals([first, second]).take(np.arange(start, stop)))


@settings(deadline=None, max_examples=40)
@given(signals(), st.lists(st.text(max_size=5), max_size=4))
def test_rejected_rows_travel_beside_the_labelled_ones(signal, reasons):
    """Both kinds come back apart, in order, after the table's rows were shuffled into two blocks."""
    rejected = [(row_id(1000 + n), reason) for n, reason in enumerate(reasons)]
    table = signal_to_table(ids_of(signal), "unit", signal, rejected)
    assert set(table.column("unit_id").to_pylist()) <= {"unit"}
    blocks = pa.concat_tables([table.slice(len(table) // 2), table.slice(0, len(table) // 2)])
    _, found = table_to_signal(table)
    assert_equal(found, signal)
    assert table_to_rejected(table) == rejected and sorted(table_to_rejected(blocks)) == sorted(rejected)


@settings(deadline=None, max_examples=40)
@given(signals(), st.data())
def test_unusable_rows_are_found_wherever_they_are(signal, data):
    """A NaN or infinity anywhere in a row, or mass that is not 1, rejects that row and no other."""
    assert split_unusable(ids_of(signal), signal)[2] == []
    np.testing.assert_allclose(mass(signal.distributions), 1, atol=1e-5)
    row_of = np.repeat(np.arange(signal.distributions.rows), np.diff(signal.distributions.row_offsets))
    if not len(row_of):
        return
    position = data.draw(st.integers(0, len(row_of) - 1))
    entry = signal.distributions.entry_offsets[position]
    kind = data.draw(st.sampled_from(["nan", "inf", "entropy", "tail", "mass"]))
    damage = {
        "nan": ("logp", entry, np.nan),
        "inf": ("logp", entry, np.inf),
        "entropy": ("entropy", position, np.inf),
        "tail": ("log_tail", (position, 1), np.nan),
        "mass": ("log_tail", (position, 0), 0.5),
    }[kind]
    getattr(signal.distributions, damage[0])[damage[1]] = damage[2]
    row_ids, kept, rejected = split_unusable(ids_of(signal), signal)
    assert [row for row, _ in rejected] == [row_id(int(row_of[position]))]
    assert len(row_ids) == kept.distributions.rows == signal.distributions.rows - 1
    assert rejected[0][1] == ("probabilities do not sum to 1" if kind == "mass" else "distribution is NaN or infinite")


def test_hidden_states_that_are_not_finite_are_unusable():
    """A NaN in any layer rejects its row and names the layer."""
    values = np.ones((3, 2), dtype=np.float32)
    values[1, 0] = np.nan
    signal = signal_of(hidden={4: Vectors(offsets=np.arange(4), values=values)})
    ids = pa.array([row_id(n) for n in range(3)], rowids.ROW_ID)
    row_ids, kept, rejected = split_unusable(ids, signal)
    assert rejected == [(row_id(1), "hidden state of layer 4 is NaN or infinite")]
    assert row_ids.to_pylist() == [row_id(0), row_id(2)] and kept.hidden[4].rows == 2


def test_an_unknown_codec_is_refused_with_the_known_ones():
    """A store of the future says what is needed."""
    with pytest.raises(LabelError, match="codec dense/3, this release reads dense/2, topk/2"):
        find_codec(("dense", 3))


def test_signals_of_different_kinds_do_not_join():
    """Joining other temperatures, layers or widths is an error, not a guess."""
    from ray_distill.testing.labels import fake_teacher

    ids = pa.array([row_id(n) for n in range(2)], rowids.ROW_ID)
    one = fake_teacher(ids, fake_manifest(layers=(1,)))
    for other in (fake_manifest(layers=(1,), temperatures=(1.0,)), fake_manifest(layers=(2,)), fake_manifest()):
        with pytest.raises(LabelError, match="cannot be joined"):
            concat_signals([one, fake_teacher(ids, other)])
    nine = Vectors(offsets=np.arange(3), values=np.ones((2, 9), np.float32))
    wide = signal_of(distributions=one.distributions, hidden={1: nine})
    with pytest.raises(LabelError, match="different widths"):
        concat_signals([one, wide])


@pytest.mark.parametrize("column", ["position", "entries", "ids", "logp", "log_tail", "entropy"])
def test_columns_that_disagree_are_corrupt(column):
    """A shard whose columns have other lengths, types or are missing is CorruptStore that names file and column."""
    from ray_distill.testing.labels import fake_teacher

    manifest = fake_manifest(estimator="topk")
    ids = pa.array([row_id(n) for n in range(3)], rowids.ROW_ID)
    columns = find_codec(("topk", 2)).encode(fake_teacher(ids, manifest).distributions, manifest.distributions, {})
    table = pa.table({"row_id": ids, **columns})
    at = table.column_names.index(column)
    short = (
        pa.array([b"\0" * 4] * 3, pa.large_binary())
        if column in ("log_tail", "ids", "logp")
        else pa.array([b""] * 3, pa.large_binary())
    )
    ragged = pa.array([b"\0" * 5] * 3, pa.large_binary())
    replaced = [table.set_column(at, column, other) for other in (short, ragged, pa.array([1, 2, 3]))]
    for changed in (table.drop_columns([column]), *replaced):
        with pytest.raises(CorruptStore, match=f"shard: column|{column}"):
            parquet_shards.decode_labels(parquet_shards.to_parquet(changed), manifest.distributions, {}, "shard")
