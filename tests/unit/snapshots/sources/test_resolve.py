"""Sources: what a pattern stands for, and how a change is noticed without reading."""

import os
import shutil
from pathlib import Path

import fsspec
import pytest

from ray_distill.config import SnapshotConfig
from ray_distill.errors import SnapshotError
from ray_distill.snapshots import describe_sources
from ray_distill.snapshots.sources.resolve import match_sources


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")


def names(folder: Path, *patterns: str) -> list[str]:
    return [file.url.removeprefix(f"{folder}/") for file in match_sources([f"{folder}/{p}" for p in patterns], "auto")]


def test_file_folder_glob_and_lists(tmp_path: Path) -> None:
    """Patterns keep their order, files within one are sorted, and a file matched twice is read once."""
    touch(tmp_path, "b/2.csv", "b/1.csv", "a.parquet", "c.jsonl")
    assert names(tmp_path, "b/2.csv") == ["b/2.csv"]
    assert names(tmp_path, "b") == ["b/1.csv", "b/2.csv"]
    assert names(tmp_path, "*.parquet") == ["a.parquet"]
    assert names(tmp_path, "**/*.csv", "c.jsonl", "b/1.csv") == ["b/1.csv", "b/2.csv", "c.jsonl"]


def test_formats_go_by_suffix(tmp_path: Path) -> None:
    """Suffixes decide in any case; a chosen format overrules them."""
    touch(tmp_path, "a.PARQUET", "b.ndjson.gz", "c.csv", "d.jpeg")
    assert [f.format for f in match_sources([str(tmp_path)], "auto")] == ["parquet", "jsonl", "csv", "images"]
    touch(tmp_path, "x/e.txt")
    assert [f.format for f in match_sources([f"{tmp_path}/x"], "csv")] == ["csv"]
    with pytest.raises(SnapshotError, match=r"e\.txt: the format of \.txt is unknown; known are \.parquet"):
        match_sources([f"{tmp_path}/x"], "auto")


def test_what_table_writers_leave_is_no_source(tmp_path: Path) -> None:
    """Markers, temporary folders and hidden files are left out; an image class may begin with an underscore."""
    touch(tmp_path, "t/1.parquet", "t/_SUCCESS", "t/_temporary/0/2.parquet", "t/.crc", "i/_noise/1.png")
    assert names(tmp_path, "t", "i") == ["t/1.parquet", "i/_noise/1.png"]


def test_pattern_without_match_is_named(tmp_path: Path) -> None:
    """The error names the one pattern that found nothing, and no password in it."""
    touch(tmp_path, "a.csv")
    with pytest.raises(SnapshotError, match=r"source '.*/none/\*\.csv' matches no file"):
        match_sources([f"{tmp_path}/a.csv", f"{tmp_path}/none/*.csv"], "auto")


def test_any_fsspec_url_works() -> None:
    """Files on another file system are found by folder and by glob, with their URLs."""
    memory = fsspec.filesystem("memory")
    memory.pipe({"/h2-sources/a/1.csv": b"text\na\n", "/h2-sources/b/2.csv": b"text\nb\n"})
    try:
        found = match_sources(["memory://h2-sources/*/*.csv"], "auto")
        assert [file.size for file in found] == [7, 7]
        assert all(fsspec.open(file.url).open().read().startswith(b"text") for file in found)
    finally:
        memory.rm("/h2-sources", recursive=True)


def test_description_changes_exactly_when_a_file_does(tmp_path: Path) -> None:
    """The same files are described the same; a rewritten one of equal size is not."""
    touch(tmp_path, "a.csv", "seen.csv")
    config = SnapshotConfig(source=f"{tmp_path}/a.csv", exclude=(f"{tmp_path}/seen.csv",))
    before = describe_sources(config)
    assert before == describe_sources(config)
    assert [(item["role"], item["size"]) for item in before] == [("source", 1), ("exclude", 1)]
    (tmp_path / "a.csv").write_bytes(b"y")
    os.utime(tmp_path / "a.csv", (1, 1))
    after = describe_sources(config)
    assert after[0] != before[0] and after[1] == before[1]


def test_a_copy_that_keeps_its_times_is_described_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A campaign that is copied or moved, and names its source by a relative path, does not take its snapshot again."""
    touch(tmp_path, "here/a.csv")
    shutil.copytree(tmp_path / "here", tmp_path / "there")
    found = []
    for name in ("here", "there"):
        monkeypatch.chdir(tmp_path / name)
        found.append(describe_sources(SnapshotConfig(source="a.csv")))
    assert found[0] == found[1]
