"""Conversations in the forms of common data sets, read with what stands beside them, or refused."""

import csv
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ray_distill.errors import SnapshotError
from ray_distill.snapshots.rows import Reason, Rows
from ray_distill.snapshots.sources.columns import InputColumn
from ray_distill.snapshots.sources.read import read_rows
from ray_distill.snapshots.sources.resolve import match_sources
from ray_distill.tasks.answers.tokens.serve import SERVING
from ray_distill.tasks.inputs.chat import COMPANIONS
from ray_distill.tasks.inputs.conversation import Unfit, read_chat

ASK = {"role": "user", "content": "hi"}
SAY = {"role": "assistant", "content": "yo"}
TOOLS = [{"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}]


def read(path: Path, text: str = "messages", *, nested: bool = True) -> Rows:
    column = InputColumn(name="text", nested=nested, companions=COMPANIONS)
    return read_rows(match_sources([str(path)], "auto"), {"text": text}, column)


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    """Rows as JSON Lines, a JSON array, Parquet with nested columns, Parquet or CSV with JSON in texts."""
    keys = list(dict.fromkeys(key for row in rows for key in row))
    texts = {key: [json.dumps(row[key]) if key in row else None for row in rows] for key in keys}
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows, indent=2))
    elif path.name == "nested.parquet":
        pq.write_table(pa.table({key: [row.get(key) for row in rows] for key in keys}), path)
    elif path.suffix == ".parquet":
        pq.write_table(pa.table(texts), path)
    else:
        with path.open("w", newline="") as file:
            csv.writer(file).writerows([keys, *zip(*texts.values(), strict=True)])
    return path


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "nested.parquet", "texts.parquet", "a.csv"])
def test_tools_beside_the_messages_are_kept(tmp_path: Path, name: str) -> None:
    """OpenAI's rows of fine-tuning give one conversation in every format; a row without tools has its bare messages."""
    rows = [{"messages": [ASK, SAY], "tools": TOOLS}, {"messages": [ASK]}, {"messages": [ASK, SAY], "tools": []}]
    found = read(write(tmp_path / name, rows))
    frozen = [json.loads(text) for text in found.table.column("text").to_pylist()]
    assert not found.why.any() and found.table.column_names == ["text", "label"]
    assert frozen == [{"messages": [ASK, SAY], "tools": TOOLS}, [ASK], [ASK, SAY]]
    assert read_chat(found.table.column("text")[0].as_py()).tools == tuple(TOOLS)


def test_all_that_a_template_takes_is_kept(tmp_path: Path) -> None:
    """Documents, its own settings and the system's words reach it; nothing else of a row does."""
    row = {
        "messages": [ASK, SAY],
        "system": "Be kind.",
        "documents": [{"title": "t", "text": "x"}],
        "chat_template_kwargs": {"enable_thinking": False},
        "parallel_tool_calls": False,
        "id": 7,
    }
    text = read(write(tmp_path / "a.jsonl", [row])).table.column("text")[0].as_py()
    assert json.loads(text).keys() == row.keys() - {"id"}
    found = read_chat(text)
    assert found.messages == ({"role": "system", "content": "Be kind."}, ASK, SAY)
    assert found.options == {
        "documents": [{"title": "t", "text": "x"}],
        "enable_thinking": False,
        "parallel_tool_calls": False,
    }


def test_functions_of_older_files_are_tools() -> None:
    """As templates take them."""
    function = {"name": "add", "parameters": {}}
    found = read_chat(json.dumps({"messages": [ASK], "functions": [function]}))
    assert found.tools == ({"type": "function", "function": function},)


def test_a_plain_text_has_nothing_beside_it(tmp_path: Path) -> None:
    """The format decides: texts of a column that happens to stand beside tools are texts."""
    path = write(tmp_path / "a.csv", [{"text": "hi", "tools": []}])
    assert read(path, "text", nested=False).table.column("text").to_pylist() == ['"hi"']


SHARED = [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "yo"}]


@pytest.mark.parametrize(
    ("row", "column", "expected"),
    [
        ({"conversations": SHARED}, "conversations", [ASK, SAY]),
        (
            {"conversations": SHARED, "system": "s", "tools": json.dumps(TOOLS)},
            "conversations",
            {"messages": [ASK, SAY], "system": "s", "tools": TOOLS},
        ),
        ({"x": {"conversations": SHARED, "tools": TOOLS}}, "x", {"messages": [ASK, SAY], "tools": TOOLS}),
        (
            {"x": {"messages": [ASK, SAY], "tools": TOOLS}, "tools": TOOLS},
            "x",
            {"messages": [ASK, SAY], "tools": TOOLS},
        ),
        ({"prompt": [ASK], "chosen": [SAY], "rejected": [SAY]}, "chosen", [ASK, SAY]),
        ({"prompt": [ASK], "completion": [SAY]}, "completion", [ASK, SAY]),
        ({"prompt": "hi", "messages": [ASK, SAY]}, "messages", [ASK, SAY]),
        ({"prompt": [ASK], "chosen": [ASK, SAY]}, "chosen", [ASK, SAY]),
    ],
)
def test_other_forms_are_read_as_the_same_conversation(
    tmp_path: Path, row: dict[str, Any], column: str, expected: Any
) -> None:
    """ShareGPT's speakers, and the messages of a prompt before those of its answer; the frozen row is OpenAI's form."""
    found = read(write(tmp_path / "a.jsonl", [row]), column)
    assert json.loads(found.table.column("text")[0].as_py()) == expected
    assert read_chat(found.table.column("text")[0].as_py()).messages[-2:] == (ASK, SAY)


