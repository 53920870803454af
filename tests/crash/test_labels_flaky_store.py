"""Labels on an object store that fails at every turn: bytes as on one that does not, nothing lost, nothing twice."""

import itertools
import socket
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from ray_distill.errors import StorageError
from ray_distill.labels.model.work_units import Receipt
from ray_distill.labels.store.label_store import open_store
from ray_distill.labels.store.reader import open_label_set
from ray_distill.labels.tools.audit import audit
from ray_distill.storage import files, remote
from ray_distill.storage.log import CommitLog
from ray_distill.testing.crashfs import Crash
from ray_distill.testing.flaky_s3 import WAYS, flaky_s3_server
from ray_distill.testing.labels import fake_manifest, fake_snapshot, fake_teacher, label_all, row_id, winners
from ray_distill.testing.s3 import forget_clients

MANIFEST = fake_manifest(estimator="topk", layers=(1,))
SNAPSHOT = fake_snapshot(range(24))  # six units of 4 rows
SMALL = fake_snapshot(range(8))
#: What a labelling run does to its store; it dies before or after one of these.
STEPS = ("create_exclusive", "write_bytes", "read_bytes", "read_many", "list_files", "exists", "sizes")

#: Only this project tries again, soon: quick tests wait for nothing, and see what it does without the client's retries.
ONE_TRY = {"connect_timeout": 2, "read_timeout": 1, "retries": {"mode": "standard", "total_max_attempts": 1}}

#: As in production, but for the seconds that a silent server is waited for.
SHORT = {**remote.S3_CLIENT, "connect_timeout": 2, "read_timeout": 1}
QUICK = [way for way in WAYS if not way.startswith("hang")]


def throwing_teacher(row_ids, manifest):
    raise AssertionError(f"{len(row_ids)} rows were labelled twice")


def run(url, snapshot=SNAPSHOT):
    return label_all(url, MANIFEST, snapshot)


def committed(url):
    """The committed bytes by (unit, kind): what an attempt is called is left out."""
    log = CommitLog(url)
    log.refresh()
    named = [entry.unit for number, record in enumerate(log.records) for entry in Receipt.in_record(record, number)]
    assert len(named) == len(set(named)), "a unit was committed twice"
    return {
        (unit, name.split("/")[0]): files.read_bytes(files.join(url, name))
        for unit, receipt in winners(log.records).items()
        for name in receipt.files()
    }


