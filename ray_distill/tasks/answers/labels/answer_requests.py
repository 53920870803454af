"""Answer requests with a set of labels, from a file that is copied beside the checkpoint.

It imports nothing of the package. Answers are ``labels``, the names that apply, and ``probabilities`` of all classes in
the checkpoint's order, one of each a request. A label applies where its probability is at least the threshold that was
fitted when the student was trained.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

#: Decides a label whose model fitted no threshold; `evaluation.predictions` has the same number.
DEFAULT_THRESHOLD = 0.5


def columns(logits_NV: torch.Tensor, names: Sequence[str], facts: Mapping[str, Any]) -> dict[str, list[Any]]:
    """Return the answers to N requests.

    ``facts`` of the checkpoint have the thresholds by name, and may have a temperature.
    """
    decision = facts.get("decision", {})
    fitted = decision.get("thresholds", {})
    threshold_V = np.array([fitted.get(name, DEFAULT_THRESHOLD) for name in names], np.float64)
    rows = (logits_NV.double() / decision.get("temperature", 1.0)).sigmoid().numpy()
    return {
        "labels": [[names[index] for index in np.flatnonzero(row >= threshold_V).tolist()] for row in rows],
        "probabilities": rows.tolist(),
    }
