"""A teacher's answer for many rows, in the batches that a store's plan decides: the same wherever it is asked."""

import contextlib
import gc
import traceback
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ray_distill.labels.format.fitted_arrays import Fits
from ray_distill.labels.format.hidden_states import bases
from ray_distill.labels.model.manifest import StoreManifest
from ray_distill.labels.model.signal import Signal, concat_signals
from ray_distill.labels.model.validity import Rejects, split_unusable
from ray_distill.runtime.core.failures import Failure, Rows, ask_halving, failure_of, out_of_memory
from ray_distill.tasks.encoded import Encoded
from ray_distill.teachers.base import Ask, Teacher

T = TypeVar("T")

#: Entered for each batch: a time limit.
Limit = Callable[[], AbstractContextManager[None]]


def ask_of(manifest: StoreManifest, fits: Fits | None = None) -> Ask:
    """What a store wants of its teacher; with its fits, hidden states come projected on its bases."""
    return Ask(
        estimator=manifest.estimator,
        k=manifest.k,
        temperatures=manifest.temperatures,
        layers=manifest.hidden_layers,
        pool=manifest.pool,
        draws=manifest.draws,
        exponent=manifest.exponent,
        seed=manifest.seed,
        bases={} if fits is None else bases(manifest.hidden_layers, fits),
    )


def answer_all(teacher: Teacher, encoded: Encoded, ask: Ask, batch: int) -> tuple[pa.Array, Signal, Rejects]:
    """`answer_unit` without a time limit: row ids and signal of the usable rows, and the others with a reason."""
    row_ids, signal, unusable, _ = answer_unit(teacher, encoded, ask, batch, contextlib.nullcontext)
    return row_ids, signal, unusable


def answer_unit(
    teacher: Teacher, encoded: Encoded, ask: Ask, batch: int, limit: Limit
) -> tuple[pa.Array, Signal, Rejects, int]:
    """Answer rows in batches of like length; a batch that does not fit into memory is halved, and its halves too.

    Args:
        teacher: who answers.
        encoded: the rows.
        ask: what is wanted.
        batch: rows a batch, as planned.
        limit: entered for each batch.

    Returns:
        Row ids and signal of the rows that can be stored, ``(row id, reason)`` of the others, and
        `Receipt.halved`.

    Raises:
        Exception: whatever the teacher raises; out of memory only for a row alone.
    """

    def one(rows: Rows) -> Signal | Failure:
        with limit():
            return answer_or_memory(teacher, encoded.take(rows), ask)

    batches = plan(encoded, batch)
    found = ask_halving(batches, one)
    order = np.concatenate([np.zeros(0, dtype=np.int64), *batches])
    return *split_unusable(encoded.row_ids.take(pa.array(order)), concat_signals(found.parts)), found.halved


def answer_or_memory(teacher: Teacher, part: Encoded, ask: Ask) -> Signal | Failure:
    """One batch's answer; as `or_memory`."""
    return or_memory(lambda: teacher.answer(part, ask), part.rows)


def or_memory(answer: Callable[[], T], rows: int) -> T | Failure:
    """A batch's answer, or that memory ran out; for a row alone that is raised, as any other error is."""
    try:
        return answer()
    except Exception as error:
        if rows == 1 or not out_of_memory(error):
            raise
        # The frames of the traceback hold the tensors that filled the memory.
        traceback.clear_frames(error.__traceback__)
        failure = failure_of(error)
    free_memory()
    return failure


def free_memory() -> None:
    """Give back what a failed batch left behind."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def plan(encoded: Encoded, batch: int) -> list[Rows]:
    """Rows of each batch, as the store's plan has them."""
    order = by_length(encoded)
    return [order[start : start + batch] for start in range(0, len(order), batch)]


def by_length(encoded: Encoded) -> npt.NDArray[np.int64]:
    """Row indices by ascending length, then by row id, so that batches are padded little and always alike."""
    lengths = np.zeros(encoded.rows, dtype=np.int64)
    for feature in encoded.features.values():
        lengths = np.maximum(lengths, np.diff(feature.offsets))
    ids = encoded.row_ids.to_pylist()
    return np.array(sorted(range(encoded.rows), key=lambda row: (lengths[row], ids[row])), dtype=np.int64)
