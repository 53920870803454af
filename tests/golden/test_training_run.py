"""The whole training stage in one process: real snapshot, real label store, exported transformers directories."""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import torch
from transformers import AutoModelForSequenceClassification

from ray_distill.artifacts import LabelSetRef
from ray_distill.config import SnapshotConfig, parse_config
from ray_distill.errors import ConfigError, Diverged, TrainingError
from ray_distill.labels.store.label_store import open_store
from ray_distill.models.core.checkpoint_files import read_facts
from ray_distill.models.io.load import load_model
from ray_distill.snapshots.reader import open_snapshot
from ray_distill.snapshots.take import take_snapshot
from ray_distill.students import run
from ray_distill.students.export import export_arm
from ray_distill.students.job import TrainingJob
from ray_distill.students.run import run_arms
from ray_distill.students.telemetry import curves
from ray_distill.students.telemetry.curves import curve_url, read_curve
from ray_distill.students.telemetry.reporter import SilentReporter, TrainingStopped
from ray_distill.testing.labels import fake_manifest, label_all
from ray_distill.testing.models import write_tiny_text_model
from tests.labs.training import Recorder

CLASSES = tuple(f"class{i}" for i in range(5))
ARMS = ("student", "baseline_hard_labels", "baseline_teacher_hard_labels")
TRAINING = {
    "engine": "torch",
    "epochs": 2,
    "global_batch": 40,
    "micro_batch": 40,
    "learning_rate": [1e-3, 1e-2],
    "evaluate_every": 3,
    "checkpoint_every": 2,
}


def freeze(folder: Path, name: str, rows: int, seed: int, split_seed: int = 0) -> Any:
    """A snapshot of random texts, a third of them labelled."""
    rng = np.random.default_rng(seed)
    lines = [
        {"text": "".join(rng.choice(list("abcdefgh"), 9)), "label": CLASSES[i % 5] if i % 3 == 0 else None}
        for i in range(rows)
    ]
    (folder / f"{name}.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    config = SnapshotConfig.model_validate(
        {
            "source": str(folder / f"{name}.jsonl"),
            "columns": {"label": "label"},
            "classes": CLASSES,
            "splits": {"train": 0.6, "validation": 0.2, "calibration": 0.1, "test": 0.1},
        }
    )
    return take_snapshot(config, input_column="text", seed=split_seed, url=str(folder / name))


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher's checkpoint, a snapshot, and its labels with two hidden layers."""
    folder = tmp_path_factory.mktemp("run")
    write_tiny_text_model(folder / "teacher", CLASSES, seed=1)
    snapshot = open_snapshot(freeze(folder, "traffic", 160, seed=1))
    label_all(str(folder / "store"), fake_manifest(layers=(1, 2)), snapshot)
    (folder / "labels.json").write_text(open_store(str(folder / "store")).ref(snapshot).to_json())
    return folder


def job_of(home: Path, output: Path, *, training: Mapping[str, Any] | None = None, **changes: Any) -> TrainingJob:
    """A job on these labels; the student is one layer of the teacher."""
    config = parse_config(
        {
            "campaign": "tiny",
            "task": "text_classification",
            "snapshot": {"source": "unused"},
            "labels": {"teacher": {"model": str(home / "teacher")}},
            "student": {
                "model": {"from": "teacher_layers", "keep": 1},
                "losses": {"soft": {"weight": 0.8, "temperature": 2}, "hard": {"weight": 0.2}, "hidden": {}},
                "training": {**TRAINING, **(training or {})},
            },
        }
    )
    return replace(
        TrainingJob(
            config=config,
            arms=ARMS,
            output=str(output),
            labels=LabelSetRef.from_json((home / "labels.json").read_text()),
        ),
        **changes,
    )


def curves_of(output: Path, *arms: str) -> dict[str, dict[int, dict[str, float]]]:
    """The curves that lie in the files of a job."""
    return {arm: read_curve(curve_url(str(output), arm)) for arm in arms}


TWO = (ARMS[0], ARMS[2])


