"""Run a model over snapshot rows: the one way in which teacher, students and champion answer for evaluation."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from ray_distill.errors import EvaluationError
from ray_distill.models.forward import forward
from ray_distill.models.model import Model
from ray_distill.tasks.base import Encoded, Task


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
        return self.task.encode(rows, self.model.processor)

    def logits(self, encoded: Encoded, index: npt.NDArray[np.int64]) -> torch.Tensor:
        """Answer the given rows as one batch: float32 ``[B, V]`` on the CPU, in the wanted class order."""
        with torch.inference_mode():
            output = forward(self.model.module, self.task.collate(encoded, index))
            return output.logits_BV[:, torch.from_numpy(self.order_V).to(output.logits_BV.device)].float().cpu()

    def predict(self, rows: pa.Table) -> pa.Table:
        """Predictions of the rows the model accepts, in batches of like length: ``row_id``, ``logp``."""
        encoded = self.encode(rows)
        if not encoded.rows:
            raise EvaluationError(f"{self.model.url} accepts none of the {rows.num_rows} rows: "
                                  f"{encoded.rejected[0].reason if encoded.rejected else 'there are none'}")
        lengths = np.max([np.diff(feature.offsets) for feature in encoded.features.values()], axis=0)
        order = np.argsort(lengths, kind="stable").astype(np.int64)
        chunks = [order[start : start + self.batch] for start in range(0, len(order), self.batch)]
        logits = torch.cat([self.logits(encoded, chunk) for chunk in chunks])
        return self.task.predict(logits, encoded.row_ids.take(pa.array(order)))


def predictor(model: Model, task: Task, classes: Sequence[str], *, batch: int) -> Predictor:
    """A predictor that answers in the order of ``classes``.

    Raises:
        EvaluationError: the model has other classes.
    """
    missing, unknown = sorted(set(classes) - set(model.classes)), sorted(set(model.classes) - set(classes))
    if missing or unknown:
        raise EvaluationError(
            f"{model.url} and the snapshot have different classes: only the snapshot has {missing[:5]}, only the model "
            f"has {unknown[:5]}; name them alike (snapshot.classes, or the model's id2label)")
    order = np.array([model.classes.index(name) for name in classes], dtype=np.int64)
    return Predictor(model=model, task=task, order_V=order, batch=batch)