def check(url, expected, snapshot=SNAPSHOT):
    """Whole, once, equal to the undisturbed run, read right, and nothing left to do; all of it on the flaky store."""
    assert committed(url) == expected
    assert label_all(url, MANIFEST, snapshot, throwing_teacher) == []
    report, rows = audit(url, snapshot), sum(shard.rows for shard in snapshot.shards)
    assert report.ok and (report.rows, report.units) == (rows, rows // 4), report.to_dict()
    ids, signal = open_label_set(open_store(url).ref(snapshot), snapshot).read(layers=(1,))
    assert ids.to_pylist() == [row_id(n) for n in range(rows)]
    np.testing.assert_array_equal(signal.distributions.logp, fake_teacher(ids, MANIFEST).distributions.logp)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    url = str(tmp_path_factory.mktemp("undisturbed") / "store")
    run(url)
    return committed(url)


@pytest.fixture
def impatient(monkeypatch):
    """Retries as many as ever, soon after each other."""
    monkeypatch.setattr(remote, "BACKOFF_SECONDS", (0.01, 0.02, 0.04))


@pytest.fixture
def dying(monkeypatch):
    """``dying(at, after)`` lets the process die at its step ``at`` on the store; ``dying()`` only counts the steps."""
    state = {}

    def wrapped(name, real):
        def call(*args, **kwargs):
            if not state or state["dead"]:
                if state:
                    raise Crash("a dead process does nothing")
                return real(*args, **kwargs)
            number, state["count"] = state["count"], state["count"] + 1
            if number != state["at"]:
                return real(*args, **kwargs)
            state["dead"] = True
            if state["after"]:
                real(*args, **kwargs)
            raise Crash(f"died at {name}")

        return call

    for name in STEPS:
        monkeypatch.setattr(files, name, wrapped(name, getattr(files, name)))

    class Dying:
        def __call__(self, at=None, after=False):
            state.update(at=at, after=after, count=0, dead=False)
            return self

        def __enter__(self):
            return state

        def __exit__(self, *_):
            state.clear()

    return Dying()


def test_labels_read_and_audited_through_failures(undisturbed, impatient):
    """A twentieth of the requests fails: labelling, reading, audit and a rerun end as if none had."""
    with flaky_s3_server(seed=1, client=ONE_TRY, ways=QUICK) as server:
        run(server.url + "/store")
        check(server.url + "/store", undisturbed)
        assert sum(server.injected.values()) >= 0.02 * server.requests > 0


@pytest.mark.crash
def test_runs_that_die_anywhere_while_the_store_fails(tmp_path, impatient, dying):
    """Before and after each operation of a run: die there while requests fail, resume, compare."""
    run(str(tmp_path), SMALL)
    expected = committed(str(tmp_path))
    with flaky_s3_server(seed=3, client=ONE_TRY | {"read_timeout": 0.5}) as server:
        with dying() as state:
            run(server.url + "/count", SMALL)
            count = state["count"]
        assert count >= 20
        for at, after in itertools.product(range(count), (False, True)):
            url = f"{server.url}/{at}-{after}"
            with dying(at, after), pytest.raises(Crash):
                run(url, SMALL)
            run(url, SMALL)
            check(url, expected, SMALL)
        assert sum(server.injected.values()) > count


@pytest.mark.crash
def test_every_way_of_failing_is_survived(undisturbed, impatient):
    """Many of the requests fail, in one way at a time: nothing is lost, and no lost answer is a lost create."""
    for way in WAYS:
        share = 0.05 if way.startswith("hang") else 0.15
        with flaky_s3_server(share, seed=2, ways=[way], client=ONE_TRY) as server:
            run(server.url + "/store")
            check(server.url + "/store", undisturbed)
            assert sum(server.injected.values()) > 2, way


def test_a_server_that_takes_the_connection_and_says_nothing_is_given_up(impatient):
    """Reading and writing alike: an upload does not wait without end to be asked for its body."""
    client = {"connect_timeout": 1, "read_timeout": 0.2, "retries": {"mode": "standard", "total_max_attempts": 1}}
    with socket.create_server(("127.0.0.1", 0)) as silent, flaky_s3_server(0.0, client=client) as server:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{silent.getsockname()[1]}")
            forget_clients()
            for operation in (
                lambda: files.write_bytes(f"{server.url}/new", b"data"),
                lambda: files.create_exclusive(f"{server.url}/new", b"data"),
                lambda: files.read_bytes(f"{server.url}/new"),
            ):
                with pytest.raises(StorageError, match="(?i)time-?out"):
                    operation()
        forget_clients()


@pytest.mark.crash
@pytest.mark.parametrize("seed", range(2))
def test_two_labellers_race_while_the_store_fails(undisturbed, impatient, seed):
    """Both end well, each unit is won once, and each thinks it won what the log says it did."""
    with flaky_s3_server(seed=10 + seed, client=SHORT) as server, ThreadPoolExecutor(2) as pool:
        url = server.url + "/race"
        both = [pool.submit(label_all, url, MANIFEST, SNAPSHOT, units_a_record=1) for _ in range(2)]
        won = Counter(unit for one in both for unit in one.result())
        assert len(won) == 6 and set(won.values()) == {1}
        check(url, undisturbed)
        assert sum(server.injected.values()) > 3


def test_a_store_that_only_fails_is_one_clear_error_after_bounded_tries(impatient):
    """Whatever is asked of it: a StorageError that names the URL, after a known number of requests."""
    with flaky_s3_server(0.0, ways=["503-before", "reset-after", "truncated"], client=ONE_TRY) as server:
        url = f"{server.url}/there"
        files.write_bytes(url, b"whole")
        server.share = 1.0
        operations = [
            lambda: files.read_bytes(url),
            lambda: files.read_many([url]),
            lambda: files.write_bytes(url, b"new"),
            lambda: files.create_exclusive(f"{url}2", b"new"),
            lambda: files.list_files(server.url),
            lambda: files.exists(url),
            lambda: files.sizes([url]),
            lambda: files.open_input(url),
            lambda: files.glob_files(f"{server.url}/*"),
            lambda: files.glob_files(url),
            lambda: files.delete(url),
        ]
        for operation in operations:
            before = server.requests
            with pytest.raises(StorageError, match=f"{server.url}.*: cannot "):
                operation()
            assert 0 < server.requests - before <= 4 * len(remote.BACKOFF_SECONDS) + 4


def test_what_cannot_pass_is_not_tried_again(impatient):
    """A missing file and a taken name cost no second request of the same kind, and wait for nothing."""
    with flaky_s3_server(0.0) as server:
        files.create_exclusive(f"{server.url}/taken", b"mine")
        for operation in (
            lambda: files.read_bytes(f"{server.url}/none"),
            lambda: files.create_exclusive(f"{server.url}/taken", b"other"),
        ):
            before = server.requests
            with pytest.raises(StorageError, match="does not exist|is taken"):
                operation()
            assert server.requests - before <= 3


@pytest.mark.parametrize("way", ["truncated", "reset-after"])
def test_a_file_read_in_pieces_is_read_whole(impatient, way):
    """Parquet files are read through `open_input`; a piece that comes short is fetched again."""
    data = np.random.default_rng(0).bytes(3 * 2**20 + 17)
    with flaky_s3_server(0.0, seed=3, ways=[way], client=ONE_TRY) as server:
        url = f"{server.url}/large"
        files.write_bytes(url, data)
        server.share = 0.25
        with files.open_input(url) as stream:
            assert stream.read(100) == data[:100]
            stream.seek(-50, 2)
            assert stream.read() == data[-50:]
            stream.seek(2**20)
            assert stream.read() == data[2**20 :]
            for start in range(0, len(data), 2**19):
                stream.seek(start)
                assert stream.read(1000) == data[start : start + 1000]
        assert files.read_bytes(url) == data
        assert files.read_many([url] * 5) == [data] * 5
        assert server.injected[way] > 2


def test_folders_and_globs_are_never_listed_in_part(impatient, tmp_path):
    """A glob over many folders finds all of it on a store that fails; fsspec's own leaves out what it cannot list."""
    names = [f"day={day}/{part}.bin" for day in range(8) for part in range(3)]
    with flaky_s3_server(0.0, seed=4, ways=["503-before", "truncated"], client=ONE_TRY) as server:
        for name in names:
            files.write_bytes(f"{server.url}/in/{name}", name.encode())
        server.share = 0.1
        for _ in range(5):
            assert [item.name for item in files.glob_files(f"{server.url}/in/day=*/*.bin")] == names
            assert [item.name for item in files.glob_files(f"{server.url}/in/day=*")] == names
        files.download_folder(f"{server.url}/in", tmp_path / "down")
        files.upload_folder(tmp_path / "down", f"{server.url}/out")
        assert [(item.name, item.size) for item in files.list_files(f"{server.url}/out")] == [
            (name, len(name)) for name in names
        ]
        for name in names:
            assert Path(tmp_path / "down" / name).read_bytes() == name.encode()
        files.delete(f"{server.url}/out")
        assert files.list_files(f"{server.url}/out") == []


def test_equal_seeds_let_equal_requests_fail():
    """What goes wrong is a function of the seed and of a request's number."""

    def injected():
        with flaky_s3_server(0.2, seed=6, ways=["503-before", "500-after"], client=ONE_TRY) as server:
            for number in range(20):
                files.write_bytes(f"{server.url}/{number}", b"data")
            return server.requests, dict(server.injected)

    first, again = injected(), injected()
    assert first == again and set(first[1]) == {"503-before", "500-after"}
