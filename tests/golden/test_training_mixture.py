"""Students that learn from several label sets: their mean, or the rows of all of them."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from ray_distill.artifacts import LabelSetRef
from ray_distill.config import LossConfig, SignalConfig, StudentConfig, TrainingConfig, parse_config
from ray_distill.errors import ConfigError, TrainingError
from ray_distill.labels.model.manifest import StoreManifest
from ray_distill.labels.model.signal import Signal
from ray_distill.labels.store.label_store import open_store
from ray_distill.models.io.load import load_model
from ray_distill.runtime.training.label_mixture import check_mixture, temperatures_of
from ray_distill.snapshots.reader import Snapshot, open_snapshot
from ray_distill.students.data.open_data import open_data
from ray_distill.students.data.open_sources import open_labels, open_sources
from ray_distill.students.job import TrainingJob
from ray_distill.students.process_group import Ranks
from ray_distill.students.run import run_arms
from ray_distill.testing.labels import fake_manifest, fake_teacher, label_all
from ray_distill.testing.models import write_tiny_text_model
from tests.golden.test_training_run import freeze, job_of
from tests.labs.training import Recorder, learnt

ALONE = Ranks(rank=0, world=1)
ONE_RATE = {"learning_rate": 1e-2, "evaluate_every": 100}


def second_teacher(row_ids: pa.Array, manifest: StoreManifest) -> Signal:
    """Another opinion: what the first says of the bytes of each id in turned order."""
    turned = pa.array([one[::-1] for one in row_ids.to_pylist()], pa.binary(16))
    return fake_teacher(turned, manifest)


def label(folder: Path, store: str, snapshot: Snapshot, **manifest: Any) -> LabelSetRef:
    """The labels of a snapshot by the teacher that a store's name tells."""
    label_all(
        str(folder / store),
        fake_manifest(teacher=store, **manifest),
        snapshot,
        second_teacher if store.startswith("second") else fake_teacher,
    )
    opened = open_store(str(folder / store))
    opened.log.refresh()
    return opened.ref(snapshot)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher's checkpoint, two snapshots, the labels of two teachers for the first and of one for the other."""
    folder = tmp_path_factory.mktemp("mixture")
    write_tiny_text_model(folder / "teacher", tuple(f"class{i}" for i in range(5)), seed=1)
    traffic, other = (
        open_snapshot(freeze(folder, name, rows, seed)) for name, rows, seed in (("traffic", 160, 1), ("other", 80, 2))
    )
    refs = {
        "labels": label(folder, "first", traffic, layers=(1,)),
        "second": label(folder, "second", traffic),
        "elsewhere": label(folder, "second-elsewhere", other),
        "truncated": label(folder, "second-truncated", traffic, estimator="topk", temperatures=(1.0,)),
    }
    for name, ref in refs.items():
        (folder / f"{name}.json").write_text(ref.to_json())
    return folder


def job(
    home: Path, output: Path, mixture: Mapping[str, Any] | None, *, temperature: float = 1, **training: Any
) -> TrainingJob:
    """Soft labels alone, mixed as told."""
    found = job_of(home, output, training={**ONE_RATE, **training}, arms=("student",))
    config = found.config.model_dump(mode="json", by_alias=True)
    config["student"]["losses"] = {"soft": {"temperature": temperature}}
    if mixture is None:
        return replace(found, config=parse_config(config))
    others = [{"labels": str(home / f"{name}.json"), "weight": weight} for name, weight in mixture["others"].items()]
    config["student"]["mixture"] = {**mixture, "others": others}
    refs = tuple(LabelSetRef.from_json(Path(other["labels"]).read_text()) for other in others)
    return replace(found, config=parse_config(config), others=refs)


def curve(home: Path, output: Path, mixture: Mapping[str, Any] | None, **settings: Any) -> list[dict[str, float]]:
    """What is learnt in each step."""
    recorder = Recorder()
    run_arms(job(home, output, mixture, **settings), recorder)
    return [learnt(recorder.curve[step]) for step in sorted(recorder.curve)]


def test_the_mean_of_a_teacher_with_itself_is_that_teacher(home: Path, tmp_path: Path) -> None:
    """Whatever the weights, and at another temperature too."""
    mixture = {"how": "average", "weight": 2.0, "others": {"labels": 0.5}}
    plain, mixed = (curve(home, tmp_path / str(one is None), one, temperature=2) for one in (None, mixture))
    for ours, theirs in zip(mixed, plain, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4)


def test_the_mean_of_two_teachers_is_between_them(home: Path, tmp_path: Path) -> None:
    """KL is convex: of a student's first batch, that to the mean is less than the mean of those to each."""
    first = {
        name: curve(home, tmp_path / name, mixture)[0]["loss_soft"]
        for name, mixture in (
            ("ours", None),
            ("mean", {"how": "average", "others": {"second": 1.0}}),
            ("mostly", {"how": "average", "others": {"second": 1e6}}),
        )
    }
    assert 0 < first["mean"] < (first["ours"] + first["mostly"]) / 2 - 1e-3


@pytest.mark.parametrize(
    "mixture",
    [{"how": "source", "weight": 1.0, "others": {"elsewhere": 3.0}}, {"how": "average", "others": {"second": 1.0}}],
    ids=lambda mixture: mixture["how"],
)
def test_mixtures_are_streamed_as_they_are_held(home: Path, tmp_path: Path, mixture: Mapping[str, Any]) -> None:
    """Units of several stores, read while training goes on: the curve of memory, to the bit."""
    memory, streamed = (
        curve(home, tmp_path / stream, mixture, shuffle_units=4, stream=stream, memory_gb=1e-3)
        for stream in ("never", "always")
    )
    assert streamed == memory and len(memory) > 4


