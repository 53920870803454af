"""A language model's campaign in one process: real snapshot, real label store, students trained from it; no cluster."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from ray_distill.artifacts import LabelSetRef, SnapshotRef, StudentRef
from ray_distill.config import Campaign, parse_config
from ray_distill.labels.store.label_store import create_or_open
from ray_distill.labels.store.writer import write_attempt
from ray_distill.models.io.load import load_processor
from ray_distill.runtime.labelling.batching import answer_all, request_of
from ray_distill.runtime.labelling.identify_teacher import make_manifest, prepare_teacher
from ray_distill.runtime.stages.snapshot import freeze
from ray_distill.snapshots.reader import open_snapshot
from ray_distill.students.job import TrainingJob
from ray_distill.students.run import run_arms
from ray_distill.tasks.catalogue import TASKS
from ray_distill.tasks.encoded import Encoded
from ray_distill.teachers.base import LabelRequest
from ray_distill.teachers.transformers_teacher import TransformersTeacher, open_teacher
from tests.labs.training import Recorder

SPLITS = {"train": 0.6, "validation": 0.2, "calibration": 0.1, "test": 0.1}
TRAINING = {
    "engine": "torch",
    "epochs": 1,
    "global_batch": 12,
    "micro_batch": 4,
    "learning_rate": 3e-3,
    "evaluate_every": 3,
    "checkpoint_every": 100,
}


def documents(rows: int, seed: int) -> list[str]:
    """Distinct texts of 4 to 40 random letters."""
    rng = np.random.default_rng(seed)
    return ["".join(rng.choice(list("abcdefgh "), rng.integers(4, 40))) + "z" for _ in range(rows)]


def write_texts(path: Path, texts: Sequence[Any]) -> Path:
    """Write texts as JSONL."""
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    return path


def config_of(folder: Path, source: Path, *, training: Mapping[str, Any] | None = None, **labels: Any) -> Campaign:
    """A campaign whose output is the folder; ``labels`` replace sections of its labels."""
    return parse_config(
        {
            "campaign": "tiny",
            "task": "causal_lm",
            "output": str(folder / "out"),
            "snapshot": {"source": str(source), "splits": SPLITS, "max_bad_fraction": 1},
            "labels": {"unit_rows": 16, "resources": {"batch": 8}, "signal": {"estimator": "topk", "k": 8}, **labels},
            "student": {
                "model": {"from": "teacher_layers", "keep": 1},
                "losses": {"soft": {"weight": 0.8}, "hard": {"weight": 0.2}},
                "training": {**TRAINING, **(training or {})},
            },
        }
    )


@dataclass(frozen=True, kw_only=True)
class Labeller:
    """Labels what is pending and keeps the ids of the rows the teacher was asked for."""

    config: Campaign
    asked: list[bytes] = field(default_factory=list)
    rejected: dict[bytes, str] = field(default_factory=dict)

    def label(self, snapshot: SnapshotRef) -> LabelSetRef:
        """Label one unit after the other, as the stages of a cluster do."""
        settings, opened = self.config.labels, open_snapshot(snapshot)
        manifest = make_manifest(self.config, prepare_teacher(self.config, snapshot, None))
        store, task = create_or_open(self.config.store_url, manifest), TASKS[self.config.task]
        for unit in store.pending(opened):
            rows = opened.read_shard(opened.shard(unit.shard), ["row_id", task.inputs.column])
            encoded = task.inputs.encode(
                rows.take(pa.array(unit.rows)), load_processor(settings.teacher, task=self.config.task)
            )
            teacher = open_teacher(settings.teacher, task=self.config.task)
            ids, signal, unusable = answer_all(
                _Asked(teacher=teacher, ids=self.asked), encoded, request_of(manifest), manifest.batch
            )
            rejected = [*unusable, *((row.row_id, row.reason) for row in encoded.rejected)]
            self.rejected.update(rejected)
            store.commit([write_attempt(store.url, manifest, unit, row_ids=ids, signal=signal, rejected=rejected)])
        return store.ref(open_snapshot(snapshot))


@dataclass(frozen=True, kw_only=True)
class _Asked:
    """A teacher that notes whom it was asked for."""

    teacher: TransformersTeacher
    ids: list[bytes]

    fingerprint = ""
    classes = ()
    vocabulary = 0

    def answer(self, encoded: Encoded, request: LabelRequest) -> Any:
        self.ids.extend(encoded.row_ids.to_pylist())
        return self.teacher.answer(encoded, request)


def labelled(config: Campaign) -> LabelSetRef:
    """Freeze the campaign's source and label it."""
    return Labeller(config=config).label(freeze(config))


def train(
    config: Campaign, labels: LabelSetRef, output: Path, arms: tuple[str, ...] = ("student",)
) -> tuple[dict[str, StudentRef], Recorder]:
    """Train arms from stored labels; their references, and what was recorded."""
    recorder = Recorder()
    refs = run_arms(TrainingJob(config=config, arms=arms, output=str(output), labels=labels), recorder)
    return {ref.arm: ref for ref in refs}, recorder
