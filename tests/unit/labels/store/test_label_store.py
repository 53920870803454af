"""The label store from the first unit to the pinned reference, without a cluster."""

import numpy as np
import pyarrow as pa
import pytest

from ray_distill.errors import ConfigError, CorruptStore, DistillError, LabelError, StoreMismatch
from ray_distill.labels.model import rowids
from ray_distill.labels.model.work_units import Receipt, WorkUnit
from ray_distill.labels.store.label_store import create_or_open, open_store
from ray_distill.labels.store.reader import open_label_set
from ray_distill.labels.store.writer import write_attempt
from ray_distill.storage import files
from ray_distill.storage.receipts import part_file
from ray_distill.testing.labels import fake_manifest, fake_snapshot, fake_teacher, label_all, row_id, winners
from tests.labs.manifests import altered, own_fingerprint


def throwing_teacher(row_ids, manifest):
    raise AssertionError(f"the teacher was called for {len(row_ids)} rows")


def nan_teacher(*numbers):
    """A teacher that answers NaN for the rows with these numbers."""

    def answer(row_ids, manifest):
        signal = fake_teacher(row_ids, manifest)
        bad = [index for index, value in enumerate(row_ids.to_pylist()) if value in {row_id(n) for n in numbers}]
        signal.distributions.logp.reshape(len(row_ids), -1)[bad] = np.nan
        return signal

    return answer


@pytest.fixture
def url(tmp_path):
    return str(tmp_path / "store")


@pytest.mark.parametrize("estimator", ["dense", "topk"])
@pytest.mark.parametrize("hidden_dtype", ["float32", "float16", "bfloat16"])
def test_what_is_labelled_is_read_back_in_the_snapshots_order(url, estimator, hidden_dtype):
    """Every row of the snapshot once, with the teacher's own numbers; hidden states as precisely as they are stored."""
    manifest = fake_manifest(estimator=estimator, layers=(1, 3), hidden_dtype=hidden_dtype)
    snapshot = fake_snapshot(range(21))
    label_all(url, manifest, snapshot)
    labels = open_label_set(open_store(url).ref(snapshot), snapshot)
    row_ids, signal = labels.read(layers=(3,))
    expected = fake_teacher(row_ids, manifest)
    assert row_ids.to_pylist() == [row_id(n) for n in range(21)] and labels.rows == 21
    for name in ("row_offsets", "position", "entry_offsets", "ids", "logp", "log_tail", "entropy"):
        np.testing.assert_array_equal(getattr(signal.distributions, name), getattr(expected.distributions, name))
    assert list(signal.hidden) == [3]
    tolerance = {"float32": 0, "float16": 2**-11, "bfloat16": 2**-8}[hidden_dtype]
    np.testing.assert_allclose(signal.hidden[3].values, expected.hidden[3].values, rtol=tolerance)


def test_a_second_run_calls_no_teacher(url):
    """A rerun with a teacher that throws succeeds, because nothing is left to do."""
    snapshot = fake_snapshot(range(20))
    label_all(url, fake_manifest(), snapshot)
    assert label_all(url, fake_manifest(), snapshot, throwing_teacher) == []


def test_an_overlapping_snapshot_labels_only_its_new_rows(url):
    """Of a snapshot that shares 80 % with a labelled one, in other shards, exactly the new rows reach the teacher."""
    label_all(url, fake_manifest(), fake_snapshot(range(20)))
    later, called = fake_snapshot([*range(24, 3, -1)], shard_rows=7), []

    def counting(row_ids, manifest):
        called.extend(row_ids.to_pylist())
        return fake_teacher(row_ids, manifest)

    store = open_store(url)
    before = store.coverage(later)
    assert (before.rows_total, before.rows_reused, before.rows_left, before.rows_quarantined) == (21, 16, 5, 0)
    label_all(url, fake_manifest(), later, counting)
    assert sorted(called) == sorted(row_id(n) for n in range(20, 25))
    assert store.pending(later) == [] and store.coverage(later).rows_reused == 21
    row_ids, signal = open_label_set(store.ref(later), later).read()
    assert row_ids.to_pylist() == [row_id(n) for n in range(24, 3, -1)]
    np.testing.assert_array_equal(signal.distributions.logp, fake_teacher(row_ids, fake_manifest()).distributions.logp)


