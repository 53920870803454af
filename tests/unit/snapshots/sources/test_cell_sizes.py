"""Huge cells and files that unpack to a thousand times their size: found by a limit, if possible before decoding."""

import bz2
import gzip
import json
import lzma
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ray_distill.config import parse_config
from ray_distill.errors import SnapshotError
from ray_distill.snapshots.rows import Reason, Rows
from ray_distill.snapshots.sources import budget, json_document, parquet_source, read
from ray_distill.snapshots.sources.columns import InputColumn
from ray_distill.snapshots.sources.read import read_rows
from ray_distill.snapshots.sources.resolve import match_sources
from ray_distill.snapshots.take import take_snapshot

LIMIT = 1000
#: Arrow's memory of each test: it must outlive what is in it.
_POOLS: list[pa.MemoryPool] = []
TEXTS = ["one", "x" * LIMIT, "y" * (LIMIT + 1), "two"]
REASONS = ["usable", "usable", "cell too large", "usable"]


def _read(path: Path, *, limit: int = LIMIT, name: str = "text") -> Rows:
    column = InputColumn(name=name, binary=name == "image", largest=limit)
    return read_rows(match_sources([str(path)], "auto"), {name: name}, column)


def _words(rows: Rows) -> list[str]:
    return [Reason(why).text for why in rows.why]


def _fail(*_: object) -> None:
    raise AssertionError("read")


def _csv(path: Path, texts: list[str]) -> None:
    path.write_text("text\n" + "".join(f'"{text}"\n' for text in texts))


def _json_lines(path: Path, texts: list[str]) -> None:
    path.write_text("".join(json.dumps({"text": text}, separators=(",", ":")) + "\n" for text in texts))


def _parquet(path: Path, texts: list[str], **settings: object) -> None:
    pq.write_table(pa.table({"text": texts}), path, **settings)


@pytest.mark.parametrize(
    ("name", "write", "beside"), [("a.csv", _csv, 0), ("a.parquet", _parquet, 0), ("a.jsonl", _json_lines, 11)]
)
def test_a_cell_above_the_limit_costs_its_row_in_every_format(
    name: str, write: Callable[[Path, list[str]], None], beside: int, tmp_path: Path
) -> None:
    """A text of just the limit is read (of JSON, a line counts); the content is gone, the place is not."""
    write(tmp_path / name, TEXTS)
    rows = _read(tmp_path / name, limit=LIMIT + beside)
    assert _words(rows) == REASONS
    assert rows.table.column("text").to_pylist()[2] is None
    assert rows.record.tolist() == [1, 2, 3, 4]


def test_an_image_file_above_the_limit_is_not_read(tmp_path: Path) -> None:
    """The others of its batch are."""
    for number, size in enumerate((10, 2000, 20)):
        (tmp_path / "cats").mkdir(exist_ok=True)
        (tmp_path / "cats" / f"{number}.png").write_bytes(bytes([number]) * size)
    rows = _read(tmp_path, name="image")
    assert _words(rows) == ["usable", "cell too large", "usable"]
    assert [len(value or b"") for value in rows.table.column("image").to_pylist()] == [10, 0, 20]


def test_a_row_group_that_must_have_a_huge_cell_is_not_decoded(tmp_path: Path) -> None:
    """The footer proves it; the memory stays that of the other rows, and each row is accounted for."""
    huge = 16 << 20
    _parquet(
        tmp_path / "a.parquet", ["one", "x" * huge, "two"], row_group_size=1, use_dictionary=False, compression="zstd"
    )
    assert (tmp_path / "a.parquet").stat().st_size < huge / 200
    tracemalloc.start()
    with _counted() as pool:
        rows = _read(tmp_path / "a.parquet")
    assert tracemalloc.get_traced_memory()[1] < huge / 4
    tracemalloc.stop()
    assert pool.max_memory() < huge / 4
    assert _words(rows) == ["usable", "cell too large", "usable"]
    assert rows.table.column("text").to_pylist() == ["one", None, "two"]