@pytest.fixture(scope="module")
def whole(home: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    """Two arms with an open end, trained without an interruption."""
    return run_arms(job_of(home, tmp_path_factory.mktemp("whole"), arms=TWO, training=OPEN), SilentReporter())


@pytest.fixture(scope="module")
def trained(home: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Recorder, list[Any]]:
    """All three arms, trained once."""
    output, recorder = tmp_path_factory.mktemp("out"), Recorder()
    return output, recorder, run_arms(job_of(home, output), recorder)


def test_every_arm_is_a_standard_transformers_directory(trained: tuple[Path, Recorder, list[Any]], home: Path) -> None:
    """Plain transformers loads it; so do we, with the fingerprint as revision."""
    output, _, refs = trained
    assert [ref.arm for ref in refs] == list(ARMS)
    for ref in refs:
        module = AutoModelForSequenceClassification.from_pretrained(ref.url)
        assert tuple(module.config.id2label.values()) == CLASSES
        assert load_model(ref.url, task="text_classification").classes == CLASSES
        assert ref.fingerprint.startswith("sha256:") and (output / f"{ref.arm}.json").is_file()
    assert len({ref.fingerprint for ref in refs}) == 3
    assert not any((output / "work").glob("*"))


def test_the_card_names_what_it_was_made_of(trained: tuple[Path, Recorder, list[Any]]) -> None:
    """Teacher, snapshot, labels, config, losses and steps stand in the card and in the metadata."""
    output, _, refs = trained
    card = (output / "student" / "README.md").read_text()
    labels = refs[0].labels
    for text in ("tiny: student", labels.fingerprint, labels.snapshot.fingerprint, "`fake`", '"soft"', "training rows"):
        assert text in card
    text = (output / "student" / "ray_distill.json").read_text()
    metadata = json.loads(text)["metadata"]
    assert metadata["labels_fingerprint"] == labels.fingerprint and metadata["arm"] == "student"
    assert labels.store not in text and labels.snapshot.url not in text, "an output may be moved"


def test_all_arms_have_equal_steps_and_tuning(trained: tuple[Path, Recorder, list[Any]]) -> None:
    """Each arm has one trial a learning rate, each of as many steps as the student's epochs take."""
    _, recorder, _ = trained
    curves = recorder.by_arm
    assert sorted(curves) == sorted(f"{arm}/rate-{rate}" for arm in ARMS for rate in ("0.001", "0.01"))
    assert {max(curve) for curve in curves.values()} == {6}
    assert "loss_hidden" in curves["student/rate-0.01"][1]
    assert "loss_hard" in curves["baseline_hard_labels/rate-0.01"][1]
    kinds = {name for curve in curves.values() for name in curve[6] if name.startswith("validation")}
    assert len(kinds) == 2


def test_resuming_a_finished_job_trains_nothing(
    trained: tuple[Path, Recorder, list[Any]], home: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The same references come back without one step, even without the labels."""
    output, told, refs = trained
    recorder = Recorder()
    with caplog.at_level(logging.INFO):
        assert run_arms(job_of(home, output, resume=True), recorder) == refs
    assert recorder.curve == {} and "student is already trained" in caplog.text
    assert curves_of(output, *told.by_arm) == told.by_arm


def test_exported_models_of_other_settings_are_not_reused(
    trained: tuple[Path, Recorder, list[Any]], home: Path
) -> None:
    """Resuming with another configuration names the difference."""
    output, _, _ = trained
    with pytest.raises(
        TrainingError, match=r"student was made with training\.epochs 2\.0, this run has training\.epochs 3\.0"
    ):
        run_arms(job_of(home, output, training={"epochs": 3}, resume=True), SilentReporter())


def test_a_stopped_job_resumes_to_the_same_model(home: Path, tmp_path: Path) -> None:
    """Stopped in the second trial: the finished trial is kept, the other goes on, the model is the same."""
    whole = run_arms(job_of(home, tmp_path / "whole", arms=("student",)), SilentReporter())

    cut, recorder = Recorder(stop_after=9), Recorder()
    with pytest.raises(TrainingStopped, match=r"student/rate-0\.01: stopped as requested after step 3 of 6"):
        run_arms(job_of(home, tmp_path / "cut", arms=("student",)), cut)
    rest = run_arms(job_of(home, tmp_path / "cut", arms=("student",), resume=True), recorder)
    assert sorted(recorder.curve) == [4, 5, 6]
    assert rest[0].fingerprint == whole[0].fingerprint
    first, second = "student/rate-0.001", "student/rate-0.01"
    taken = {first: cut.by_arm[first], second: cut.by_arm[second] | recorder.by_arm[second]}
    assert curves_of(tmp_path / "cut", first, second) == taken


#: Rates are tried for 24 steps each, then nothing improves after a few of the 72 steps that there may be.
OPEN = {"epochs": None, "learning_rate": "auto", "budget": {"passes": [1, 24], "gain": 0.9}, "evaluate_every": 1}


def test_all_arms_have_the_steps_of_the_student_and_rates_of_their_own(home: Path, tmp_path: Path) -> None:
    """The student ends before the most steps; baselines end with it; each took its best tried rate."""
    refs = run_arms(job_of(home, tmp_path, training=OPEN), SilentReporter())
    facts = {ref.arm: read_facts(ref.url) for ref in refs}
    lengths = {(found["steps"], found["decay_from"], found["most_steps"]) for found in facts.values()}
    assert len(lengths) == 1
    steps, falls, most = lengths.pop()
    assert falls < steps < most == 72
    for arm, found in facts.items():
        assert len(found["tried_rates"]) >= 3
        tried = found["tried_rates"]
        assert found["learning_rate"] == float(min(tried, key=tried.__getitem__))
        curve = read_curve(curve_url(str(tmp_path), arm))
        assert sorted(curve) == list(range(1, steps + 1))
        assert curve[falls]["learning_rate"] == found["learning_rate"] > curve[steps]["learning_rate"] > 0


@pytest.mark.parametrize("part", ["probe", "stable", "falling", "baseline"])
def test_a_job_with_an_open_end_resumes_to_the_same_models(
    home: Path, tmp_path: Path, whole: Sequence[Any], part: str
) -> None:
    """Wherever it is stopped, the same steps are taken and the same bytes are exported."""
    stop, (steps, probes) = {"probe": 10}, _taken(whole[0])
    stop |= {"stable": probes + 5, "falling": probes + steps - 1, "baseline": probes + steps + 30}
    with pytest.raises(TrainingStopped):
        run_arms(job_of(home, tmp_path, arms=TWO, training=OPEN), Recorder(stop_after=stop[part]))
    rest = run_arms(job_of(home, tmp_path, arms=TWO, training=OPEN, resume=True), SilentReporter())
    assert [ref.fingerprint for ref in rest] == [ref.fingerprint for ref in whole]


def _taken(ref: Any) -> tuple[int, int]:
    """Return the steps of an arm's run, and of all runs that tried its rate."""
    facts = read_facts(ref.url)
    return facts["steps"], 12 * len(facts["tried_rates"])


def test_a_rate_at_which_training_diverges_is_not_chosen(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The largest rate gives losses that are not finite; the card lists it, and a smaller one is exported."""
    monkeypatch.setattr(run, "first_rates", lambda *_: (1e-3, 1e-2, 1e30))
    (ref,) = run_arms(job_of(home, tmp_path, arms=ARMS[:1], training=OPEN), SilentReporter())
    tried = read_facts(ref.url)["tried_rates"]
    assert tried["1e+30"] is None and read_facts(ref.url)["learning_rate"] <= 1e-2


def test_a_training_that_diverges_at_every_rate_is_refused(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Five rates are tried; the error is that of the last."""
    monkeypatch.setattr(run, "first_rates", lambda *_: (1e30, 3e30, 9e30))
    with pytest.raises(Diverged, match=r"student/probe-"):
        run_arms(job_of(home, tmp_path, arms=ARMS[:1], training=OPEN), SilentReporter())


def test_the_curve_of_a_killed_run_has_every_step_once(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed once a checkpoint, an outcome or an exported arm is complete, or three steps after a checkpoint: the files
    have the steps before it, and after the run that goes on all of them, with the values of the last time."""

    class Killed(BaseException):
        pass

    metrics = Recorder.metrics

    def kill_at_step_5(self: Recorder, arm: str, step: int, values: Mapping[str, float]) -> None:
        metrics(self, arm, step, values)
        if step == 5:
            raise Killed

    def kill(*_: object, **__: object) -> None:
        raise Killed

    def export_and_be_killed(*told: Any, **values: Any) -> None:
        export_arm(*told, **values)
        raise Killed

    def job(name: str) -> TrainingJob:
        return job_of(
            home, tmp_path / name, arms=ARMS[:1], resume=True, training={"learning_rate": 1e-3, "checkpoint_every": 2}
        )

    monkeypatch.setattr(curves, "WRITE_SECONDS", 0.0)
    for place, owner, name, killing, held in (
        ("checkpoint", Recorder, "checkpoint", kill, {2}),
        ("step", Recorder, "metrics", kill_at_step_5, {0, 2, 4}),
        ("outcome", run, "export_arm", kill, {6}),
        ("export", run, "export_arm", export_and_be_killed, {6}),
    ):
        killed, recorder = Recorder(), Recorder()
        with monkeypatch.context() as patch, pytest.raises(Killed):
            patch.setattr(owner, name, killing)
            run_arms(job(place), killed)
        run_arms(job(place), recorder)
        begun = min(recorder.curve, default=7)
        assert begun - 1 in held and sorted(recorder.curve) == list(range(begun, 7)), place
        expected = killed.by_arm["student"] | recorder.by_arm.get("student", {})
        assert curves_of(tmp_path / place, "student") == {"student": expected}, place
        assert sorted(expected) == list(range(1, 7)), place


def test_rows_of_the_teacher_are_not_distilled(home: Path, tmp_path: Path) -> None:
    """Excluding all unlabelled train rows leaves the student as many rows as the hard-labels baseline."""
    table = open_snapshot(job_of(home, tmp_path).labels.snapshot).read("train", ["row_id", "label"])
    unlabelled = table.filter(pc.is_null(table["label"])).select(["row_id"])
    pq.write_table(unlabelled, tmp_path / "fitted.parquet")
    job = job_of(
        home,
        tmp_path / "out",
        teacher_rows_url=str(tmp_path / "fitted.parquet"),
        arms=("student",),
        training={"learning_rate": 1e-3, "epochs": 1},
    )
    run_arms(job, SilentReporter())
    metadata = json.loads((tmp_path / "out" / "student" / "ray_distill.json").read_text())["metadata"]
    assert metadata["training_rows"] == table.num_rows - unlabelled.num_rows


def test_the_ceiling_trains_on_the_teachers_rows(home: Path, tmp_path: Path) -> None:
    """All its labelled rows, less those the campaign validates or tests on; without them, a clear error."""
    job = job_of(home, tmp_path / "out", arms=("ceiling_true_labels",), training={"learning_rate": 1e-3, "epochs": 1})
    with pytest.raises(ConfigError, match="the arm ceiling_true_labels needs the teacher's labelled rows"):
        run_arms(job, SilentReporter())
    own = freeze(tmp_path, "own", 90, seed=2)
    (ref,) = run_arms(replace(job, ceiling=own), SilentReporter())
    metadata = json.loads((Path(ref.url) / "ray_distill.json").read_text())["metadata"]
    assert metadata["training_rows"] == 30 and metadata["losses"] == {"hard": {}}
    assert torch.isfinite(torch.tensor(list(metadata["validation"].values()))).all()


def test_unknown_arms_and_layers_are_refused(home: Path, tmp_path: Path) -> None:
    """Before anything is trained."""
    with pytest.raises(ConfigError, match="unknown arm 'best'"):
        run_arms(job_of(home, tmp_path, arms=("best",)), SilentReporter())