def test_a_row_in_two_units_is_read_once_from_the_first_committed(url):
    """Two overlapping snapshots labelled at the same time leave rows in two units; a reader sees each row once."""
    manifest, first, second = fake_manifest(unit_rows=8), fake_snapshot(range(8)), fake_snapshot(range(4, 12))
    store = create_or_open(url, manifest)
    plans = [(snapshot, store.pending(snapshot)) for snapshot in (second, first)]
    for snapshot, (unit,) in plans:
        ids = snapshot.read_shard(snapshot.shards[0]).column("row_id").combine_chunks()
        store.commit([write_attempt(url, manifest, unit, row_ids=ids, signal=fake_teacher(ids, manifest), rejected=[])])
    labels = open_label_set(store.ref(first), first)
    assert labels.rows == 8
    assert sorted(len(labels.row_ids(unit)) for unit in labels.units) == [4, 4]
    row_ids, signal = labels.read()
    np.testing.assert_array_equal(signal.distributions.logp, fake_teacher(row_ids, manifest).distributions.logp)


def test_rows_the_teacher_cannot_answer_are_quarantined_and_not_retried(url):
    """NaN answers are set apart with the reason, counted, left out of the labels, and count as handled."""
    snapshot = fake_snapshot(range(12))
    label_all(url, fake_manifest(), snapshot, nan_teacher(1, 5, 8, 9, 10, 11))
    store = open_store(url)
    coverage = store.coverage(snapshot)
    assert (coverage.rows_reused, coverage.rows_quarantined, coverage.rows_left) == (6, 6, 0)
    shuffled = store.coverage(fake_snapshot(range(11, -1, -1)))
    assert (shuffled.rows_reused, shuffled.rows_quarantined, shuffled.rows_left) == (6, 6, 0)
    row_ids, _ = open_label_set(store.ref(snapshot), snapshot).read()
    assert row_ids.to_pylist() == [row_id(n) for n in (0, 2, 3, 4, 6, 7)]
    entries = [entry for record in store.log.records for entry in record["units"]]
    assert sum(entry["reasons"].get("distribution is NaN or infinite", 0) for entry in entries) == 6
    assert any(entry["rows"] == 0 for entry in entries), "a unit whose rows all failed is committed too"


def test_a_label_set_with_a_hole_is_refused(url):
    """Rows without labels are an error that says how many and what to do; never a smaller label set."""
    snapshot = fake_snapshot(range(20))
    manifest = fake_manifest()
    label_all(url, manifest, fake_snapshot(range(8)))
    with pytest.raises(LabelError, match="12 of the snapshot's 20 rows have no labels.*run label again"):
        open_label_set(open_store(url).ref(snapshot), snapshot)
    label_all(url, manifest, snapshot)
    assert open_label_set(open_store(url).ref(snapshot), snapshot).rows == 20, "as advised"


def test_a_reference_stays_what_it_was_when_the_store_grows(url):
    """A reference pins a prefix of the log: later commits change neither it nor what it reads.

    A reference made later pins a longer log, and has the same fingerprint, because the snapshot's labels are the same.
    """
    manifest, snapshot = fake_manifest(), fake_snapshot(range(8))
    label_all(url, manifest, snapshot)
    ref = open_store(url).ref(snapshot)
    label_all(url, manifest, fake_snapshot(range(4, 30)))
    assert open_label_set(ref, snapshot).rows == 8
    later = open_store(url).ref(snapshot)
    assert later.log_length > ref.log_length and later.fingerprint == ref.fingerprint


