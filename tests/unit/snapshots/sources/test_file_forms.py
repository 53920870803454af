"""Files as common tools export them: packed, from Excel, in UTF-16, as one JSON document."""

import bz2
import gzip
import json
import lzma
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from ray_distill.errors import SnapshotError
from ray_distill.snapshots.rows import Reason, Rows
from ray_distill.snapshots.sources import json_document
from ray_distill.snapshots.sources.columns import InputColumn
from ray_distill.snapshots.sources.read import read_rows
from ray_distill.snapshots.sources.resolve import match_sources

WANTED = {"text": "text", "label": "label"}
ROWS = [("é; a, b", "x"), ("c\nd", None), ("e", "y")]


def read(path: Path, wanted: dict[str, str] = WANTED, kind: str = "auto") -> Rows:
    return read_rows(match_sources([str(path)], kind), wanted, InputColumn(name="text"))


def content(rows: Rows) -> list[tuple[object, ...]]:
    table = rows.filter(rows.why == 0).table
    return list(zip(*(column.to_pylist() for column in table.columns), strict=True))


def csv_text(delimiter: str, end: str = "\r\n") -> str:
    return end.join(
        [f"id{delimiter}text{delimiter}label"]
        + [f'1{delimiter}"{text}"{delimiter}{label or ""}' for text, label in ROWS]
        + [""]
    )


def zstd(data: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(data)
    return bytes(sink.getvalue())


@pytest.mark.parametrize(
    ("suffix", "pack"),
    [(".gz", gzip.compress), (".GZ", gzip.compress), (".bz2", bz2.compress), (".xz", lzma.compress), (".zst", zstd)],
)
def test_packed_files_are_read(tmp_path: Path, suffix: str, pack: Callable[[bytes], bytes]) -> None:
    """Also in several members, as parallel packers write them; half a file is an error that names the packing."""
    path = tmp_path / f"a.csv{suffix}"
    whole = csv_text(",").encode()
    path.write_bytes(pack(whole[:20]) + pack(whole[20:]))
    assert content(read(path)) == ROWS
    path.write_bytes(pack(whole)[:-9])
    with pytest.raises(SnapshotError, match=r"a\.csv.* is not a whole (gzip|bzip2|xz|zstd) file"):
        read(path)


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("stated", [False, True])
def test_csv_of_spreadsheets_is_read(tmp_path: Path, delimiter: str, encoding: str, *, stated: bool) -> None:
    """Any delimiter that gives the columns, Excel's line ``sep=;``, and every encoding that its mark states."""
    text = ("sep=" + delimiter + "\r\n" if stated else "") + csv_text(delimiter)
    mark = {"utf-16-le": b"\xff\xfe", "utf-16-be": b"\xfe\xff"}.get(encoding, b"")
    (tmp_path / "a.csv").write_bytes(mark + text.encode(encoding))
    assert content(read(tmp_path / "a.csv")) == ROWS


def test_a_header_is_read_as_it_is_meant(tmp_path: Path) -> None:
    """Commas come first; one column is enough; the message shows the columns of the likeliest delimiter."""
    (tmp_path / "a.csv").write_text("text\na;b\n")
    assert content(read(tmp_path / "a.csv", {"text": "text"})) == [("a;b", None)]
    (tmp_path / "a.csv").write_text("text;label\n1,5;x\n")
    assert content(read(tmp_path / "a.csv", {"text": "text"})) == [("1,5", None)]
    (tmp_path / "a.csv").write_text("id;utterance;label\n1;a,b;x\n")
    with pytest.raises(SnapshotError, match=r"no column 'text' for the text; found: id, utterance, label"):
        read(tmp_path / "a.csv")
    (tmp_path / "a.csv").write_text("text;label\na;x\nb\n")
    assert content(read(tmp_path / "a.csv")) == [("a", "x")]


def test_a_header_that_comes_again_is_not_a_row(tmp_path: Path) -> None:
    """As of exports that were joined by ``cat``, with or without a byte-order mark; a class may be named label."""
    (tmp_path / "a.csv").write_text("text,label\na,x\ntext,label\nb,label\n\ufefftext,label\nlabel,text\n")
    rows = read(tmp_path / "a.csv")
    assert content(rows) == [("a", "x"), ("b", "label"), ("label", "text")]
    assert [Reason(why).text for why in rows.why if why] == ["header repeated"] * 2


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_quotes_that_a_backslash_escapes_are_refused(tmp_path: Path, delimiter: str) -> None:
    """Read as CSV, such a text would lose its quotes; backslashes before a doubled or a closing quote are texts."""
    path = tmp_path / "a.csv"
    path.write_text(f'text{delimiter}label\n"say \\"hi\\" now"{delimiter}x\n')
    with pytest.raises(SnapshotError, match=r"a\.csv has quotes escaped by a backslash.*doubled quotes \(Spark"):
        read(path)
    path.write_text(f'text{delimiter}label\n"C:\\dir\\"{delimiter}x\n"say \\""hi\\"" now"{delimiter}y\n')
    assert content(read(path)) == [("C:\\dir\\", "x"), ('say \\"hi\\" now', "y")]


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ('{"text": "a", "label": "x"},', "its lines end with commas"),
        ("{'text': 'a', 'label': 'x'}", "its keys are in single quotes"),
        ("text,label", "its first line is not one"),
    ],
)
def test_lines_of_which_none_is_an_object_are_refused(tmp_path: Path, line: str, why: str) -> None:
    """Not for a missing column: the message has what is wrong with the lines, and none of their content."""
    (tmp_path / "a.jsonl").write_text(f"{line}\n{line}\n")
    with pytest.raises(
        SnapshotError, match=rf"a\.jsonl has no JSON object in any line: {why}; write one object a line"
    ):
        read(tmp_path / "a.jsonl")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (csv_text(";").encode("utf-16-le"), "UTF-16 without a byte-order mark"),
        (b"\xff\xfea", "begins as UTF-16 but is not"),
        (b"PK\x03\x04rest", "an Excel workbook or a ZIP archive, not CSV: export the sheet as 'CSV UTF-8'"),
        (b"PAR1rest", r"is Parquet, not CSV: name it \.parquet"),
        # Without the time: workers of one test run must collect tests of equal names.
        (gzip.compress(b"text,label\n", mtime=0), r"packed by gzip, not CSV: name it \.gz"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "a pointer of Git LFS.*git lfs pull"),
        (b"<!DOCTYPE html><html>", "a web page, not CSV: download the file again"),
        (b"", "is empty: a header with column names is needed"),
    ],
)
def test_files_that_are_not_what_their_name_says_are_refused(tmp_path: Path, data: bytes, message: str) -> None:
    """One error names the file, what it is, and the way out."""
    (tmp_path / "a.csv").write_bytes(data)
    with pytest.raises(SnapshotError, match=rf"a\.csv .*{message}"):
        read(tmp_path / "a.csv")


