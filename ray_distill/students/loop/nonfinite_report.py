"""Report a loss that is not finite: save its batch and name its rows."""

import dataclasses
import json
import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from safetensors.torch import save
from torch import Tensor

from ray_distill.errors import Diverged, StorageError
from ray_distill.losses.base import LossBatch
from ray_distill.storage import files
from ray_distill.students.order.cursor import Index
from ray_distill.students.order.micro_batches import MicroBatch
from ray_distill.students.process_group import Ranks
from ray_distill.tasks.encoded import Batch

log = logging.getLogger(__name__)

#: Most rows that a message names; the files name all rows.
SHOWN = 8


def not_finite(
    trial: str,
    url: str,
    ranks: Ranks,
    *,
    step: int,
    steps: int,
    values: Mapping[str, float],
    ids_of: Callable[[Index], list[str]],
    micros: Sequence[MicroBatch],
    batches: Sequence[tuple[Batch, LossBatch]],
    parts: Sequence[Sequence[Tensor]],
) -> Diverged:
    """Save each rank's batch and name the rows to inspect; collective.

    The files below ``url`` are ``step-<n>-rank-<r>.safetensors`` with every tensor of the rank's micro-batches, and
    ``step-<n>-rank-<r>.json`` with their row ids and the micro-batches whose losses are not finite. They contain the
    examples, including the inputs.

    Args:
        trial: name of the trial, for the message.
        url: folder to save in.
        ranks: the process group.
        step: number of the step, from 0; files and message count from 1.
        steps: number of steps of the whole run.
        values: the global losses by name.
        ids_of: returns the ids of rows of the data.
        micros: this rank's micro-batches, as rows of the data.
        batches: the same micro-batches, as tensors.
        parts: shares of the losses, by micro-batch.

    Returns:
        The error to raise; the same on every rank.
    """
    culprits = [number for number, shares in enumerate(parts) if not all(bool(share.isfinite()) for share in shares)]
    marked = [ids_of(_broken_rows(micros[number], batches[number][1])) for number in culprits]
    saved = _save(
        files.join(url, f"step-{step + 1}-rank-{ranks.rank}"), micros, batches, ids_of=ids_of, culprits=culprits
    )
    reports = ranks.gather((marked, [ids_of(_real(micros[number])) for number in culprits], saved))
    broken = [row for marks, _, _ in reports for rows in marks for row in rows]
    near = [row for _, rows, _ in reports for each in rows for row in each]
    kept = next((where for _, _, where in reports if where is not None), None)
    terms = [
        f"the loss term {name.removeprefix('loss_')!r} is {value}"
        for name, value in values.items()
        if name != "loss" and not math.isfinite(value)
    ] or [f"the loss is {values['loss']}"]
    if broken:
        where = f"the labels of {_some(broken)} are not finite: label again into a new store (labels.store)"
    elif near:
        where = (
            f"it came from {len(near)} rows, {_some(near)}; their labels are finite, so lower the learning rate, "
            "or prefer precision bf16 or fp32 to fp16"
        )
    else:
        where = "each micro-batch alone is finite; lower the learning rate, or prefer precision bf16 or fp32 to fp16"
    note = f"; the batch is saved in {kept}" if kept is not None else "; the batch could not be saved"
    return Diverged(f"{trial}: {', '.join(terms)} at step {step + 1} of {steps}; {where}{note}")


def _real(micro: MicroBatch) -> Any:
    return micro.rows[micro.real]


def _broken_rows(micro: MicroBatch, batch: LossBatch) -> Any:
    """Return the rows with a position whose stored labels have NaN or +inf; -inf means "absent".

    Infinite log-odds are certainty and are not broken.
    """
    bad = np.zeros(len(batch.labels_B), dtype=np.bool_)
    for name, tensor in _flat("", batch).items():
        if tensor.is_floating_point() and len(tensor) == len(bad):
            wrong = tensor.isnan() if name.endswith(".log_odds_NK") else tensor.isnan() | (tensor == math.inf)
            bad |= wrong.reshape(len(bad), -1).any(dim=1).cpu().numpy()
    owner = np.arange(len(bad)) if batch.row_B is None else batch.row_B.cpu().numpy()
    rows = np.unique(owner[bad])
    return micro.rows[rows[micro.real[rows]]]


def _save(
    url: str,
    micros: Sequence[MicroBatch],
    batches: Sequence[tuple[Batch, LossBatch]],
    *,
    ids_of: Callable[[Index], list[str]],
    culprits: Sequence[int],
) -> str | None:
    """Write this rank's batch and return its URL; None if storage fails, which is logged."""
    tensors = {
        f"{number}.{name}": tensor.detach().cpu().contiguous()
        for number, (inputs, batch) in enumerate(batches)
        for name, tensor in {**_flat("inputs", inputs), **_flat("batch", batch)}.items()
    }
    facts = {
        "rows": [ids_of(micro.rows) for micro in micros],
        "real": [micro.real.tolist() for micro in micros],
        "not_finite": list(culprits),
    }
    try:
        files.write_bytes(f"{url}.safetensors", save(tensors))
        files.write_bytes(f"{url}.json", json.dumps(facts, indent=1).encode())
    except StorageError as error:
        log.warning("the batch of a loss that is not finite could not be saved: %s", error)
        return None
    return f"{url}.safetensors"


def _flat(prefix: str, value: Any) -> dict[str, Tensor]:
    """Return every tensor in nested mappings and dataclasses, by its path."""
    return dict(_tensors(prefix, value))


def _tensors(prefix: str, value: Any) -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        yield prefix, value
    elif dataclasses.is_dataclass(value):
        for each in dataclasses.fields(value):
            yield from _tensors(f"{prefix}.{each.name}", getattr(value, each.name))
    elif isinstance(value, Mapping):
        for name, inner in value.items():
            yield from _tensors(f"{prefix}.{name}", inner)


def _some(rows: Sequence[str]) -> str:
    shown = ", ".join(rows[:SHOWN])
    return shown + (f" and {len(rows) - SHOWN} more" if len(rows) > SHOWN else "")
