"""Every task of the catalogue passes the conformance suite that users run on theirs."""

from collections.abc import Callable
from functools import cache

import numpy as np
import pyarrow as pa
import pytest

from ray_distill.config import parse_config
from ray_distill.config.labels import LanguageConfig
from ray_distill.models.text.lm_processor import language_processor
from ray_distill.models.text.seq2seq_processor import pair_processor
from ray_distill.snapshots.pairs import pair_text
from ray_distill.tasks.catalogue import TASKS
from ray_distill.tasks.inputs.pixels import encode_png
from ray_distill.testing.models import (
    tiny_causal_tokenizer,
    tiny_image_processor,
    tiny_pair_tokenizer,
    tiny_text_processor,
)
from ray_distill.testing.tasks import CHECKS, TaskCase

TEXTS = ["a first text of several words", "another one, which is longer than the first", "the third text is here"]


def _processor(task: str) -> object:
    if task == "image_classification":
        return tiny_image_processor()
    if task == "causal_lm":
        return language_processor(tiny_causal_tokenizer(), 128, LanguageConfig())
    if task == "seq2seq":
        return pair_processor(tiny_pair_tokenizer(), 64, LanguageConfig(), start=5)
    return tiny_text_processor()


def _inputs(task: str) -> pa.Array:
    if task == "image_classification":
        grey = np.random.default_rng(0).integers(0, 256, (3, 28, 28, 1)).astype(np.uint8)
        return pa.array([encode_png(pixels) for pixels in grey], pa.large_binary())
    texts = [pair_text(text, text[:9]) for text in TEXTS] if task == "seq2seq" else TEXTS
    return pa.array(texts, pa.large_string())


@cache
def _case(task: str) -> TaskCase:
    columns = {"target": "t"} if task == "seq2seq" else {}
    config = {
        "campaign": "c",
        "task": task,
        "snapshot": {"source": "s", "columns": columns},
        "labels": {"teacher": {"model": "t"}},
    }
    rows = {
        "row_id": pa.array([bytes([row]) * 16 for row in range(3)], pa.binary(16)),
        TASKS[task].inputs.column: _inputs(task),
        "label": pa.array([0, 1, None], pa.int32()),
    }
    return TaskCase(
        task=TASKS[task],
        processor=_processor(task),  # type: ignore[arg-type]
        rows=pa.table(rows),
        config=parse_config(config),
    )


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("check", CHECKS.values(), ids=CHECKS.keys())
def test_a_task_of_the_catalogue_conforms(check: Callable[[TaskCase], None], task: str) -> None:
    """Encoding, rejection, collation, example, views, corruptions, positions, metrics and refusals."""
    check(_case(task))
