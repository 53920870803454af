"""Storage and label store against a real S3-speaking server on loopback."""

import threading

import numpy as np
import pytest

from ray_distill.errors import AlreadyExists, CorruptStore, StorageError
from ray_distill.labels.store.label_store import open_store
from ray_distill.labels.store.reader import open_label_set
from ray_distill.labels.tools.audit import audit
from ray_distill.storage import files
from ray_distill.testing.labels import fake_manifest, fake_snapshot, fake_teacher, label_all, winners
from ray_distill.testing.s3 import s3_server


@pytest.fixture(scope="module")
def bucket():
    with s3_server() as url:
        yield url


def test_files_behave_as_on_a_disk(bucket, tmp_path):
    """Write, read, list, glob, copy and delete through s3://, with listings that are never stale."""
    root = files.join(bucket, "files")
    assert files.list_files(root) == [] and not files.exists(root)
    for name in ("a/1.bin", "b/2.bin"):
        files.write_bytes(files.join(root, name), name.encode())
    assert [(item.name, item.size) for item in files.list_files(root)] == [("a/1.bin", 7), ("b/2.bin", 7)]
    files.write_bytes(files.join(root, "a/0.bin"), b"new")
    assert [item.name for item in files.list_files(root)] == ["a/0.bin", "a/1.bin", "b/2.bin"]
    assert [item.name for item in files.glob_files(files.join(root, "*", "[12].bin"))] == ["a/1.bin", "b/2.bin"]
    folder = files.download_folder(root, tmp_path / "down")
    files.upload_folder(folder, files.join(bucket, "copy"))
    assert files.read_many([files.join(bucket, "copy", "b/2.bin")] * 2) == [b"b/2.bin"] * 2
    with files.open_input(files.join(root, "a/1.bin")) as stream:
        assert stream.read() == b"a/1.bin"
    files.delete(root)
    files.delete(root)
    assert files.list_files(root) == []


def test_errors_name_the_url(bucket):
    """Missing objects and buckets are StorageErrors, without a traceback of the client library's."""
    with pytest.raises(StorageError, match="s3://distill/none: cannot read it: it does not exist"):
        files.read_bytes(files.join(bucket, "none"))
    with pytest.raises(StorageError, match="s3://no-such-bucket/x: cannot write it"):
        files.write_bytes("s3://no-such-bucket/x", b"1")


def test_one_of_many_racing_creators_wins(bucket):
    """In each of 10 races of four threads exactly one wins, and its bytes stay."""
    for number in range(10):
        url, won, gate = files.join(bucket, "race", number), [], threading.Barrier(4)

        def create(writer, url=url, won=won, gate=gate):
            gate.wait()
            try:
                files.create_exclusive(url, f"writer {writer}".encode())
            except AlreadyExists:
                return
            won.append(writer)

        run_all(create, 4)
        assert len(won) == 1 and files.read_bytes(url) == f"writer {won[0]}".encode()


def run_all(function, count):
    """Run a function of a number in threads; an exception in one fails the test."""
    failed = []

    def guarded(number):
        try:
            function(number)
        except BaseException as error:  # noqa: BLE001  (carried into the test's own thread)
            failed.append(error)

    threads = [threading.Thread(target=guarded, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failed:
        raise failed[0]


def test_labels_go_the_whole_way(bucket):
    """Label, rerun, read, damage, audit: all on s3://."""
    url, snapshot = files.join(bucket, "whole"), fake_snapshot(range(11))
    manifest = fake_manifest(estimator="topk", layers=(2,))
    label_all(url, manifest, snapshot)
    assert label_all(url, manifest, snapshot, None) == []
    ref = open_store(url).ref(snapshot)
    row_ids, signal = open_label_set(ref, snapshot).read(layers=(2,))
    np.testing.assert_array_equal(signal.distributions.logp, fake_teacher(row_ids, manifest).distributions.logp)
    assert audit(url, snapshot).ok
    shard = files.list_files(files.join(url, "hidden.2"))[0]
    files.write_bytes(shard.url, files.read_bytes(shard.url)[:-1])
    assert f"hidden.2/{shard.name}" in audit(url).corrupt[0]
    with pytest.raises(CorruptStore, match=shard.name):
        open_label_set(ref, snapshot).read(layers=(2,))


@pytest.mark.parametrize("where", ["local", "s3"])
def test_two_labellers_at_once_commit_no_unit_twice(bucket, tmp_path, where):
    """Both label the same snapshot in one store; both end well, each unit is won once, and the store is sound."""
    url = str(tmp_path / "store") if where == "local" else files.join(bucket, "two")
    manifest, snapshot, gate, won = fake_manifest(unit_rows=2), fake_snapshot(range(16)), threading.Barrier(2), [[], []]

    def teacher(row_ids, manifest):
        if not gate.broken and row_ids[0] == first:
            gate.wait(timeout=30)  # both have their whole list of units before either commits
        return fake_teacher(row_ids, manifest)

    first = snapshot.read_shard(snapshot.shards[0]).column("row_id")[0]

    def label(number):
        won[number] = label_all(url, manifest, snapshot, teacher, units_a_record=1)

    run_all(label, 2)
    store = open_store(url)
    store.log.refresh()
    named = [entry["unit"] for record in store.log.records for entry in record["units"]]
    assert len(named) == len(set(named)) == 8 and sorted(won[0] + won[1]) == sorted(named)
    assert list(winners(store.log.records)) == named
    report = audit(url, snapshot, clean=True, older_than=-60)
    assert report.ok and report.rows == 16
    assert len(report.orphans) == 8, "each labelled everything; what lost a race is an orphan"
    assert open_label_set(store.ref(snapshot), snapshot).rows == 16
