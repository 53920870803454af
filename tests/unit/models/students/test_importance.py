"""Layers by importance: the teacher is run without them, and the one that is missed least goes first."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
import transformers
from torch import nn

from ray_distill.config import StudentModel, TeacherConfig
from ray_distill.errors import ModelError
from ray_distill.models.core.forward import forward
from ray_distill.models.core.model import Model
from ray_distill.models.io.load import load_model
from ray_distill.models.students.build import build_student
from ray_distill.models.students.importance import DIVERGENCES, choose_layers, config_of, rows_of, without_layers
from ray_distill.tasks.catalogue import get_task
from ray_distill.tasks.encoded import Batch
from ray_distill.testing.models import tiny_tokenizer, write_tiny_causal_model, write_tiny_text_model

CLASSES = ("ham", "spam", "other")
TASKS = {"bert": "text_classification", "modern": "text_classification", "llama": "causal_lm"}


def _write_modern(folder: Path) -> Path:
    """Write a model whose layers differ: every third attends to all tokens, the others to near ones."""
    tokenizer = tiny_tokenizer()
    torch.manual_seed(0)
    config = transformers.ModernBertConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=5,
        num_attention_heads=2,
        intermediate_size=48,
        max_position_embeddings=64,
        local_attention=4,
        initializer_range=0.5,
        pad_token_id=0,
        id2label=dict(enumerate(CLASSES)),
        label2id={name: index for index, name in enumerate(CLASSES)},
    )
    transformers.ModernBertForSequenceClassification(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module", params=TASKS)
def teacher(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Model:
    folder = tmp_path_factory.mktemp("teacher")
    write: dict[str, Any] = {
        "bert": lambda: write_tiny_text_model(folder, CLASSES, seed=0, num_hidden_layers=5),
        "modern": lambda: _write_modern(folder),
        "llama": lambda: write_tiny_causal_model(folder, 0, num_hidden_layers=5),
    }
    return load_model(str(write[request.param]()), task=TASKS[request.param])


def _batch(teacher: Model) -> Batch:
    inputs: Any = get_task(teacher.task).inputs
    texts = ["the parcel did not arrive in time, again", "two", "where is my invoice"]
    rows = pa.table({"row_id": pa.array([bytes([i]) * 16 for i in range(3)], pa.binary(16)), "text": texts})
    batch: Batch = inputs.collate(inputs.encode(rows, teacher.processor), np.arange(3))
    return batch


def _logits(module: nn.Module, batch: Batch) -> torch.Tensor:
    with torch.inference_mode():
        return forward(module, batch).logits_BV


def _silence(module: nn.Module, layer: int) -> None:
    """Let a layer add nothing to its input."""
    for name, part in module.named_modules():
        last = name.rpartition(".")[2]
        adds = name.endswith(("attention.output.dense", f"{layer}.output.dense")) or last in (
            "o_proj",
            "down_proj",
            "Wo",
        )
        if isinstance(part, nn.Linear) and f".{layer}." in name and adds:
            for weights in part.parameters():
                nn.init.zeros_(weights)


def test_a_teacher_without_layers_is_the_student_with_the_others(teacher: Model) -> None:
    """Both give the same logits, and afterwards the teacher is what it was."""
    batch, kept = _batch(teacher), (0, 2, 3)
    settings = StudentModel.model_validate({"from": "teacher_layers", "layers": kept})
    student = build_student(
        settings, task=teacher.task, classes=teacher.classes, teacher=TeacherConfig(model=teacher.url), seed=0
    )
    before, config = _logits(teacher.module, batch), config_of(teacher.module).to_dict()
    with without_layers(teacher.module, kept, 5):
        assert torch.equal(_logits(teacher.module, batch), _logits(student.module, batch))
    assert torch.equal(_logits(teacher.module, batch), before)
    assert config_of(teacher.module).to_dict() == config


@pytest.mark.parametrize("idle", [1, 3])
def test_a_layer_that_does_nothing_goes_first(teacher: Model, idle: int) -> None:
    """Its absence changes no answer; the others leave in an order in which fewer layers are missed more, or as much."""
    own = load_model(teacher.url, task=teacher.task)
    _silence(own.module, idle)
    found = choose_layers(own.module, [_batch(own)], depth=5, keep=2, family="categorical")
    assert found.removed[0] == idle and found.kl[0] < 1e-6 < found.kl[-1]
    assert sorted((*found.kept, *found.removed)) == list(range(5)) and len(found.kept) == 2
    assert choose_layers(own.module, [_batch(own)], depth=5, keep=2, family="categorical") == found


def test_keeping_all_layers_measures_nothing(teacher: Model) -> None:
    """No layer is left out."""
    found = choose_layers(teacher.module, [_batch(teacher)], depth=5, keep=5, family="categorical")
    assert found.kept == (0, 1, 2, 3, 4) and found.removed == ()


def test_a_model_without_such_a_stack_is_refused() -> None:
    """As for copying layers."""
    with pytest.raises(ModelError, match="Linear has no list of 5 layers"), without_layers(nn.Linear(1, 1), (0,), 5):
        pass


def test_divergences_are_those_of_torch() -> None:
    """Of a softmax, and of one sigmoid a class."""
    known, found = torch.randn(4, 3, dtype=torch.float64), torch.randn(4, 3, dtype=torch.float64)
    p, q = torch.distributions.Categorical(logits=known), torch.distributions.Categorical(logits=found)
    assert torch.allclose(DIVERGENCES["categorical"](known, found), torch.distributions.kl_divergence(p, q))
    yes, no = torch.distributions.Bernoulli(logits=known), torch.distributions.Bernoulli(logits=found)
    assert torch.allclose(DIVERGENCES["bernoulli"](known, found), torch.distributions.kl_divergence(yes, no).sum(-1))


def test_deep_teachers_are_measured_on_fewer_rows() -> None:
    """Passes grow with the square of the depth."""
    assert [rows_of(6, 2), rows_of(12, 4), rows_of(24, 6), rows_of(80, 8)] == [256, 240, 58, 32]
