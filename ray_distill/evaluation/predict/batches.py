"""Run models over the same encoded rows, and reduce their logits at once, batch by batch."""

from collections.abc import Callable, Iterator, Mapping

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from ray_distill.evaluation.measures.intervals import Ints
from ray_distill.models.core.forward import forward
from ray_distill.models.core.model import Model
from ray_distill.tasks.encoded import Encoded
from ray_distill.tasks.task import Task

#: (arm, its logits of a batch, those of the reference if there is one) -> a row an example.
Reduce = Callable[[str, Tensor, Tensor | None], pa.Table]


def run_models(
    models: Mapping[str, Model],
    task: Task,
    encoded: Encoded,
    batches: Iterator[Ints],
    *,
    reduction: Callable[[Ints], Reduce],
    reference: str | None = None,
) -> dict[str, pa.Table]:
    """Run all models on the same batches.

    No more than two models' logits of one batch exist at once.

    Args:
        models: by arm.
        task: of the models.
        encoded: the rows, as every one of the models reads them.
        batches: which rows run together; each row once.
        reduction: called once a batch with its rows, gives what turns each model's logits into a table.
        reference: the arm whose logits of the batch each reduction receives too; None for no such arm.

    Returns:
        By arm a row an example, in the order of ``encoded``.
    """

    def run(model: Model, index: Ints) -> Tensor:
        return run_batch(model, task, encoded, index)

    parts: dict[str, list[pa.Table]] = {arm: [] for arm in models}
    order: list[Ints] = []
    for index in batches:
        order.append(index)
        reduce = reduction(index)
        beside = None if reference is None else run(models[reference], index)
        for arm, model in models.items():
            # Within one expression, so that a model's logits are freed before the next model's are made.
            parts[arm].append(
                reduce(arm, beside if beside is not None and arm == reference else run(model, index), beside)
            )
    back = np.argsort(np.concatenate(order))
    return {arm: pa.concat_tables(found).take(back) for arm, found in parts.items()}


def run_batch(model: Model, task: Task, encoded: Encoded, index: Ints) -> Tensor:
    """Return the logits of the given rows, ``[B, V]`` or ``[B, L, V]``, on the model's device."""
    with torch.inference_mode():
        return forward(model.module, task.inputs.collate(encoded, index)).logits_BV


def batches_of(length_R: Ints, *, batch: int, most: int | None = None, index: Ints | None = None) -> Iterator[Ints]:
    """Yield rows in batches of like length, the shortest first.

    Args:
        length_R: length of each row, as a batch pads it.
        batch: rows a batch at most.
        most: padded length times rows at most; a longer row is a batch of its own. None for no limit.
        index: which rows; None for all.
    """
    index = np.arange(len(length_R)) if index is None else index
    order, start = index[np.argsort(length_R[index], kind="stable")].astype(np.int64), 0
    while start < len(order):
        stop = min(start + batch, len(order))
        while most is not None and stop - start > 1 and int(length_R[order[stop - 1]]) * (stop - start) > most:
            stop -= 1
        yield order[start:stop]
        start = stop
