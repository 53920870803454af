"""Bernoulli classes in the store: a yes or no by class, exact at every temperature, read by every tool."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from ray_distill.errors import LabelError, StoreMismatch
from ray_distill.labels.format import parquet_shards
from ray_distill.labels.format.arrow_tables import empty_signal, signal_to_table, table_to_signal
from ray_distill.labels.format.codecs.measure import added_error
from ray_distill.labels.model import rowids
from ray_distill.labels.model.distributions import bernoulli, log_sigmoid
from ray_distill.labels.model.signal import concat_signals, signal_of
from ray_distill.labels.model.validity import unusable
from ray_distill.labels.store.ensemble import averaged_manifest
from ray_distill.labels.store.label_store import open_store
from ray_distill.labels.store.reader import open_label_set
from ray_distill.labels.tools.audit import audit
from ray_distill.labels.tools.export import export_store
from ray_distill.labels.tools.inspect import inspect_row
from ray_distill.labels.tools.live_agreement import Answer, compare
from ray_distill.testing.labels import fake_manifest, fake_snapshot, fake_teacher, label_all, row_id

CLASSES = 3
MANIFEST = fake_manifest(classes=CLASSES, family="bernoulli")
log_odds = hnp.arrays(
    np.float32, st.tuples(st.integers(0, 5), st.just(CLASSES)), elements=st.floats(-500, 500, width=32)
)


def of(z_PV: np.ndarray):
    """One position a row."""
    return bernoulli(z_PV, row_offsets=np.arange(len(z_PV) + 1, dtype=np.int64), temperatures=(1.0, 2.0))


def ids_of(rows: int) -> np.ndarray:
    """Ids of so many rows."""
    return rowids.to_numpy(pa.array([row_id(number) for number in range(rows)], rowids.ROW_ID))


@given(log_odds)
def test_probabilities_at_every_temperature_are_exact_from_what_is_stored(z_PV):
    """σ(z/T) and its complement are those of the teacher's logits bit for bit, however certain it is."""
    data = parquet_shards.encode_labels(ids_of(len(z_PV)), of(z_PV), MANIFEST.distributions, {})
    _, found = parquet_shards.decode_labels(data, MANIFEST.distributions, {}, "shard")
    assert found.family == "bernoulli" and found.log_odds is not None
    np.testing.assert_array_equal(found.log_odds, z_PV.reshape(-1))
    for temperature in (1.0, 2.0, 7.0):
        softened = found.log_odds.astype(np.float64) / temperature
        for sign in (1, -1):
            np.testing.assert_array_equal(
                log_sigmoid(sign * softened), log_sigmoid(sign * z_PV.reshape(-1).astype(np.float64) / temperature)
            )
    np.testing.assert_array_equal(found.logp, of(z_PV).logp)
    np.testing.assert_array_equal(found.entropy, of(z_PV).entropy)


@given(
    hnp.arrays(np.float16, st.tuples(st.integers(1, 5), st.just(CLASSES)), elements=st.floats(-60000, 60000, width=16))
)
def test_logits_of_half_precision_take_half_the_bytes_and_lose_nothing(z_PV):
    """With the option float16; other numbers are refused, not rounded."""
    half = MANIFEST.distributions.with_changes(options={"dtype": "float16"})
    data = parquet_shards.encode_labels(ids_of(len(z_PV)), of(z_PV), half, {})
    _, found = parquet_shards.decode_labels(data, half, {}, "shard")
    np.testing.assert_array_equal(found.log_odds, z_PV.reshape(-1).astype(np.float32))
    between = of(np.full((1, CLASSES), 1 + 2.0**-12, dtype=np.float32))
    with pytest.raises(LabelError, match="not numbers of float16: set the option dtype to float32"):
        parquet_shards.encode_labels(ids_of(1), between, half, {})


