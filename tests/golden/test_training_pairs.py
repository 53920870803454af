"""Encoder-decoders on every engine: a head that is spared while its model runs trains alike, partitioned or not."""

from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pytest
import torch

from ray_distill.config import TeacherConfig, TrainingConfig
from ray_distill.labels.model import rowids
from ray_distill.losses.cross_entropy import Hard
from ray_distill.losses.fused import HeadRequest, Part
from ray_distill.losses.soft import Soft
from ray_distill.models.io.load import load_model
from ray_distill.snapshots.pairs import pair_text
from ray_distill.students.data.build_examples import build_examples
from ray_distill.students.engines.build import build_engine
from ray_distill.students.modules.student_module import StudentModule
from ray_distill.students.objective.weighted_losses import to_device
from ray_distill.students.process_group import current_ranks
from ray_distill.tasks.answers.tokens.learn import TokenFormat
from ray_distill.tasks.catalogue import TASKS
from ray_distill.teachers.base import LabelRequest
from ray_distill.teachers.transformers_teacher import open_teacher
from ray_distill.testing.gloo import run_gloo
from ray_distill.testing.labels import row_id
from ray_distill.testing.models import write_tiny_seq2seq_model

pytestmark = pytest.mark.golden

ROWS, STEPS = 8, 4
Family = Literal["t5", "bart"]


def train(folder: str, family: Family, training: dict[str, Any]) -> tuple[list[float], float]:
    """Losses of some steps over all rows, and the sum of the weights' sizes afterwards."""
    quiet: dict[str, Any] = {"dropout_rate": 0.0} if family == "t5" else {"dropout": 0.0}
    for seed, name in enumerate(("teacher", "student")):
        write_tiny_seq2seq_model(Path(folder) / name, seed=seed, architecture=family, **quiet)
    task, teacher = TASKS["seq2seq"], open_teacher(TeacherConfig(model=f"{folder}/teacher"), task="seq2seq")
    rows = pa.table(
        {
            "row_id": pa.array([row_id(number) for number in range(ROWS)], rowids.ROW_ID),
            "text": [pair_text(f"source {number}", "target " * (number % 3 + 1)) for number in range(ROWS)],
        }
    )
    encoded = task.inputs.encode(rows, teacher.model.processor)
    signal = teacher.answer(encoded, LabelRequest(estimator="topk", k=9, temperatures=(1.0,)))
    model = load_model(f"{folder}/student", task="seq2seq")
    data = build_examples(
        rows,
        answers=TokenFormat(task=task, vocabulary=model.vocabulary),
        processor=model.processor,
        labels=(encoded.row_ids, signal),
    )
    engine = build_engine(
        StudentModule(model.module, {}, fuse=True), TrainingConfig.model_validate(training), current_ranks(), passes=1
    )
    engine.train(True)
    losses: list[float] = []

    def once() -> torch.Tensor:
        inputs, stored = data.batch(np.arange(ROWS))
        batch = to_device(stored, engine.device)
        parts = tuple(Part(loss=loss, factor=1 / len(batch.labels_B)) for loss in (Soft(), Hard()))
        found = engine.forward(inputs, HeadRequest(batch=batch, parts=parts)).fused
        assert found is not None
        losses.append(float(found[0].detach()))
        return found[0]

    for _ in range(STEPS):
        engine.step([once], 1e-2)
    size = float(sum(value.abs().sum() for value in engine.weights().values()))
    engine.close()
    return losses, size


@pytest.mark.parametrize("family", ["t5", "bart"])
@pytest.mark.parametrize("stage", [1, 3])
def test_every_engine_takes_the_same_steps(tmp_path: Path, family: Family, stage: int) -> None:
    """DeepSpeed, which gathers a partitioned head each time it is called, and plain torch; the loss falls."""
    plain, size = run_gloo(train, 1, str(tmp_path / "torch"), family, {"engine": "torch"})[0]
    training = {"engine": "deepspeed", "zero_stage": stage}
    found, other = run_gloo(train, 1, str(tmp_path / "deepspeed"), family, training)[0]
    assert found == pytest.approx(plain, rel=1e-4) and other == pytest.approx(size, rel=1e-4)
    assert plain[-1] < 0.9 * plain[0]
