"""Folders that mean more than the files in them are refused: table formats, splits side by side, links to nothing."""

from pathlib import Path

import fsspec
import pytest

from ray_distill.errors import SnapshotError, StorageError
from ray_distill.snapshots.sources.resolve import match_sources

DELTA = ("t/part-0.parquet", "t/day=1/part-1.parquet", "t/_delta_log/00000000000000000000.json")
HUDI = ("t/day=1/a.parquet", "t/.hoodie/hoodie.properties")
ICEBERG = ("t/data/day=1/a.parquet", "t/metadata/00001-0f3c9a52-6a77-4d6c-9b1c-2f1d5f0e6a11.metadata.json")
HADOOP = ("t/data/a.parquet", "t/metadata/v3.gz.metadata.json", "t/metadata/version-hint.text")


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")


def names(*patterns: str) -> list[str]:
    return [file.url for file in match_sources(patterns, "auto")]


@pytest.mark.parametrize(
    ("files", "pattern", "kind"),
    [
        (DELTA, "t", "Delta"),
        (DELTA, "t/", "Delta"),
        (DELTA, "", "Delta"),
        (DELTA, "*", "Delta"),
        (DELTA, "t/*.parquet", "Delta"),
        (DELTA, "t/day=1", "Delta"),
        (DELTA, "t/day=*/part-*.parquet", "Delta"),
        (DELTA, "**/*.parquet", "Delta"),
        (HUDI, "t", "Hudi"),
        (HUDI, "t/day=1", "Hudi"),
        (HUDI, "t/*/*.parquet", "Hudi"),
        (ICEBERG, "t", "Iceberg"),
        (ICEBERG, "t/data", "Iceberg"),
        (ICEBERG, "t/data/day=1", "Iceberg"),
        (ICEBERG, "t/data/*/*.parquet", "Iceberg"),
        (HADOOP, "", "Iceberg"),
        (HADOOP, "t/data/*.parquet", "Iceberg"),
    ],
)
@pytest.mark.parametrize("remote", [False, True])
def test_folders_of_tables_are_refused(
    tmp_path: Path, files: tuple[str, ...], pattern: str, kind: str, *, remote: bool
) -> None:
    """The root, a parent, a partition and a glob are refused with the format and the way out, on any file system."""
    memory = fsspec.filesystem("memory")
    base = "memory://h16-tables" if remote else str(tmp_path)
    if remote:
        memory.pipe({f"/h16-tables/{name}": b"x" for name in files})
    else:
        touch(tmp_path, *files)
    try:
        with pytest.raises(SnapshotError, match=rf"t is the folder of a table of the format {kind} .* export its live"):
            names(f"{base}/{pattern}" if pattern else base)
    finally:
        if remote:
            memory.rm("/h16-tables", recursive=True)


def test_files_of_a_table_that_are_named_one_by_one_are_read(tmp_path: Path) -> None:
    """An owner who lists the live files is understood."""
    touch(tmp_path, *DELTA)
    live = [f"{tmp_path}/{name}" for name in DELTA[:2]]
    assert names(*live) == live


def test_other_metadata_is_not_a_table(tmp_path: Path) -> None:
    """A folder ``metadata`` with files of another kind means nothing."""
    touch(tmp_path, "x/metadata/dataset.metadata.json", "x/data/a.parquet", "x/metadata/b.parquet")
    assert names(f"{tmp_path}/x/data/*.parquet") == [f"{tmp_path}/x/data/a.parquet"]


@pytest.mark.parametrize(
    ("files", "found"),
    [
        (("train/a.csv", "test/b.csv"), "test, train"),
        (("Train/a.csv", "Val/b.csv", "other/c.csv"), "Train, Val"),
        (("split=train/a.parquet", "split=validation/b.parquet"), "split=train, split=validation"),
        (("train.jsonl", "test.jsonl.gz"), "test, train"),
        (("data/train-00000-of-00001.parquet", "data/test-00000-of-00001.parquet"), "test-00000"),
        (("train/cat/1.png", "test/cat/2.png"), "test, train"),
        (("train/1.png", "test/2.png"), "test, train"),
        (("train/cat/1.png", "train/dog/1.png"), "train"),
    ],
)
def test_splits_side_by_side_are_refused(tmp_path: Path, files: tuple[str, ...], found: str) -> None:
    """Rows would be mixed, and classes of images named after splits; the error names a source that is one split."""
    touch(tmp_path, *files)
    with pytest.raises(SnapshotError, match=f"has the splits {found}.* side by side, .*name one of them as snapshot"):
        names(str(tmp_path))
    with pytest.raises(SnapshotError, match="side by side"):
        names(f"{tmp_path}/**/*.*")
    assert len(match_sources([str(tmp_path)], "auto", splits=True)) == len(files)


