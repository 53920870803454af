"""The audit finds every kind of damage, names it, and never falls over it."""

import math
import random

import pytest

from ray_distill import cli
from ray_distill.cli.render_results import show_audit
from ray_distill.errors import CorruptStore, DistillError, LabelError
from ray_distill.fingerprint import sha256
from ray_distill.labels.format import parquet_shards
from ray_distill.labels.model import rowids
from ray_distill.labels.store.label_store import create_or_open, open_store
from ray_distill.labels.store.reader import open_label_set
from ray_distill.labels.store.writer import write_attempt
from ray_distill.labels.tools.audit import audit
from ray_distill.storage import files
from ray_distill.storage.log import CommitLog, record_url
from ray_distill.storage.receipts import part_file
from ray_distill.testing.labels import fake_manifest, fake_snapshot, fake_teacher, label_all, row_id, winners

MANIFEST = fake_manifest(estimator="topk", layers=(1,))
SNAPSHOT = fake_snapshot(range(12))
KEYS = {"ok", "units", "rows", "duplicates", "missing", "orphans", "corrupt", "details"}


@pytest.fixture
def url(tmp_path):
    where = str(tmp_path / "store")
    label_all(where, MANIFEST, SNAPSHOT)
    return where


def receipts(url):
    log = CommitLog(url)
    log.refresh()
    return list(winners(log.records).values())


def replace_record(url, number, change):
    """Rewrite a record of the log, as a foreign hand might."""
    value = files.read_json(record_url(url, number))
    change(value)
    files.write_json(record_url(url, number), value)


def replace_shard(url, receipt, data):
    """Put other bytes into a shard *and* their digest into the log: only the content can give it away."""
    files.write_bytes(files.join(url, part_file("distributions", receipt.unit, receipt.attempt)), data)

    def change(record):
        for entry in record["units"]:
            if entry["unit"] == receipt.unit:
                entry["parts"]["distributions"] = {"size": len(data), "digest": sha256(data)}

    for number in range(2):
        replace_record(url, number, change)


def test_a_sound_store_is_ok_in_plain_json(url):
    """Counts of units and rows, and nothing to complain of."""
    report = audit(url, SNAPSHOT).to_dict()
    assert set(report) >= KEYS
    assert report["ok"] and (report["units"], report["rows"]) == (3, 12)
    assert [report[key] for key in ("duplicates", "missing", "orphans", "corrupt")] == [0, 0, 0, 0]


