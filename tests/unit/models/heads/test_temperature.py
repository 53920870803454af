"""Temperatures as a part of a checkpoint: in its last layer, or in its metadata, for every program that loads it."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest
import torch
import transformers
from torch import Tensor, nn

from ray_distill.config import TeacherConfig
from ray_distill.evaluation.predict.panel import Panel
from ray_distill.models.core.forward import forward
from ray_distill.models.core.model import Model, ModelParts
from ray_distill.models.heads.temperature import linear_head, tempered
from ray_distill.models.io.load import load_model
from ray_distill.models.io.save import save_model
from ray_distill.tasks.answers.classes.evaluation.predictions import log_probabilities
from ray_distill.tasks.answers.labels.answer_requests import columns
from ray_distill.tasks.answers.labels.evaluation.predictions import decisions
from ray_distill.tasks.catalogue import get_task
from ray_distill.teachers.base import LabelRequest
from ray_distill.teachers.transformers_teacher import TransformersTeacher
from ray_distill.testing.models import (
    example,
    tiny_text_processor,
    write_tiny_causal_model,
    write_tiny_image_model,
    write_tiny_text_model,
)
from ray_distill.tracking.mlflow_tracker import MlflowTracker

NAMES, T = ["no", "yes", "maybe"], 2.6
TEXTS, IMAGES = "text_classification", "image_classification"


class Cosine(nn.Module):
    """A classifier by angles: its weights' length changes no logit."""

    def __init__(self, classes: int):
        super().__init__()
        self.embedding = nn.Embedding(200, 16)
        self.centres = nn.Linear(16, classes, bias=False)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, output_hidden_states: bool = False) -> SimpleNamespace:
        """Return ten times the cosines, ``[B, V]``."""
        mean_BD = (self.embedding(input_ids) * attention_mask.unsqueeze(-1)).mean(1)
        logits_BV = self.centres(mean_BD) / self.centres.weight.norm(dim=1) / mean_BD.norm(dim=1, keepdim=True)
        return SimpleNamespace(logits=10 * logits_BV, hidden_states=(mean_BD,))


def cosine(classes: list[str]) -> ModelParts:
    """Build it for ``module:function``."""
    return ModelParts(module=Cosine(len(classes)), processor=tiny_text_processor(), classes=tuple(classes))


def angular(task: str = TEXTS) -> Model:
    spec = TeacherConfig(model="tests.unit.models.heads.test_temperature:cosine", arguments={"classes": NAMES})
    return load_model(spec, task=task)


def loaded(tmp_path: Path, kind: str) -> Model:
    if kind == "text":
        return load_model(str(write_tiny_text_model(tmp_path / kind, NAMES, 0)), task=TEXTS)
    if kind in ("vit", "resnet"):
        return load_model(str(write_tiny_image_model(tmp_path / kind, NAMES, 0, architecture=kind)), task=IMAGES)
    arguments = {"classes": NAMES}
    return load_model(
        TeacherConfig(model="ray_distill.testing.models:tiny_text_model", arguments=arguments), task=TEXTS
    )


def logits_of(model: Model, batch: Mapping[str, Tensor]) -> Tensor:
    with torch.no_grad():
        return forward(model.module, batch).logits_BV.double()


@pytest.mark.parametrize("kind", ["text", "vit", "resnet", "function"])
def test_the_last_layer_gives_the_softmax_at_the_temperature(kind: str, tmp_path: Path) -> None:
    """To rounding, in every class of models, after saving and loading, by plain transformers too; no class changes."""
    model = loaded(tmp_path, kind)
    name, one = next((name, value) for name, value in example(model).items() if name in ("input_ids", "pixel_values"))
    torch.manual_seed(0)
    many = torch.randint(5, 40, (32, 12)) if name == "input_ids" else torch.randn(32, *one.shape[1:])
    batch = {name: many, **({"attention_mask": torch.ones_like(many)} if name == "input_ids" else {})}
    before = logits_of(model, batch)
    done = tempered(model, T)
    assert done.decision == {} and done.temperature == 1
    save_model(done, tmp_path / "saved", card="", metadata={})
    again = load_model(str(tmp_path / "saved"), task=model.task)
    after = logits_of(again, batch)
    assert torch.allclose(after.softmax(-1), (before / T).softmax(-1), atol=1e-6) and again.temperature == 1
    assert torch.equal(after.argmax(-1), before.argmax(-1))
    if kind != "function":
        auto = getattr(transformers, get_task(model.task).auto_class)
        plain = auto.from_pretrained(tmp_path / "saved").eval()
        with torch.no_grad():
            assert torch.allclose(plain(**batch).logits.double().softmax(-1), (before / T).softmax(-1), atol=1e-6)


