"""A malformed store is one clear error, or audited as not ok, or reads as if nothing had happened: never else."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ray_distill.errors import DistillError
from ray_distill.fingerprint import canonical_json, sha256
from ray_distill.labels.model.manifest import StoreManifest
from ray_distill.labels.store.label_store import open_store
from ray_distill.labels.store.reader import open_label_set
from ray_distill.labels.tools.audit import audit
from ray_distill.testing.labels import fake_manifest, fake_snapshot, fake_teacher, label_all, row_id
from tests.labs.manifests import altered, own_fingerprint

MANIFEST = fake_manifest(estimator="topk", layers=(1,))
SNAPSHOT = fake_snapshot(range(14))
REJECTED = 5
COUNTS = ("rows", "rejected", "start", "stop")


def teacher(row_ids, manifest):
    """Has no answer for one row, so that the store has a quarantine file."""
    signal = fake_teacher(row_ids, manifest)
    signal.distributions.entropy[[value == row_id(REJECTED) for value in row_ids.to_pylist()]] = np.nan
    return signal


def read(ref):
    """All labels and hidden states that a reference pins, as bytes."""
    ids, signal = open_label_set(ref, SNAPSHOT).read(layers=(1,))
    arrays = [getattr(signal.distributions, name) for name in ("ids", "logp", "log_tail", "entropy", "position")]
    return [ids.to_pylist(), *(array.tobytes() for array in [*arrays, signal.hidden[1].values])]


class Sound:
    """A store, its reference, its labels, and the bytes of all its files."""

    def __init__(self, root, manifest):
        self.root, self.url = Path(root), str(root)
        label_all(self.url, manifest, SNAPSHOT, teacher, units_a_record=1)
        store = open_store(self.url)
        self.ref, self.labels = store.ref(SNAPSHOT), None
        self.plain = self._files()
        store.compact()
        self.files = self._files()
        self.labels = read(self.ref)

    def _files(self):
        return {
            path.relative_to(self.root).as_posix(): path.read_bytes()
            for path in sorted(self.root.rglob("*"))
            if path.is_file()
        }

    def become(self, wanted):
        """Make the folder hold exactly these files; only what differs is touched."""
        present = self._files()
        for name in present.keys() - wanted.keys():
            (self.root / name).unlink()
        for name, data in wanted.items():
            if present.get(name) != data:
                (self.root / name).parent.mkdir(parents=True, exist_ok=True)
                (self.root / name).write_bytes(data)


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    """A sound store, and one of another teacher with labels of the same rows."""
    return (
        Sound(tmp_path_factory.mktemp("sound"), MANIFEST),
        Sound(tmp_path_factory.mktemp("other"), fake_manifest(estimator="topk", layers=(1,), teacher="other")),
    )


def cut(draw, held, other):
    name = draw(st.sampled_from(sorted(held)))
    return {name: held[name][: draw(st.integers(0, max(len(held[name]) - 1, 0)))]}


def flip(draw, held, other):
    name = draw(st.sampled_from(sorted(held)))
    data = bytearray(held[name])
    for _ in range(draw(st.integers(1, 3)) if data else 0):
        data[draw(st.integers(0, len(data) - 1))] ^= draw(st.integers(1, 255))
    return {name: bytes(data)}


def foreign(draw, held, other):
    """Bytes that are no part of any store, in place of a file or beside it."""
    name = draw(
        st.sampled_from(
            [
                *sorted(held),
                "log/000000000009.json",
                "log/notes.txt",
                "distributions/x/y.parquet",
                f"log/compact/000000000002-{'0' * 32}.parquet",
            ]
        )
    )
    head = draw(st.sampled_from([b"", b"{}", b"[]", b"null", b"PAR1", b"\xff" * 9]))
    return {name: head + draw(st.binary(max_size=9))}


def lose(draw, held, other):
    return {draw(st.sampled_from(sorted(held))): None}


def swap(draw, held, other):
    """The contents of two files of a kind, exchanged."""
    folder = draw(st.sampled_from(["distributions/", "hidden.1/", "log/0"]))
    one, two = (draw(st.sampled_from([name for name in sorted(held) if name.startswith(folder)])) for _ in range(2))
    return {one: held[two], two: held[one]}


def from_the_other(draw, held, other):
    """A file of another teacher's store: its manifest, a record, a checkpoint, or a shard in place of one of ours."""
    name = draw(st.sampled_from(sorted(other)))
    if name in held or "/compact/" in name:
        return {name: other[name]}
    kind = name.split("/")[0]
    return {draw(st.sampled_from([mine for mine in sorted(held) if mine.startswith(kind)] or ["x"])): other[name]}


def miscount(draw, held, other):
    """A record that says something else of a unit than is so."""
    name = draw(st.sampled_from([name for name in sorted(held) if name.startswith("log/0")]))
    try:
        record = json.loads(held[name])
        record["units"][0][draw(st.sampled_from([*COUNTS, "attempt", "unit", "parts", "reasons"]))] = draw(
            st.one_of(st.integers(-2, 9), st.integers(2**62, 2**70), st.none(), st.text(max_size=4), st.just({}))
        )
    except (ValueError, LookupError, TypeError):
        return {}  # another mutation has been there
    return {name: canonical_json(record) + b"\n"}


