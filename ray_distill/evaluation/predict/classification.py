"""Run a model over snapshot rows: the one way in which teacher, students and champion answer for evaluation."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from ray_distill.errors import EvaluationError
from ray_distill.models.core.forward import forward
from ray_distill.models.core.model import Model
from ray_distill.tasks.encoded import Encoded
from ray_distill.tasks.task import Task


@dataclass(frozen=True, kw_only=True)
class Predictor:
    """A model with the class order in which its answers are wanted."""

    model: Model
    task: Task
    order_V: npt.NDArray[np.int64]
    """``[V]``: the model's class id of each wanted class."""
    batch: int

    def encode(self, rows: pa.Table) -> Encoded:
        """Features of snapshot rows."""
        return self.task.inputs.encode(rows, self.model.processor)

    def logits(self, encoded: Encoded, index: npt.NDArray[np.int64]) -> torch.Tensor:
        """Answer the given rows as one batch: float32 ``[B, V]`` on the CPU, in the wanted class order."""
        with torch.inference_mode():
            output = forward(self.model.module, self.task.inputs.collate(encoded, index))
            return output.logits_BV[:, torch.from_numpy(self.order_V).to(output.logits_BV.device)].float().cpu()

    def predict(self, encoded: Encoded) -> pa.Table:
        """Predictions of encoded rows, in batches of like length: ``row_id``, ``logp``."""
        lengths = np.max([np.diff(feature.offsets) for feature in encoded.features.values()], axis=0)
        order = np.argsort(lengths, kind="stable").astype(np.int64)
        chunks = [order[start : start + self.batch] for start in range(0, len(order), self.batch)]
        logits = torch.cat([self.logits(encoded, chunk) for chunk in chunks])
        return log_probabilities(logits, encoded.row_ids.take(pa.array(order)))


def log_probabilities(logits_NV: torch.Tensor, row_ids: pa.Array) -> pa.Table:
    """Return one row an example: ``row_id``, and ``logp`` as a list of V float32 natural logs."""
    logp_NV = logits_NV.detach().float().log_softmax(-1).cpu().numpy()
    rows, classes = logp_NV.shape
    offsets = pa.array(np.arange(rows + 1, dtype=np.int32) * np.int32(classes))
    logp = pa.ListArray.from_arrays(offsets, pa.array(logp_NV.reshape(-1)))
    return pa.table({"row_id": row_ids, "logp": logp})


def predict_all(predictors: Mapping[str, Predictor], rows: pa.Table) -> dict[str, pa.Table]:
    """Predictions of every model for the rows it accepts; models with the same processor share its work.

    Raises:
        EvaluationError: a model accepts no row.
    """
    encoded: dict[str, Encoded] = {}
    answers = {}
    for arm, one in predictors.items():
        key = one.model.processor.fingerprint
        if key not in encoded:
            encoded[key] = one.encode(rows)
        if not encoded[key].rows:
            rejected = encoded[key].rejected
            raise EvaluationError(
                f"{one.model.url} accepts none of the {rows.num_rows} rows: "
                f"{rejected[0].reason if rejected else 'there are none'}"
            )
        answers[arm] = one.predict(encoded[key])
    return answers


def predictor(model: Model, task: Task, classes: Sequence[str], *, batch: int) -> Predictor:
    """A predictor that answers in the order of ``classes``.

    Raises:
        EvaluationError: the model has other classes.
    """
    missing, unknown = sorted(set(classes) - set(model.classes)), sorted(set(model.classes) - set(classes))
    if missing or unknown:
        raise EvaluationError(
            f"{model.url} and the snapshot have different classes: only the snapshot has {missing[:5]}, only the model "
            f"has {unknown[:5]}; name them alike (snapshot.classes, or the model's id2label)"
        )
    order = np.array([model.classes.index(name) for name in classes], dtype=np.int64)
    return Predictor(model=model, task=task, order_V=order, batch=batch)