def test_a_search_for_the_head_changes_no_weight(tmp_path: Path) -> None:
    """Also where no layer is one."""
    for model in (loaded(tmp_path, "text"), angular()):
        before = {name: value.clone() for name, value in model.module.state_dict().items()}
        linear_head(model)
        assert all(torch.equal(value, before[name]) for name, value in model.module.state_dict().items())
    assert linear_head(angular()) is None
    assert tempered(model, 1.0) is model


def test_weights_with_a_second_use_are_no_head(tmp_path: Path) -> None:
    """The head of a language model is its embedding as well."""
    folder = write_tiny_causal_model(tmp_path / "tied", 0, tie_word_embeddings=True)
    assert linear_head(load_model(str(folder), task="causal_lm")) is None


def saved_angular(tmp_path: Path, task: str = TEXTS) -> tuple[Model, Model]:
    model = angular(task)
    done = tempered(model, T)
    save_model(done, tmp_path / "saved", card="", metadata={})
    return model, load_model(str(tmp_path / "saved"), task=task)


def test_another_head_has_its_temperature_in_the_metadata(tmp_path: Path) -> None:
    """Loader, evaluation and teacher engine divide by it; the digest covers it."""
    model, again = saved_angular(tmp_path)
    assert again.decision == {"temperature": T} and again.temperature == T
    batch = example(model)
    logits = logits_of(model, batch)
    assert torch.equal(logits_of(again, batch), logits), "the weights are as they were"
    panel = Panel(task=get_task(TEXTS), models={"student": again}, classes=tuple(NAMES), batch=4, bins=5)
    found = np.array(log_probabilities(panel, "student", logits.float())["logp"].to_pylist())
    assert np.allclose(found, (logits / T).log_softmax(-1).numpy(), atol=1e-5)
    encoded = get_task(TEXTS).inputs.example(again.processor)
    request = LabelRequest(estimator="dense", k=1, temperatures=(1.0,))
    signal = TransformersTeacher(model=again, task=get_task(TEXTS)).answer(encoded, request)
    stored = np.sort(np.exp(signal.distributions.logp))
    assert np.allclose(stored, np.sort((logits / T).softmax(-1).numpy()[0]), atol=1e-5)
    other = save_model(replace(again, decision={"temperature": 3.0}), tmp_path / "other", card="", metadata={})
    assert other != save_model(again, tmp_path / "third", card="", metadata={})


def test_log_odds_are_divided_before_thresholds(tmp_path: Path) -> None:
    """So that a threshold is one of calibrated probabilities."""
    task = "text_multi_label"
    model = replace(angular(task), decision={"temperature": T, "thresholds": {"no": 0.4}})
    panel = Panel(task=get_task(task), models={"student": model}, classes=tuple(NAMES), batch=4, bins=5)
    logits = torch.tensor([[-0.9, 0.1, -0.1], [-1.2, 3.0, 0.0]])
    found = decisions(panel, "student", logits)
    assert np.allclose(found["log_odds"].to_pylist(), logits.numpy() / T)
    assert found["decided"].to_pylist() == [[0, 1], [1, 2]], "sigmoid(-0.9 / 2.6) is above 0.4, and that of -0.9 is not"
    answered = columns(logits.double(), NAMES, {"decision": dict(model.decision)})
    assert answered["labels"] == [["no", "yes"], ["yes", "maybe"]], "a served model decides alike"
    assert np.allclose(answered["probabilities"], (logits / T).sigmoid())


def served(tmp_path: Path, task: str) -> Any:
    tracker = MlflowTracker(f"sqlite:///{tmp_path / 'mlflow.db'}", "temperatures", tmp_path / "spool")
    with tracker.run("train") as run:
        uri = run.model(tmp_path / "saved", name="student", task=task, example="good film", metrics={})
    assert uri is not None
    mlflow.set_tracking_uri(tracker.uri)
    return mlflow.pyfunc.load_model(uri)


@pytest.mark.parametrize("where", ["head", "decision"])
def test_a_served_student_answers_with_calibrated_probabilities(where: str, tmp_path: Path) -> None:
    """In either form, with the same classes."""
    if where == "decision":
        model, _ = saved_angular(tmp_path)
    else:
        model = loaded(tmp_path, "text")
        save_model(tempered(loaded(tmp_path / "copy", "text"), T), tmp_path / "saved", card="", metadata={})
    texts = ["good film", "bad film", "so so"]
    inputs = model.processor.tokenizer(texts, padding=True, return_tensors="pt")  # type: ignore[attr-defined]
    logits = logits_of(model, {name: inputs[name] for name in ("input_ids", "attention_mask")})
    found = served(tmp_path, TEXTS).predict(pd.DataFrame({"text": texts}))
    assert np.allclose(found["probabilities"].tolist(), (logits / T).softmax(-1).numpy(), atol=1e-6)
    assert found["label"].tolist() == [NAMES[at] for at in logits.argmax(-1)]
    assert json.loads((tmp_path / "saved" / "ray_distill.json").read_text())["decision"] == (
        {} if where == "head" else {"temperature": T}
    )
