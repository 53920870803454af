"""Files on local paths and on a stand-in for a remote file system."""

import errno
import sys
import threading

import pytest

from ray_distill.errors import AlreadyExists, StorageError
from ray_distill.storage import files, local, remote
from ray_distill.testing.crashfs import crashing_remote


@pytest.fixture(params=["local", "remote"])
def root(request, tmp_path):
    """A folder by path, and one by a URL that goes through fsspec."""
    return str(tmp_path / "root") if request.param == "local" else f"crash://{tmp_path}/root"


def test_join_puts_single_slashes():
    """Names and URLs join with one slash each, and a scheme's own slashes stay."""
    assert files.join("s3://bucket/a/", "b", "c.json") == "s3://bucket/a/b/c.json"
    assert files.join("/", "a") == "/a" and files.join("rel", "hidden", 3, "x") == "rel/hidden/3/x"
    assert files.join("s3://bucket/a/") == "s3://bucket/a"


def test_bytes_come_back_as_they_were_written(root):
    """Write makes parents and replaces; read, exists and sizes agree."""
    url = files.join(root, "a", "b.bin")
    assert not files.exists(url)
    files.write_bytes(url, b"old")
    files.write_bytes(url, b"new bytes")
    assert files.read_bytes(url) == b"new bytes" and files.exists(url) and files.sizes([url]) == [9]
    assert files.read_many([url, url]) == [b"new bytes"] * 2
    with files.open_input(url) as stream:
        stream.seek(4)
        assert stream.read() == b"bytes"


def test_listing_is_recursive_relative_and_sorted(root):
    """Names are relative to the folder, in order, with sizes; no folder is an empty listing."""
    assert files.list_files(root) == []
    for name in ("b/2", "a", "b/1/x"):
        files.write_bytes(files.join(root, name), name.encode())
    found = files.list_files(root)
    assert [(item.name, item.size) for item in found] == [("a", 1), ("b/1/x", 5), ("b/2", 3)]
    assert [files.read_bytes(item.url) for item in found] == [b"a", b"b/1/x", b"b/2"]


def test_globs_files_and_folders_stand_for_files(root):
    """A glob matches files, and folders with all in them; a name with a bracket is taken as it is if it exists."""
    for name in ("dt=1/a.csv", "dt=1/b.txt", "dt=2/sub/c.csv", "odd[1].csv"):
        files.write_bytes(files.join(root, name), b"x")
    names = [item.name for item in files.glob_files(files.join(root, "dt=*", "*.csv"))]
    assert names == ["dt=1/a.csv"]
    names = [item.name for item in files.glob_files(files.join(root, "dt=*"))]
    assert names == ["dt=1/a.csv", "dt=1/b.txt", "dt=2/sub/c.csv"]
    assert [item.name for item in files.glob_files(files.join(root, "**", "*.csv"))] == [
        "dt=1/a.csv",
        "dt=2/sub/c.csv",
        "odd[1].csv",
    ]
    assert [item.name for item in files.glob_files(files.join(root, "odd[1].csv"))] == ["odd[1].csv"]
    assert [item.name for item in files.glob_files(files.join(root, "dt=2"))] == ["sub/c.csv"]
    assert files.glob_files(files.join(root, "none*")) == []


def test_deleting_takes_files_and_folders_and_nothing(root):
    """Deletion is idempotent."""
    for name in ("a/b", "a/c", "d"):
        files.write_bytes(files.join(root, name), b"x")
    for name in ("d", "a", "a"):
        files.delete(files.join(root, name))
    assert files.list_files(root) == []


def test_folders_travel_both_ways(root, tmp_path):
    """Upload and download keep names and bytes; a local folder is returned as it is."""
    source = tmp_path / "source"
    for name in ("x/y.bin", "z.bin"):
        files.write_bytes(str(source / name), name.encode())
    files.upload_folder(source, root)
    target = files.download_folder(root, tmp_path / "target")
    assert (target == tmp_path / "target") is not files.is_local(root)
    assert {item.name: files.read_bytes(item.url) for item in files.list_files(str(target))} == {
        "x/y.bin": b"x/y.bin",
        "z.bin": b"z.bin",
    }


def test_json_is_deterministic_and_malformed_json_names_the_file(root):
    """Equal values give equal bytes; what is not JSON is a StorageError with the URL."""
    url = files.join(root, "a.json")
    files.write_json(url, {"b": 1, "a": ["ü", None]})
    before = files.read_bytes(url)
    files.write_json(url, files.read_json(url))
    assert files.read_bytes(url) == before
    files.write_bytes(url, b"{half")
    with pytest.raises(StorageError, match="a.json: expected JSON"):
        files.read_json(url)


@pytest.mark.parametrize(
    "call",
    [
        files.read_bytes,
        files.read_json,
        files.open_input,
        files.modified,
        lambda url: files.sizes([url]),
        lambda url: files.read_many([url]),
    ],
)
def test_a_missing_file_is_a_storage_error_that_names_it(root, call):
    """No FileNotFoundError leaves the storage layer."""
    with pytest.raises(StorageError, match=r"none\.bin: cannot .*does not exist; check the path"):
        call(files.join(root, "none.bin"))


def test_missing_folders_cannot_be_copied(root, tmp_path):
    """Copying from nowhere is an error, not an empty copy."""
    with pytest.raises(StorageError, match="is not a folder"):
        files.upload_folder(tmp_path / "none", root)
    with pytest.raises(StorageError, match="no such folder|empty or missing"):
        files.download_folder(files.join(root, "none"), tmp_path / "target")


def test_a_path_through_a_file_is_a_storage_error(root):
    """A file where a folder is needed is reported with the URL."""
    files.write_bytes(files.join(root, "file"), b"x")
    with pytest.raises(StorageError, match="file/below: cannot"):
        files.write_bytes(files.join(root, "file", "below"), b"y")


