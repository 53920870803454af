"""Turn a multi-label model's logits into what is measured: log-odds and decided sets.

The thresholds are facts of the model, so they are in the table's schema, not in every row.
"""

import json

import numpy as np
import pyarrow as pa
from torch import Tensor

from ray_distill.evaluation.measures.answer_tables import list_column
from ray_distill.evaluation.measures.intervals import Floats
from ray_distill.evaluation.predict.panel import Panel
from ray_distill.models.core.model import Model
from ray_distill.tasks.answers.labels.sets import set_column

#: Decides a label whose model fitted no threshold.
DEFAULT_THRESHOLD = 0.5

_METADATA = b"thresholds"


def decisions(panel: Panel, arm: str, logits_NV: Tensor) -> pa.Table:
    """Return ``log_odds``, V float32 a row, and ``decided``, the indices of labels that apply.

    See `Columns`. A label applies where its probability is at least the model's threshold.
    """
    model = panel.models[arm]
    log_odds_NV = (logits_NV.detach().float() / model.temperature).cpu().numpy()
    threshold_V = model_thresholds(model, panel.classes)
    decided_NV = probabilities(log_odds_NV.astype(np.float64)) >= threshold_V
    return pa.table(
        {"log_odds": list_column(log_odds_NV), "decided": set_column(decided_NV)},
        metadata={_METADATA: json.dumps(threshold_V.tolist())},
    )


def model_thresholds(model: Model, classes: tuple[str, ...]) -> Floats:
    """Return the model's threshold of each class, ``[V]``."""
    fitted = model.decision.get("thresholds", {})
    return np.array([fitted.get(name, DEFAULT_THRESHOLD) for name in classes], np.float64)


def thresholds_of(answers: pa.Table, classes: int) -> Floats:
    """Return the thresholds that a table of answers states, ``[V]``."""
    stated = (answers.schema.metadata or {}).get(_METADATA)
    return np.full(classes, DEFAULT_THRESHOLD) if stated is None else np.array(json.loads(stated), np.float64)


def probabilities(log_odds_NV: Floats) -> Floats:
    """Return σ(z), exact at ±infinity."""
    with np.errstate(over="ignore"):
        return np.asarray(1.0 / (1.0 + np.exp(-log_odds_NV)))