def from_the_future(draw, held, other):
    """A manifest, well-formed and with its own fingerprint, of a codec, estimator or version nobody knows yet."""
    labels, hidden = "parts/distributions", "parts/hidden.1"
    place, item = draw(
        st.sampled_from(
            [
                (f"{labels}/codec", ["topk", 99]),
                (f"{labels}/codec", ["psychic", 1]),
                ("version", 99),
                (f"{labels}/estimator", "psychic"),
                (f"{labels}/space/names", ["one", "two"]),
                (f"{labels}/space", {"size": 2, "names": ["one", "two"]}),
                (f"{hidden}/dtype", "int2"),
                (f"{labels}/temperatures", [1.0]),
                (f"{labels}/k", 4),
                ("parts/hidden.2", {"kind": "vectors", "layer": 2}),
                ("parts", {"distributions": MANIFEST.distributions.to_dict()}),
                (labels, {"kind": "psychic"}),
                ("unit_rows", 3),
                ("encoding", "psychic"),
            ]
        )
    )
    value = altered(MANIFEST.to_dict(), place, item)
    try:
        mark = StoreManifest.from_dict(value).fingerprint
    except DistillError:
        mark = own_fingerprint(value)
    return {"store.json": json.dumps({"fingerprint": mark, "manifest": value}).encode()}


def false_checkpoint(draw, held, other):
    """A checkpoint that agrees with its own name, but is damaged inside or for another number of records."""
    name = draw(st.sampled_from([name for name in sorted({**held, **other}) if "/compact/" in name] or [""]))
    data = bytearray({**other, **held}.get(name, b"PAR1"))
    if data and draw(st.booleans()):
        data[draw(st.integers(0, len(data) - 1))] ^= draw(st.integers(1, 255))
    number = draw(st.integers(0, 9))
    return {f"log/compact/{number:012d}-{sha256(bytes(data))[7:39]}.parquet": bytes(data)}


MUTATIONS = (cut, flip, foreign, lose, swap, from_the_other, miscount, from_the_future, false_checkpoint)


def outcome(call):
    """What a call returns, or the DistillError it raises; anything else fails the test."""
    try:
        return call()
    except DistillError as error:
        assert str(error), "an error says something"
        return error


def is_error(value):
    return isinstance(value, DistillError)


def prove(stores, data):
    sound, other = stores
    held = dict(sound.files if data.draw(st.booleans(), label="with checkpoint") else sound.plain)
    for _ in range(data.draw(st.integers(1, 2), label="mutations")):
        mutate = data.draw(st.sampled_from(MUTATIONS))
        for name, content in mutate(data.draw, held, other.files).items():
            held.pop(name, None)
            if content is not None:
                held[name] = content
    sound.become(held)
    try:
        pinned = outcome(lambda: read(sound.ref))
        assert is_error(pinned) or pinned == sound.labels, "a pinned reference reads its own labels or nothing"
        report = outcome(lambda: audit(sound.url, SNAPSHOT))
        again = outcome(lambda: read(open_store(sound.url).ref(SNAPSHOT)))
        found_bad = is_error(report) or not report.ok
        assert found_bad or is_error(again) or again == sound.labels, "what passes the audit reads the same"
        outcome(lambda: open_store(sound.url).coverage(SNAPSHOT))
        outcome(lambda: open_store(sound.url).compact())
    finally:
        sound.become(sound.files)


CHECKS = {"suppress_health_check": [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]}


@settings(max_examples=60, **CHECKS)
@given(data=st.data())
def test_sixty_mutated_stores(stores, data):
    """Cut, flipped, foreign, lost, swapped, miscounted, another teacher's or the future's: refused or harmless."""
    prove(stores, data)


@pytest.mark.crash
@settings(max_examples=600, **CHECKS)
@given(data=st.data())
def test_six_hundred_mutated_stores(stores, data):
    """As above, at the size the claim is made for."""
    prove(stores, data)


@pytest.mark.parametrize("mutate", [from_the_other, from_the_future], ids=lambda mutate: mutate.__name__)
def test_no_label_of_a_store_with_another_manifest_is_read(stores, mutate):
    """A sound manifest that is not this store's lets nobody train, not even with a fresh reference."""
    sound, other = stores
    held = (
        {**sound.files, "store.json": other.files["store.json"]}
        if mutate is from_the_other
        else {**sound.files, **from_the_future(lambda _: ("parts/distributions/codec", ["topk", 99]), sound.files, {})}
    )
    sound.become(held)
    try:
        assert is_error(outcome(lambda: read(sound.ref)))
        assert is_error(outcome(lambda: read(open_store(sound.url).ref(SNAPSHOT))))
        report = outcome(lambda: audit(sound.url))
        assert is_error(report) or not report.ok
    finally:
        sound.become(sound.files)
