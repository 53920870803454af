"""Answer rows in the batches of a store's plan, which are the same in every process."""

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
from ray_distill.teachers.base import LabelRequest, Teacher

T = TypeVar("T")


def request_of(manifest: StoreManifest, fits: Fits | None = None) -> LabelRequest:
    """Return a store's request to its teacher.

    With the store's ``fits``, the teacher projects hidden states on the store's bases.
    """
    spec, layers = manifest.distributions, tuple(manifest.hidden)
    return LabelRequest(
        estimator=spec.estimator,
        k=spec.k,
        temperatures=spec.temperatures,
        layers=layers,
        pool=manifest.pool,
        draws=spec.draws,
        exponent=spec.exponent,
        seed=spec.seed,
        bases={} if fits is None else bases(layers, fits),
    )


def answer_all(
    teacher: Teacher, encoded: Encoded, request: LabelRequest, batch: int
) -> tuple[pa.Array, Signal, Rejects]:
    """Answer rows in batches of similar length; halve, repeatedly, a batch that exceeds memory.

    Returns:
        Row ids and signal of the rows that can be stored, and ``(row id, reason)`` of the other rows.

    Raises:
        Exception: any error of the teacher; out of memory only for a single row.
    """

    def answer(rows: Rows) -> Signal | Failure:
        return try_answer(lambda: teacher.answer(encoded.take(rows), request), len(rows))

    batches = plan(encoded, batch)
    found = answer_halving(batches, answer)
    order = np.concatenate([np.zeros(0, dtype=np.int64), *batches])
    return split_unusable(encoded.row_ids.take(pa.array(order)), concat_signals(found.parts))


def try_answer(answer: Callable[[], T], rows: int, *, isolated: bool = False) -> T | Failure:
    """Return the answer of a batch, or its failure.

    Args:
        answer: calls the teacher.
        rows: number of rows in the batch.
        isolated: return every failure of the teacher. By default, only lack of memory for several rows is returned,
            because smaller batches help against no other failure.

    Raises:
        DistillError: the package's own error.
        Exception: the teacher's error, unless it is returned as a failure.
    """
    try:
        return answer()
    except DistillError:
        raise
    except Exception as error:
        if not isolated and (rows == 1 or not out_of_memory(error)):
            raise
        # The frames of the traceback keep references to the tensors that filled the memory.
        traceback.clear_frames(error.__traceback__)
        failure = failure_of(error)
    free_memory()
    return failure


def free_memory() -> None:
    """Release the memory of a failed batch."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def plan(encoded: Encoded, batch: int) -> list[Rows]:
    """Return the rows of each batch of the store's plan."""
    order = by_length(encoded)
    return [order[start : start + batch] for start in range(0, len(order), batch)]


def by_length(encoded: Encoded) -> npt.NDArray[np.int64]:
    """Return row indices by ascending length, then by row id.

    So batches have little padding, and the same padding in every run.
    """
    lengths = np.zeros(encoded.rows, dtype=np.int64)
    for feature in encoded.features.values():
        lengths = np.maximum(lengths, np.diff(feature.offsets))
    ids = encoded.row_ids.to_pylist()
    return np.array(sorted(range(encoded.rows), key=lambda row: (lengths[row], ids[row])), dtype=np.int64)