@given(log_odds, log_odds)
def test_they_travel_take_and_join_like_other_parts(one, other):
    """Through a table, row by row, and one after the other; a store of none is of the same kind."""
    joined = concat_signals([signal_of(of(one)), signal_of(of(other))]).distributions
    both = np.concatenate([one, other])
    if len(both):
        np.testing.assert_array_equal(joined.log_odds, both.reshape(-1))
    ids = rowids.to_arrow(ids_of(len(both)))
    table = signal_to_table(ids, "unit", signal_of(of(both)), [(b"x" * 16, "no image")])
    found_ids, found = table_to_signal(table)
    assert found_ids.equals(ids)
    np.testing.assert_array_equal(found.distributions.log_odds, both.reshape(-1))
    order = np.arange(len(both))[::-1]
    np.testing.assert_array_equal(of(both).take(order).log_odds, both[order].reshape(-1))
    assert empty_signal(MANIFEST).distributions.family == "bernoulli"


def test_entropies_are_those_of_independent_classes():
    """ln 2 a class that is undecided, 0 where the teacher is certain; certainty is stored, NaN is not."""
    z = np.array([[0, 0, 0], [np.inf, -np.inf, 0], [np.nan, 0, 0]], dtype=np.float32)
    found = of(z)
    np.testing.assert_allclose(found.entropy[:2], np.log(2) * np.array([3, 1]), rtol=1e-6)
    assert unusable(signal_of(found)) == {2: "distribution is NaN or infinite"}


def test_measured_error_is_that_of_each_class_softened():
    """The lossless form adds nothing; flipped classes cost what the formula says."""
    exact = of(np.array([[1.0, -2.0, 0.5]], dtype=np.float32))
    measured = added_error(exact, MANIFEST.distributions, {})
    assert measured["nats"] == {"1": 0.0, "2": 0.0} and measured["max_abs_dlogp"] == 0


def test_a_store_of_bernoulli_classes_is_labelled_read_audited_inspected_and_exported(tmp_path):
    """All tools read it, from the first unit to the export."""
    url, snapshot = str(tmp_path / "store"), fake_snapshot(range(10))
    label_all(url, MANIFEST, snapshot)
    store = open_store(url)
    assert store.manifest.distributions.family == "bernoulli" and not store.pending(snapshot)
    ids, signal = open_label_set(store.ref(snapshot), snapshot).read()
    expected = fake_teacher(ids, MANIFEST).distributions
    np.testing.assert_array_equal(signal.distributions.log_odds, expected.log_odds)
    report = audit(url, snapshot)
    assert report.ok and report.rows == 10
    shown = inspect_row(url, row_id(3).hex()).positions[0]
    at = rowids.to_numpy(ids).tolist().index(row_id(3))
    p = np.exp(expected.take([at]).logp.astype(np.float64))
    assert {name: round(value, 6) for name, value in shown["classes"]} == {
        f"class{number}": round(float(value), 6) for number, value in enumerate(p)
    }
    done = export_store(url, str(tmp_path / "plain"))
    assert done.rows == 10
    table = pq.read_table(next(path for path in (tmp_path / "plain").glob("*.parquet")))
    assert len(table["log_odds"][0].as_py()[0]) == CLASSES
    assert (
        json.loads((tmp_path / "plain" / "manifest.json").read_text())["parts"]["distributions"]["family"]
        == "bernoulli"
    )


def test_a_live_teacher_is_compared_class_by_class():
    """The largest change of a class's probability is the distance."""
    ids = pa.array(sorted(row_id(number) for number in range(4)), rowids.ROW_ID)
    stored = Answer(ids=rowids.to_numpy(ids), signal=fake_teacher(ids, MANIFEST))
    z = stored.signal.distributions.log_odds.reshape(-1, CLASSES).copy()
    z[2, 1] = -z[2, 1] - 3
    moved = Answer(ids=stored.ids, signal=signal_of(of(z)))
    assert compare(stored, stored, stored).ok
    found = compare(stored, moved, moved)
    assert found.disagree == (rowids.hexadecimal(stored.ids)[2],) and found.stored.largest > 0.3


def test_means_of_bernoulli_sets_are_refused():
    """Until a mean of them is defined, they are mixed by source."""
    with pytest.raises(StoreMismatch, match="yes or no by class: mix such sets by source"):
        averaged_manifest([MANIFEST, MANIFEST])
