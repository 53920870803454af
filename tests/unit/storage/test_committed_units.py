"""Committed units in columns, and the checkpoint that stands for a log's records."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ray_distill.errors import CorruptStore
from ray_distill.fingerprint import sha256
from ray_distill.labels.model.work_units import Receipt
from ray_distill.labels.store import label_store
from ray_distill.labels.store.label_store import open_store
from ray_distill.labels.store.reader import open_label_set
from ray_distill.labels.tools.audit import audit
from ray_distill.storage import files
from ray_distill.storage import unit_store as store_module
from ray_distill.storage.committed_units import Ledger
from ray_distill.storage.log import CommitLog, record_url
from ray_distill.storage.receipts import FileReceipt
from ray_distill.testing.labels import fake_manifest, fake_snapshot, label_all, row_id, winners

MANIFEST = fake_manifest(layers=(1,))
ZEROS = b"\0" * 15


def item(number):
    return FileReceipt(size=number + 1, digest=sha256(b"%d" % number))


def receipt(number, attempt=0, rejected=0):
    """Ids end in zero bytes, which numpy's byte strings drop when they are read one by one."""
    return Receipt(
        unit=(bytes([255 - number]) + ZEROS).hex(),
        attempt=(bytes([attempt]) + ZEROS).hex(),
        manifest=MANIFEST.fingerprint,
        shard=f"shard-{number // 3}",
        start=number,
        stop=number + 9,
        rows=9 - rejected,
        rejected=rejected,
        reasons={"zwölf": rejected} if rejected else {},
        parts={"distributions": item(number)}
        | ({f"hidden.{layer}": item(layer) for layer in (7, 2)} if number % 2 else {}),
        quarantine=item(99) if rejected else None,
    )


def record(*receipts):
    return {"version": 1, "units": [one.to_dict() for one in receipts]}


RECORDS = [
    record(receipt(0), receipt(1)),
    record(receipt(1, attempt=1), receipt(2, rejected=2)),
    record(receipt(0, attempt=5)),
    record(receipt(3), receipt(3, attempt=2)),
    record(receipt(4, rejected=9)),
]


@pytest.fixture(params=["recent", "merged", "read back"])
def ledger(request):
    """The same records, in each state a ledger can be in."""
    made = Ledger(Receipt)
    made.add(RECORDS)
    if request.param == "merged":
        made.find([])
    if request.param == "read back":
        chain = bytes(32 * (len(RECORDS) + 1))
        made, found = Ledger.from_bytes(Receipt, "x", made.to_bytes(chain))
        assert found == chain
    return made


def test_the_first_record_that_names_a_unit_wins_at_every_length(ledger):
    """For every prefix of the log the ledger gives what reading the records one by one gives."""
    for length in [*range(len(RECORDS) + 1), None]:
        expected = winners(RECORDS[:length])
        found = list(ledger.receipts(length))
        assert found == list(expected.values())
        assert ledger.bytes_written(length) == sum(
            file.size for one in expected.values() for file in one.files().values()
        )
        np.testing.assert_array_equal(ledger.counts("rows", length), [one.rows for one in expected.values()])
    assert len(ledger) == 5 and ledger.length == len(RECORDS)


def test_units_are_looked_up_by_id(ledger):
    """Membership, place and receipt of a unit; an unknown one is nowhere."""
    for place, number in enumerate((0, 1, 2, 3, 4)):
        one = receipt(number)
        assert one.unit in ledger and ledger.find([one.unit]).tolist() == [place]
        assert ledger[one.unit].attempt == receipt(number).attempt
    unknown = receipt(77).unit
    assert unknown not in ledger and ledger.find([unknown]).tolist() == [-1]
    with pytest.raises(KeyError):
        ledger[unknown]
    assert [one.unit for one in ledger.receipts(without=np.array([0, 3]))] == [receipt(n).unit for n in (1, 2, 4)]


def test_a_checkpoint_depends_on_the_records_alone():
    """In whatever steps records were taken in, looked at or merged, the checkpoint has the same bytes."""
    chain = bytes(32 * (len(RECORDS) + 1))
    one, other = Ledger(Receipt), Ledger(Receipt)
    one.add(RECORDS)
    for entry in RECORDS:
        other.add([entry])
        other.find([])
    again, _ = Ledger.from_bytes(Receipt, "x", one.to_bytes(chain))
    assert one.to_bytes(chain) == other.to_bytes(chain) == again.to_bytes(chain)
    assert one.equals(other, len(RECORDS)) and not one.equals(other, 2)