def test_rows_that_the_campaign_is_judged_on_are_not_learnt_from_elsewhere(home: Path, tmp_path: Path) -> None:
    """The other snapshot has all of the campaign's rows, in other splits: none of those that judge it is trained on."""
    again = open_snapshot(freeze(tmp_path, "traffic", 160, seed=1, split_seed=9))
    ref = label(tmp_path, "second-again", again)
    config = job(home, tmp_path, {"how": "source", "others": {"elsewhere": 1.0}}).config
    model = load_model(str(home / "teacher"), task="text_classification")
    labelled = open_labels(config, (LabelSetRef.from_json((home / "labels.json").read_text()), ref))
    own, other = open_sources(config, labelled, model, layers=(), teacher_rows_url=None)
    judged = {
        row
        for split in ("validation", "calibration", "test")
        for row in own.snapshot.read(split, ["row_id"])["row_id"].to_pylist()
    }
    table = other.snapshot.read("train", list(other.columns))
    assert judged & set(table["row_id"].to_pylist()), "the splits must overlap for this to say something"
    for stream in ("never", "always"):
        data = open_data([own, other], TrainingConfig.model_validate({"stream": stream}), ALONE)
        ids = {bytes.fromhex(one) for one in data.train.ids_of(np.arange(data.sources[1], data.train.rows))}
        assert ids == set(table["row_id"].to_pylist()) - judged
        data.train.close()


def test_another_mixture_is_another_student(home: Path, tmp_path: Path) -> None:
    """What was trained without it, or at other weights, is told apart and not taken for it."""
    source = {"how": "source", "others": {"elsewhere": 1.0}}
    losses = {
        json.dumps(mixture): curve(home, tmp_path, mixture)[-1]["loss"]
        for mixture in (None, source, {**source, "weight": 3.0})
    }
    assert len(set(losses.values())) == 3
    with pytest.raises(TrainingError, match=r"with mixture\.weight 3\.0, this run has mixture\.weight 1\.0"):
        run_arms(replace(job(home, tmp_path, source), resume=True), Recorder())


def test_sets_that_do_not_go_together_are_refused(home: Path, tmp_path: Path) -> None:
    """By source: one form of labels, and one teacher's states; of a truncated mean, the temperature that it has."""
    with pytest.raises(ConfigError, match="draws; found T 1, 2 with dense, k 0, no draws, and T 1 with topk"):
        run_arms(job(home, tmp_path, {"how": "source", "others": {"truncated": 1.0}}), Recorder())
    wrong = job(home, tmp_path, {"how": "source", "others": {"elsewhere": 1.0}})
    student = wrong.config.student.model_copy(
        update={"losses": {**wrong.config.student.losses, "hidden": LossConfig()}}
    )
    wrong = replace(wrong, config=wrong.config.model_copy(update={"student": student}))
    with pytest.raises(ConfigError, match="states of another teacher.*leave the losses of hidden states out"):
        run_arms(wrong, Recorder())
    with pytest.raises(ConfigError, match="temperature 2.*1"):
        run_arms(job(home, tmp_path, {"how": "average", "others": {"truncated": 1.0}}, temperature=2), Recorder())


def test_what_a_mixture_cannot_be_is_known_before_anything_is_labelled(home: Path, tmp_path: Path) -> None:
    """A file that is missing or holds something else, draws that have no mean, a temperature that a mean has not."""
    (tmp_path / "other.json").write_text('{"kind": "SnapshotRef", "url": "x", "fingerprint": "y"}')
    config = parse_config(
        {
            **job(home, tmp_path, None).config.model_dump(mode="json", by_alias=True),
            "student": {
                "mixture": {
                    "how": "average",
                    "others": [{"labels": str(tmp_path / "none.json")}, {"labels": str(tmp_path / "other.json")}],
                }
            },
        }
    )
    signal = {"estimator": "hybrid", "temperatures": [1.0, 2.0]}
    drawn = config.model_copy(update={"labels": config.labels.model_copy(update={"signal": SignalConfig(**signal)})})
    (missing,) = check_mixture(drawn)
    assert "student.mixture.others.0.labels" in missing and "none.json" in missing
    assert "student.mixture.others.1.labels" in missing and "expected a LabelSetRef, found a SnapshotRef" in missing
    with_others = {
        name: drawn.model_copy(
            update={
                "task": task,
                "student": StudentConfig.model_validate(
                    {"mixture": {"how": "average", "others": [{"labels": str(home / f"{name}.json")}]}}
                ),
            }
        )
        for name, task in (("second", "text_classification"), ("truncated", "causal_lm"))
    }
    (draws,) = check_mixture(with_others["second"])
    assert "labels.signal.estimator is hybrid" in draws
    assert "of text_classification, and the campaign is of causal_lm" in check_mixture(with_others["truncated"])[0]
    dense = {
        name: own.model_copy(
            update={"labels": config.labels.model_copy(update={"signal": SignalConfig(temperatures=(1.0, 2.0, 3.0))})}
        )
        for name, own in with_others.items()
    }
    assert {name: temperatures_of(own) for name, own in dense.items()} == {"second": (1.0, 2.0), "truncated": (1.0,)}
    assert check_mixture(job(home, tmp_path, None).config) == []