@pytest.mark.parametrize(
    "files",
    [
        ("train/1.png", "bus/1.png"),  # a vehicle
        ("train/1.png", "train/2.png"),
        ("env=dev/1.csv", "env=test/1.csv"),
        ("train/1.csv",),
        ("training_notes.csv", "tests.csv"),
    ],
)
def test_names_that_only_resemble_splits_are_read(tmp_path: Path, files: tuple[str, ...]) -> None:
    """A class may be called train, and tests are not a split."""
    touch(tmp_path, *files)
    assert len(names(str(tmp_path))) == len(files)


def test_splits_that_are_named_one_by_one_are_joined(tmp_path: Path) -> None:
    """Two folders in a list are what their owner wants; an image's class is its folder below each."""
    touch(tmp_path, "train/cat/1.png", "test/cat/2.png")
    found = match_sources([f"{tmp_path}/train", f"{tmp_path}/test"], "auto")
    assert [file.folder for file in found] == ["cat", "cat"]


def test_links_are_followed_and_a_file_is_read_once(tmp_path: Path) -> None:
    """A linked folder counts; a second name of a file does not; a link to a folder above does not loop."""
    touch(tmp_path, "real/day=1/a.csv", "source/b.csv")
    (tmp_path / "source/latest").symlink_to(tmp_path / "real/day=1")
    (tmp_path / "source/all").symlink_to(tmp_path / "real")
    (tmp_path / "source/up").symlink_to(tmp_path / "source")
    expected = ["all/day=1/a.csv", "b.csv"]
    assert names(f"{tmp_path}/source") == [f"{tmp_path}/source/{name}" for name in expected]
    assert len(names(f"{tmp_path}/source/**/*.csv")) == 2


def test_a_linked_image_has_the_class_of_each_folder(tmp_path: Path) -> None:
    """Two classes that link to one picture are two labels of it, to be settled by the policy of conflicts."""
    touch(tmp_path, "cat/1.png")
    (tmp_path / "pet").symlink_to(tmp_path / "cat")
    assert [file.folder for file in match_sources([str(tmp_path)], "auto")] == ["cat", "pet"]


def test_a_link_to_nothing_is_named(tmp_path: Path) -> None:
    """Its rows would be missing without a word."""
    touch(tmp_path, "a.csv")
    (tmp_path / "b.csv").symlink_to(tmp_path / "none.csv")
    with pytest.raises(StorageError, match=r"b\.csv is a link to .*none\.csv, which does not exist"):
        names(str(tmp_path))


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("a.xlsx", "export the sheet as 'CSV UTF-8'"),
        ("a.arrow", "write it to Parquet"),
        ("a.tar.gz", "unpack it, and name the folder"),
        ("a.parquet.gz", r"is packed \(\.gz\), and \.parquet is read unpacked only: unpack it"),
        ("a.png.zst", "is packed"),
        ("a.csv.lz4", "unpack it, or pack it as one of .gz"),
        ("a.heic", "convert it to PNG"),
    ],
)
def test_files_that_are_not_read_are_refused_with_the_way_out(tmp_path: Path, name: str, advice: str) -> None:
    """The error names the file and what makes it a source."""
    touch(tmp_path, name)
    with pytest.raises(SnapshotError, match=f"{name}.*{advice}"):
        names(str(tmp_path))


def test_what_desktops_leave_is_not_a_source(tmp_path: Path) -> None:
    """Thumbnails, settings, checksums and resource forks are left out."""
    touch(tmp_path, "cat/1.png", "cat/Thumbs.db", "desktop.ini", "__MACOSX/cat/._1.png", "cat/.1.png.crc", ".DS_Store")
    assert names(str(tmp_path)) == [f"{tmp_path}/cat/1.png"]
