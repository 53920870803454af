"""Answers that a served model must give, by family: values of `TaskCase.answered`."""

from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
import pyarrow as pa

from ray_distill.evaluation.predict.batches import run_batch
from ray_distill.models.core.model import Model
from ray_distill.models.text.lm_processor import LanguageProcessor
from ray_distill.models.text.prompts import given_prompt
from ray_distill.tasks.answers.tokens.evaluation.side_by_side import write_side_by_side
from ray_distill.tasks.catalogue import get_task


def class_answers(model: Model, requests: Sequence[Any], params: Mapping[str, Any]) -> Mapping[str, Sequence[Any]]:
    """Return the likeliest class of each request, its probability, and those of all classes."""
    task = get_task(model.task)
    ids = pa.array([row.to_bytes(16, "big") for row in range(len(requests))], pa.binary(16))
    encoded = task.inputs.encode(pa.table({"row_id": ids, task.inputs.column: list(requests)}), model.processor)
    rows = np.arange(encoded.rows, dtype=np.int64)
    probabilities = run_batch(model, task, encoded, rows).double().softmax(-1)
    return {
        "label": [model.classes[int(best)] for best in probabilities.argmax(-1)],
        "probability": probabilities.max(-1).values.tolist(),
        "probabilities": probabilities.tolist(),
    }


def continuations(model: Model, requests: Sequence[Any], params: Mapping[str, Any]) -> Mapping[str, Sequence[Any]]:
    """Return what a causal language model writes after each request, greedily."""
    prompts = [given_prompt(text, cast(LanguageProcessor, model.processor)) for text in requests]
    written = write_side_by_side({"student": model}, prompts, new_tokens=int(params["max_new_tokens"]))
    return {"generated": [item.answers["student"] for item in written]}
