"""Readers: each format gives the same rows, and a bad record costs itself only."""

import gzip
import io
import json
import zlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from ray_distill.errors import SnapshotError
from ray_distill.snapshots.rows import Reason, Rows
from ray_distill.snapshots.sources.columns import InputColumn
from ray_distill.snapshots.sources.read import read_rows
from ray_distill.snapshots.sources.resolve import match_sources
from ray_distill.tasks.inputs.image import check_images

WANTED = {"text": "utterance", "label": "intent"}


def read(path: Path | str, wanted: dict[str, str] = WANTED, column: str = "text", kind: str = "auto") -> Rows:
    return read_rows(match_sources([str(path)], kind), wanted, InputColumn(name=column, binary=column == "image"))


def content(rows: Rows) -> list[tuple[object, ...]]:
    """Usable rows as tuples."""
    table = rows.filter(rows.why == 0).table
    return list(zip(*(column.to_pylist() for column in table.columns), strict=True))


def reasons(rows: Rows) -> list[tuple[int, str]]:
    """Record number and reason of the rows that cannot be used."""
    return [(int(rows.record[i]), Reason(rows.why[i]).text) for i in np.flatnonzero(rows.why)]


def png(color: int, size: int = 4, kind: str = "PNG") -> bytes:
    sink = io.BytesIO()
    Image.new("L", (size, size), color).save(sink, kind)
    return sink.getvalue()


# CSV


def test_csv_reads_quotes_newlines_and_empty_fields(tmp_path: Path) -> None:
    """Quoted commas, quotes and line ends belong to the text; an empty label is no label."""
    (tmp_path / "a.csv").write_bytes(b'\xef\xbb\xbfid,utterance,intent\r\n1,"a, ""b""\nc",x\r\n\r\n2,d,\r\n')
    rows = read(tmp_path / "a.csv")
    assert content(rows) == [('a, "b"\nc', "x"), ("d", None)]
    assert rows.record.tolist() == [1, 2]


def test_csv_record_with_wrong_number_of_fields_is_quarantined_alone(tmp_path: Path) -> None:
    """Too few and too many fields cost their own record; the others keep their numbers."""
    (tmp_path / "a.csv").write_bytes(b"utterance,intent\na,x\nb\nc,x,y\nd,y")
    rows = read(tmp_path / "a.csv")
    assert content(rows) == [("a", "x"), ("d", "y")]
    assert reasons(rows) == [(2, "malformed CSV record"), (3, "malformed CSV record")]


@pytest.mark.parametrize("bad", [b'"b,x', b'b,"x', b'"b'])
def test_csv_quote_that_never_closes_swallows_one_line_only(tmp_path: Path, bad: bytes) -> None:
    """A stray opening quote must not hide the rest of the file."""
    (tmp_path / "a.csv").write_bytes(b"utterance,intent\na,x\n" + bad + b"\nc,y\nd,y\n")
    rows = read(tmp_path / "a.csv")
    assert content(rows) == [("a", "x"), ("c", "y"), ("d", "y")]
    assert reasons(rows) == [(2, "malformed CSV record")]


def test_csv_bytes_that_are_not_utf8_are_quarantined(tmp_path: Path) -> None:
    """One Latin-1 row among UTF-8 ones is the only one lost."""
    (tmp_path / "a.csv").write_bytes("utterance,intent\ncafé,x\n".encode() + b"caf\xe9,x\nb,\xff\n")
    rows = read(tmp_path / "a.csv")
    assert content(rows) == [("café", "x")]
    assert reasons(rows) == [(2, "not UTF-8"), (3, "not UTF-8")]


def test_csv_without_rows_or_header(tmp_path: Path) -> None:
    """A header alone is a table without rows; an empty file is an error that says what is needed."""
    (tmp_path / "a.csv").write_bytes(b"utterance,intent\n")
    assert len(read(tmp_path / "a.csv")) == 0
    (tmp_path / "b.csv").write_bytes(b"\n")
    with pytest.raises(SnapshotError, match=r"b\.csv is empty: a header"):
        read(tmp_path / "b.csv")


