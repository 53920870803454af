"""A teacher's answer for many rows, in the batches that a store's plan decides: the same wherever it is asked."""

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ray_distill.labels.checks import Rejects, split_unusable
from ray_distill.labels.manifest import StoreManifest
from ray_distill.labels.schema import concat_signals
from ray_distill.labels.signal import Signal
from ray_distill.tasks.base import Encoded
from ray_distill.teachers.base import Ask, Teacher


def ask_of(manifest: StoreManifest) -> Ask:
    """What a store wants of its teacher."""
    return Ask(
        estimator=manifest.estimator, k=manifest.k, temperatures=manifest.temperatures, layers=manifest.hidden_layers,
        pool=manifest.pool, draws=manifest.draws, exponent=manifest.exponent, seed=manifest.seed)


def answer_all(teacher: Teacher, encoded: Encoded, ask: Ask, batch: int) -> tuple[pa.Array, Signal, Rejects]:
    """Answer rows in batches of like length.

    Returns:
        Row ids and signal of the rows that can be stored, and ``(row id, reason)`` of the others.
    """
    order = by_length(encoded)
    parts = [encoded.take(order[start : start + batch]) for start in range(0, len(order), batch)]
    row_ids = pa.concat_arrays([encoded.row_ids.slice(0, 0), *(part.row_ids for part in parts)])
    return split_unusable(row_ids, concat_signals([teacher.answer(part, ask) for part in parts]))


def by_length(encoded: Encoded) -> npt.NDArray[np.int64]:
    """Row indices by ascending length, then by row id, so that batches are padded little and always alike."""
    lengths = np.zeros(encoded.rows, dtype=np.int64)
    for feature in encoded.features.values():
        lengths = np.maximum(lengths, np.diff(feature.offsets))
    ids = encoded.row_ids.to_pylist()
    return np.array(sorted(range(encoded.rows), key=lambda row: (lengths[row], ids[row])), dtype=np.int64)
