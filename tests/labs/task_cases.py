"""Cases of the conformance suite: the catalogue's tasks, each with two tiny models and eight rows."""

import functools
import io
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import compress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from PIL import Image

from ray_distill.config import parse_config
from ray_distill.evaluation.predict.batches import run_batch
from ray_distill.models.core.model import Model
from ray_distill.models.io.load import load_model
from ray_distill.snapshots.pairs import pair_text
from ray_distill.tasks.answers.tokens.evaluation.generated_targets import write_targets
from ray_distill.tasks.catalogue import get_task
from ray_distill.testing.models import (
    write_tiny_causal_model,
    write_tiny_image_model,
    write_tiny_seq2seq_model,
    write_tiny_text_model,
)
from ray_distill.testing.tasks import TaskCase, class_answers, continuations
from ray_distill.testing.tasks.case import Answered
from tests.labs.language import sentences

CLASSES = ("bird", "cat", "dog")
ROWS = 8
LABELS = pa.array([0, 1, None, 2, 0, None, 1, 2], pa.int32())
SETS = pa.array([[0], [0, 1], None, [], [2], None, [1, 2], [0]], pa.list_(pa.int32()))
#: Thresholds of the students of label sets; the third label has none.
THRESHOLDS = {"bird": 0.3, "cat": 0.6}

#: Writes a checkpoint, (folder, seed, changes of its config), by the transformers class that loads it.
WRITE: Mapping[str, Callable[..., Path]] = {
    "AutoModelForSequenceClassification": functools.partial(write_tiny_text_model, classes=CLASSES),
    "AutoModelForImageClassification": functools.partial(write_tiny_image_model, classes=CLASSES),
    "AutoModelForCausalLM": write_tiny_causal_model,
    "AutoModelForSeq2SeqLM": functools.partial(write_tiny_seq2seq_model, architecture="bart"),
}


@functools.cache
def case_of(name: str) -> TaskCase:
    """Return the case of a task of the catalogue."""
    torch.set_num_threads(1)
    task, teacher, student = get_task(name), _model(name, seed=0), _model(name, seed=1)
    values, requests = inputs_of(name)
    labels = SETS if task.answers.truth == "classes" else LABELS
    if task.answers.name == "labels":
        student = replace(student, decision={"thresholds": THRESHOLDS})
    return TaskCase(
        task=task,
        teacher=teacher,
        student=student,
        rows=pa.table({"row_id": row_ids(ROWS), task.inputs.column: values, "label": labels}),
        config=config_of(name, pool="mean" if teacher.classes else "token"),
        classes=CLASSES if teacher.classes else (),
        requests=requests,
        params={"max_new_tokens": 9} if task.inputs.name == "chat" else {},
        answered=ANSWERED[task.answers.name, task.inputs.name],
    )


def config_of(task: str, pool: str = "mean", **sections: Any) -> Any:
    """Return a campaign of the task that nothing is wrong with."""
    columns = {"target": "t"} if get_task(task).inputs.name == "pair" else {}
    hidden = {"layers": [-1], "dtype": "float32", "pool": pool}
    value = {
        "campaign": "c",
        "task": task,
        "snapshot": {"source": "s", "columns": columns},
        "labels": {"teacher": {"model": "t"}, "hidden": hidden},
        "student": {"losses": {"soft": {"weight": 0.7}, "hard": {"weight": 0.2}, "hidden": {"weight": 0.1}}},
    }
    return parse_config(value | sections)


def inputs_of(task: str) -> tuple[pa.Array, tuple[str | bytes, ...]]:
    """Return the inputs of the rows, and some requests to a served model."""
    if get_task(task).inputs.binary:
        generator = np.random.default_rng(0)
        images = [_png(generator) for _ in range(ROWS)]
        return pa.array(images, pa.large_binary()), tuple(images[:2])
    texts = sentences(ROWS, seed=3)
    if get_task(task).inputs.name == "pair":
        return pa.array([pair_text(text, text[:9]) for text in texts], pa.large_string()), tuple(texts[:2])
    return pa.array(texts, pa.large_string()), tuple(texts[:2])


def row_ids(rows: int) -> pa.Array:
    """Return ids that do not ascend, so that nothing relies on their order."""
    return pa.array([bytes([(7 * row + 3) % 251]) * 16 for row in range(rows)], pa.binary(16))


def targets(model: Model, requests: Sequence[Any], params: Mapping[str, Any]) -> Mapping[str, Sequence[Any]]:
    """Return what an encoder-decoder writes for each source."""
    rows = {"row_id": row_ids(len(requests)), "text": [pair_text(text, "yes") for text in requests]}
    table = pa.table(rows | {"count": [1] * len(requests)})
    written = write_targets({"student": model}, table, task=get_task(model.task), batch=1)
    return {"generated": written["student"]["written"].to_pylist()}


def label_sets(model: Model, requests: Sequence[Any], params: Mapping[str, Any]) -> Mapping[str, Sequence[Any]]:
    """Return the labels of each request by the student's thresholds, and the probabilities of all."""
    task = get_task(model.task)
    encoded = task.inputs.encode(
        pa.table({"row_id": row_ids(len(requests)), task.inputs.column: list(requests)}), model.processor
    )
    rows = run_batch(model, task, encoded, np.arange(encoded.rows)).double().sigmoid().tolist()
    applies = [[p >= THRESHOLDS.get(name, 0.5) for name, p in zip(model.classes, row, strict=True)] for row in rows]
    return {"labels": [list(compress(model.classes, row)) for row in applies], "probabilities": rows}


#: The answers that are served, by family and inputs.
ANSWERED: Mapping[tuple[str, str], Answered] = {
    ("classes", "text"): class_answers,
    ("classes", "image"): class_answers,
    ("labels", "text"): label_sets,
    ("labels", "image"): label_sets,
    ("tokens", "chat"): continuations,
    ("tokens", "pair"): targets,
}


def _model(name: str, seed: int) -> Model:
    task = get_task(name)
    sets = {"problem_type": "multi_label_classification"} if task.answers.truth == "classes" else {}
    with tempfile.TemporaryDirectory() as folder:
        write = WRITE[task.auto_class]
        return load_model(str(write(folder=Path(folder) / "model", seed=seed, **sets)), task=name)


def _png(generator: np.random.Generator) -> bytes:
    sink = io.BytesIO()
    Image.fromarray(generator.integers(0, 255, (28, 28), dtype=np.uint8)).save(sink, "PNG")
    return sink.getvalue()