def test_a_pointer_in_place_of_parquet_is_recognised(tmp_path: Path) -> None:
    """A clone without Git LFS has them."""
    (tmp_path / "a.parquet").write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    with pytest.raises(SnapshotError, match="a pointer of Git LFS: `git lfs pull`"):
        read(tmp_path / "a.parquet")


LINES = [{"text": t, "label": n, "more": [{"a": "]\n}"}]} for t, n in ROWS]


@pytest.mark.parametrize("name", ["a.json", "a.jsonl", "a.json.gz"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize(
    "written",
    [
        "\n".join(json.dumps(row) for row in LINES),
        "\r\n".join(json.dumps(row, ensure_ascii=False) for row in LINES) + "\r\n",
        json.dumps(LINES),
        json.dumps(LINES, indent=2, ensure_ascii=False),
        json.dumps(LINES, indent=2).replace("\n", "\r\n"),
        "[\n" + ",\n".join(json.dumps(row) for row in LINES) + "\n]\n",
        json.dumps({"data": LINES}),
        json.dumps({"version": "1.0", "tags": ["a"], "data": LINES, "empty": []}, indent=4),
    ],
)
def test_json_is_read_in_every_usual_form(tmp_path: Path, name: str, encoding: str, written: str) -> None:
    """Lines, one array on one line or many, and the one list of rows in an object give the same rows."""
    data = written.encode(encoding)
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    rows = read(tmp_path / name)
    assert content(rows) == ROWS and rows.record.tolist() == [1, 2, 3]


@pytest.mark.parametrize("indent", [None, 1])
def test_one_row_with_a_list_of_objects_is_a_row(tmp_path: Path, indent: int | None) -> None:
    """An object that has the column is not a document of rows, whatever else it has."""
    (tmp_path / "a.json").write_text(json.dumps(LINES[0], indent=indent))
    assert content(read(tmp_path / "a.json")) == ROWS[:1]


def test_bad_elements_of_a_document_are_quarantined_alone(tmp_path: Path) -> None:
    """Their numbers are those of the elements."""
    data = b'[\n {"text": "a", "label": 1},\n 5,\n {"text": "\xff", "label": 1},\n {"text": "b",\n "label": 2}]'
    (tmp_path / "a.json").write_bytes(data)
    rows = read(tmp_path / "a.json")
    assert content(rows) == [("a", "1"), ("b", "2")]
    assert [Reason(rows.why[i]).text for i in np.flatnonzero(rows.why)] == ["malformed JSON", "not UTF-8"]


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ('[{"text": "a"},\n {"text": ]', r"not one JSON document \(Expecting value at line 2, column 11\)"),
        ('[{"text": "a"}\n', r"expected , or \] at line"),
        ('{\n "text": "a"\n}\n{\n "text": "b"\n}\n', r"more follows the object at line 4, column 1.*jq -c"),
        (
            '{\n "a": [{"text": "a"}],\n "b": [{"text": "b"}]\n}',
            "one JSON object with the lists a, b; expected one list",
        ),
        ('{\n "text": {"0": "a"},\n "label": {"0": "x"}\n}', r"the keys text, label and no list .*orient='records'"),
        ("[" * 100_000, "values nested too deeply at line 1"),
    ],
)
def test_documents_without_rows_are_refused(tmp_path: Path, written: str, message: str) -> None:
    """One error names the place, or what was found instead of rows, and how to write them."""
    (tmp_path / "a.json").write_text(written)
    with pytest.raises(SnapshotError, match=rf"a\.json .*{message}"):
        read(tmp_path / "a.json")


def test_a_document_is_refused_above_a_stated_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """JSON Lines of any size are read."""
    monkeypatch.setattr(json_document, "LARGEST", 40)
    for written in (json.dumps(LINES), json.dumps({"data": LINES}, indent=1)):
        (tmp_path / "a.json").write_text(written)
        with pytest.raises(SnapshotError, match="one JSON document of .* at once: write one object a line"):
            read(tmp_path / "a.json")
    (tmp_path / "a.json").write_text("\n".join(json.dumps(row) for row in LINES))
    assert content(read(tmp_path / "a.json")) == ROWS


def test_empty_json_files_among_others_have_no_rows(tmp_path: Path) -> None:
    """Writers of tables leave them for partitions without rows."""
    rows: list[Any] = LINES
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    (tmp_path / "b.jsonl").write_bytes(b"")
    (tmp_path / "c.json").write_text("[]")
    assert content(read(tmp_path)) == ROWS
