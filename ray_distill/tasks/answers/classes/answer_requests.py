"""Answer requests with a class, from a file that is copied beside the checkpoint.

It imports nothing of the package. Answers are ``label``, ``probability`` and ``probabilities``, one of each a request.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch


def columns(logits_NV: torch.Tensor, names: Sequence[str], facts: Mapping[str, Any]) -> dict[str, list[Any]]:
    """Return the answers to N requests; ``facts`` of the checkpoint may have a temperature."""
    rows = (logits_NV / facts.get("decision", {}).get("temperature", 1.0)).softmax(-1).numpy()
    best = [int(row.argmax()) for row in rows]
    return {
        "label": [names[index] for index in best],
        "probability": [float(row[index]) for row, index in zip(rows, best, strict=True)],
        "probabilities": rows.tolist(),
    }