def test_a_reference_is_identified_by_the_labels_of_its_snapshot(tmp_path):
    """Equal labels have one fingerprint, in whatever store, order and company; other labels, rows or settings have
    others."""
    snapshot, found = fake_snapshot(range(8)), {}
    for name, manifest, teacher, others in (
        ("alone", fake_manifest(), fake_teacher, ()),
        ("after others", fake_manifest(), fake_teacher, (range(20, 40), range(60, 70))),
        ("overlapping", fake_manifest(), fake_teacher, (range(6, 12),)),
        ("refused rows", fake_manifest(), nan_teacher(3), ()),
        ("manifest", fake_manifest(teacher="another"), fake_teacher, ()),
    ):
        url = str(tmp_path / name)
        for numbers in others:
            label_all(url, manifest, fake_snapshot(numbers))
        label_all(url, manifest, snapshot, teacher)
        found[name] = open_store(url).ref(snapshot).fingerprint
    assert found["alone"] == found["after others"]
    assert len(set(found.values())) == len(found) - 1
    shuffled = fake_snapshot(range(7, -1, -1))
    assert open_store(str(tmp_path / "alone")).ref(shuffled).fingerprint != found["alone"]


def test_a_rewritten_log_is_noticed_by_the_reference(url):
    """A record that changed after the reference was made is CorruptStore, though it is valid by itself."""
    snapshot = fake_snapshot(range(8))
    label_all(url, fake_manifest(), snapshot)
    ref = open_store(url).ref(snapshot)
    record = files.join(url, "log/000000000000.json")
    value = files.read_json(record)
    value["units"][0]["start"] += 1
    files.write_json(record, value)
    with pytest.raises(CorruptStore, match="differ from what the reference pins"):
        open_label_set(ref, snapshot)


def test_another_snapshot_than_the_references_is_refused(url):
    """Labels are of one snapshot; another one given in its place is a mismatch that names both."""
    label_all(url, fake_manifest(), fake_snapshot(range(8)))
    ref = open_store(url).ref(fake_snapshot(range(8)))
    with pytest.raises(StoreMismatch, match=ref.snapshot.fingerprint):
        open_label_set(ref, fake_snapshot(range(4)))


def test_layers_that_are_not_stored_are_refused(url):
    """A layer the store lacks is an error that names the stored ones."""
    snapshot = fake_snapshot(range(4))
    label_all(url, fake_manifest(layers=(2,)), snapshot)
    labels = open_label_set(open_store(url).ref(snapshot), snapshot)
    with pytest.raises(StoreMismatch, match=r"\[5\] are requested, the store has \[2\]"):
        labels.read_unit(labels.units[0], layers=(2, 5))


@pytest.mark.parametrize("name", ["distributions", "hidden.0"])
def test_a_flipped_byte_names_the_file(url, name):
    """One changed byte anywhere in a shard is CorruptStore with the file's URL."""
    snapshot = fake_snapshot(range(4))
    label_all(url, fake_manifest(layers=(0,)), snapshot)
    shard = files.list_files(files.join(url, name))[0].url
    data = bytearray(files.read_bytes(shard))
    data[len(data) // 3] ^= 1
    files.write_bytes(shard, bytes(data))
    with pytest.raises(CorruptStore, match=shard):
        open_label_set(open_store(url).ref(snapshot), snapshot).read(layers=(0,))


def test_a_mismatch_names_each_field_with_both_sides(url):
    """Opening a store for another teacher or signal says which fields differ, and how."""
    create_or_open(url, fake_manifest())
    with pytest.raises(StoreMismatch) as caught:
        create_or_open(url, fake_manifest(unit_rows=9, teacher="other", temperatures=(1.0,)))
    for part in (
        "labels.unit_rows: the store has 4, this run requests 9",
        "labels.teacher (the store has labels of another one",
        "labels.signal.temperatures: the store has [1.0, 2.0], this run requests [1.0]",
        f"Set labels.store to another URL, such as {url}-2",
    ):
        assert part in str(caught.value)
    for internal in ("classes", "fingerprint", "fake", "parts"):
        assert internal not in str(caught.value).replace(url, "")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"layers": (0, 3)}, "labels.hidden.layers: the store has [0], this run requests [0, 3]"),
        ({"layers": ()}, "labels.hidden.layers: the store has [0], this run requests []"),
        ({"batch": 9}, "labels.resources.batch: the store has "),
        ({"threads": 3}, "labels.resources.cpus: the store has 1, this run requests 3"),
    ],
)
def test_a_mismatch_names_the_field_to_set(url, changes, says):
    """Names of the manifest are translated to those of the campaign's file."""
    create_or_open(url, fake_manifest(layers=(0,)))
    with pytest.raises(StoreMismatch) as caught:
        layers = changes.pop("layers", (0,))
        create_or_open(url, fake_manifest(layers=layers).with_changes(**changes))
    assert says in str(caught.value)