def test_csv_numbers_stay_as_written(tmp_path: Path) -> None:
    """Nothing is guessed from a CSV: 007 and 1e3 are texts."""
    (tmp_path / "a.csv").write_bytes(b"utterance,intent\n007,1\n1e3,01\n")
    assert content(read(tmp_path / "a.csv")) == [("007", "1"), ("1e3", "01")]


# JSON Lines


def test_jsonl_reads_texts_numbers_and_missing_keys(tmp_path: Path) -> None:
    """A time-like text stays a text; integer labels become texts; a key left out is null."""
    lines = [{"utterance": "2026-01-01", "intent": 3, "x": {"y": []}}, {"utterance": "é\n"}, {"utterance": None}]
    (tmp_path / "a.jsonl").write_text("\n\n".join(json.dumps(line) for line in lines) + "\n")
    rows = read(tmp_path / "a.jsonl")
    assert content(rows) == [("2026-01-01", "3"), ("é\n", None)]
    assert reasons(rows) == [(3, "missing text")]


def test_jsonl_bad_lines_are_quarantined_alone(tmp_path: Path) -> None:
    """Cut lines, other JSON, wrong types, bad bytes and half surrogates each cost one line."""
    lines = [
        b'{"utterance": "a", "intent": 1.0}',
        b'{"utterance": "b"',
        b"[1]",
        b'{"utterance": 5}',
        b'{"utterance": "\xff"}',
        b'{"utterance": "\\ud800"}',
        b'{"utterance": "c", "intent": [1]}',
        b'{"utterance": "d", "intent": true}',
        b'{"utterance": "e", "intent": 1.5}',
        b"[" * 100_000,
    ]
    (tmp_path / "a.jsonl").write_bytes(b"\n".join(lines))
    rows = read(tmp_path / "a.jsonl")
    assert content(rows) == [("a", "1"), ("d", "true"), ("e", "1.5")]
    assert reasons(rows) == [
        (2, "malformed JSON"),
        (3, "malformed JSON"),
        (4, "wrong type"),
        (5, "not UTF-8"),
        (6, "not UTF-8"),
        (7, "label is a list"),
        (10, "malformed JSON"),
    ]


def test_jsonl_bad_line_far_into_the_file(tmp_path: Path) -> None:
    """Only the piece that holds the bad line is read line by line, and the numbers go on."""
    lines = [json.dumps({"utterance": f"{i} " + "x" * 900, "intent": i % 3}) for i in range(10_000)]
    lines[8_000] = "nonsense"
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    rows = read(tmp_path / "a.jsonl")
    assert reasons(rows) == [(8_001, "malformed JSON")]
    table = rows.table.filter(pa.array(rows.why == 0))
    assert len(table) == 9_999 and table.column("label").to_pylist()[-1] == str(9_999 % 3)


def test_jsonl_key_that_no_line_has_is_an_error(tmp_path: Path) -> None:
    """A label key may be missing from some files, not from all; the text key from none."""
    (tmp_path / "a.jsonl").write_text('{"utterance": "a"}\n')
    (tmp_path / "b.jsonl").write_text('{"utterance": "b", "intent": "x"}\n')
    assert content(read(tmp_path)) == [("a", None), ("b", "x")]
    (tmp_path / "b.jsonl").unlink()
    with pytest.raises(SnapshotError, match="no column 'intent' for the label; found: utterance"):
        read(tmp_path)
    (tmp_path / "b.jsonl").write_text('{"uterance": "b", "intent": "x"}\n')
    with pytest.raises(SnapshotError, match=r"b\.jsonl has no column 'utterance'.*did you mean 'uterance'"):
        read(tmp_path)


def test_gzip_is_unpacked_and_damage_is_named(tmp_path: Path) -> None:
    """JSON Lines and CSV may be gzipped; half a file is an error."""
    packed = gzip.compress(b'{"utterance": "a", "intent": "x"}\n')
    (tmp_path / "a.jsonl.gz").write_bytes(packed)
    assert content(read(tmp_path)) == [("a", "x")]
    (tmp_path / "a.jsonl.gz").write_bytes(packed[:-9])
    with pytest.raises(SnapshotError, match="not a whole gzip file"):
        read(tmp_path)