def test_a_row_group_that_unpacks_beyond_all_measure_is_not_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Many rows may hide one huge cell: then the ratio decides, and the whole group is counted."""
    monkeypatch.setattr(budget, "FLOOR", 1 << 19)
    texts = ["short"] * 5000 + ["x" * (1 << 20)] + ["short"] * 10
    _parquet(tmp_path / "a.parquet", texts, row_group_size=2506, use_dictionary=False, compression="zstd")
    rows = _read(tmp_path / "a.parquet")
    assert _words(rows) == ["usable"] * 2506 + ["cell too large"] * 2505
    rows = _read(tmp_path / "a.parquet", limit=1 << 20)
    assert set(_words(rows)) == {"usable"}


def _dictionary(path: Path, cells: list[bytes] | list[str], places: list[int], **settings: object) -> None:
    """Write each cell once, and as many rows as there are places."""
    column = pa.DictionaryArray.from_arrays(pa.array(places, pa.int32()), pa.array(cells))
    pq.write_table(pa.table({"text": column}), path, store_schema=False, dictionary_pagesize_limit=1 << 30, **settings)


def _repeated(path: Path) -> None:
    _dictionary(path, ["x" * (1 << 20)], [0] * 4096)


def _prefixed(path: Path) -> None:
    _parquet(path, ["x" * (1 << 20)] * 20, use_dictionary=False, column_encoding={"text": "DELTA_BYTE_ARRAY"})


def _many_rows(path: Path) -> None:
    _dictionary(path, ["hello"], [0] * 300_000)


def _long_list(path: Path) -> None:
    entries = pa.ListArray.from_arrays(pa.array([0, 3_000_000], pa.int32()), pa.array(np.zeros(3_000_000, np.int8)))
    pq.write_table(pa.table({"text": ["a"], "label": entries}), path, store_schema=False)


def _nested(path: Path) -> None:
    content = pa.DictionaryArray.from_arrays(pa.array([0] * 64, pa.int32()), pa.array(["x" * (1 << 20)]))
    turns = pa.StructArray.from_arrays([pa.array(["user"] * 64), content], ["role", "content"])
    rows = pa.ListArray.from_arrays(pa.array(range(65), pa.int32()), turns)
    pq.write_table(pa.table({"text": rows}), path, store_schema=False, dictionary_pagesize_limit=1 << 30)


@contextmanager
def _counted() -> Iterator[pa.MemoryPool]:
    """Count Arrow's memory within."""
    whole = pa.default_memory_pool()
    counted = pa.proxy_memory_pool(whole)
    _POOLS.append(counted)
    pa.set_memory_pool(counted)
    try:
        yield counted
    finally:
        pa.set_memory_pool(whole)