def test_where_a_teacher_lies_does_not_matter(url):
    """The same teacher under another path opens the same store: its own fingerprint is what counts."""
    manifest = fake_manifest()
    create_or_open(url, manifest)
    moved = type(manifest).from_dict(
        {**manifest.to_dict(), "teacher": {"fingerprint": "fake", "model": "s3://elsewhere"}}
    )
    assert create_or_open(url, moved).manifest.teacher.model == "fake"


#: Place of the distributions in a manifest.
LABELS = "parts/distributions"


@pytest.mark.parametrize(
    ("place", "item", "error", "message"),
    [
        ("version", 4, LabelError, "version 4, this release reads 3: upgrade"),
        ("version", 1, LabelError, "version 1, this release reads 3: it is older than 0.2: label into a new store"),
        (f"{LABELS}/codec", ["dense", 9], LabelError, "codec dense/9, this release reads dense/2, topk/2"),
        (
            f"{LABELS}/codec",
            ["compact", 1],
            LabelError,
            "codec compact/1, .* label again where the store is older than 0.2",
        ),
        (f"{LABELS}/estimator", "psychic", LabelError, "estimator 'psychic' is not one of dense, topk"),
        (f"{LABELS}/temperatures", [2.0], LabelError, "contain 1"),
        (f"{LABELS}/space/names", ["a"], LabelError, "1 names of 5 classes"),
        (f"{LABELS}/kind", "boxes", CorruptStore, "'boxes'.* does not match any of the expected tags"),
        (f"{LABELS}/extra", 1, CorruptStore, "has no field parts.distributions.distributions.extra"),
        ("parts", {}, LabelError, "there is no part distributions"),
        (
            "parts/hidden.2",
            {"kind": "vectors", "layer": 3},
            LabelError,
            "other names than their content: hidden.2 should be hidden.3",
        ),
        ("extra", 1, CorruptStore, "store.json: StoreManifest has no field extra"),
        (f"{LABELS}/space/names", 7, CorruptStore, "wrong kind"),
        ("unit_rows", "many", CorruptStore, "wrong kind"),
        ("teacher", {"fingerprint": ""}, CorruptStore, "wrong kind: field teacher.fingerprint"),
    ],
)
def test_a_manifest_that_cannot_be_used_is_one_clear_error(url, place, item, error, message):
    """Manifests of the future and damaged ones are refused with the reason."""
    value = altered(fake_manifest().to_dict(), place, item)
    files.write_json(files.join(url, "store.json"), {"manifest": value, "fingerprint": own_fingerprint(value)})
    with pytest.raises(error, match=message):
        open_store(url)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"manifest": {}}', b"\xff\xfe", b'{"manifest": null}'])
def test_a_manifest_that_is_no_manifest_is_corrupt(url, content):
    """Foreign or cut bytes in place of store.json are CorruptStore that names the file."""
    files.write_bytes(files.join(url, "store.json"), content)
    with pytest.raises(CorruptStore):
        open_store(url)