def test_creating_twice_raises_and_keeps_the_first(root):
    """The loser of an exclusive create gets AlreadyExists, and the winner's bytes stay."""
    url = files.join(root, "log", "0.json")
    files.create_exclusive(url, b"first")
    with pytest.raises(AlreadyExists, match="the name is taken"):
        files.create_exclusive(url, b"second")
    assert files.read_bytes(url) == b"first"
    assert files.list_files(root, unfinished=True)[0].name == "log/0.json"


def race(url, writers):
    """Let writers create one name at once; returns who won."""
    won, gate = [], threading.Barrier(writers)

    def create(number):
        gate.wait()
        try:
            files.create_exclusive(url, f"writer {number}".encode())
        except AlreadyExists:
            return
        won.append(number)

    threads = [threading.Thread(target=create, args=(number,)) for number in range(writers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return won


def test_one_of_many_racing_creators_wins(tmp_path):
    """In each of 40 races of four threads exactly one wins, and the file holds its bytes whole."""
    for number in range(40):
        url = str(tmp_path / "log" / f"{number}.json")
        (winner,) = race(url, 4)
        assert files.read_bytes(url) == f"writer {winner}".encode()


@pytest.mark.parametrize("number", sorted(local.NO_LINKS))
def test_without_links_creation_is_exclusive_still(tmp_path, monkeypatch, number):
    """A file system that refuses hard links is served by O_EXCL: first wins, second is told."""

    def refuse(source, target):
        raise OSError(number, "no links here")

    monkeypatch.setattr(local.os, "link", refuse)
    url = str(tmp_path / "0.json")
    files.create_exclusive(url, b"first")
    with pytest.raises(AlreadyExists):
        files.create_exclusive(url, b"second")
    assert [item.name for item in files.list_files(str(tmp_path), unfinished=True)] == ["0.json"]
    assert files.read_bytes(url) == b"first"


def test_a_link_whose_answer_was_lost_is_ours(tmp_path, monkeypatch):
    """NFS may link, lose the answer, link again and say EEXIST: the same file proves that we won."""
    real = local.os.link

    def link_twice(source, target):
        real(source, target)
        raise FileExistsError(errno.EEXIST, "file exists")

    monkeypatch.setattr(local.os, "link", link_twice)
    url = str(tmp_path / "0.json")
    files.create_exclusive(url, b"ours")
    assert files.read_bytes(url) == b"ours"


def test_file_systems_without_exclusive_create_are_refused():
    """fsspec's default looks first and writes then: not exclusive, so it is refused by name."""
    with pytest.raises(StorageError, match="memory:// cannot create a file exclusively"):
        files.create_exclusive("memory://bucket/0.json", b"x")


def test_unknown_protocols_and_missing_drivers_are_named(monkeypatch):
    """A URL nobody can serve is a StorageError that says what to do."""
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(StorageError, match="s4://b/x: not a usable URL"):
        files.read_bytes("s4://b/x")
    with pytest.raises(StorageError, match=r"no driver for gs:// is installed.*pip install 'ray-distill\[gcs\]'"):
        files.read_bytes("gs://b/x")


def test_transient_failures_are_retried_and_final_ones_not():
    """Resets, time-outs and 5xx pass; missing files, rights, full disks and lost races do not."""
    assert remote.is_transient(ConnectionResetError()) and remote.is_transient(TimeoutError())
    assert remote.is_transient(OSError(errno.EBUSY, "SlowDown"))
    assert remote.is_transient(OSError(errno.EREMOTEIO, "500"))
    for error in (FileNotFoundError(), PermissionError(), FileExistsError(), OSError(errno.ENOSPC, "full")):
        assert not remote.is_transient(error)


@pytest.mark.parametrize("way", ["refused", "lost"])
def test_one_broken_connection_is_survived(tmp_path, way, monkeypatch):
    """Whether the request or only its answer was lost, a create is repeated and recognised as ours."""
    monkeypatch.setattr(remote, "BACKOFF_SECONDS", (0.0, 0.0))
    url = f"crash://{tmp_path}/0.json"
    with crashing_remote(0, way):
        files.create_exclusive(url, b"mine")
    assert files.read_bytes(url) == b"mine"
    with crashing_remote(0, way), pytest.raises(AlreadyExists):
        files.create_exclusive(url, b"other")


def test_retries_are_bounded(monkeypatch):
    """A file system that never recovers is a StorageError after a fixed number of tries."""
    monkeypatch.setattr(remote, "BACKOFF_SECONDS", (0.0, 0.0))
    tries = []

    def fail():
        tries.append(1)
        raise ConnectionResetError("reset by peer")

    with pytest.raises(StorageError, match="s3://b/x: cannot read it: ConnectionResetError: reset by peer; run again"):
        remote.attempt("s3://b/x", "read it", fail)
    assert len(tries) == 3


def test_a_relative_path_becomes_absolute_and_urls_stay(tmp_path, monkeypatch):
    """What is handed to other processes must not depend on the working directory."""
    monkeypatch.chdir(tmp_path)
    assert files.absolute("a/b") == str(tmp_path / "a/b") and files.absolute("s3://b/x") == "s3://b/x"


def test_unfinished_writes_are_hidden_from_listings(tmp_path):
    """What a cut-off write left behind is listed only when asked for."""
    name = ".a.bin.0123456789abcdef0123456789abcdef.part"
    (tmp_path / name).write_bytes(b"ha")
    assert files.list_files(str(tmp_path)) == []
    assert [item.name for item in files.list_files(str(tmp_path), unfinished=True)] == [name]
