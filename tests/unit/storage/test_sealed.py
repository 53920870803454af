"""A JSON object is written with the digest of its content, and a changed one is named with the way out."""

from pathlib import Path

import pytest

from ray_distill.artifacts import SnapshotRef
from ray_distill.errors import ConfigError, DamagedFile, StorageError
from ray_distill.storage.sealed import SEAL, read_document, read_sealed, sealed, unsealed, write_sealed

VALUE = {"rows": 17, "share": 0.25, "names": ["a", "é"], "more": {"none": None}}


def test_what_is_written_is_read(tmp_path: Path) -> None:
    """Tuples become lists and keys become texts, as in any JSON; spaces do not count."""
    url = str(tmp_path / "value.json")
    write_sealed(url, {**VALUE, "pair": (1, 2), "by_number": {3: "three"}})
    expected = {**VALUE, "pair": [1, 2], "by_number": {"3": "three"}}
    assert read_sealed(url, "delete it") == expected
    Path(url).write_text(Path(url).read_text().replace("  ", ""))
    assert read_sealed(url, "delete it") == expected


@pytest.mark.parametrize(
    "changed",
    [
        lambda data: data.replace(b"17", b"18"),
        lambda data: data.replace(b"rows", b"rowt"),
        lambda data: data.replace(b"0.25", b"1e999"),
        lambda data: data[:-9],
        lambda data: b"",
        lambda data: b"[]",
        lambda data: b"\xff" + data,
        lambda data: b"[" * 100_000,
    ],
)
def test_a_changed_file_is_named_with_the_way_out(tmp_path: Path, changed) -> None:  # type: ignore[no-untyped-def]
    """Another digit, another name, a cut, nothing, something else, and nesting without an end."""
    path = tmp_path / "value.json"
    write_sealed(str(path), VALUE)
    path.write_bytes(changed(path.read_bytes()))
    with pytest.raises(DamagedFile, match=r"value\.json is damaged: .*; delete it, and it is made again"):
        read_sealed(str(path), "delete it, and it is made again")


def test_an_object_that_was_written_by_hand_has_no_digest() -> None:
    """It is read as it is."""
    assert unsealed(dict(VALUE), "value.json", "delete it") == VALUE
    assert SEAL in sealed(VALUE)


def test_another_document_is_refused_with_the_way_out(tmp_path: Path) -> None:
    """A whole file of another kind has a right digest; an absent one is an error of the storage."""
    url = str(tmp_path / "ref.json")
    write_sealed(url, SnapshotRef(url="u", fingerprint="f").to_dict())
    assert read_document(SnapshotRef, url, "delete it") == SnapshotRef(url="u", fingerprint="f")
    write_sealed(url, VALUE)
    with pytest.raises(ConfigError, match=r"ref\.json: SnapshotRef .*; delete it"):
        read_document(SnapshotRef, url, "delete it")
    with pytest.raises(StorageError, match="absent"):
        read_sealed(str(tmp_path / "absent.json"), "delete it")
