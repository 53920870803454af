"""The append-only log that many writers share without a lock."""

import threading

import pytest

from ray_distill.errors import CorruptStore
from ray_distill.storage import files
from ray_distill.storage.log import CommitLog, record_url


@pytest.fixture
def root(tmp_path):
    return str(tmp_path)


def append(root, *values):
    log = CommitLog(root)
    for value in values:
        assert log.append(lambda records, value=value: {"value": value}) == {"value": value}
    return log


def test_records_come_back_in_order(root):
    """What one log object appends another reads, in order."""
    append(root, 1, 2, 3)
    log = CommitLog(root)
    log.refresh()
    assert [record["value"] for record in log.records] == [1, 2, 3]


def test_a_refresh_reads_only_what_is_new(root, monkeypatch):
    """The log is re-read from where it was left."""
    log = append(root, 1, 2)
    append(root, 3)
    read = []
    monkeypatch.setattr(files, "read_many", lambda urls: read.extend(urls) or [files.read_bytes(url) for url in urls])
    log.refresh()
    assert read == [record_url(root, 2)] and len(log.records) == 3


def test_the_prefix_digest_names_exactly_one_prefix(root):
    """Prefixes of equal logs have equal digests; any other content, order or length has another."""
    log, same = append(root + "/a", 1, 2, 3), append(root + "/b", 1, 2, 3, 4)
    assert [log.prefix_digest(n) for n in range(4)] == [same.prefix_digest(n) for n in range(4)]
    swapped = append(root + "/c", 2, 1, 3)
    digests = {log.prefix_digest(n) for n in range(4)} | {swapped.prefix_digest(n) for n in range(1, 4)}
    assert len(digests) == 7 and log.digest == log.prefix_digest(3)
    with pytest.raises(CorruptStore, match="found 3 records, expected at least 4"):
        log.prefix_digest(4)


def test_a_hole_is_corrupt_and_names_the_record(root):
    """A log with a later record but not this one is never read over."""
    append(root, 1, 2, 3)
    files.delete(record_url(root, 1))
    with pytest.raises(CorruptStore, match=r"000000000001\.json: the log has later records"):
        CommitLog(root).refresh()


@pytest.mark.parametrize("content", [b"", b'{"units": [', b"[1]", b"\xff"])
def test_a_record_that_is_no_object_is_corrupt(root, content):
    """Cut or foreign records are CorruptStore that names the file."""
    append(root, 1)
    files.write_bytes(record_url(root, 0), content)
    with pytest.raises(CorruptStore, match=r"000000000000\.json: expected"):
        CommitLog(root).refresh()


def test_foreign_files_beside_the_records_are_not_records(root):
    """Only the twelve digits of a record's name count."""
    append(root, 1)
    files.write_bytes(files.join(root, "log", "notes.txt"), b"hello")
    append(root, 2)
    log = CommitLog(root)
    log.refresh()
    assert [record["value"] for record in log.records] == [1, 2]


def test_the_loser_of_a_race_asks_again_with_the_winners_record(root):
    """After a lost race ``build`` sees what the winner wrote, and may have nothing left to say."""
    log, seen = CommitLog(root), []

    def build(records):
        seen.append([record["value"] for record in records])
        if len(seen) == 1:
            append(root, "winner")
        return {"value": "loser"} if len(seen) == 1 else None

    assert log.append(build) is None
    assert seen == [[], ["winner"]]


def test_racing_writers_lose_nothing(root):
    """Four threads that append five records each leave twenty dense records, each once."""

    def write(writer):
        log = CommitLog(root)
        for number in range(5):
            log.append(lambda records, number=number: {"value": [writer, number]})

    threads = [threading.Thread(target=write, args=(writer,)) for writer in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    log = CommitLog(root)
    log.refresh()
    assert sorted(record["value"] for record in log.records) == [[w, n] for w in range(4) for n in range(5)]
