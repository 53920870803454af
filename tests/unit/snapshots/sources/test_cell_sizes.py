"""Huge cells and files that unpack to a thousand times their size: found by a limit, if possible before decoding."""

import bz2
import gzip
import json
import lzma
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ray_distill.config import parse_config
from ray_distill.errors import SnapshotError
from ray_distill.snapshots.rows import Reason, Rows
from ray_distill.snapshots.sources import cell_sizes
from ray_distill.snapshots.sources.columns import InputColumn
from ray_distill.snapshots.sources.read import read_rows
from ray_distill.snapshots.sources.resolve import match_sources
from ray_distill.snapshots.take import take_snapshot

LIMIT = 1000
TEXTS = ["one", "x" * LIMIT, "y" * (LIMIT + 1), "two"]
REASONS = ["usable", "usable", "cell too large", "usable"]


def _read(path: Path, *, limit: int = LIMIT, name: str = "text") -> Rows:
    column = InputColumn(name=name, binary=name == "image", largest=limit)
    return read_rows(match_sources([str(path)], "auto"), {name: name}, column)


def _words(rows: Rows) -> list[str]:
    return [Reason(why).text for why in rows.why]


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
    huge = 64 << 20
    _parquet(
        tmp_path / "a.parquet", ["one", "x" * huge, "two"], row_group_size=1, use_dictionary=False, compression="zstd"
    )
    assert (tmp_path / "a.parquet").stat().st_size < huge / 200
    before = pa.default_memory_pool().max_memory()
    tracemalloc.start()
    rows = _read(tmp_path / "a.parquet")
    assert tracemalloc.get_traced_memory()[1] < huge / 4
    tracemalloc.stop()
    assert pa.default_memory_pool().max_memory() - before < huge / 4
    assert _words(rows) == ["usable", "cell too large", "usable"]
    assert rows.table.column("text").to_pylist() == ["one", None, "two"]


def test_a_row_group_that_unpacks_beyond_all_measure_is_not_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Many rows may hide one huge cell: then the ratio decides, and the whole group is counted."""
    monkeypatch.setattr(cell_sizes, "FLOOR", 1 << 16)
    texts = ["short"] * 5000 + ["x" * (1 << 20)] + ["short"] * 10
    _parquet(tmp_path / "a.parquet", texts, row_group_size=2506, use_dictionary=False, compression="zstd")
    rows = _read(tmp_path / "a.parquet")
    assert _words(rows) == ["usable"] * 2506 + ["cell too large"] * 2505
    rows = _read(tmp_path / "a.parquet", limit=1 << 20)
    assert set(_words(rows)) == {"usable"}


@pytest.mark.parametrize("packing", ["gz", "bz2", "xz", "zst"])
def test_a_packed_file_that_unpacks_beyond_all_measure_is_refused(
    packing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It ends after the bound; a file within it is read as before."""
    monkeypatch.setattr(cell_sizes, "FLOOR", 1 << 20)
    monkeypatch.setattr(cell_sizes, "_PIECE", 1 << 18)
    pack = {
        "gz": gzip.compress,
        "bz2": bz2.compress,
        "xz": lzma.compress,
        "zst": lambda data: pa.Codec("zstd").compress(data, asbytes=True),
    }[packing]
    lines = b'{"text": "one"}\n'
    (tmp_path / f"a.jsonl.{packing}").write_bytes(pack(lines * 100_000))
    with pytest.raises(SnapshotError, match=r"unpacks to more than 1,[0-9,]+ bytes from .*over 200 times"):
        _read(tmp_path / f"a.jsonl.{packing}")
    (tmp_path / f"b.jsonl.{packing}").write_bytes(pack(lines * 3))
    assert len(_read(tmp_path / f"b.jsonl.{packing}")) == 3


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