# Parquet


def test_parquet_types_become_texts(tmp_path: Path) -> None:
    """Dictionaries, binary texts, whole floats and NaN read as one would expect; floats keep their value."""
    pq.write_table(
        pa.table(
            {"utterance": pa.array(["a", "b", "a"]).dictionary_encode(), "intent": pa.array([1.0, float("nan"), 2.5])}
        ),
        tmp_path / "a.parquet",
    )
    assert content(read(tmp_path / "a.parquet")) == [("a", "1"), ("b", None), ("a", "2.5")]


def test_parquet_text_that_is_not_utf8_is_quarantined(tmp_path: Path) -> None:
    """Binary columns and string columns that lie are checked row by row."""
    binary = pa.array([b"a", b"\xff", None, b" \t\n"])
    _, offsets, data = pa.array([b"a", b"\xff"]).buffers()
    lying = pa.StringArray.from_buffers(2, offsets, data)
    pq.write_table(pa.table({"utterance": binary}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"utterance": lying}), tmp_path / "b.parquet")
    rows = read(tmp_path / "a.parquet", {"text": "utterance"})
    assert content(rows) == [("a", None)]
    assert reasons(rows) == [(2, "not UTF-8"), (3, "missing text"), (4, "missing text")]
    assert reasons(read(tmp_path / "b.parquet", {"text": "utterance"})) == [(2, "not UTF-8")]


def test_parquet_missing_column_names_the_nearest(tmp_path: Path) -> None:
    """The error lists what was found, and guesses what was meant."""
    pq.write_table(pa.table({"utterances": ["a"], "intent": ["x"]}), tmp_path / "a.parquet")
    with pytest.raises(
        SnapshotError, match=r"no column 'utterance' for the text; found: utterances, intent\. did you mean 'utt"
    ):
        read(tmp_path / "a.parquet")


def test_columns_of_partitions_are_read_from_the_folders(tmp_path: Path) -> None:
    """As Hive and Spark write them; a column in the file counts first, and nothing else is taken from a folder."""
    for intent, day in (("a%2Fb", "2026-01-01"), ("__HIVE_DEFAULT_PARTITION__", "2026-01-02")):
        folder = tmp_path / f"intent={intent}" / f"day={day}"
        folder.mkdir(parents=True)
        pq.write_table(pa.table({"utterance": [day], "locale": ["fr"]}), folder / "part-0.parquet")
    rows = read(tmp_path, {**WANTED, "time": "day", "locale": "locale"})
    assert [(row["text"], row["label"], row["time"].day) for row in rows.table.to_pylist()] == [
        ("2026-01-02", None, 2),
        ("2026-01-01", "a/b", 1),
    ]
    (tmp_path / "intent=c").mkdir()
    pq.write_table(pa.table({"utterance": ["t"], "intent": ["own"]}), tmp_path / "intent=c" / "part-0.parquet")
    assert content(read(tmp_path / "intent=c")) == [("t", "own")]


@pytest.mark.parametrize("column", [pa.array([[1]]), pa.array([1])])
def test_parquet_text_of_another_type_is_an_error(tmp_path: Path, column: pa.Array) -> None:
    """A text column must hold text."""
    pq.write_table(pa.table({"utterance": column}), tmp_path / "a.parquet")
    with pytest.raises(SnapshotError, match=r"a\.parquet: column 'utterance' has .*expected text"):
        read(tmp_path / "a.parquet", {"text": "utterance"})


def test_damaged_parquet_is_named(tmp_path: Path) -> None:
    """A file that is no Parquet stops the snapshot: rows of unknown number would be missing."""
    (tmp_path / "a.parquet").write_bytes(b"PAR1 nonsense")
    with pytest.raises(SnapshotError, match=r"a\.parquet cannot be read as Parquet"):
        read(tmp_path / "a.parquet")


