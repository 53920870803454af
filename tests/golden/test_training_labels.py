"""Students of label sets through the whole training stage: real snapshot, bernoulli store, thresholds in the export.

The curve and the exported model are a function of seed, data and global batch, not of the number of ranks.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from ray_distill.artifacts import LabelSetRef, StudentRef
from ray_distill.config import SnapshotConfig, parse_config
from ray_distill.labels.model.distributions import bernoulli
from ray_distill.labels.model.manifest import StoreManifest
from ray_distill.labels.model.signal import Signal, signal_of
from ray_distill.labels.store.label_store import open_store
from ray_distill.models.io.load import load_model
from ray_distill.snapshots.reader import Snapshot, open_snapshot
from ray_distill.snapshots.take import take_snapshot
from ray_distill.students.job import TrainingJob
from ray_distill.students.run import run_arms
from ray_distill.students.telemetry.curves import curve_url, read_curve
from ray_distill.students.telemetry.reporter import SilentReporter
from ray_distill.testing.gloo import run_gloo
from ray_distill.testing.labels import fake_manifest, label_all
from ray_distill.testing.models import write_tiny_text_model
from tests.labs.multi_label import sets, texts
from tests.labs.training import learnt

CLASSES = ("class0", "class1", "class2")
ARMS = ("student", "baseline_hard_labels", "baseline_teacher_hard_labels")
TASK = "text_multi_label"
ROWS = 400
#: Relative, in float32: summing in another order moves the last bits.
TOLERANCE = 1e-5
Curves = dict[str, dict[int, dict[str, float]]]


@dataclass(frozen=True, kw_only=True)
class Truth:
    """A teacher that is fairly sure of the true sets: log-odds of ±2 and up to 1 more, from the row's id.

    The store has the classes in the opposite order of the snapshot.
    """

    snapshot: Snapshot

    def __call__(self, row_ids: pa.Array, manifest: StoreManifest) -> Signal:
        known = {}
        for split in self.snapshot.manifest.splits:
            table = self.snapshot.read(split, ["row_id", "label"])
            known |= dict(zip(table["row_id"].to_pylist(), table["label"].to_pylist(), strict=True))
        z_RV = np.array([self._log_odds(id_, known[id_] or ()) for id_ in row_ids.to_pylist()], np.float32)
        offsets = np.arange(len(row_ids) + 1, dtype=np.int64)
        return signal_of(
            distributions=bernoulli(z_RV, row_offsets=offsets, temperatures=manifest.distributions.temperatures)
        )

    @staticmethod
    def _log_odds(row_id: bytes, applies: Sequence[int]) -> list[float]:
        return [(2 if label in applies else -2) + row_id[label] / 256 for label in reversed(range(len(CLASSES)))]


def write_home(folder: Path, labelled: float) -> Path:
    """A student's config, a snapshot of which a share of the rows has a known set, and bernoulli labels of all rows."""
    still = dict.fromkeys(("hidden_dropout_prob", "attention_probs_dropout_prob"), 0.0)  # drawn by rank
    write_tiny_text_model(folder / "teacher", CLASSES, seed=1, initializer_range=0.1, **still)
    applies, known = sets(ROWS, seed=4), np.random.default_rng(5).random(ROWS) < labelled
    lines = [
        {"text": text, "label": [CLASSES[at] for at in np.flatnonzero(row)] if seen else None}
        for text, row, seen in zip(texts(applies, seed=4), applies, known, strict=True)
    ]
    (folder / "texts.jsonl").write_text("\n".join(map(json.dumps, lines)))
    config = SnapshotConfig.model_validate(
        {
            "source": str(folder / "texts.jsonl"),
            "columns": {"label": "label"},
            "classes": CLASSES[::-1],
            "splits": {"train": 0.5, "validation": 0.3, "calibration": 0.1, "test": 0.1},
        }
    )
    snapshot = open_snapshot(
        take_snapshot(config, input_column="text", truth="classes", seed=1, url=str(folder / "snapshots"))
    )
    manifest = fake_manifest(classes=len(CLASSES), family="bernoulli", unit_rows=32).model_copy(update={"task": TASK})
    label_all(str(folder / "store"), manifest, snapshot, Truth(snapshot=snapshot))
    (folder / "labels.json").write_text(open_store(str(folder / "store")).ref(snapshot).to_json())
    return folder


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nine of ten sets are known."""
    return write_home(tmp_path_factory.mktemp("labels"), labelled=0.9)


def job_of(home: Path, output: Path, **training: Any) -> TrainingJob:
    """Three arms of a few steps; the temperature is not one that the labels declare."""
    config = parse_config(
        {
            "campaign": "tiny",
            "task": TASK,
            "snapshot": {"source": "unused"},
            "labels": {"teacher": {"model": str(home / "teacher")}},
            "student": {
                "model": {"from": "teacher_layers", "keep": 1},
                "losses": {"soft": {"weight": 0.8, "temperature": 1.5}, "hard": {"weight": 0.2}},
                "training": {
                    "engine": "torch",
                    "epochs": 4,
                    "global_batch": 20,
                    "micro_batch": 5,
                    "learning_rate": 1e-2,
                    "evaluate_every": 5,
                    **training,
                },
            },
        }
    )
    labels = LabelSetRef.from_json((home / "labels.json").read_text())
    return TrainingJob(config=config, labels=labels, output=str(output), arms=ARMS)


def train(job: TrainingJob) -> list[StudentRef]:
    """The stage on this rank."""
    torch.set_num_threads(1)
    return run_arms(job, SilentReporter())


def curves_of(job: TrainingJob) -> Curves:
    return {arm: read_curve(curve_url(job.output, arm)) for arm in ARMS}


@pytest.fixture(scope="module")
def alone(home: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[TrainingJob, list[StudentRef]]:
    """The stage in one process."""
    job = job_of(home, tmp_path_factory.mktemp("alone"))
    return job, train(job)


def thresholds_of(ref: StudentRef) -> dict[str, float]:
    found: dict[str, float] = load_model(ref.url, task=TASK).decision["thresholds"]
    return found


def test_students_learn_and_are_judged_by_true_sets(alone: tuple[TrainingJob, list[StudentRef]]) -> None:
    """Every loss falls, and so does the NLL of a class; a student that knows nothing has log 2."""
    curves = curves_of(alone[0])
    for arm, terms in zip(ARMS, (("soft", "hard"), ("hard",), ("teacher_hard",)), strict=True):
        curve, last = curves[arm], max(curves[arm])
        for term in terms:
            values = [curve[step][f"loss_{term}"] for step in sorted(curve)]
            assert np.mean(values[-5:]) < 0.85 * np.mean(values[:5]), (arm, term)
        assert curve[last]["validation_nll"] < 0.62 < curve[5]["validation_nll"] < np.log(2) + 0.05
        assert curve[last]["validation_macro_f1"] > 0.5


def test_every_arm_is_exported_with_its_thresholds(alone: tuple[TrainingJob, list[StudentRef]]) -> None:
    """One of each label, by the names of the classes; they are part of what identifies the model."""
    for ref in alone[1]:
        found = thresholds_of(ref)
        assert tuple(found) == CLASSES and all(0 < value < 1 for value in found.values())
    assert len({json.dumps(thresholds_of(ref)) for ref in alone[1]}) > 1


def test_few_true_sets_leave_the_teacher_as_judge(tmp_path: Path) -> None:
    """Students are then compared by KL from the teacher, and thresholds follow its decisions."""
    home = write_home(tmp_path, labelled=0.1)
    job = replace(job_of(home, tmp_path / "out"), arms=("student",))
    (ref,) = train(job)
    curve = read_curve(curve_url(job.output, "student"))
    assert curve[max(curve)]["validation_kl"] < curve[5]["validation_kl"]
    assert 0 <= curve[max(curve)]["validation_agreement"] <= 1 and "validation_nll" not in curve[max(curve)]
    assert tuple(thresholds_of(ref)) == CLASSES


@pytest.mark.golden
def test_two_ranks_train_the_same_students(
    home: Path, alone: tuple[TrainingJob, list[StudentRef]], tmp_path: Path
) -> None:
    """The same curves with another micro-batch, in memory and streamed, and the same thresholds."""
    job, refs = alone
    for number, training in enumerate(({}, {"stream": "always", "memory_gb": 1e-3})):
        again = job_of(home, tmp_path / str(number), micro_batch=3, **training)
        ranks = run_gloo(train, 2, again)
        assert ranks[0] == ranks[1]
        for arm, curve in curves_of(job).items():
            other = curves_of(again)[arm]
            assert sorted(other) == sorted(curve)
            for step, values in curve.items():
                assert learnt(other[step]) == pytest.approx(learnt(values), rel=TOLERANCE, abs=1e-6), (arm, step)
        for ref, expected in zip(ranks[0], refs, strict=True):
            assert thresholds_of(ref) == pytest.approx(thresholds_of(expected), abs=1e-4)
