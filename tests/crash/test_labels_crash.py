"""A labelling run that dies anywhere, resumed, ends where an undisturbed run ends: byte for byte."""

import errno
import shutil

import numpy as np
import pytest

from ray_distill.errors import StorageError
from ray_distill.labels.store.label_store import open_store
from ray_distill.labels.store.reader import open_label_set
from ray_distill.labels.tools.audit import audit
from ray_distill.storage import files, local
from ray_distill.storage import unit_store as store_module
from ray_distill.storage.log import CommitLog
from ray_distill.testing.crashfs import Crash, crashing_disk, crashing_remote, cut_points, points
from ray_distill.testing.labels import fake_manifest, fake_snapshot, fake_teacher, label_all, row_id, winners

MANIFEST = fake_manifest(estimator="topk", layers=(1,))
SNAPSHOT = fake_snapshot(range(10))  # 8 + 2 rows: units of 4, 4 and 2
REJECTED = row_id(5)


def teacher(row_ids, manifest):
    """Deterministic; has no finite answer for row 5, so that a quarantine file is written too."""
    signal = fake_teacher(row_ids, manifest)
    bad = [index for index, value in enumerate(row_ids.to_pylist()) if value == REJECTED]
    signal.distributions.entropy[bad] = np.nan
    return signal


def throwing_teacher(row_ids, manifest):
    raise AssertionError(f"{len(row_ids)} rows were labelled twice")


def run(url):
    label_all(url, MANIFEST, SNAPSHOT, teacher)


def committed(url):
    """The committed bytes by (unit, kind): what an attempt is called is left out."""
    log = CommitLog(url)
    log.refresh()
    return {
        (unit, name.split("/")[0]): files.read_bytes(files.join(url, name))
        for unit, receipt in winners(log.records).items()
        for name in receipt.files()
    }


def check(url, expected):
    """Whole, once, equal to the undisturbed run, and nothing left to do."""
    assert committed(url) == expected
    label_all(url, MANIFEST, SNAPSHOT, throwing_teacher)
    report = audit(url, SNAPSHOT)
    assert report.ok and (report.rows, report.quarantined, report.units) == (9, 1, 3), report.to_dict()
    row_ids, _ = open_label_set(open_store(url).ref(SNAPSHOT), SNAPSHOT).read(layers=(1,))
    assert row_ids.to_pylist() == [row_id(n) for n in range(10) if n != 5]
    again = audit(url, SNAPSHOT, clean=True, older_than=-60)
    assert again.ok and not audit(url).orphans


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    url = str(tmp_path_factory.mktemp("undisturbed") / "store")
    run(url)
    expected = committed(url)
    check(url, expected)
    return expected


@pytest.mark.crash
def test_every_remote_operation_cut_before_in_and_after_it(tmp_path, undisturbed):
    """Each write, create and read-back on a remote file system: die there, resume, compare."""
    count = points(crashing_remote, lambda: run(f"crash://{tmp_path}/count"))
    assert count >= 20
    for at, way in cut_points(count):
        url = f"crash://{tmp_path}/{at}-{way}"
        with crashing_remote(at, way), pytest.raises(Crash):
            run(url)
        run(url)
        check(url, undisturbed)


@pytest.mark.crash
def test_every_local_system_call_cut_before_in_and_after_it(tmp_path):
    """Each open, write, sync, link, rename and unlink of one unit's way into the store: die there, resume, compare."""
    manifest, snapshot = fake_manifest(estimator="topk"), fake_snapshot(range(4, 8))

    def one_unit(name):
        label_all(str(tmp_path / name), manifest, snapshot, teacher)
        return committed(str(tmp_path / name))

    expected, count = one_unit("undisturbed"), points(crashing_disk, lambda: one_unit("count"))
    assert count >= 4 * 7, "store.json, labels, quarantine and a log record, of at least 7 calls each"
    for at, way in cut_points(count):
        with crashing_disk(at, way), pytest.raises(Crash):
            one_unit(f"{at}-{way}")
        assert one_unit(f"{at}-{way}") == expected
        assert audit(str(tmp_path / f"{at}-{way}"), snapshot).ok


def compacted(url):
    """Names of the store's checkpoints: each is the digest of its bytes."""
    return [item.name for item in files.list_files(files.join(url, "log", "compact"))]