def test_tools_that_disagree_cost_their_row(tmp_path: Path) -> None:
    """Neither is chosen."""
    rows = [{"x": {"messages": [ASK, SAY], "tools": TOOLS}, "tools": [{}]}, {"x": [ASK, SAY]}]
    assert read(write(tmp_path / "a.jsonl", rows), "x").why.tolist() == [Reason.WRONG_TYPE, 0]


@pytest.mark.parametrize(
    ("row", "advice"),
    [
        ({"messages": [ASK]}, r"set snapshot\.columns\.text: messages, with labels\.teacher\.language\.format: chat"),
        ({"conversations": SHARED}, r"set snapshot\.columns\.text: conversations"),
        (
            {"prompt": "a", "chosen": "b", "rejected": "c"},
            "These are preferences: choose the answer, and write each row",
        ),
        ({"instruction": "a", "input": "", "output": "b"}, "This is Alpaca's form: join instruction and input"),
        ({"prompt": "a", "completion": "b"}, "seq2seq set snapshot.columns: {text: prompt, target: completion}"),
    ],
)
@pytest.mark.parametrize("name", ["a.jsonl", "texts.parquet", "a.csv"])
def test_known_forms_are_named_where_the_column_is_missing(
    tmp_path: Path, row: dict[str, Any], advice: str, name: str
) -> None:
    """The error has the columns found and the form expected."""
    path = write(tmp_path / name, [row])
    with pytest.raises(SnapshotError, match=f"no column 'text' for the text; found: .*{next(iter(row))}.*{advice}"):
        read(path, "text")


@pytest.mark.parametrize(
    ("rows", "column", "why"),
    [
        ([{"instruction": "a", "output": "b"}], "output", "not JSON: .*"),
        ([{"chosen": "b"}], "chosen", "not JSON: .*"),
        ([{"x": [{"speaker": "a", "text": "b"}]}], "x", "message 1 has the unknown role None: .*"),
        ([{"x": [{"from": "narrator", "value": "b"}]}], "x", "message 1 has the unknown role 'narrator'"),
        ([{"x": {"turns": []}}], "x", "no conversation: expected a list of messages"),
    ],
)
def test_a_source_without_one_conversation_is_refused(
    tmp_path: Path, rows: list[dict[str, Any]], column: str, why: str
) -> None:
    """Before anything is labelled: with the column, the first reason and the form."""
    path = write(tmp_path / "a.jsonl", rows * 3)
    message = rf"column '{column}': none of its first 3 rows can be read: {why}.*write each row as a list of messages"
    with pytest.raises(SnapshotError, match=message):
        read(path, column)
    write(tmp_path / "a.jsonl", [*rows, {column: [ASK, SAY]}])
    assert not read(path, column).why.any()


@pytest.mark.parametrize(
    ("found", "why"),
    [
        ({"messages": [ASK], "tools": [{}], "functions": [{}]}, "both tools and functions"),
        ({"messages": [{"role": "system", "content": "a"}], "system": "b"}, "begin with a system message"),
        ({"messages": [ASK], "chat_template_kwargs": {"tokenize": True}}, "sets tokenize, which the rendering itself"),
        ({"messages": [ASK], "chat_template_kwargs": [1]}, "chat_template_kwargs must be an object"),
        ({"messages": [ASK], "documents": {"a": 1}}, "documents must be a list of objects"),
        ({"messages": [ASK], "tools": "add"}, "tools must be a list of objects"),
        ({"messages": [ASK], "system": 5}, "the content of system is int"),
    ],
)
def test_what_stands_beside_and_cannot_be_is_a_reason(found: dict[str, Any], why: str) -> None:
    """It names the key."""
    with pytest.raises(Unfit, match=why):
        read_chat(json.dumps(found))


def test_the_served_reader_stands_alone() -> None:
    """It imports the standard library alone."""
    text = Path(SERVING.parts["conversation"]).read_text()
    imported = {line.split()[1].split(".")[0] for line in text.splitlines() if line.startswith(("import ", "from "))}
    assert imported == {"json", "collections", "dataclasses", "typing"}