def test_a_halved_batch_is_recorded():
    """Entries and checkpoints keep the mark of each unit, 0 where the batches were those of the plan."""
    halved = receipt(5).with_changes(halved=3)
    assert Receipt.from_dict(halved.to_dict()) == halved and halved.to_dict()["halved"] == 3
    assert receipt(5).to_dict()["halved"] == 0
    for last in (receipt(5), halved):
        ledger = Ledger(Receipt)
        ledger.add([*RECORDS, record(last)])
        data = ledger.to_bytes(bytes(32 * (len(RECORDS) + 2)))
        again, _ = Ledger.from_bytes(Receipt, "x", data)
        assert again.equals(ledger, len(RECORDS) + 1) and again[last.unit] == last
        assert again.counts("halved").tolist() == [0] * 5 + [last.halved]
        assert again.to_bytes(bytes(32 * (len(RECORDS) + 2))) == data


@pytest.mark.parametrize(
    "change",
    [
        {"halved": -1},
        {"halved": "2"},
        {"halved": 10**30},
        {"attempt": "abc"},
        {"attempt": "A" * 32},
        {"unit": "xyz"},
        {"rows": 10**30},
        {"shard": 5},
        {"shard": "\ud800"},
        {"parts": {"distributions": {"size": 1, "digest": "md5:1"}}},
        {"parts": {"distributions": {"size": 10**30, "digest": sha256(b"")}}},
        {"reasons": {"x": float("nan")}, "rejected": 1, "quarantine": {"size": 1, "digest": sha256(b"")}},
        {"parts": {"../elsewhere": {"size": 1, "digest": sha256(b"")}}},
    ],
)
def test_an_entry_that_columns_cannot_hold_is_corrupt(change):
    """A malformed entry is CorruptStore, and what came before it stays."""
    ledger = Ledger(Receipt)
    with pytest.raises(CorruptStore):
        ledger.add([RECORDS[0], {"version": 1, "units": [{**receipt(8).to_dict(), **change}]}])
    assert ledger.length == 1 and len(ledger) == 2


@pytest.fixture
def url(tmp_path):
    where = str(tmp_path / "store")
    label_all(where, MANIFEST, fake_snapshot(range(24)), units_a_record=1)
    return where


def checkpoint(url):
    store = open_store(url)
    store.log.refresh()
    return store.compact()


def test_a_checkpoint_is_read_instead_of_the_records_and_later_ones_beside_it(url, monkeypatch):
    """Opening reads one file and the records after it; the same store comes of it, and labelling goes on."""
    before, snapshot = open_store(url), fake_snapshot(range(24))
    ref = before.ref(snapshot)
    written = checkpoint(url)
    assert written.startswith(files.join(url, "log/compact/000000000006-"))
    label_all(url, MANIFEST, fake_snapshot(range(20, 32)), units_a_record=1)
    read = []
    real = files.read_many
    monkeypatch.setattr(files, "read_many", lambda urls: read.extend(urls) or real(urls))
    store = open_store(url)
    store.log.refresh()
    assert read == [record_url(url, 6), record_url(url, 7)] and store.log.first == 6 and store.log.length == 8
    assert list(store.ledger.receipts(6)) == list(before.ledger.receipts())
    everything = CommitLog(url)
    everything.refresh()
    assert store.log.chain == everything.chain
    assert open_label_set(ref, snapshot).rows == 24 and store.ref(snapshot).log_length == 8
    assert store.pending(fake_snapshot(range(32))) == [] and audit(url, fake_snapshot(range(32))).ok


def test_references_pinned_before_a_checkpoint_stay_valid(url):
    """A reference to every older length of the log opens after compaction, and reads the same rows."""
    pinned = []
    for rows in (28, 32, 36):
        label_all(url, MANIFEST, fake_snapshot(range(rows)), units_a_record=1)
        snapshot = fake_snapshot(range(rows))
        pinned.append((snapshot, open_store(url).ref(snapshot)))
    checkpoint(url)
    for snapshot, ref in pinned:
        found = open_label_set(ref, snapshot)
        assert found.rows == len(found.read()[0]) == sum(len(shard.numbers) for shard in snapshot.shards)
    with pytest.raises(CorruptStore, match="differ from what the reference pins"):
        open_label_set(type(ref)(**{**vars(ref), "log_digest": pinned[0][1].log_digest}), snapshot)


def test_compacting_twice_writes_once(url):
    """Nothing new, nothing written; two stores that compact the same log write the same file."""
    one, other = open_store(url), open_store(url)
    one.log.refresh(), other.log.refresh()
    assert one.compact() == other.compact() is not None
    assert one.compact() is None is checkpoint(url)
    assert len(files.list_files(files.join(url, "log/compact"))) == 1


def test_the_commit_path_compacts(url, monkeypatch):
    """After more than COMPACT_EVERY records a commit writes a checkpoint and lets go of the records it holds."""
    monkeypatch.setattr(store_module, "COMPACT_EVERY", 3)
    snapshot = fake_snapshot(range(24, 80))
    label_all(url, MANIFEST, snapshot, units_a_record=1)
    names = [item.name[:12] for item in files.list_files(files.join(url, "log/compact"))]
    assert [int(name) for name in names] == [7, 11, 15, 19]
    store = open_store(url)
    assert store.pending(snapshot) == [] and store.log.first == 19 and audit(url, snapshot).ok


