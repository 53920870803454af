"""Students of an encoder with a fitted head pool their states as that head does, and load everywhere."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification, BertConfig, BertModel

from ray_distill.config import HeadConfig, StudentModel, TeacherConfig
from ray_distill.errors import ConfigError
from ray_distill.models.core.forward import forward, pool_hidden
from ray_distill.models.core.model import Model
from ray_distill.models.heads.pooled_classifier import PooledClassifier
from ray_distill.models.io.load import load_model
from ray_distill.models.io.save import save_model
from ray_distill.models.students.build import build_student
from ray_distill.models.students.measured import Measured
from ray_distill.models.students.width import WidthScores
from ray_distill.tasks.answers import row_requests
from ray_distill.testing.models import tiny_tokenizer, write_tiny_causal_model, write_tiny_text_model

TEXT, CLASSES = "text_classification", ("ham", "spam", "other")
WIDTH = WidthScores(channels=(1.0,) * 32, heads=((1.0,) * 2,) * 3, neurons=((1.0,) * 32,) * 3)
SHAPES = {
    "no layers": {"from": "teacher_layers", "keep": 0},
    "layers": {"from": "teacher_layers", "keep": 2},
    "width": {"from": "teacher_width", "width": 0.5, "keep": 1},
    "drawn": {"from": "config", "overrides": {"num_hidden_layers": 1}},
    "tokens": {"from": "teacher_layers", "keep": 1, "vocabulary": {"tokens": 109}},
}


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, tokenizer = tmp_path_factory.mktemp("models") / "encoder", tiny_tokenizer()
    torch.manual_seed(0)
    config = BertConfig(
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=32,
        vocab_size=len(tokenizer),
        max_position_embeddings=64,
    )
    BertModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def _student(encoder: Path, pool: str = "mean", seed: int = 1, **values: object) -> Model:
    spec = TeacherConfig(model=str(encoder), head=HeadConfig(pool=pool))
    measured = Measured(counts=np.arange(len(tiny_tokenizer()), dtype=np.int64), width=WIDTH)
    return build_student(
        StudentModel.model_validate(values), task=TEXT, classes=CLASSES, teacher=spec, seed=seed, measured=measured
    )


@torch.inference_mode()
def _logits(module: torch.nn.Module, texts: list[str]) -> torch.Tensor:
    """Logits of texts, padded to the longest."""
    batch = tiny_tokenizer()(texts, padding=True, padding_side="right", return_tensors="pt")
    return forward(module, batch).logits_BV


@pytest.mark.parametrize("pool", ["mean", "cls", "last"])
def test_logits_are_those_of_the_pooled_states(encoder: Path, pool: str) -> None:
    """The head reads the last states as the teacher's pooling makes them, whatever pads a text."""
    module = _student(encoder, pool, **SHAPES["layers"]).module
    batch = tiny_tokenizer()(["abc", "12 345 de"], padding=True, padding_side="right", return_tensors="pt")
    with torch.inference_mode():
        states = module.body(**batch).last_hidden_state
        expected = module.classifier(pool_hidden(states, batch["attention_mask"].bool(), pool))
    found = _logits(module, ["abc", "12 345 de"])
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(found[:1], _logits(module, ["abc"]))


def test_layers_come_from_the_encoder(encoder: Path) -> None:
    """Embeddings and the first and last layer are copied; the head alone is drawn."""
    own, found = BertModel.from_pretrained(encoder).state_dict(), _student(encoder, **SHAPES["layers"])
    state = found.module.state_dict()
    assert torch.equal(state["body.embeddings.word_embeddings.weight"], own["embeddings.word_embeddings.weight"])
    for layer, origin in ((0, 0), (1, 2)):
        name = "attention.self.query.weight"
        assert torch.equal(state[f"body.encoder.layer.{layer}.{name}"], own[f"encoder.layer.{origin}.{name}"])
    assert not any("pooler" in name for name in state)
    heads = [_student(encoder, seed=seed, **SHAPES["layers"]).module.classifier.weight for seed in (1, 1, 2)]
    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[0], heads[2])


def test_a_student_without_layers_drops_nothing_out(encoder: Path) -> None:
    """It answers while it is trained as it does later; students with layers drop states out as their teacher did."""
    batch = tiny_tokenizer()(["abc", "12 345 de"], padding=True, padding_side="right", return_tensors="pt")
    trained = {shape: _student(encoder, **SHAPES[shape]).module.train() for shape in ("no layers", "layers")}
    equal = {
        shape: torch.equal(forward(module, batch).logits_BV, forward(module, batch).logits_BV)
        for shape, module in trained.items()
    }
    assert equal == {"no layers": True, "layers": False}


@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_is_saved_and_loads(encoder: Path, tmp_path: Path, shape: str) -> None:
    """A saved student gives the same logits here, in plain transformers, and where it is served without the package."""
    student, texts = _student(encoder, **SHAPES[shape]), ["abc", "12 345 de"]
    assert isinstance(student.module, PooledClassifier)
    save_model(student, tmp_path / "saved", card="", metadata={})
    loaded = load_model(str(tmp_path / "saved"), task=TEXT)
    assert loaded.classes == CLASSES
    state = loaded.module.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in student.module.state_dict().items())
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path / "saved", trust_remote_code=True).eval()
    assert type(plain) is not PooledClassifier, "it comes from the file beside the weights"
    expected = _logits(loaded.module, texts)
    assert torch.equal(_logits(plain, texts), expected)
    seen: list[torch.Tensor] = []
    answers = SimpleNamespace(columns=lambda logits, names, facts: {"names": names, "seen": seen.append(logits)})
    answer = row_requests.load(tmp_path / "saved", task=TEXT, column="text", answers=answers, pixels=None)
    assert answer(texts, {})["names"] == list(CLASSES)
    torch.testing.assert_close(seen[0], expected.double())


def test_a_saved_one_is_a_start(encoder: Path, tmp_path: Path) -> None:
    """A student that starts from a saved one keeps its head, in the order of the classes."""
    first = _student(encoder, **SHAPES["layers"])
    save_model(first, tmp_path / "saved", card="", metadata={})
    again = build_student(
        StudentModel.model_validate({"from": "checkpoint", "model": str(tmp_path / "saved")}),
        task=TEXT,
        classes=("spam", "other", "ham"),
        teacher=TeacherConfig(model=str(encoder), head=HeadConfig()),
        seed=5,
    )
    expected = _logits(first.module, ["abc"])[:, [1, 2, 0]]
    torch.testing.assert_close(_logits(again.module, ["abc"]), expected)


@pytest.mark.parametrize("pool", ["cls", "last"])
def test_no_layers_need_the_mean(encoder: Path, pool: str) -> None:
    """One token's embedding would be all that such a student reads."""
    with pytest.raises(ConfigError, match="keep is 0"):
        _student(encoder, pool, **SHAPES["no layers"])


@pytest.mark.parametrize("task", [TEXT, "causal_lm"])
def test_no_layers_need_a_fitted_head(tmp_path: Path, task: str) -> None:
    """A classifier or language model pools nothing."""
    folder = write_tiny_text_model(tmp_path, CLASSES, 0) if task == TEXT else write_tiny_causal_model(tmp_path, 0)
    with pytest.raises(ConfigError, match="keep is 0"):
        build_student(
            StudentModel.model_validate(SHAPES["no layers"]),
            task=task,
            classes=CLASSES if task == TEXT else (),
            teacher=TeacherConfig(model=str(folder)),
            seed=0,
            vocabulary=None if task == TEXT else 264,
        )