def check_compacted(url, expected):
    """As `check`, and the log as it is read through its checkpoint is the log as its records give it."""
    assert compacted(url)
    assert committed_through_checkpoint(url) == expected
    store, plain = open_store(url), CommitLog(url)
    store.log.refresh(), plain.refresh()
    assert store.log.first > 0 and store.log.chain == plain.chain
    check(url, expected)


def committed_through_checkpoint(url):
    """As `committed`, from what the checkpoint says."""
    store = open_store(url)
    store.log.refresh()
    return {
        (receipt.unit, name.split("/")[0]): files.read_bytes(files.join(url, name))
        for receipt in store.ledger.receipts()
        for name in receipt.files()
    }


@pytest.mark.crash
def test_every_remote_operation_of_a_run_that_compacts_cut_before_in_and_after_it(tmp_path, undisturbed, monkeypatch):
    """Every commit writes a checkpoint: die at each operation, its writing and reading included, resume, compare."""
    monkeypatch.setattr(store_module, "COMPACT_EVERY", 0)
    count = points(crashing_remote, lambda: run(f"crash://{tmp_path}/count"))
    assert count >= 22, "two checkpoints more than the run above"
    for at, way in cut_points(count):
        url = f"crash://{tmp_path}/{at}-{way}"
        with crashing_remote(at, way), pytest.raises(Crash):
            run(url)
        run(url)
        store = open_store(url)
        store.log.refresh()
        store.compact()  # a run that died after its last commit has nothing left to commit
        check_compacted(url, undisturbed)


@pytest.mark.parametrize("crashing", [crashing_remote, crashing_disk])
def test_compaction_cut_before_in_and_after_each_of_its_operations(tmp_path, undisturbed, crashing):
    """A compaction alone, cut anywhere on either file system: the store is whole, and compacts when asked again."""
    scheme = "crash://" if crashing is crashing_remote else ""

    def compact(url):
        store = open_store(url)
        store.log.refresh()
        store.compact()

    run(f"{scheme}{tmp_path}/sound")
    shutil.copytree(tmp_path / "sound", tmp_path / "count")
    count = points(crashing, lambda: compact(f"{scheme}{tmp_path}/count"))
    assert count >= (3 if scheme else 7)
    for at, way in cut_points(count):
        url = f"{scheme}{tmp_path}/{at}-{way}"
        shutil.copytree(tmp_path / "sound", tmp_path / f"{at}-{way}")
        with crashing(at, way), pytest.raises(Crash):
            compact(url)
        assert committed(url) == undisturbed
        compact(url)
        assert len(compacted(url)) == 1
        check_compacted(url, undisturbed)


@pytest.mark.parametrize("way", ["refused", "lost"])
def test_a_connection_that_breaks_once_is_not_noticed(tmp_path, undisturbed, way, monkeypatch):
    """A request or an answer lost at any point is repeated; a create whose answer was lost is still ours."""
    monkeypatch.setattr("ray_distill.storage.remote.BACKOFF_SECONDS", (0.0, 0.0))
    for at in range(points(crashing_remote, lambda: run(f"crash://{tmp_path}/count"))):
        url = f"crash://{tmp_path}/{at}"
        with crashing_remote(at, way):
            run(url)
        check(url, undisturbed)


def test_a_full_disk_is_one_clear_error_and_the_run_resumes(tmp_path, undisturbed, monkeypatch):
    """ENOSPC anywhere names the file and what to do, leaves nothing half-written, and costs no finished unit."""
    real = local.os.write
    for at in range(8):
        calls, url = iter(range(1000)), str(tmp_path / str(at))

        def write(descriptor, data, at=at, calls=calls):
            if next(calls) >= at:
                raise OSError(errno.ENOSPC, "No space left on device")
            return real(descriptor, data)

        with monkeypatch.context() as patch:
            patch.setattr(local.os, "write", write)
            with pytest.raises(StorageError, match="no space left; free some and run again"):
                run(url)
        left = [item.name.rsplit("/", 1)[-1] for item in files.list_files(url, unfinished=True)]
        assert not any(map(local.is_unfinished, left))
        run(url)
        check(url, undisturbed)


def test_two_runs_of_one_store_that_both_die_still_end_well(tmp_path, undisturbed):
    """Crash after crash, at growing depth: each resume starts from what the last one left."""
    url = f"crash://{tmp_path}/store"
    for at in range(3, 24, 4):
        with crashing_remote(at, "half"), pytest.raises(Crash):
            run(url)
            raise Crash("done before the point")
    run(url)
    check(url, undisturbed)