def test_an_edited_manifest_is_noticed(url):
    """A manifest whose content does not have its own fingerprint was changed by hand."""
    create_or_open(url, fake_manifest())
    location = files.join(url, "store.json")
    files.write_bytes(location, files.read_bytes(location).replace(b"class0", b"classX"))
    with pytest.raises(CorruptStore, match="changed after its creation"):
        open_store(url)


def test_no_store_is_a_clear_error(url):
    """A URL without a store says so."""
    with pytest.raises(LabelError, match="no label store here"):
        open_store(url)


def one_unit(url, manifest=None, numbers=range(4)):
    manifest = manifest or fake_manifest()
    store, snapshot = create_or_open(url, manifest), fake_snapshot(numbers)
    (unit,) = store.pending(snapshot)
    ids = snapshot.read_shard(snapshot.shards[0]).column("row_id").combine_chunks()
    return store, unit, ids


def test_the_bytes_of_a_shard_depend_on_its_content_alone(url):
    """Two attempts at a unit, rows in another order and split, are byte-identical; only the names differ."""
    manifest = fake_manifest(layers=(1,))
    _, unit, ids = one_unit(url, manifest)
    backwards = ids.take(pa.array([3, 1, 0, 2]))
    receipts = [
        write_attempt(url, manifest, unit, row_ids=order, signal=fake_teacher(order, manifest), rejected=[])
        for order in (ids, backwards)
    ]
    assert receipts[0].attempt != receipts[1].attempt
    assert receipts[0].parts == receipts[1].parts


def test_an_attempt_must_cover_its_unit_exactly(url):
    """Missing, doubled and foreign rows are refused before anything is written."""
    manifest = fake_manifest()
    _, unit, ids = one_unit(url)
    signal = fake_teacher(ids, manifest)
    foreign = pa.array([row_id(n) for n in (0, 1, 2, 9)], rowids.ROW_ID)
    doubled = pa.array([row_id(n) for n in (0, 1, 2, 2)], rowids.ROW_ID)
    for given, answer, rejected, message in (
        (ids[:3], signal.take([0, 1, 2]), [], "3 labelled and 0 rejected rows, expected 4"),
        (doubled, signal, [], "1 rows came twice"),
        (foreign, signal, [], "not the unit's rows"),
        (ids, signal, [(row_id(0), "bad")], "4 labelled and 1 rejected rows, expected 4"),
        (ids[:3], signal.take([0, 1, 2]), [(b"short", "bad")], "16 bytes, found 5"),
    ):
        with pytest.raises(LabelError, match=message):
            write_attempt(url, manifest, unit, row_ids=given, signal=answer, rejected=rejected)
    assert files.list_files(files.join(url, "distributions"), unfinished=True) == []


def test_a_signal_of_another_kind_is_refused(url):
    """Other classes, temperatures, layers or NaN in a signal never reach the store."""
    _, unit, ids = one_unit(url)
    manifest = fake_manifest()
    for other, message in (
        (fake_manifest(classes=7), "classes: found 7, expected 5"),
        (fake_manifest(temperatures=(1.0,)), "temperatures"),
        (fake_manifest(layers=(1,)), r"hidden layers: found \[1\], expected \[\]"),
        (fake_manifest(estimator="topk"), "stores all 5 classes"),
    ):
        with pytest.raises(LabelError, match=message):
            write_attempt(url, manifest, unit, row_ids=ids, signal=fake_teacher(ids, other), rejected=[])
    with pytest.raises(LabelError, match="NaN or infinite; reject them"):
        write_attempt(url, manifest, unit, row_ids=ids, signal=nan_teacher(2)(ids, manifest), rejected=[])