def test_a_flipped_byte_is_named(url):
    """One changed byte makes the store not ok, and says in which file."""
    shard = files.list_files(files.join(url, "distributions"))[1]
    data = bytearray(files.read_bytes(shard.url))
    data[len(data) // 2] ^= 4
    files.write_bytes(shard.url, bytes(data))
    report = audit(url, SNAPSHOT).to_dict()
    assert not report["ok"] and report["corrupt"] == 1
    assert report["details"]["corrupt"][0].startswith(
        f"distributions/{shard.name}: found {shard.size} bytes with sha256:"
    )
    assert report["missing"] == 4 == len([name for name in report["details"]["missing"] if name.startswith("row ")])


@pytest.mark.parametrize("folder", ["distributions", "hidden.1"])
def test_a_lost_file_is_missing(url, folder):
    """A file that the log promises and that is not there is missing, not corrupt."""
    lost = files.list_files(files.join(url, folder))[0]
    files.delete(lost.url)
    report = audit(url)
    assert not report.ok and report.missing == (f"{folder}/{lost.name}",) and report.corrupt == ()


def test_rows_without_labels_are_missing(url):
    """With a snapshot, each of its rows that has neither labels nor a reason is named."""
    report = audit(url, fake_snapshot(range(14)))
    assert not report.ok and report.rows == 12
    assert sorted(report.missing) == sorted(f"row {row_id(n).hex()}" for n in (12, 13))
    assert audit(url).ok


def test_orphans_are_harmless_and_only_old_ones_are_cleaned(url):
    """What a crash or a lost race left is counted; cleaning spares attempts that may still be committed."""
    store, extra = create_or_open(url, MANIFEST), fake_snapshot(range(100, 104))
    (unit,) = store.pending(extra)
    ids = extra.read_shard(extra.shards[0]).column("row_id").combine_chunks()
    receipt = write_attempt(url, MANIFEST, unit, row_ids=ids, signal=fake_teacher(ids, MANIFEST), rejected=[])
    files.write_bytes(files.join(url, "log", ".x.json.0123456789abcdef0123456789abcdef.part"), b"{")
    report = audit(url, clean=True)
    assert report.ok and len(report.orphans) == 3 and report.cleaned == ()
    assert set(receipt.files()) < set(report.orphans)
    store.commit([receipt])
    report = audit(url, clean=True, older_than=-60)
    assert report.ok and len(report.orphans) == len(report.cleaned) == 1 and audit(url, extra).rows == 4


def lose_everything(url):
    """The log is gone."""
    for item in files.list_files(files.join(url, "log")):
        files.delete(item.url)


def lose_the_last(url):
    """The log's newest record is gone, and with it every sign that it was there."""
    files.delete(record_url(url, 1))


def write_another(url):
    """A log of as many records, one of another history."""
    replace_record(url, 1, lambda record: record.update(units=record["units"][:1]))


@pytest.mark.parametrize("lose", [lose_everything, lose_the_last, write_another])
def test_a_log_that_lost_records_is_damage_and_no_file_is_deleted(url, lose):
    """The pin of the command that labelled names the log's length and digest: audit and a new command read it."""
    open_store(url).log.check_pins()
    store = open_store(url)
    store.log.refresh()
    assert store.log.length == 2
    store.log.pin()
    store.log.pin()
    lose(url)
    before = [item.name for item in files.list_files(url)]
    report = audit(url, clean=True, older_than=-60, most=math.inf)
    assert not report.ok and len(report.corrupt) == 1 and "restore the" in report.corrupt[0]
    assert report.orphans == report.cleaned == ()
    assert [item.name for item in files.list_files(url)] == before
    with pytest.raises(CorruptStore, match="restore the"):
        open_store(url).log.check_pins()


def test_a_store_without_a_log_is_not_sound_and_loses_no_file(url):
    """Attempts without any record, older than a labeller's: the log is lost, or nothing was ever committed."""
    lose_everything(url)
    assert audit(url, clean=True).ok, "young attempts are those of a labeller that is about to commit"
    report = audit(url, clean=True, older_than=-60, most=math.inf)
    assert not report.ok and report.corrupt[0].startswith("log: it has no record, but 6 files of attempts are here")
    assert report.cleaned == () and len(files.list_files(files.join(url, "distributions"))) == 3


def test_many_orphans_are_deleted_on_a_further_word_alone(url):
    """Five files more than a crash leaves: none is deleted; their number is reported, and `most` is the word."""
    for number in range(105):
        files.write_bytes(files.join(url, "distributions", f"u{number}", "a.parquet"), b"x")
    report = audit(url, clean=True, older_than=-60)
    assert (report.ok, report.cleaned, report.too_many, len(report.orphans)) == (True, (), 105, 105)
    assert "nothing was deleted: 105 files" in show_audit(report) and "--clean --yes" in show_audit(report)
    assert cli.main(["audit", url, "--clean"]) == 0, "young orphans are spared anyway"
    assert len(audit(url, clean=True, older_than=-60, most=math.inf).cleaned) == 105
    assert audit(url, SNAPSHOT).ok and not audit(url).orphans


def test_a_unit_that_is_committed_twice_is_a_duplicate(url):
    """Two log entries for one unit cannot come from commit; if they are there, the store is not ok."""
    first = receipts(url)[0]
    CommitLog(url).append(lambda records: {"version": 1, "units": [first.to_dict()]})
    report = audit(url, SNAPSHOT)
    assert not report.ok and report.duplicates == (first.unit,) and report.units == 3 and report.rows == 12


def test_swapped_shards_are_corrupt_even_with_matching_digests(url):
    """A shard with another unit's rows is found by its rows, whatever the log says of its bytes."""
    one, other = receipts(url)[:2]
    replace_shard(url, one, files.read_bytes(files.join(url, part_file("distributions", other.unit, other.attempt))))
    report = audit(url)
    assert not report.ok and any("row" in line and one.unit in line for line in report.corrupt)


def test_mass_that_does_not_sum_to_one_is_corrupt(url):
    """A shard whose probabilities do not sum to 1 is found though all digests agree."""
    one = receipts(url)[0]
    name = part_file("distributions", one.unit, one.attempt)
    ids, distributions = parquet_shards.decode_labels(
        files.read_bytes(files.join(url, name)), MANIFEST.distributions, {}, name
    )
    spoiled = type(distributions)(**{**vars(distributions), "log_tail": distributions.log_tail + 1})
    replace_shard(url, one, parquet_shards.encode_labels(ids, spoiled, MANIFEST.distributions, {}))
    report = audit(url)
    assert not report.ok and "probabilities do not sum to 1" in report.corrupt[0] and name in report.corrupt[0]


def test_a_wrong_row_count_is_corrupt(url):
    """The log's row counts are checked against the shards."""
    replace_record(url, 0, lambda record: record["units"][0].update(rows=3))
    report = audit(url)
    assert not report.ok and "the log promised 3" in report.corrupt[0]


def test_an_entry_for_another_manifest_is_corrupt(url):
    """A unit that was labelled for another teacher does not pass."""
    replace_record(url, 0, lambda record: record["units"][0].update(manifest="0" * 32))
    assert "another manifest" in audit(url).corrupt[0]


@pytest.mark.parametrize(
    "change",
    [
        lambda record: record.update(version=2),
        lambda record: record.update(units="none"),
        lambda record: record["units"].append({}),
        lambda record: record["units"][0].update(attempt="../../etc"),
        lambda record: record["units"][0].update(parts=None),
        lambda record: record["units"][0].update(rows="many"),
        lambda record: record["units"][0].update(parts=[]),
        lambda record: record["units"][0].update(rejected=5),
    ],
)
def test_a_malformed_log_is_reported_and_nothing_is_called_an_orphan(url, change):
    """A record nobody can read makes the store corrupt; its files are not offered for deletion."""
    replace_record(url, 0, change)
    report = audit(url, clean=True, older_than=-60)
    assert not report.ok and report.corrupt and report.cleaned == ()
    with pytest.raises(DistillError):
        open_label_set(open_store(url).ref(SNAPSHOT), SNAPSHOT)


def test_a_hole_in_the_log_is_reported(url):
    """A missing record is corruption of the whole store."""
    files.delete(record_url(url, 0))
    assert "the log has later records but not this one" in audit(url).corrupt[0]


def test_no_store_is_an_error(tmp_path):
    """Auditing a folder without a store says so, rather than finding it sound."""
    with pytest.raises(LabelError, match="no label store here"):
        audit(str(tmp_path))


def test_the_empty_store_is_ok(tmp_path):
    """A store that was only created is sound."""
    create_or_open(str(tmp_path), MANIFEST)
    assert audit(str(tmp_path)).ok


def _cut(data, rng):
    return data[: rng.randrange(len(data))]


def _flip(data, rng):
    at = rng.randrange(len(data))
    return data[:at] + bytes([data[at] ^ (1 << rng.randrange(8))]) + data[at + 1 :]


def _junk(data, rng):
    return rng.randbytes(rng.randrange(200))


def _insert(data, rng):
    at = rng.randrange(len(data))
    return data[:at] + rng.randbytes(3) + data[at:]


def refused(call):
    """Whether a call raises one of our errors, or finds the store not ok."""
    try:
        return call() is False
    except DistillError:
        return True


def test_any_mutation_of_any_file_is_found_or_refused(tmp_path):
    """120 seeded mutations: attempts never pass the audit, nothing passes a reference, and all fail with one error.

    What a record says of no file (its shard's name, say) only the reference pins; the fingerprint of store.json
    leaves out where the teacher lies.
    """
    url = str(tmp_path / "store")
    label_all(url, MANIFEST, SNAPSHOT)
    ref = open_store(url).ref(SNAPSHOT)
    everything = files.list_files(url)
    for seed in range(120):
        rng = random.Random(seed)
        item = rng.choice(everything)
        data = files.read_bytes(item.url)
        changed = rng.choice([_cut, _flip, _junk, _insert])(data, rng)
        files.write_bytes(item.url, changed)
        harmless = changed == data or item.name == "store.json"
        assert refused(lambda: open_label_set(ref, SNAPSHOT).read(layers=(1,))) or harmless, seed
        assert refused(lambda: audit(url, SNAPSHOT).ok) or harmless or item.name.startswith("log/"), seed
        files.write_bytes(item.url, data)
    assert audit(url, SNAPSHOT).ok


def test_row_ids_of_the_wrong_width_are_refused():
    """Ids that are not 16 bytes never get into a unit."""
    import pyarrow as pa

    with pytest.raises(LabelError, match="16 bytes each"):
        rowids.to_numpy(pa.array([b"short"]))
