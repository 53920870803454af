"""Layer maps on real models of every kind of task: what is paired, projected and given as it is."""

import copy
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image

from ray_distill.config import LossConfig
from ray_distill.errors import ConfigError
from ray_distill.losses import catalogue
from ray_distill.models.core.model import Model
from ray_distill.models.io.load import load_model
from ray_distill.snapshots.pairs import pair_text
from ray_distill.students.data.build_examples import build_examples
from ray_distill.students.modules.student_module import StudentModule, make_projections
from ray_distill.students.objective.validate_losses import pairs_of, required_layers
from ray_distill.students.objective.weighted_losses import build_terms
from ray_distill.tasks.answers.tokens.learn import TokenFormat
from ray_distill.tasks.catalogue import TASKS
from ray_distill.tasks.encoded import Batch
from ray_distill.testing.models import (
    write_tiny_causal_model,
    write_tiny_image_model,
    write_tiny_seq2seq_model,
    write_tiny_text_model,
)

STORED, WIDTH = (3, 6, 9, 12), 7
IDS = pa.array([bytes([row]) * 16 for row in range(2)], pa.binary(16))


def image() -> bytes:
    found = io.BytesIO()
    Image.fromarray(np.full((28, 28), 90, np.uint8)).save(found, "PNG")
    return found.getvalue()


KINDS: dict[str, tuple[str, Callable[[Path], Path], dict[str, Any]]] = {
    "text": (
        "text_classification",
        lambda folder: write_tiny_text_model(folder, ("a", "b"), 1),
        {"text": ["one", "two more"]},
    ),
    "vit": (
        "image_classification",
        lambda folder: write_tiny_image_model(folder, ("a", "b"), 1),
        {"image": [image(), image()]},
    ),
    "resnet": (
        "image_classification",
        lambda folder: write_tiny_image_model(folder, ("a", "b"), 1, architecture="resnet"),
        {"image": [image(), image()]},
    ),
    "causal": ("causal_lm", lambda folder: write_tiny_causal_model(folder, 1), {"text": ["one", "two more"]}),
    "seq2seq": (
        "seq2seq",
        lambda folder: write_tiny_seq2seq_model(folder, 1),
        {"text": [pair_text("one", "uno"), pair_text("two", "dos mas")]},
    ),
}


def inputs_of(model: Model, columns: dict[str, Any]) -> Batch:
    table = pa.table({"row_id": IDS, **columns})
    if model.vocabulary:
        return build_examples(
            table,
            answers=TokenFormat(task=TASKS[model.task], vocabulary=model.vocabulary),
            processor=model.processor,
            labels=None,
        ).batch(np.arange(2))[0]
    task = TASKS[model.task]
    return task.inputs.collate(task.inputs.encode(table, model.processor), np.arange(2))


@pytest.mark.parametrize("kind", KINDS)
def test_maps_pair_what_the_bundle_gives(tmp_path: Path, kind: str) -> None:
    """``uniform``, ``last`` and named pairs, a loss each: projected ones at the teacher's width, plain ones at the
    student's."""
    task, write, columns = KINDS[kind]
    model = load_model(str(write(tmp_path)), task=task)
    last = model.layers
    losses = {
        name: LossConfig.model_validate({"layers": spec})
        for name, spec in (("hidden", "uniform"), ("cka", "last"), ("rkd_distance", {"0": 3, str(last): 6}))
    }
    pairs = pairs_of(losses, STORED, model, catalogue.LOSSES)
    assert pairs["hidden"][last] == 12 and 0 not in pairs["hidden"] and len(pairs["hidden"]) == min(4, last)
    assert pairs["cka"] == {last: 12} and pairs["rkd_distance"] == {0: 3, last: 6}
    terms = build_terms(losses, kinds=catalogue.LOSSES, steps=1, temperatures=(1.0,), layers=pairs)
    projected, plain = required_layers(terms)
    module, widths = copy.deepcopy(model.module), dict.fromkeys(STORED, WIDTH)
    projections = make_projections(model, layers=projected, widths=widths, seed=0)
    bundle = StudentModule(module, projections, plain, pool="mean", fuse=model.vocabulary > 0)
    with torch.no_grad():
        logits, hidden, _, states = bundle(inputs_of(model, columns))
    assert sorted(hidden) == sorted(pairs["hidden"]) and sorted(states) == sorted({0, last})
    assert all(given.shape == (len(logits), WIDTH) for given in hidden.values())
    assert all(given.shape == (len(logits), model.widths[layer]) for layer, given in states.items())


@pytest.mark.parametrize("kind", KINDS)
def test_layers_that_are_not_there_are_named_with_the_loss(tmp_path: Path, kind: str) -> None:
    """Of either side, and no pair at all; the setting's own name is in front."""
    task, write, _ = KINDS[kind]
    model = load_model(str(write(tmp_path)), task=task)
    for given, told in (
        ({9: 3}, rf"student\.losses\.cka\.layers: the student has layers 0 to {model.layers}, found 9"),
        ({1: 5}, r"student\.losses\.cka\.layers: the store has the teacher layers \[3, 6, 9, 12\]"),
        ({}, r"student\.losses\.cka\.layers: no pair is given"),
    ):
        with pytest.raises(ConfigError, match=told):
            pairs_of({"cka": LossConfig.model_validate({"layers": given})}, STORED, model, catalogue.LOSSES)
    with pytest.raises(ConfigError, match=r"student\.losses\.relation\.layers: the label store has no hidden states"):
        pairs_of({"relation": LossConfig()}, (), model, catalogue.LOSSES)
