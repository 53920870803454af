"""Row ids as flat numpy arrays: 16 bytes each, compared and sorted without Python objects."""

from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ray_distill.artifacts import SnapshotRef
from ray_distill.errors import LabelError

ROW_ID_BYTES = 16
ROW_ID = pa.binary(ROW_ID_BYTES)

#: ``[N]`` of dtype S16. Equal length makes numpy's treatment of trailing zero bytes harmless.
RowIds = npt.NDArray[np.bytes_]


class ShardLike(Protocol):
    """A shard of a snapshot: its name and how many rows it has."""

    @property
    def name(self) -> str:
        """Its name, unique in the snapshot."""

    @property
    def rows(self) -> int:
        """Number of rows."""


class SnapshotRows(Protocol):
    """The part of a snapshot that a label store needs: its shards, and the row ids in each."""

    @property
    def ref(self) -> SnapshotRef:
        """The snapshot's reference."""

    @property
    def shards(self) -> Sequence[ShardLike]:
        """All shards, in a fixed order."""

    def read_shard(self, shard: Any, columns: Sequence[str] | None = None) -> pa.Table:
        """Return the rows of a shard, in a fixed order."""


def to_numpy(column: pa.Array | pa.ChunkedArray) -> RowIds:
    """Return the row ids of a ``fixed_size_binary(16)`` column.

    Raises:
        LabelError: the column is of another type, or has nulls.
    """
    if column.type != ROW_ID or column.null_count:
        raise LabelError(f"row ids must be 16 bytes each without nulls, found {column.type}, {column.null_count} nulls")
    chunks = column.chunks if isinstance(column, pa.ChunkedArray) else [column]
    return np.concatenate([empty(), *map(_view, chunks)])


def _view(array: pa.Array) -> RowIds:
    if not len(array):
        return empty()
    return np.frombuffer(array.buffers()[1], dtype="S16", count=len(array), offset=array.offset * ROW_ID_BYTES)


def to_arrow(ids: RowIds) -> pa.FixedSizeBinaryArray:
    """Return row ids as an Arrow array of ``fixed_size_binary(16)``."""
    data = np.ascontiguousarray(ids, dtype="S16")
    return pa.FixedSizeBinaryArray.from_buffers(ROW_ID, len(data), [None, pa.py_buffer(data.tobytes())])


def from_bytes(ids: Iterable[bytes]) -> RowIds:
    """Return row ids given as Python bytes.

    Raises:
        LabelError: one of them is not 16 bytes.
    """
    values = list(ids)
    wrong = [value for value in values if len(value) != ROW_ID_BYTES]
    if wrong:
        raise LabelError(f"a row id has 16 bytes, found {len(wrong[0])}: {wrong[0].hex()}")
    return np.frombuffer(b"".join(values), dtype="S16")


def hexadecimal(ids: RowIds) -> list[str]:
    """Return row ids in hexadecimal digits, for people."""
    data = np.ascontiguousarray(ids, dtype="S16").tobytes()
    return [data[at : at + ROW_ID_BYTES].hex() for at in range(0, len(data), ROW_ID_BYTES)]


def empty() -> RowIds:
    """Return an array without row ids."""
    return np.empty(0, dtype="S16")


def is_in(ids: RowIds, ascending: RowIds) -> npt.NDArray[np.bool_]:
    """Return which of ``ids`` stand in ``ascending``, which is sorted."""
    return find(ids, ascending) >= 0


def find(ids: RowIds, ascending: RowIds) -> npt.NDArray[np.int64]:
    """Return the place of each id in ``ascending``, which is sorted; -1 for an absent one."""
    if not len(ascending):
        return np.full(len(ids), -1, dtype=np.int64)
    at = np.minimum(np.searchsorted(ascending, ids), len(ascending) - 1).astype(np.int64)
    at[ascending[at] != ids] = -1
    return at
