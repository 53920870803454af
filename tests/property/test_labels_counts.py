"""Counts of draws are stored as differences to what the bin of the probability leads one to expect."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_distill.errors import CorruptStore
from ray_distill.labels.format.codecs.counts import decode_counts, encode_counts, expected_counts
from ray_distill.labels.format.codecs.quantise import centres
from ray_distill.labels.model.ragged import running


@pytest.mark.parametrize(("power", "levels", "draws"), [(0.4, 112, 50), (0.25, 208, 12), (0.5, 65535, 1000)])
def test_what_is_expected_is_the_rounded_mean_and_at_least_one(power, levels, draws):
    """By bin: N times its probability to the nearest whole number; a class that is stored was drawn."""
    mean = draws * np.exp(centres(power, levels))
    clear = np.abs(mean % 1 - 0.5) > 1e-9
    expected = expected_counts(power, levels, draws)
    assert expected[0] == 0 and len(expected) == levels + 1
    np.testing.assert_array_equal(expected[1:][clear[1:]], np.maximum(np.rint(mean), 1)[1:][clear[1:]])


@given(st.lists(st.lists(st.tuples(st.integers(0, 8), st.integers(0, 2**20)), max_size=9), max_size=4))
def test_every_count_comes_back(rows):
    """RaggedArray rows, empty ones too, counts near what is expected and far from it."""
    entries = [entry for row in rows for entry in row]
    bins = np.array([level for level, _ in entries], dtype=np.uint8)
    count = np.array([number for _, number in entries], dtype=np.int32)
    offsets, expected = running(np.array([len(row) for row in rows], dtype=np.int64)), expected_counts(0.5, 8, 50)
    columns = encode_counts(count, bins, expected, offsets)
    found = decode_counts(pa.table(columns), bins, expected, offsets)
    assert found.dtype == np.int32
    np.testing.assert_array_equal(found, count)


def test_counts_near_what_is_expected_take_two_bits():
    """Differences of -1, 0 and 1 stand four to a byte, and nothing else is stored for them."""
    expected, offsets = expected_counts(0.5, 8, 50), np.array([0, 5, 12])
    bins = np.arange(12, dtype=np.uint8) % 8 + 1
    columns = encode_counts((expected[bins] + np.arange(12) % 3 - 1).astype(np.int32), bins, expected, offsets)
    assert [len(cell.as_py()) for cell in columns["count"]] == [2, 2]
    assert [len(cell.as_py()) for cell in columns["count.more"]] == [0, 0]


def test_a_count_below_zero_is_corrupt():
    """No writer stores one: a difference that goes below 0 was changed, or belongs to other bins."""
    expected, offsets = expected_counts(0.5, 8, 50), np.array([0, 1])
    columns = encode_counts(np.array([1], np.int32), np.array([8], np.uint8), expected, offsets)
    with pytest.raises(CorruptStore, match="found a count of"):
        decode_counts(pa.table(columns), np.array([1], np.uint8), expected, offsets)
