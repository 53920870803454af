"""What must hold of the metrics whatever the predictions."""

import math

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ray_distill.evaluation.measures.intervals import Resampling
from ray_distill.tasks.answers.classes import CLASSES
from ray_distill.tasks.answers.classes.evaluation.measures import compare, measure

HOW = Resampling(seed=1, bootstrap=100, bins=8)


@st.composite
def predictions(draw):
    n, classes = draw(st.integers(1, 12)), draw(st.integers(1, 4))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    spread = draw(st.sampled_from([0.0, 1.0, 30.0]))

    def logp():
        logits = spread * rng.normal(size=(n, classes))
        logits -= np.logaddexp.reduce(logits, axis=1, keepdims=True)
        return pa.array(list(logits.astype(np.float32)), pa.list_(pa.float32()))

    return pa.table(
        {
            "row_id": pa.array([i.to_bytes(16, "big") for i in range(n)], pa.binary(16)),
            "logp": logp(),
            "teacher_logp": logp(),
            "count": pa.array(rng.integers(1, 5, size=n), pa.int64()),
            "label": pa.array([None if x < 0 else int(x) for x in rng.integers(-1, classes, size=n)], pa.int32()),
        }
    )


@settings(max_examples=40, deadline=None)
@given(predictions())
def test_values_lie_in_their_intervals_and_domains(table):
    """Every value is possible, and inside its interval where there is one; one row has none."""
    for name, estimate in measure(table, HOW).items():
        highest = CLASSES.metrics[name].high
        assert 0 <= estimate.value <= highest
        if estimate.n < 2:
            assert math.isnan(estimate.low) and math.isnan(estimate.high)
        else:
            assert 0 <= estimate.low <= estimate.value <= estimate.high <= highest


@settings(max_examples=40, deadline=None)
@given(predictions())
def test_a_count_is_worth_as_many_rows(table):
    """A row of count k measures as k rows of count 1 do; only certainty differs."""
    counts = table["count"].to_numpy()
    repeated = table.take(np.repeat(np.arange(len(counts)), counts))
    ones = pa.array(np.ones(counts.sum(), dtype=np.int64))
    repeated = repeated.set_column(repeated.column_names.index("count"), "count", ones)
    first, second = (measure(t, HOW) for t in (table, repeated))
    assert {n: e.value for n, e in first.items()} == pytest.approx({n: e.value for n, e in second.items()}, abs=1e-12)


@settings(max_examples=40, deadline=None)
@given(predictions(), st.integers(0, 2**32 - 1))
def test_the_order_of_rows_does_not_matter(table, seed):
    """Values are sums over rows."""
    shuffled = table.take(np.random.default_rng(seed).permutation(table.num_rows))
    first, second = (measure(t, HOW) for t in (table, shuffled))
    assert {n: e.value for n, e in first.items()} == pytest.approx({n: e.value for n, e in second.items()}, abs=1e-12)


@settings(max_examples=40, deadline=None)
@given(predictions())
def test_differences_turn_their_sign_with_the_models(table):
    """Student minus other is the negative of other minus student, value and interval."""
    other = table.set_column(table.column_names.index("logp"), "logp", table["teacher_logp"])
    there, back = (compare(*pair, HOW) for pair in ((table, other), (other, table)))
    for name, estimate in there.items():
        assert estimate.value == pytest.approx(-back[name].value, abs=1e-12)
        assert estimate.low == pytest.approx(-back[name].high, abs=1e-9, nan_ok=True)
