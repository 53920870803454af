"""What all classification tasks share: one position a row, log-probabilities over all classes."""

from collections.abc import Callable
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from ray_distill.tasks.base import Encoded, Processor, Ragged, Rejected

T = TypeVar("T")


class Unusable(ValueError):
    """Why one row cannot be used; never leaves this folder."""


def sift(
    rows: pa.Table, column: str, read: Callable[[bytes], T]
) -> tuple[list[T], pa.FixedSizeBinaryArray, tuple[Rejected, ...]]:
    """Read an input column row by row: the values that ``read`` accepts, their row ids, and the rest with reasons.

    Args:
        rows: a table with ``row_id`` and the input column (text or binary).
        column: name of the input column.
        read: turns a value's bytes into what a processor takes, or raises `Unusable`.
    """
    ids = rows.column("row_id").cast(pa.binary(16)).combine_chunks()
    values: list[T] = []
    keep: list[int] = []
    rejected: list[Rejected] = []
    for row, data in enumerate(rows.column(column).cast(pa.large_binary()).to_pylist()):
        try:
            values.append(read(_present(data, column)))
            keep.append(row)
        except Unusable as reason:
            rejected.append(Rejected(row_id=ids[row].as_py(), reason=str(reason)))
    return values, ids.take(pa.array(keep, pa.int64())), tuple(rejected)


def log_probabilities(logits_NV: torch.Tensor, row_ids: pa.Array) -> pa.Table:
    """One row an example: ``row_id``, and ``logp`` as a list of V float32 natural logs."""
    logp_NV = logits_NV.detach().float().log_softmax(-1).cpu().numpy()
    rows, classes = logp_NV.shape
    offsets = pa.array(np.arange(rows + 1, dtype=np.int32) * np.int32(classes))
    logp = pa.ListArray.from_arrays(offsets, pa.array(logp_NV.reshape(-1)))
    return pa.table({"row_id": row_ids, "logp": logp})


def pad_sequences(feature: Ragged, index: npt.NDArray[np.int64]) -> torch.Tensor:
    """Rows ``index`` of a feature as one tensor ``[B, L, *inner]``, padded at the end; whole numbers as int64."""
    starts, lengths = feature.offsets[index], feature.offsets[index + 1] - feature.offsets[index]
    longest = int(lengths.max(initial=0))
    steps = np.arange(longest)
    real_BL = steps < lengths[:, None]
    flat = (starts[:, None] + steps)[real_BL]
    kind = np.int64 if np.issubdtype(feature.values.dtype, np.integer) else feature.values.dtype
    out = np.full((len(index), longest, *feature.values.shape[1:]), feature.pad, dtype=kind)
    out[real_BL] = feature.values[flat]
    return torch.from_numpy(out)


def real_tokens(feature: Ragged, index: npt.NDArray[np.int64]) -> torch.Tensor:
    """The attention mask of `pad_sequences`: int64 ``[B, L]``, 1 on real tokens."""
    lengths = feature.offsets[index + 1] - feature.offsets[index]
    return torch.from_numpy((np.arange(int(lengths.max(initial=0))) < lengths[:, None]).astype(np.int64))


def encoded(
    row_ids: pa.FixedSizeBinaryArray, features: dict[str, Ragged], rejected: tuple[Rejected, ...], processor: Processor
) -> Encoded:
    """Put the parts of `Encoded` together, checking that the processor gave every row its features."""
    for name, feature in features.items():
        assert len(feature.offsets) == len(row_ids) + 1, (name, type(processor).__name__)
    return Encoded(row_ids=row_ids, features=features, rejected=rejected)


def _present(data: bytes | None, column: str) -> bytes:
    if data is None:
        raise Unusable(f"no {column}")
    return data