def test_a_damaged_checkpoint_is_one_error_and_may_be_deleted(url):
    """Every way to damage it is CorruptStore that says so, the audit names it, and without it the store is whole."""
    written = checkpoint(url)
    data = files.read_bytes(written)
    for bad in (b"", data[:-1], data[: len(data) // 2], bytes([data[0] ^ 1]) + data[1:], data + b"x"):
        files.write_bytes(written, bad)
        with pytest.raises(CorruptStore, match="checkpoint of the log is damaged.*delete it"):
            open_store(url).log.refresh()
        report = audit(url)
        assert not report.ok and report.corrupt[0].startswith(written) and report.units == 6
    files.delete(written)
    assert audit(url, fake_snapshot(range(24))).ok


def plant(url, number, data):
    """Put a checkpoint in place whose name agrees with its bytes."""
    name = f"{number:012d}-{sha256(data).removeprefix('sha256:')[:32]}.parquet"
    files.write_bytes(files.join(url, "log/compact", name), data)


@pytest.mark.parametrize(
    ("text", "says"), [(b"\xf4\x01", "damaged.*delete it"), (b"{", "are not JSON.*delete the checkpoint")]
)
def test_a_text_of_a_checkpoint_that_cannot_be_read_is_one_error(url, text, says):
    """Its name agrees with its bytes: text that is not UTF-8, and reasons that are not JSON."""
    written = checkpoint(url)
    data = pa.BufferReader(files.read_bytes(written))
    table, facts = pq.read_table(data), pq.read_metadata(data).metadata
    at, rows = table.schema.get_field_index("reasons"), len(table)
    offsets = pa.array(np.arange(rows + 1, dtype=np.int32) * len(text)).buffers()[1]
    bad = pa.StringArray.from_buffers(rows, offsets, pa.py_buffer(text * rows))
    sink = pa.BufferOutputStream()
    with pq.ParquetWriter(sink, table.schema) as writer:
        writer.write_table(table.set_column(at, table.schema.field(at), bad))
        writer.add_key_value_metadata({key: facts[key] for key in (b"version", b"chain")})
    files.delete(written)
    plant(url, 6, bytes(sink.getvalue()))
    with pytest.raises(CorruptStore, match=says):
        store = open_store(url)
        store.log.refresh()
        list(store.ledger.receipts())


@pytest.mark.parametrize("kind", ["another log", "another chain", "too long", "junk", "no chain", "fewer units"])
def test_a_checkpoint_that_is_not_of_these_records_is_found_by_the_audit(url, kind):
    """A well-named checkpoint is compared with the records, unit by unit and digest by digest."""
    store = open_store(url)
    store.log.refresh()
    other = Ledger(Receipt)
    other.add(RECORDS)
    fewer = Ledger(Receipt)
    fewer.add([*store.log.records[:5], {"version": 1, "units": []}])
    number, data = {
        "another log": lambda: (5, other.to_bytes(store.log.chain[:192])),
        "another chain": lambda: (6, store.ledger.to_bytes(bytes(7 * 32))),
        "too long": lambda: (9, store.ledger.to_bytes(bytes(10 * 32))),
        "junk": lambda: (6, b"PAR1 this is no such thing PAR1"),
        "no chain": lambda: (6, store.ledger.to_bytes(b"")),
        "fewer units": lambda: (6, fewer.to_bytes(store.log.chain)),
    }[kind]()
    plant(url, number, data)
    report = audit(url)
    assert not report.ok and "checkpoint" in report.corrupt[0], report.corrupt
    if kind in ("junk", "no chain"):
        opened = open_store(url)
        with pytest.raises(CorruptStore, match="delete it"):
            opened.log.refresh()
        for item in files.list_files(files.join(url, "log/compact")):
            files.delete(item.url)
        assert opened.pending(fake_snapshot(range(24))) == [] and len(opened.ledger) == 6


def test_coverage_asks_only_about_the_snapshots_rows(tmp_path):
    """A store much larger than the snapshot: what is held is marked, what is not is left, in any order."""
    url = str(tmp_path / "store")
    label_all(url, MANIFEST, fake_snapshot(range(60)))
    coverage = open_store(url).coverage(fake_snapshot([59, 100, 3, 101, 30, 3]))
    assert (coverage.rows_total, coverage.rows_reused, coverage.rows_left) == (6, 4, 2)
    assert [unit.rows for unit in coverage.units] == [(1, 3)]


def test_the_cache_of_row_ids_is_bounded(url, monkeypatch):
    """An open store keeps no more row ids than its limit, and answers the same without them."""
    monkeypatch.setattr(label_store, "CACHED_ROWS", 9)
    store = open_store(url)
    for _ in range(2):
        assert store.coverage(fake_snapshot(range(1, 30))).rows_left == 6
        assert sum(len(rows.labelled) for rows in store._rows.values()) == 8
    assert store.unit_rows(next(store.ledger.receipts())).labelled.tolist() == sorted(row_id(n) for n in range(4))
