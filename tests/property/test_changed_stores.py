"""A changed label store, store of texts, checkpoint or exported arm is refused by name, or reads as before."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ray_distill.artifacts import LabelSetRef, SnapshotRef
from ray_distill.errors import CorruptStore
from ray_distill.labels.format import fitted_arrays
from ray_distill.labels.format.fitted_arrays import write_fits
from ray_distill.labels.model.manifest import StoreManifest
from ray_distill.labels.model.signal import Signal
from ray_distill.labels.store.label_store import open_store
from ray_distill.labels.store.reader import open_label_set
from ray_distill.labels.tools.audit import audit
from ray_distill.sequences.store import SequenceStore, create_or_open
from ray_distill.storage.sealed import write_sealed
from ray_distill.students.checkpoints.store import fetched, find_checkpoint
from ray_distill.students.export import ArmMarker, exported_arm, marker_url
from ray_distill.students.loop.best_result import Best, Ended, load_outcome, save_outcome
from ray_distill.students.loop.validation import Score
from ray_distill.students.process_group import Ranks
from ray_distill.testing.labels import fake_manifest, fake_snapshot, fake_teacher, label_all, row_id
from ray_distill.testing.sequences import fake_generator, prompts_snapshot, write_all
from tests.labs.disturbances import Artifact, present, prove, prove_whole
from tests.labs.training import Lab, run_until_stopped, write_model

SNAPSHOT = fake_snapshot(range(14))
ALONE = Ranks(rank=0, world=1)
#: Disturbances of each artifact.
EXAMPLES = 120
Pair = tuple[Artifact, Artifact]


def teacher(row_ids: pa.Array, manifest: StoreManifest) -> Signal:
    """Have no answer for one row, so that the store has a quarantine file."""
    signal = fake_teacher(row_ids, manifest)
    assert signal.distributions is not None
    signal.distributions.entropy[[value == row_id(5) for value in row_ids.to_pylist()]] = np.nan
    return signal


def label_store(root: Path, seed: int) -> Artifact:
    """Return a store of labels with hidden states, fits, a checkpoint of its log and a pin, used by its reference."""
    manifest = fake_manifest(estimator="topk", layers=(1,), teacher=f"teacher{seed}")
    fits = write_fits(str(root), {"ids": np.arange(5, dtype=np.int32) + seed})
    manifest = manifest.with_changes(fits=fits, measured={"bytes": 1.5 * seed})
    label_all(str(root), manifest, SNAPSHOT, teacher, units_a_record=1)
    store = open_store(str(root))
    ref = store.ref(SNAPSHOT)
    store.compact()
    store.log.pin()

    def read() -> Any:
        fitted_arrays._read.cache_clear()
        opened = open_store(str(root))
        opened.log.check_pins()
        ids, signal = open_label_set(ref, SNAPSHOT).read(layers=(1,))
        found = signal.distributions
        assert found is not None
        arrays = [getattr(found, name).tobytes() for name in ("ids", "logp", "log_tail", "entropy", "position")]
        fitted = fitted_arrays.read_fits(str(root), opened.manifest.fits)["ids"].tolist()
        return opened.manifest, ids.to_pylist(), arrays, signal.hidden[1].values.tobytes(), fitted

    return Artifact(root, read)


def audited_store(root: Path, seed: int) -> Artifact:
    """Return such a store as `label` and `audit` use it, which have no reference yet."""
    base = label_store(root, seed)

    def read() -> Any:
        report = audit(str(root), SNAPSHOT)
        if not report.ok:
            raise CorruptStore("to restore: " + "; ".join((*report.corrupt, *report.missing, *report.duplicates)))
        coverage = open_store(str(root)).coverage(SNAPSHOT)
        return base.read(), coverage.rows_reused, coverage.rows_quarantined, len(coverage.units)

    return Artifact(root, read, names=tuple(name for name in base.files))


def text_store(root: Path, seed: int) -> Artifact:
    """Return a store of texts that a teacher wrote, opened and read as `write` does."""
    texts = [f"prompt {number}" + "!" * (number == 3) for number in range(40)]
    snapshot = prompts_snapshot(root.with_name(f"{root.name}-prompts"), texts)
    generator = fake_generator(seed=seed)
    store = write_all(str(root), generator, snapshot, units_a_record=1)
    store.compact()
    store.log.pin()
    split = [row["row_id"] for row in snapshot.read("train", ["row_id"]).to_pylist()]
    ids = np.sort(np.array(split, dtype="S16"))

    def read() -> Any:
        opened: SequenceStore = create_or_open(str(root), generator)
        opened.log.check_pins()
        coverage = opened.coverage(snapshot, ("train", "validation"), 8)
        return opened.manifest, opened.read(ids).to_pylist(), len(coverage.units), coverage.rows_quarantined

    return Artifact(root, read)


def checkpoints(root: Path, seed: int) -> Artifact:
    """Return two checkpoints of a training run; the newest sound one is resumed from."""
    root.mkdir()
    write_model(root)
    run_until_stopped(Lab(folder=str(root), stop_after=6, labels=f"labels-{seed}"))
    folder = root / "trial" / "checkpoints"
    whole = present(folder)

    def resumed() -> Any:
        found = find_checkpoint(str(folder), ALONE)
        if found is None:
            return "", "begin anew"
        with fetched(found, ALONE) as local:
            return found.url, (found.to_dict(), present(local))

    known = {}
    for url in {name.partition("/")[0] for name in whole}:
        Artifact(folder, resumed).become({name: data for name, data in whole.items() if name.startswith(url)})
        known.update([resumed()])
    Artifact(folder, resumed).become(whole)

    def read() -> Any:
        url, found = resumed()
        return "sound" if found == known.get(url) else found

    return Artifact(folder, read)


def finished_run(root: Path, seed: int) -> Artifact:
    """Return the result of a finished run; a damaged one is trained again."""
    weights = {"w": torch.arange(6.0) + seed}
    ended = Ended(steps=9, decay_from=8)
    best = Best(
        level=0.5 + seed,
        score=Score(value=0.5 + seed, metrics={"accuracy": 0.25}),
        step=7,
        weights=weights,
        ended=ended,
    )
    save_outcome(str(root), best, {"seed": 3}, ALONE)

    def read() -> Any:
        found = load_outcome(str(root), {"seed": 3}, ALONE)
        if found is None:
            save_outcome(str(root), best, {"seed": 3}, ALONE)
            found = load_outcome(str(root), {"seed": 3}, ALONE)
        assert found is not None
        return found.record, {name: value.tolist() for name, value in found.weights.items()}

    return Artifact(root, read)


def exported(root: Path, seed: int) -> Artifact:
    """Return the markers of exported arms; an arm without one is trained again."""
    labels = LabelSetRef(
        store="s", fingerprint="l", log_length=1, log_digest="d", snapshot=SnapshotRef(url="n", fingerprint="n")
    )
    arms = {arm: f"{arm}{seed}" for arm in ("student", "baseline_hard_labels")}
    for arm, mark in arms.items():
        (root / arm).mkdir(parents=True)
        (root / arm / "ray_distill.json").write_text("{}")
        write_sealed(marker_url(str(root), arm), ArmMarker(arm=arm, fingerprint=mark, plan={"seed": seed}).to_dict())

    def read() -> Any:
        found = {arm: exported_arm(str(root), arm, {"seed": seed}, labels=labels, ranks=ALONE) for arm in arms}
        return {arm: mark if found[arm] is None else found[arm].fingerprint for arm, mark in arms.items()}

    return Artifact(root, read)


MAKERS: Mapping[str, Callable[[Path, int], Artifact]] = {
    "labels": label_store,
    "audited labels": audited_store,
    "texts": text_store,
    "checkpoints": checkpoints,
    "finished run": finished_run,
    "exported arms": exported,
}


@pytest.fixture(scope="module")
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """Return two artifacts of a kind, of the same shape and other content."""
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("stores")
    make = MAKERS[request.param]
    return make(root / "one", 1), make(root / "two", 2)


@pytest.mark.parametrize("pair", MAKERS, indirect=True)
@settings(max_examples=EXAMPLES)
@given(data=st.data())
def test_one_disturbed_file_is_refused_or_harmless(pair: Pair, data: st.DataObject) -> None:
    """Flipped, respelt, cut, emptied, deleted or swapped: named with a way out, or read as before."""
    prove(pair[0], pair[1].files, data)


@pytest.mark.parametrize("pair", ["labels", "texts"], indirect=True)
def test_another_store_at_the_same_place_is_refused(pair: Pair) -> None:
    """All files replaced by those of another store: its reference, or its generator, has another fingerprint."""
    prove_whole(pair[0], pair[1].files)
