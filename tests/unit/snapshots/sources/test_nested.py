"""Conversations as canonical JSON: the text that a row's id is made of."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ray_distill.errors import SnapshotError
from ray_distill.snapshots.rows import Reason
from ray_distill.snapshots.sources.columns import InputColumn
from ray_distill.snapshots.sources.nested import canonical, column_to_json, is_nested
from ray_distill.snapshots.sources.read import read_rows
from ray_distill.snapshots.sources.resolve import match_sources


def test_a_struct_and_its_json_are_one_text() -> None:
    """Keys are sorted, and what only pads a Parquet struct is left out."""
    rows = [[{"role": "user", "content": "hi", "name": None}], [{"role": "user", "content": "é", "name": "x"}]]
    texts, bad = column_to_json(pa.chunked_array([pa.array(rows)]))
    assert texts.to_pylist() == [canonical(row, padded=False) for row in rows] and not bad.any()
    assert texts[0].as_py() == '[{"content":"hi","role":"user"}]' and json.loads(texts[1].as_py()) == rows[1]


def test_nulls_that_mean_something_stay() -> None:
    """In JSON, those of a tool call's arguments are what the model wrote."""
    call = {"name": "f", "arguments": {"x": None}}
    assert canonical(call, padded=False) == '{"arguments":{"x":null},"name":"f"}'


def test_what_has_no_json_is_marked() -> None:
    """Bytes and half a character have none."""
    _, bad = column_to_json(pa.chunked_array([pa.array([[b"x"], None])]))
    assert bad.tolist() == [True, False] and is_nested(pa.list_(pa.string())) and not is_nested(pa.string())
    with pytest.raises(ValueError, match="surrogates"):
        canonical(["\ud800"], padded=False)


@pytest.mark.parametrize("kind", ["parquet", "jsonl"])
def test_both_formats_give_the_same_rows(tmp_path: Path, kind: str) -> None:
    """A conversation is read where it is wanted, and an error or a bad row where it is not."""
    rows = [[{"role": "user", "content": "hi", "name": None}], [{"role": "user", "content": "é", "name": "x"}]]
    path = tmp_path / f"rows.{kind}"
    if kind == "parquet":
        pq.write_table(pa.table({"messages": rows}), path)
    else:
        path.write_text("".join(json.dumps({"messages": row}) + "\n" for row in rows))
    files = match_sources([str(path)], "auto")
    found = read_rows(files, {"text": "messages"}, InputColumn(name="text", nested=True))
    assert found.table.column("text").to_pylist() == [canonical(row, padded=True) for row in rows]
    assert not found.why.any()
    if kind == "parquet":
        with pytest.raises(SnapshotError, match="expected text"):
            read_rows(files, {"text": "messages"}, InputColumn(name="text"))
    else:
        assert read_rows(files, {"text": "messages"}, InputColumn(name="text")).why.tolist() == [Reason.WRONG_TYPE] * 2