def test_hidden_states_beyond_the_stored_type_are_an_error_not_infinity(url):
    """float16 ends at 65504: a larger state is refused with the dtype that would hold it."""
    manifest = fake_manifest(layers=(1,), hidden_dtype="float16")
    _, unit, ids = one_unit(url, manifest)
    signal = fake_teacher(ids, manifest)
    signal.hidden[1].values[0, 0] = 7e4
    with pytest.raises(LabelError, match="70000 does not fit float16.*bfloat16"):
        write_attempt(url, manifest, unit, row_ids=ids, signal=signal, rejected=[])


def test_the_first_attempt_committed_wins(url):
    """Of two attempts at a unit the first in the log is the unit; the other's commit wins nothing."""
    manifest = fake_manifest()
    store, unit, ids = one_unit(url)
    first, second = (
        write_attempt(url, manifest, unit, row_ids=ids, signal=fake_teacher(ids, manifest), rejected=[])
        for _ in range(2)
    )
    assert store.commit([second, first]) == [unit.unit_id]
    assert open_store(url).commit([first]) == [] == store.commit([])
    assert [receipt.attempt for receipt in winners(store.log.records).values()] == [second.attempt]


def test_a_receipt_whose_file_is_gone_or_foreign_is_not_committed(url):
    """The driver looks at the files before it promises them to readers."""
    manifest = fake_manifest()
    store, unit, ids = one_unit(url)
    receipt = write_attempt(url, manifest, unit, row_ids=ids, signal=fake_teacher(ids, manifest), rejected=[])
    with pytest.raises(LabelError, match="for manifest"):
        store.commit([Receipt.from_dict({**receipt.to_dict(), "manifest": "other"})])
    location = files.join(url, part_file("distributions", receipt.unit, receipt.attempt))
    files.write_bytes(location, b"short")
    with pytest.raises(CorruptStore, match="found 5 bytes"):
        store.commit([receipt])
    files.delete(location)
    with pytest.raises(DistillError, match="does not exist"):
        store.commit([receipt])
    assert store.log.records == ()


def test_units_and_receipts_survive_json(url):
    """What passes between processes is JSON and comes back equal."""
    manifest = fake_manifest(layers=(1,))
    _, unit, ids = one_unit(url, manifest)
    assert WorkUnit.from_dict(unit.to_dict()) == unit
    receipt = write_attempt(
        url,
        manifest,
        unit,
        row_ids=ids[:3],
        signal=fake_teacher(ids[:3], manifest),
        rejected=[(ids[3].as_py(), "no text")],
    )
    assert Receipt.from_dict(receipt.to_dict()) == receipt and receipt.reasons == {"no text": 1}
    assert type(manifest).from_dict(manifest.to_dict()) == manifest


def test_a_reference_survives_json_and_other_stages_references_do_not_pass(url):
    """A LabelSetRef is what commands print and accept."""
    snapshot = fake_snapshot(range(4))
    label_all(url, fake_manifest(), snapshot)
    ref = open_store(url).ref(snapshot)
    assert type(ref).from_json(ref.to_json()) == ref
    with pytest.raises(ConfigError):
        type(ref).from_json(snapshot.ref.to_json())


def test_an_empty_snapshot_has_an_empty_label_set(url):
    """No rows are no error: nothing to label, nothing to read."""
    snapshot = fake_snapshot([])
    assert label_all(url, fake_manifest(layers=(1,)), snapshot) == []
    row_ids, signal = open_label_set(open_store(url).ref(snapshot), snapshot).read(layers=(1,))
    assert len(row_ids) == 0 and signal.distributions.rows == 0 and signal.hidden[1].rows == 0


def test_a_reference_does_not_depend_on_the_working_directory(tmp_path, monkeypatch):
    """A store opened by a relative path is pinned by an absolute one."""
    monkeypatch.chdir(tmp_path)
    snapshot = fake_snapshot(range(4))
    label_all("store", fake_manifest(), snapshot)
    ref = open_store("store").ref(snapshot)
    monkeypatch.chdir("/")
    assert open_label_set(ref, snapshot).rows == 4
