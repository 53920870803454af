"""A student with batch norm, and data of which one row is left over at the end of an epoch."""

import contextlib
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ray_distill.config import LossConfig, TrainingConfig
from ray_distill.losses import catalogue
from ray_distill.models.core.model import ModelParts
from ray_distill.models.io.load import load_model
from ray_distill.students.engines.torch_engine import TorchEngine
from ray_distill.students.loop.train_loop import train_run
from ray_distill.students.loop.training_run import TrainingRun
from ray_distill.students.modules.student_module import StudentModule
from ray_distill.students.objective.weighted_losses import build_terms
from ray_distill.students.process_group import Ranks
from ray_distill.students.telemetry.reporter import TrainingStopped
from ray_distill.tasks.answers.classes import learn
from ray_distill.testing.models import tiny_text_processor
from tests.labs.training import CLASSES, Recorder, data_of, learnt

ROWS, GLOBAL_BATCH, STEPS = 25, 12, 6
ALONE = Ranks(rank=0, world=1)


class Normed(nn.Module):
    """A bag of embeddings, batch norm, and a head."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.embedding = nn.EmbeddingBag(256, 8)
        self.norm = nn.BatchNorm1d(8)
        self.head = nn.Linear(8, classes)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, output_hidden_states: bool = False) -> SimpleNamespace:
        return SimpleNamespace(logits=self.head(self.norm(self.embedding(input_ids))), hidden_states=None)


def normed(classes: Sequence[str] = CLASSES) -> ModelParts:
    """The student, as ``module:function``."""
    return ModelParts(module=Normed(len(classes)), processor=tiny_text_processor(), classes=tuple(classes))


def _run(folder: Path, micro_batch: int, *, stop_after: int | None = None, resume: bool = False) -> Recorder:
    model = load_model(f"{__name__}:normed", task="text_classification")
    training = TrainingConfig(
        global_batch=GLOBAL_BATCH,
        micro_batch=micro_batch,
        learning_rate=(1e-2,),
        engine="torch",
        evaluate_every=3,
        checkpoint_every=100,
    )
    data = data_of(model, ROWS, 1, 0.5)
    run = TrainingRun(
        name="student",
        url=str(folder),
        curve=str(folder / "curve"),
        data=data,
        rows=np.arange(data.rows),
        steps=STEPS,
        seed=3,
        terms=build_terms(
            {"soft": LossConfig()}, kinds=catalogue.LOSSES, steps=STEPS, temperatures=(1.0, 2.0), layers={}, scales={}
        ),
        judge=learn.validator(data_of(model, 60, 2, 1.0)),
        training=training,
        rate=1e-2,
        plan={},
    )
    recorder = Recorder(stop_after)
    with contextlib.suppress(TrainingStopped):
        train_run(run, TorchEngine(StudentModule(model.module, {}), training, ALONE), ALONE, recorder, resume=resume)
    return recorder


@pytest.mark.parametrize("micro_batch", [12, 6, 4, 2])
def test_a_lone_row_trains_with_the_batch_before_it_and_resumes_bit_for_bit(tmp_path: Path, micro_batch: int) -> None:
    """25 rows in batches of 12 are two steps an epoch; a run stopped at any of them goes on to the same curve."""
    torch.set_num_threads(1)
    whole = _run(tmp_path / "whole", micro_batch)
    assert [whole.curve[step]["examples_per_second"] > 0 for step in whole.curve] == [True] * STEPS
    for step in (1, 2, 3):
        folder = tmp_path / f"cut-{step}"
        first = _run(folder, micro_batch, stop_after=step)
        assert max(first.curve) == step
        rest = _run(folder, micro_batch, resume=True)
        found = {number: learnt(values) for number, values in (first.curve | rest.curve).items()}
        assert found == {number: learnt(values) for number, values in whole.curve.items()}
