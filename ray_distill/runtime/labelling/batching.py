"""Answer many rows in the batches of a store's plan, which are the same in every process."""

import gc
import traceback
from collections.abc import Callable
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ray_distill.errors import DistillError
from ray_distill.labels.format.fitted_arrays import Fits
from ray_distill.labels.format.hidden_states import bases
from ray_distill.labels.model.manifest import StoreManifest
from ray_distill.labels.model.signal import Signal, concat_signals
from ray_distill.labels.model.validity import Rejects, split_unusable
from ray_distill.runtime.core.failures import Failure, Rows, answer_halving, failure_of, out_of_memory
from ray_distill.tasks.encoded import Encoded
from ray_distill.teachers.base import Ask, Teacher

T = TypeVar("T")


def request_of(manifest: StoreManifest, fits: Fits | None = None) -> Ask:
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


def answer_all(teacher: Teacher, encoded: Encoded, request: Ask, batch: int) -> tuple[pa.Array, Signal, Rejects]:
    """Answer rows in batches of like length; a batch that does not fit into memory is halved, and its halves too.

    Returns:
        Row ids and signal of the rows that can be stored, and ``(row id, reason)`` of the others.

    Raises:
        Exception: whatever the teacher raises; out of memory only for a row alone.
    """

    def answer(rows: Rows) -> Signal | Failure:
        return try_answer(lambda: teacher.answer(encoded.take(rows), request), len(rows))

    batches = plan(encoded, batch)
    found = answer_halving(batches, answer)
    order = np.concatenate([np.zeros(0, dtype=np.int64), *batches])
    return split_unusable(encoded.row_ids.take(pa.array(order)), concat_signals(found.parts))


def try_answer(answer: Callable[[], T], rows: int, *, isolated: bool = False) -> T | Failure:
    """Return the answer of a batch, or why there is none.

    Args:
        answer: lets the teacher answer.
        rows: of the batch.
        isolated: return every failure of the teacher. By default only lack of memory for several rows is returned,
            because smaller batches mend nothing else.

    Raises:
        DistillError: it is the package's own error.
        Exception: of the teacher, unless it is returned.
    """
    try:
        return answer()
    except DistillError:
        raise
    except Exception as error:
        if not isolated and (rows == 1 or not out_of_memory(error)):
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