@pytest.mark.parametrize("write", [_repeated, _prefixed, _many_rows, _long_list, _nested])
def test_parquet_that_decodes_beyond_all_measure_is_refused_before_it_is(
    write: Callable[[Path], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four gigabytes of one text, and what prefixes, rows and lists take, are counted by what is stored of them."""
    monkeypatch.setattr(budget, "FLOOR", 1 << 20)
    write(tmp_path / "a.parquet")
    mapping = {"text": "text"} | ({"label": "label"} if write is _long_list else {})
    column = InputColumn(name="text", largest=1 << 20, nested=write is _nested)
    refused = pytest.raises(SnapshotError, match=r"a\.parquet: the rows of its source take more than 16,777,216 bytes")
    with _counted() as pool, refused:
        read_rows(match_sources([str(tmp_path / "a.parquet")], "auto"), mapping, column, "classes")
    assert pool.max_memory() < 48 << 20


def test_a_text_that_a_dictionary_repeats_is_measured_there(tmp_path: Path) -> None:
    """Hundreds of rows of one huge text cost its bytes once; the rows beside them are read."""
    _dictionary(tmp_path / "a.parquet", ["one", "x" * (8 << 20), "two"], [0, *[1] * 400, 2, 0])
    with _counted() as pool:
        rows = _read(tmp_path / "a.parquet", limit=1 << 20)
    assert pool.max_memory() < 64 << 20
    assert _words(rows) == ["usable", *["cell too large"] * 400, "usable", "usable"]
    assert rows.table.column("text").drop_null().to_pylist() == ["one", "two", "one"]


def test_one_long_text_among_many_short_ones_is_read(tmp_path: Path) -> None:
    """Arrow would reserve the dictionary's mean length for each row, here 400 GB."""
    _dictionary(tmp_path / "a.parquet", ["one", "x" * (8 << 20)], [0, 1, *[0] * 100_000])
    texts = _read(tmp_path / "a.parquet", limit=8 << 20).table.column("text")
    assert texts.slice(2).unique().to_pylist() == ["one"]
    assert len(texts[1].as_py()) == 8 << 20


@pytest.mark.parametrize("nested", [False, True])
def test_a_large_row_group_is_read_in_batches_that_its_dictionary_bounds(
    nested: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Arrow keeps dictionaries of 2 GiB alone; a text that the first rows lack is in the dictionary, too."""
    monkeypatch.setattr(parquet_source, "_KEPT_BYTES", 0)
    monkeypatch.setattr(parquet_source, "_BATCH_BYTES", 1 << 16)
    monkeypatch.setattr(parquet_source, "_JOINED_BATCHES", 3)
    sizes: list[int] = []
    read = parquet_source._read_batches
    monkeypatch.setattr(
        parquet_source, "_read_batches", lambda *given, rows: [sizes.append(rows), read(*given, rows=rows)][1]
    )
    texts = [None, "", *(f"text {number}" for number in range(50)), *["x" * 4096] * 60]
    rows = [None if text is None else [{"role": "user", "content": text}] for text in texts] if nested else texts
    pq.write_table(pa.table({"text": rows}), tmp_path / "a.parquet")
    column = InputColumn(name="text", largest=5000, nested=nested)
    found = read_rows(match_sources([str(tmp_path / "a.parquet")], "auto"), {"text": "text"}, column)
    assert sizes == [16]
    assert [None if text is None else nested or text for text in found.table.column("text").to_pylist()] == [
        None if text is None else nested or text for text in texts
    ]


def test_all_files_of_a_source_share_its_bounds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bomb in many small files is refused, too, and so is a source that no machine could keep in memory."""
    for number in range(8):
        _dictionary(tmp_path / f"{number}.parquet", ["x" * 1000], [0] * 3000)
    assert len(_read(tmp_path)) == 24_000
    monkeypatch.setattr(budget, "FLOOR", 1 << 24)
    with pytest.raises(SnapshotError, match=r"5\.parquet: the rows of its source take more than 16,777,216 bytes"):
        _read(tmp_path)
    monkeypatch.undo()
    monkeypatch.setattr(budget, "memory_limit", lambda: 1 << 24)
    with pytest.raises(SnapshotError, match=r"5\.parquet: .* this process may take 0\.0 GiB of memory: take"):
        _read(tmp_path)


@pytest.mark.parametrize("ending", ["jsonl", "csv"])
def test_columns_that_are_not_read_count_while_their_file_is(
    ending: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ten files of wide rows need the memory of one of them, and of the texts of all."""
    other, rows = "x" * 10_000, 100
    lines = {
        "jsonl": f'{{"text": "one", "other": "{other}"}}\n' * rows,
        "csv": "text,other\n" + f"one,{other}\n" * rows,
    }
    for number in range(10):
        (tmp_path / f"{number}.{ending}").write_text(lines[ending])
    monkeypatch.setattr(budget, "memory_limit", lambda: 1_200_000)
    assert len(_read(tmp_path, limit=20_000)) == 10 * rows
    (tmp_path / f"5.{ending}").write_text(lines[ending] * 2)
    with pytest.raises(SnapshotError, match=rf"5\.{ending}: .* this process may take 0\.0 GiB of memory: take"):
        _read(tmp_path, limit=20_000)


def test_folders_of_images_that_no_memory_keeps_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are not read at all; files above the limit are not read, and do not count."""
    (tmp_path / "cats").mkdir()
    for number in range(4):
        (tmp_path / "cats" / f"{number}.png").write_bytes(bytes(1000))
    monkeypatch.setattr(budget, "memory_limit", lambda: 4000)
    monkeypatch.setattr(read, "read_images", _fail)
    with pytest.raises(SnapshotError, match=r"0\.png: .* this process may take 0\.0 GiB of memory: take"):
        _read(tmp_path, name="image")
    monkeypatch.undo()
    monkeypatch.setattr(budget, "memory_limit", lambda: 4000)
    assert set(_words(_read(tmp_path, name="image", limit=999))) == {"cell too large"}


def test_texts_with_prefix_coding_are_few_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch has few rows, as any could be as long as the column; a table for each would take seconds and memory."""
    monkeypatch.setattr(parquet_source, "_BATCH_BYTES", 1 << 18)
    texts = [f"{number:064d}" for number in range(2000)]
    _parquet(tmp_path / "a.parquet", texts, use_dictionary=False, column_encoding={"text": "DELTA_BYTE_ARRAY"})
    decoded: list[int] = []
    decode = parquet_source._decode
    monkeypatch.setattr(
        parquet_source, "_decode", lambda table, reading: [decoded.append(len(table)), decode(table, reading)][1]
    )
    assert _read(tmp_path / "a.parquet").table.column("text").to_pylist() == texts
    assert decoded == [0, 2000]


@pytest.mark.parametrize("document", ['[{"text": "a"}, %s]', '{"rows": [{"text": "a"}, %s]}'])
def test_an_element_of_a_document_that_is_too_large_is_an_error(
    document: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where an element ends is known to its parser alone; elements within the limit are read over window borders."""
    monkeypatch.setattr(json_document, "_WINDOW", 8)
    huge = document % ('{"text": "%s"}' % ("x" * LIMIT))
    (tmp_path / "a.json").write_text(huge)
    with pytest.raises(SnapshotError, match=r"the value at line 1, column [0-9]+ does not end within the 1,000 bytes"):
        _read(tmp_path / "a.json")
    for size in range(40):
        (tmp_path / "a.json").write_text(document % ('{"n": [1.25, "\\u00e9", true], "text": "%s"}' % ("x" * size)))
        assert _read(tmp_path / "a.json").table.column("text").to_pylist() == ["a", "x" * size]


def test_a_nested_conversation_above_the_limit_costs_its_row(tmp_path: Path) -> None:
    """Its size is that of its JSON."""
    turns = [[{"role": "user", "content": "x" * size}] for size in (10, 5000, 20)]
    pq.write_table(pa.table({"text": turns}), tmp_path / "a.parquet")
    column = InputColumn(name="text", largest=LIMIT, nested=True)
    rows = read_rows(match_sources([str(tmp_path / "a.parquet")], "auto"), {"text": "text"}, column)
    assert _words(rows) == ["usable", "cell too large", "usable"]


@pytest.mark.parametrize("packing", ["gz", "bz2", "xz", "zst"])
def test_a_packed_file_that_unpacks_beyond_all_measure_is_refused(
    packing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It ends after the bound; a file within it is read as before."""
    monkeypatch.setattr(budget, "FLOOR", 1 << 20)
    monkeypatch.setattr(budget, "_PIECE", 1 << 18)
    pack = {
        "gz": gzip.compress,
        "bz2": bz2.compress,
        "xz": lzma.compress,
        "zst": lambda data: pa.Codec("zstd").compress(data, asbytes=True),
    }[packing]
    lines = b'{"text": "one"}\n'
    (tmp_path / f"a.jsonl.{packing}").write_bytes(pack(lines * 100_000))
    with pytest.raises(
        SnapshotError, match=r"take more than 1,048,576 bytes, and its files have [0-9,]+, over 200 times less"
    ):
        _read(tmp_path / f"a.jsonl.{packing}")
    (tmp_path / f"b.jsonl.{packing}").write_bytes(pack(lines * 3))
    assert len(_read(tmp_path / f"b.jsonl.{packing}")) == 3


def test_the_expansion_is_a_setting_and_the_refusal_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Short requests behind one long prompt are right, and small when packed: in lines, and in a row group."""
    monkeypatch.setattr(budget, "FLOOR", 1 << 20)
    texts = [f"{'Answer as a clerk of the bank. ' * 300}{number}" for number in range(2000)]
    _json_lines(tmp_path / "a.jsonl", texts)
    (tmp_path / "a.jsonl.xz").write_bytes(lzma.compress((tmp_path / "a.jsonl").read_bytes()))
    _parquet(tmp_path / "a.parquet", texts, use_dictionary=False, compression="zstd", row_group_size=2000)

    def take(name: str, **settings: object) -> object:
        value = {"source": str(tmp_path / name), "max_cell_bytes": 20_000, **settings}
        config = parse_config(
            {"campaign": "c", "task": "text_classification", "snapshot": value, "labels": {"teacher": {"model": "m"}}}
        ).snapshot
        return take_snapshot(config, input_column="text", seed=0, url=str(tmp_path / "out"), truth="none")

    with pytest.raises(SnapshotError, match=r"over 200 times less.*raise snapshot\.max_expansion if they are right"):
        take("a.jsonl.xz")
    with pytest.raises(
        SnapshotError, match=r"2000 cell too large.*over snapshot\.max_expansion times .* or raise that"
    ):
        take("a.parquet")
    assert take("a.jsonl.xz", max_expansion=5000) == take("a.parquet", max_expansion=5000) == take("a.jsonl")


def test_the_limit_is_a_setting_and_the_refusal_names_it(tmp_path: Path) -> None:
    """Above the accepted share of bad rows the message has the way out; with it, the snapshot is taken."""
    _parquet(tmp_path / "a.parquet", [f"{number} {'x' * 400}" for number in range(50)])

    def take(**settings: object) -> object:
        value = {"source": str(tmp_path / "a.parquet"), **settings}
        config = parse_config(
            {"campaign": "c", "task": "text_classification", "snapshot": value, "labels": {"teacher": {"model": "m"}}}
        ).snapshot
        return take_snapshot(config, input_column="text", seed=0, url=str(tmp_path / "out"), truth="none")

    with pytest.raises(SnapshotError, match=r"50 cell too large.*split such inputs, or raise snapshot\.max_cell_bytes"):
        take(max_cell_bytes=400)
    assert take(max_cell_bytes=500)
