"""Students of their teacher's width: exact where nothing that counts is cut, else the parts with great activations."""

import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch import nn

from ray_distill.config import StudentModel, TeacherConfig
from ray_distill.errors import ConfigError
from ray_distill.models.core.forward import forward
from ray_distill.models.core.model import Model
from ray_distill.models.io.load import load_model
from ray_distill.models.io.save import save_model
from ray_distill.models.students.build import build_student
from ray_distill.models.students.importance import config_of
from ray_distill.models.students.measured import NOTHING_MEASURED, Measured
from ray_distill.models.students.width import WidthScores, measure_width
from ray_distill.tasks.catalogue import get_task
from ray_distill.tasks.encoded import Batch
from ray_distill.testing.models import write_tiny_causal_model, write_tiny_image_model, write_tiny_text_model
from tests.labs.tiny_tokenizers import write_classifier

CLASSES = ("ham", "spam", "other")
TEXTS = ["the parcel did not arrive in time, again", "two", "where is my invoice"]


@pytest.fixture(scope="module", params=["bert", "roberta", "llama"])
def teacher(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Model:
    folder = tmp_path_factory.mktemp("teacher")
    if request.param == "llama":
        return load_model(str(write_tiny_causal_model(folder, 0)), task="causal_lm")
    if request.param == "roberta":
        return load_model(write_classifier(folder, "BPE"), task="text_classification")
    write_tiny_text_model(folder, CLASSES, seed=0, num_attention_heads=4)
    return load_model(str(folder), task="text_classification")


def _batch(teacher: Model) -> Batch:
    inputs = get_task(teacher.task).inputs
    rows = pa.table({"row_id": pa.array([bytes([i]) * 16 for i in range(3)], pa.binary(16)), "text": TEXTS})
    batch: Batch = inputs.collate(inputs.encode(rows, teacher.processor), np.arange(3))
    return batch


def _scores(teacher: Model) -> WidthScores:
    return measure_width(teacher.module, config_of(teacher.module), [_batch(teacher)], teacher.url)


def _student(teacher: Model, scores: WidthScores | None, **values: Any) -> Model:
    return build_student(
        StudentModel.model_validate({"from": "teacher_width", **values}),
        task=teacher.task,
        classes=teacher.classes,
        teacher=TeacherConfig(model=teacher.url),
        seed=0,
        measured=NOTHING_MEASURED if scores is None else Measured(width=scores),
    )


def _logits(module: nn.Module, batch: Batch) -> torch.Tensor:
    with torch.inference_mode():
        return forward(module, batch).logits_BV


def test_keeping_all_is_exact(teacher: Model) -> None:
    """The whole width is the teacher."""
    student = _student(teacher, _scores(teacher), width=1.0)
    apart = _logits(student.module, _batch(teacher)) - _logits(teacher.module, _batch(teacher))
    assert apart.abs().max() < 1e-6


def test_half_of_the_width_is_a_plain_model(teacher: Model, tmp_path: Path) -> None:
    """Of each kind half is kept, whatever was measured; saved and loaded it is the same, with fewer layers too."""
    student = _student(teacher, _scores(teacher), width=0.5, keep=1)
    known, found = config_of(teacher.module), config_of(student.module)
    assert found.num_hidden_layers == 1
    for name in ("hidden_size", "num_attention_heads", "intermediate_size"):
        assert getattr(found, name) == getattr(known, name) // 2, name
    assert student.describe["width"]["channels"] == "16 of 32"
    assert student.describe["parameters"] == _student(teacher, None, width=0.5, keep=1).describe["parameters"]
    save_model(student, tmp_path, card="", metadata={})
    again = load_model(str(tmp_path), task=teacher.task)
    assert torch.equal(_logits(again.module, _batch(teacher)), _logits(student.module, _batch(teacher)))


def _silenced(teacher: Model, folder: Path, what: str, silent: dict[int, list[int]]) -> Model:
    """Save the teacher with neurons or heads that give nothing, by layer, or channels that norms make zero."""
    shutil.copytree(teacher.url, folder)
    own, config = load_model(teacher.url, task=teacher.task).module, config_of(teacher.module)
    size = config.hidden_size // config.num_attention_heads
    for name, weights in own.named_parameters():
        part, found = name.rpartition(".")[0], re.search(r"layers?\.(\d+)\.", name)
        rows = silent.get(int(found[1]) if found else -1, [])
        if what == "channels" and "norm" in part.lower():
            rows = silent[0]
        elif what == "heads" and part.endswith(("attention.self.value", "v_proj")):
            rows = [row for head in rows for row in range(head * size, (head + 1) * size)]
        elif what != "neurons" or not part.endswith(("intermediate.dense", "up_proj")):
            rows = []
        with torch.no_grad():
            weights[rows] = 0
    own.save_pretrained(folder)
    return load_model(str(folder), task=teacher.task)


def test_neurons_that_give_nothing_are_those_cut(teacher: Model, tmp_path: Path) -> None:
    """Without them the student is still its teacher."""
    silent = {layer: [3, 17 + layer] for layer in range(config_of(teacher.module).num_hidden_layers)}
    own = _silenced(teacher, tmp_path / "silent", "neurons", silent)
    scores = _scores(own)
    assert all(scores.neurons[layer][index] == 0 for layer, indices in silent.items() for index in indices)
    student = _student(own, scores, overrides={"intermediate_size": 62})
    apart = _logits(student.module, _batch(own)) - _logits(own.module, _batch(own))
    assert (
        apart.abs().max() < 1e-6 < (_logits(own.module, _batch(own)) - _logits(teacher.module, _batch(own))).abs().max()
    )


def test_heads_that_give_nothing_are_those_cut(tmp_path: Path) -> None:
    """Of a model whose heads have a size of their own: without them the student is still its teacher."""
    teacher = load_model(str(write_tiny_causal_model(tmp_path / "teacher", 0)), task="causal_lm")
    own = _silenced(teacher, tmp_path / "silent", "heads", {0: [1], 1: [0]})  # of keys and values: two heads each
    student = _student(own, _scores(own), overrides={"num_attention_heads": 2})
    config = config_of(student.module)
    assert (config.num_key_value_heads, config.head_dim, config.hidden_size) == (1, 8, 32)
    apart = _logits(student.module, _batch(own)) - _logits(own.module, _batch(own))
    assert apart.abs().max() < 1e-5  # a shorter sum is rounded in another way


def test_channels_that_norms_make_zero_are_those_cut(teacher: Model, tmp_path: Path) -> None:
    """The embeddings of the student are the other columns of the teacher's."""
    half = list(range(0, 32, 2))
    own = _silenced(teacher, tmp_path / "silent", "channels", {0: half})
    student = _student(own, _scores(own), width=0.5)
    kept, known = (one.module.get_input_embeddings().weight for one in (student, own))  # type: ignore[operator]
    assert torch.equal(kept, known[:, 1::2])


def test_width_layers_and_vocabulary_are_cut_together(tmp_path: Path) -> None:
    """Each has its facts in the model card."""
    teacher = load_model(write_classifier(tmp_path, "WordPiece"), task="text_classification")
    values = {"width": 0.5, "layers": [0, 2], "vocabulary": {"tokens": 100}}
    facts = _student(teacher, _scores(teacher), **values).describe
    assert facts["copied_layers"] == {"0": 0, "1": 2} and facts["vocabulary"]["tokens"] == 100
    assert facts["width"] == {"channels": "16 of 32", "heads": "1 of 2", "neurons": "32 of 64"}


def test_sizes_that_do_not_suit_the_teacher_are_refused(tmp_path: Path) -> None:
    """The message names what was found and expected; other families are refused by what can be cut."""
    teacher = load_model(write_classifier(tmp_path / "bert", "WordPiece"), task="text_classification")
    for overrides in ({"hidden_size": 24}, {"hidden_size": 64}, {"num_attention_heads": 1}, {"intermediate_size": 0}):
        with pytest.raises(
            ConfigError, match=r"student\.model\.overrides: found .*; of the teacher .* expected hidden_size up"
        ):
            _student(teacher, None, overrides=overrides)
    images = write_tiny_image_model(tmp_path / "vit", CLASSES, 0)
    with pytest.raises(
        ConfigError, match="is a vit: bert, .* can be cut in width; set from to teacher_layers or config"
    ):
        build_student(
            StudentModel.model_validate({"from": "teacher_width", "width": 0.5}),
            task="image_classification",
            classes=CLASSES,
            teacher=TeacherConfig(model=str(images)),
            seed=0,
            measured=NOTHING_MEASURED,
        )
