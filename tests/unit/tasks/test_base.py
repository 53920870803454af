"""Encoded rows survive the way through Arrow, whole, sliced and put together."""

import numpy as np
import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from ray_distill.labels.model.ragged import RaggedArray
from ray_distill.tasks.encoded import Encoded

INNER = {"ids": (), "frames": (3,), "pixels": (1, 2, 2)}


@st.composite
def encodings(draw: st.DrawFn) -> Encoded:
    """Rows with a ragged feature of each inner shape."""
    rows = draw(st.integers(0, 6))
    features = {}
    for name, inner in INNER.items():
        lengths = draw(st.lists(st.integers(0, 4), min_size=rows, max_size=rows))
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        size = (int(offsets[-1]), *inner)
        kind = np.int32 if name == "ids" else np.float32
        values = np.arange(int(np.prod(size)), dtype=kind).reshape(size) + draw(st.integers(0, 100))
        features[name] = RaggedArray(values=values.astype(kind), offsets=offsets, pad=draw(st.integers(0, 9)))
    ids = pa.array([bytes([row]) * 16 for row in range(rows)], pa.binary(16))
    return Encoded(row_ids=ids, features=features)


def _take(encoded: Encoded, start: int, stop: int) -> Encoded:
    """The expected slice, made without Arrow."""
    features = {}
    for name, feature in encoded.features.items():
        low, high = feature.offsets[start], feature.offsets[stop]
        features[name] = RaggedArray(
            values=feature.values[low:high], offsets=feature.offsets[start : stop + 1] - low, pad=feature.pad
        )
    return Encoded(row_ids=encoded.row_ids[start:stop], features=features)


def _same(a: Encoded, b: Encoded) -> None:
    assert a.row_ids.to_pylist() == b.row_ids.to_pylist() and set(a.features) == set(b.features)
    for name, feature in a.features.items():
        other = b.features[name]
        assert feature.values.dtype == other.values.dtype and feature.values.shape == other.values.shape, name
        assert np.array_equal(feature.values, other.values) and feature.offsets.tolist() == other.offsets.tolist()
        assert feature.pad == other.pad


@given(encodings(), st.data())
@settings(max_examples=60, deadline=None)
def test_a_slice_of_the_table_is_a_slice_of_the_rows(encoded: Encoded, data: st.DataObject) -> None:
    """Also when the slice is itself sliced, or empty."""
    start = data.draw(st.integers(0, encoded.rows))
    stop = data.draw(st.integers(start, encoded.rows))
    _same(Encoded.from_table(encoded.to_table()), encoded)
    _same(Encoded.from_table(encoded.to_table().slice(start, stop - start)), _take(encoded, start, stop))
    _same(Encoded.from_table(encoded.to_table().slice(start).slice(0, stop - start)), _take(encoded, start, stop))


@given(encodings(), st.lists(st.integers(0, 6), max_size=3))
@settings(max_examples=60, deadline=None)
def test_pieces_put_together_are_the_whole(encoded: Encoded, cuts: list[int]) -> None:
    """Chunks, empty ones among them, concatenate to the rows they were cut from."""
    edges = sorted({0, encoded.rows, *(min(cut, encoded.rows) for cut in cuts)})
    table = encoded.to_table()
    pieces = [table.slice(low, high - low) for low, high in zip(edges[:-1], edges[1:], strict=True)]
    _same(Encoded.from_table(pa.concat_tables([table.slice(0, 0), *pieces])), encoded)


@given(encodings())
@settings(max_examples=30, deadline=None)
def test_rows_taken_in_any_order_keep_their_values(encoded: Encoded) -> None:
    """Arrow's take and our own give each row its own values."""
    order = np.random.default_rng(encoded.rows).permutation(encoded.rows)
    taken = Encoded.from_table(encoded.to_table().take(pa.array(order, pa.int64())))
    _same(encoded.take(order), taken)
    for place, row in enumerate(order):
        _same(_take(taken, place, place + 1), _take(encoded, int(row), int(row) + 1))


def test_a_table_without_chunks_has_no_rows() -> None:
    """An empty table keeps its features and their shapes."""
    schema = (
        Encoded(
            row_ids=pa.array([], pa.binary(16)),
            features={"pixels": RaggedArray(values=np.zeros((0, 1, 2), np.float32), offsets=np.zeros(1, np.int64))},
        )
        .to_table()
        .schema
    )
    found = Encoded.from_table(schema.empty_table())
    assert found.rows == 0 and found.features["pixels"].values.shape == (0, 1, 2)
    none = pa.Table.from_batches([], schema=schema)
    assert Encoded.from_table(none).rows == 0
