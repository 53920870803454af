"""Cases of the conformance suite: the catalogue's tasks, each with two tiny models and eight rows."""

import functools
import io
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from PIL import Image

from ray_distill.config import parse_config
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
from tests.labs.language import sentences

CLASSES = ("bird", "cat", "dog")
ROWS = 8
LABELS = pa.array([0, 1, None, 2, 0, None, 1, 2], pa.int32())

#: Writes a checkpoint: (folder, seed).
WRITE: Mapping[str, Callable[[Path, int], Path]] = {
    "text_classification": lambda folder, seed: write_tiny_text_model(folder, CLASSES, seed),
    "image_classification": lambda folder, seed: write_tiny_image_model(folder, CLASSES, seed),
    "causal_lm": lambda folder, seed: write_tiny_causal_model(folder, seed),
    "seq2seq": lambda folder, seed: write_tiny_seq2seq_model(folder, seed, architecture="bart"),
}


@functools.cache
def case_of(task: str) -> TaskCase:
    """Return the case of a task of the catalogue."""
    torch.set_num_threads(1)
    teacher, student = (_model(task, seed) for seed in (0, 1))
    values, requests = inputs_of(task)
    rows = {"row_id": row_ids(ROWS), get_task(task).inputs.column: values, "label": LABELS}
    return TaskCase(
        task=get_task(task),
        teacher=teacher,
        student=student,
        rows=pa.table(rows),
        config=config_of(task),
        classes=CLASSES if teacher.classes else (),
        requests=requests,
        params={"max_new_tokens": 9} if task == "causal_lm" else {},
        answered=ANSWERED[task],
    )


def config_of(task: str, **sections: Any) -> Any:
    """Return a campaign of the task that nothing is wrong with."""
    columns = {"target": "t"} if task == "seq2seq" else {}
    hidden = {"layers": [-1], "dtype": "float32", "pool": "token" if not _has_classes(task) else "mean"}
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
    if task == "seq2seq":
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


ANSWERED = {
    "text_classification": class_answers,
    "image_classification": class_answers,
    "causal_lm": continuations,
    "seq2seq": targets,
}


def _model(task: str, seed: int) -> Model:
    with tempfile.TemporaryDirectory() as folder:
        return load_model(str(WRITE[task](Path(folder) / "model", seed)), task=task)


def _has_classes(task: str) -> bool:
    return "classification" in task


def _png(generator: np.random.Generator) -> bytes:
    sink = io.BytesIO()
    Image.fromarray(generator.integers(0, 255, (28, 28), dtype=np.uint8)).save(sink, "PNG")
    return sink.getvalue()
