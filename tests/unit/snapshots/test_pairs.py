"""Sources with their targets: one text a row, from two columns of any format."""

import csv
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_distill.config import Columns, SnapshotConfig
from ray_distill.errors import SnapshotError
from ray_distill.snapshots.pairs import pair_text, read_pair, with_target
from ray_distill.snapshots.reader import open_snapshot
from ray_distill.snapshots.sources.columns import InputColumn, source_columns
from ray_distill.snapshots.take import take_snapshot

ROWS = [("a source", "its target"), ('with "quotes", commas\nand lines', "é"), ("unwritten", None), ("blank", " ")]
TEXT = st.text(st.characters(exclude_categories=["Cs"]))


@given(TEXT, TEXT)
def test_a_pair_comes_back_from_its_text(source: str, target: str) -> None:
    """Whatever the texts hold; a blank target is none, and one that is written later takes its place."""
    found = read_pair(pair_text(source, target))
    assert found == (source, target if target.strip() else None)
    assert with_target(pair_text(source, None), target) == with_target(pair_text(source, "x"), target)


@pytest.mark.parametrize(
    "text", ["plain", "[]", '{"target":"x"}', '{"source":1}', '{"source":"a","other":"b"}', "[" * 9999]
)
def test_what_is_no_pair_is_an_error(text: str) -> None:
    """Plain texts, other JSON, and a source that is no text."""
    with pytest.raises(ValueError, match="not a source with its target"):
        read_pair(text)


def _write(path: Path, rows: list[tuple[Any, Any]]) -> Path:
    if path.suffix == ".parquet":
        pq.write_table(pa.table({"article": [a for a, _ in rows], "summary": [b for _, b in rows]}), path)
    elif path.suffix == ".csv":
        with path.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([("article", "summary"), *rows])
    else:
        path.write_text("".join(json.dumps({"article": a, "summary": b}) + "\n" for a, b in rows), encoding="utf-8")
    return path


def _config(source: Path, **values: Any) -> SnapshotConfig:
    return SnapshotConfig.model_validate(
        {
            "source": str(source),
            "columns": {"text": "article", "target": "summary"},
            "splits": {"train": 0.4, "validation": 0.2, "calibration": 0.2, "test": 0.2},
            **values,
        }
    )


def _freeze(source: Path, url: Path, **values: Any) -> dict[bytes, str]:
    opened = open_snapshot(take_snapshot(_config(source, **values), input_column="text", seed=3, url=str(url)))
    rows = pa.concat_tables([opened.read_shard(shard, ["row_id", "text"]) for shard in opened.shards])
    return dict(zip(rows["row_id"].to_pylist(), rows["text"].to_pylist(), strict=True))


def _many() -> list[tuple[str, str | None]]:
    return [*ROWS, *((f"source {n}", f"target {n}") for n in range(40))]


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "csv"])
def test_all_formats_give_the_same_rows(tmp_path: Path, kind: str) -> None:
    """Equal ids of equal texts; rows whose target is missing or blank are there, without one."""
    found = _freeze(_write(tmp_path / f"rows.{kind}", _many()), tmp_path / "snapshots")
    assert sorted(found.values()) == sorted(pair_text(*row) for row in _many())
    assert found == _freeze(_write(tmp_path / "other.jsonl", _many()), tmp_path / "others")


def test_another_reference_is_another_row(tmp_path: Path) -> None:
    """So that it is labelled again; every other row keeps its id."""
    before = _freeze(_write(tmp_path / "a.jsonl", _many()), tmp_path / "snapshots")
    after = _freeze(_write(tmp_path / "b.jsonl", [("a source", "another"), *_many()[1:]]), tmp_path / "snapshots")
    assert len(before.keys() - after.keys()) == len(after.keys() - before.keys()) == 1


def test_a_target_without_a_source_is_put_in_quarantine(tmp_path: Path) -> None:
    """It cannot be answered; the limit on bad rows counts it."""
    source = _write(tmp_path / "rows.jsonl", [*_many(), (" ", "orphan"), (None, "orphan")])
    assert len(_freeze(source, tmp_path / "snapshots", max_bad_fraction=0.1)) == len(_many())
    with pytest.raises(SnapshotError, match="2 missing text"):
        _freeze(source, tmp_path / "snapshots", max_bad_fraction=0.01)


def test_excluded_rows_are_pairs(tmp_path: Path) -> None:
    """The teacher's own source with another target is no row that it was trained on."""
    source = _write(tmp_path / "rows.jsonl", _many())
    own = _write(tmp_path / "own.jsonl", [("source 1", "target 1"), ("source 2", "something else")])
    left = _freeze(source, tmp_path / "snapshots", exclude=[str(own)]).values()
    assert pair_text("source 1", "target 1") not in left and pair_text("source 2", "target 2") in left


def test_a_missing_column_is_named(tmp_path: Path) -> None:
    """As for every other part."""
    source = tmp_path / "rows.jsonl"
    source.write_text('{"article": "x", "summery": "y"}\n')
    with pytest.raises(SnapshotError, match="no column 'summary' for the target.*did you mean 'summery'"):
        _freeze(source, tmp_path / "snapshots")


def test_target_is_no_name_for_a_slice() -> None:
    """It has a meaning of its own; and images have no target."""
    with pytest.raises(SnapshotError, match="'target' is reserved"):
        source_columns(Columns(slices=("target",)), InputColumn(name="text"))
    assert "target" not in source_columns(Columns(target="summary"), InputColumn(name="image", binary=True))
