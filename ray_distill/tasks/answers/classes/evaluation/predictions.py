"""Turn a classifier's logits into what is measured: log-probabilities of every class."""

from collections.abc import Mapping

import pyarrow as pa
import torch

from ray_distill.evaluation.measures.answer_tables import list_column
from ray_distill.evaluation.predict.panel import Panel


def log_probabilities(panel: Panel, arm: str, logits_NV: torch.Tensor) -> Mapping[str, pa.Array]:
    """Return ``logp``: a list of V float32 natural logs a row; see `Columns`."""
    return {"logp": list_column(logits_NV.detach().float().log_softmax(-1).cpu().numpy())}
