"""Values: labels as class indices, times from any form, hashes that never change."""

import numpy as np
import pyarrow as pa
import pytest

from ray_distill.config import Columns, Splits
from ray_distill.errors import SnapshotError
from ray_distill.snapshots.identity import row_id, row_ids
from ray_distill.snapshots.label_reading.names import check_classes, class_names, label_index
from ray_distill.snapshots.sources.columns import InputColumn, source_columns
from ray_distill.snapshots.sources.convert import parse_time, to_time
from ray_distill.snapshots.splits import SPLITS, split_by_group, split_by_id


def texts(*values: str | None) -> pa.Array:
    return pa.array(values, pa.large_string())


def test_row_ids_are_frozen_for_ever() -> None:
    """Ids key every label store in the world: these values may never change."""
    assert row_id(b"hello", "text").hex() == "c8090bddf53471fa9363963f2f78896d"
    assert row_id(b"hello", "image").hex() == "2479fa0fa51d35af013788a45e786d09"


def test_row_ids_of_a_column_are_those_of_its_values() -> None:
    """Chunks and slices do not matter, and nothing is normalised."""
    values = ["", "a", "é", "e\u0301", "a"]
    column = pa.chunked_array([texts("x", *values[:2]).slice(1), texts(*values[2:]), texts()])
    assert [bytes(i) for i in row_ids(column, "text")] == [row_id(v.encode(), "text") for v in values]
    assert row_id("é".encode(), "text") != row_id("e\u0301".encode(), "text")


def test_splits_are_frozen_for_ever() -> None:
    """A row's split under a seed may never change, or test rows would turn up in training."""
    ids = row_ids(pa.chunked_array([texts(*(str(i) for i in range(40)))]), "text")
    quarters = Splits(train=0.25, validation=0.25, calibration=0.25, test=0.25)
    by_id, by_group = split_by_id(ids, quarters, 7), split_by_group([f"u{i}" for i in range(20)], quarters, 7)
    assert "".join(map(str, by_id)) == "1201201220211121313303100302101101130010"
    assert "".join(map(str, by_group)) == "33022100333120033222"


def test_split_shares_are_met_and_seeds_differ() -> None:
    """Of 20,000 rows each split gets its share to within four standard errors; another seed splits anew."""
    ids = np.random.default_rng(0).integers(0, 256, (20_000, 16)).astype(np.uint8)
    splits = Splits(train=0.7, validation=0.1, calibration=0.05, test=0.15)
    found = np.bincount(split_by_id(ids, splits, 1)) / len(ids)
    for share, name in zip(found, SPLITS, strict=True):
        expected = getattr(splits, name)
        assert abs(share - expected) < 4 * (expected * (1 - expected) / len(ids)) ** 0.5
    assert (split_by_id(ids, splits, 1) != split_by_id(ids, splits, -1)).mean() > 0.3


def test_class_names_sort_numerically_only_if_all_are_integers() -> None:
    """Ten comes after nine; among words it is a word."""
    assert class_names(texts("10", "9", None, "-1", "9")) == ("-1", "9", "10")
    assert class_names(texts("10", "9", "b", "B")) == ("10", "9", "B", "b")
    assert class_names(texts("1", "01")) == ("01", "1")
    assert class_names(texts(None)) == ()


def test_label_index_is_the_place_of_the_name() -> None:
    """Only names have one: whether a column has names or indices is decided before, for the whole column."""
    assert label_index(texts("b", None, "a", "1", "c"), ("a", "b")).tolist() == [1, -1, 0, -2, -2]
    assert label_index(texts("5", "1"), ("5", "1")).tolist() == [0, 1]
    assert label_index(texts(), ()).tolist() == []


@pytest.mark.parametrize(("classes", "fault"), [(("a", "b", "a"), "'a' is named twice"), (("",), "'' is no name")])
def test_classes_must_be_distinct_names(classes: tuple[str, ...], fault: str) -> None:
    """A list of classes with two equal or empty names is refused."""
    with pytest.raises(SnapshotError, match=fault):
        check_classes(classes)


@pytest.mark.parametrize(("slices", "fault"), [(("count",), "reserved"), (("a", "a"), "named twice")])
def test_slices_cannot_take_names_with_a_meaning(slices: tuple[str, ...], fault: str) -> None:
    """A slice named like a snapshot column would overwrite it."""
    with pytest.raises(SnapshotError, match=fault):
        source_columns(Columns(slices=slices), InputColumn(name="text"))


def test_times_come_in_many_forms() -> None:
    """ISO texts with or without zone, dates, epoch seconds as numbers or texts: all UTC."""
    second = 1_000_000
    assert parse_time("1970-01-01T00:00:01") == parse_time("1970-01-01T01:00:01+01:00") == second
    assert parse_time("1970-01-02") == 86_400 * second and parse_time(" 1.5 ") == 1_500_000
    assert parse_time("yesterday") is None and parse_time("1790000000000") is None
    columns = [
        pa.array([1], pa.timestamp("s")),
        pa.array([10**9 + 5], pa.timestamp("ns", tz="Europe/Paris")),
        pa.array([1]),
        pa.array([1.0]),
        texts("1"),
        texts("1970-01-01T00:00:01Z"),
        pa.array(["1"]).dictionary_encode(),
    ]
    for column in columns:
        times, bad = to_time(pa.chunked_array([column]), "when")
        assert times.cast(pa.int64()).to_pylist() == [second] and not bad.any()


@pytest.mark.parametrize(
    "column", [pa.array([20260131, None, 20251224]), texts("2026", "1999"), pa.array([20260131.0]), texts("20260131 ")]
)
def test_dates_written_as_numbers_are_refused(column: pa.Array) -> None:
    """As seconds since 1970 all of them would be in August 1970; a column with one other number has seconds."""
    with pytest.raises(SnapshotError, match="are dates or years, and numbers are read as seconds since 1970"):
        to_time(pa.chunked_array([column]), "when")
    times, _ = to_time(pa.chunked_array([pa.array([2026, 20260131, 1_790_000_000])]), "when")
    assert times.null_count == 0


@pytest.mark.parametrize("column", [pa.array([46053.5, 46054.0]), texts("46053", None, "46054.25")])
def test_days_of_spreadsheets_are_refused(column: pa.Array) -> None:
    """As seconds since 1970 all of them would be on its first day."""
    with pytest.raises(SnapshotError, match=r"46053(\.5)?, which are days as spreadsheets count them"):
        to_time(pa.chunked_array([column]), "when")
    times, _ = to_time(pa.chunked_array([pa.array([46053.5, 1_790_000_000.0])]), "when")
    assert times.null_count == 0


def test_unreadable_times_are_told_from_missing_ones() -> None:
    """Null is no time; nonsense is a bad row; epoch milliseconds are found out."""
    for column in (texts(None, "soon", "2026-01-01"), pa.array([None, 1_790_000_000_000, 1_790_000_000])):
        times, bad = to_time(pa.chunked_array([column]), "when")
        assert bad.tolist() == [False, True, False] and times.null_count == 2
