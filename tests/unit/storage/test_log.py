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


def restoring(root):
    """A log that takes up checkpoints which hold the chain and nothing else."""
    return CommitLog(root, lambda url, data: data)


def test_a_checkpoint_stands_for_the_records_before_it(root):
    """The chain goes on from the checkpoint, only later records are held, and appending takes the next number."""
    log = append(root, 1, 2, 3)
    log.write_checkpoint(log.chain)
    append(root, 4)
    opened = restoring(root)
    opened.refresh()
    assert [record["value"] for record in opened.records] == [4] and (opened.first, opened.length) == (3, 4)
    assert opened.append(lambda records: {"value": 5}) == {"value": 5}
    log.refresh()
    assert opened.chain == log.chain and [record["value"] for record in log.records] == [1, 2, 3, 4, 5]
    assert [log.prefix_digest(n) for n in range(6)] == [opened.prefix_digest(n) for n in range(6)]


def test_the_newest_checkpoint_is_taken_and_the_records_stay(root):
    """Of several checkpoints the longest counts; records below it are neither read nor deleted."""
    log = append(root, 1)
    log.write_checkpoint(log.chain)
    log = append(root, 2)
    log.write_checkpoint(log.chain)
    assert [files.exists(record_url(root, n)) for n in range(2)] == [True, True] and len(log.checkpoints()) == 2
    opened = restoring(root)
    opened.refresh()
    assert (opened.first, opened.length, opened.checkpoint) == (2, 2, 2)


def test_an_open_log_goes_on_when_another_compacts(root):
    """Whoever has read records already does not need a checkpoint, and notes how far it reaches."""
    log = restoring(root)
    log.append(lambda records: {"value": 1})
    other = append(root, 2)
    other.write_checkpoint(other.chain)
    log.refresh()
    assert [record["value"] for record in log.records] == [1, 2] and log.checkpoint == 2
    log.drop_records()
    assert (log.first, log.length, log.digest) == (2, 2, other.digest)


@pytest.mark.parametrize("spoil", [lambda data: data[:-1], lambda data: b"", lambda data: data + b"x"])
def test_a_checkpoint_whose_bytes_are_not_its_names_is_refused(root, spoil):
    """Damage is one error that says the file may be deleted; then the records are read."""
    log = append(root, 1, 2)
    url = log.write_checkpoint(log.chain)
    files.write_bytes(url, spoil(log.chain))
    opened = restoring(root)
    with pytest.raises(CorruptStore, match="damaged.*delete it, the records contain the same data"):
        opened.refresh()
    files.delete(url)
    opened.refresh()
    assert opened.chain == log.chain


def test_a_checkpoint_of_fewer_digests_than_its_name_says_is_refused(root):
    """The chain must reach exactly as far as the name."""
    log = append(root, 1, 2)
    log.write_checkpoint(log.chain[:64])
    with pytest.raises(CorruptStore, match="found the digests of 1 records"):
        restoring(root).refresh()