# Images


def test_image_folder_takes_classes_from_folders(tmp_path: Path) -> None:
    """The folder below the root is the class; images in the root have none; hidden files do not count."""
    for name in ("cat/1.png", "dog/2.png", "dog/small/3.png", "4.png", ".hidden.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(png(len(name)))
    rows = read(tmp_path, {"image": "image"}, "image")
    assert rows.table.column("label").to_pylist() == [None, "cat", "dog", "dog/small"]
    assert rows.table.column("image").to_pylist()[1] == png(len("cat/1.png"))
    rows = read(f"{tmp_path}/*/*.png", {"image": "image"}, "image")
    assert rows.table.column("label").to_pylist() == ["cat", "dog"]


def test_images_that_cannot_be_decoded_are_marked(tmp_path: Path) -> None:
    """Nothing, nonsense, a cut file and a decompression bomb each have their reason."""
    good = png(7, 64, "JPEG")
    header = png(0)[:16] + (60_000).to_bytes(4, "big") * 2 + png(0)[24:29]
    bomb = header + zlib.crc32(header[12:29]).to_bytes(4, "big") + png(0)[33:]
    values = [good, None, b"", b"no image", good[:-200], bomb, b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"]
    for kind in (pa.binary(), pa.large_binary()):
        pq.write_table(pa.table({"image": pa.array(values, kind)}), tmp_path / "a.parquet")
        rows = read(tmp_path / "a.parquet", {"image": "image"}, "image")
        rows = rows.mark_each(check_images(rows.table.column("image")))
        assert reasons(rows) == [
            (2, "missing image"),
            (3, "missing image"),
            (4, "undecodable image"),
            (5, "undecodable image"),
            (6, "image too large"),
            (7, "undecodable image"),
        ]


def test_images_in_parquet_may_be_structs(tmp_path: Path) -> None:
    """The form {bytes, path} is read by its bytes; a text column is refused with the forms that are allowed."""
    values = [{"bytes": png(1), "path": "1.png"}, None, {"bytes": None, "path": "2.png"}]
    pq.write_table(pa.table({"image": values, "path": ["1.png"] * 3}), tmp_path / "a.parquet")
    rows = read(tmp_path / "a.parquet", {"image": "image"}, "image")
    assert rows.table.column("image").to_pylist() == [png(1), None, None]
    with pytest.raises(SnapshotError, match=r"has string, expected encoded images as binary or as struct"):
        read(tmp_path / "a.parquet", {"image": "path"}, "image")


def test_formats_that_cannot_hold_the_input_are_refused(tmp_path: Path) -> None:
    """Images are no texts, CSV has no images, and folders of images have no groups."""
    (tmp_path / "a.png").write_bytes(png(1))
    (tmp_path / "a.csv").write_bytes(b"image\nx\n")
    with pytest.raises(SnapshotError, match="is an image, but this task reads text"):
        read(tmp_path / "a.png")
    with pytest.raises(SnapshotError, match="images are read from folders or from Parquet, found csv"):
        read(tmp_path / "a.csv", {"image": "image"}, "image")
    with pytest.raises(SnapshotError, match=r"so no group: unset snapshot\.columns\.group"):
        read(tmp_path / "a.png", {"image": "image", "group": "user"}, "image")


def test_formats_can_be_mixed(tmp_path: Path) -> None:
    """A source may hold several formats; rows come in the order of the names, each with its own source."""
    (tmp_path / "a.csv").write_bytes(b"utterance,intent\na,x\n")
    (tmp_path / "b.jsonl").write_text('{"utterance": "b", "intent": "y"}\n{"utterance": "c", "intent": "z"}\n')
    pq.write_table(pa.table({"utterance": ["d"], "intent": ["x"]}), tmp_path / "c.parquet")
    rows = read(tmp_path)
    assert content(rows) == [("a", "x"), ("b", "y"), ("c", "z"), ("d", "x")]
    assert rows.source.tolist() == [0, 1, 1, 2] and rows.record.tolist() == [1, 1, 2, 1]
