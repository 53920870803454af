"""Turn a classifier's logits into what is measured: log-probabilities of every class."""

import pyarrow as pa
import torch

from ray_distill.evaluation.measures.answer_tables import list_column
from ray_distill.evaluation.predict.panel import Panel


def log_probabilities(panel: Panel, arm: str, logits_NV: torch.Tensor) -> pa.Table:
    """Return ``logp``: a list of V float32 natural logs a row; see `Columns`."""
    logits_NV = logits_NV.detach().float() / panel.models[arm].temperature
    return pa.table({"logp": list_column(logits_NV.log_softmax(-1).cpu().numpy())})
