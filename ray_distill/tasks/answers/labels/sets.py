"""Sets of labels in two forms: lists of class indices, and matrices of 0 and 1."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

#: A line of a matrix whose set is unknown.
UNKNOWN = -1


def label_matrix(sets: pa.Array | pa.ChunkedArray, classes: int) -> npt.NDArray[np.int8]:
    """Return ``[R, classes]``: 1 where a label applies, else 0; `UNKNOWN` in a null's line.

    Args:
        sets: a list of class indices a row; empty where no label applies, null where the set is unknown.
        classes: number of classes, above every index.
    """
    column = sets.combine_chunks() if isinstance(sets, pa.ChunkedArray) else sets
    lengths = np.asarray(pc.fill_null(pc.list_value_length(column), 0), np.int64)
    found = np.zeros((len(column), classes), np.int8)
    found[np.repeat(np.arange(len(column)), lengths), np.asarray(column.flatten(), np.int64)] = 1
    found[np.asarray(column.is_null(), bool)] = UNKNOWN
    return found


def set_column(applies_NV: npt.NDArray[np.bool_]) -> pa.ListArray:
    """Return the ascending indices of the labels that apply, a list of int32 a row."""
    offsets = np.concatenate([[0], np.cumsum(applies_NV.sum(axis=1))]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(np.nonzero(applies_NV)[1].astype(np.int32)))


def greatest(sets: pa.Array | pa.ChunkedArray) -> int:
    """Return the greatest class index of any set; -1 where all are empty or unknown."""
    column = sets.combine_chunks() if isinstance(sets, pa.ChunkedArray) else sets
    found: Any = pc.max(column.flatten()).as_py()
    return -1 if found is None else int(found)
