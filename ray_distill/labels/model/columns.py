"""Convert lists of numbers, and constants of all rows, to columns of flat Arrow tables."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ray_distill.errors import LabelError
from ray_distill.labels.model.ragged import Offsets

#: Columns of one part of a signal, by their names within it.
Columns = Mapping[str, pa.Array | pa.ChunkedArray]


def lists(values: npt.NDArray[Any], offsets: Offsets, extra: int = 0) -> pa.LargeListArray:
    """Return a list a row, and ``extra`` empty ones."""
    ends = np.concatenate([offsets, np.full(extra, offsets[-1], dtype=np.int64)])
    return pa.LargeListArray.from_arrays(pa.array(ends, pa.int64()), pa.array(np.ascontiguousarray(values)))


def constant(value: int | float | str, count: int) -> pa.Array:
    """Return one value for all rows: int32, float64 or text."""
    kind = {int: pa.int32(), float: pa.float64(), str: pa.string()}[type(value)]
    return pa.repeat(pa.scalar(value, kind), count)


def flat(columns: Columns, name: str, dtype: npt.DTypeLike) -> tuple[npt.NDArray[Any], Offsets]:
    """Return the values of a column of lists, and the offset of each row's first."""
    column = columns[name]
    if not len(column):
        return np.empty(0, dtype=dtype), np.zeros(1, dtype=np.int64)
    array = pa.concat_arrays(column.chunks) if isinstance(column, pa.ChunkedArray) else column
    offsets = np.asarray(array.offsets, dtype=np.int64)
    values = np.asarray(array.values)[offsets[0] : offsets[-1]]
    return values.astype(dtype, copy=False), offsets - offsets[0]


def shared(columns: Columns, name: str, default: Any) -> Any:
    """Return the one value that all rows of a column have; ``default`` without rows.

    Raises:
        LabelError: the rows differ.
    """
    column = columns[name]
    if not len(column):
        return default
    if pa.types.is_large_list(column.type):
        values, offsets = flat(columns, name, np.float64)
        rows = {tuple(values[start:stop]) for start, stop in zip(offsets[:-1], offsets[1:], strict=True)}
    else:
        rows = set(column.unique().to_pylist())
    if len(rows) > 1:
        raise LabelError(f"column {name}: the rows of one table must agree, found {sorted(rows)}")
    return rows.pop()
