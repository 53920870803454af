"""Read and check tables of answers, one row an example.

A row has a weight and lists of numbers.
"""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ray_distill.errors import EvaluationError
from ray_distill.evaluation.measures.intervals import Floats


def list_column(values_NV: np.ndarray[tuple[int, int], np.dtype[np.float32]]) -> pa.ListArray:
    """Return a matrix as a list of V numbers a row."""
    rows, width = values_NV.shape
    offsets = pa.array(np.arange(rows + 1, dtype=np.int32) * np.int32(width))
    return pa.ListArray.from_arrays(offsets, pa.array(values_NV.reshape(-1)))


def read_matrix(answers: pa.Table, name: str) -> Floats:
    """Return a column of lists as float64 ``[N, V]``.

    Raises:
        EvaluationError: rows of different lengths, or without classes, or a value that is not a number.
    """
    lengths = pc.list_value_length(answers[name])
    width = lengths[0].as_py()
    if not width or lengths.null_count or not pc.all(pc.equal(lengths, width)).as_py():
        raise EvaluationError(f"{name} must have the same number of classes in every row, at least one")
    flat = answers[name].combine_chunks().flatten()
    values_NV: Floats = flat.to_numpy(zero_copy_only=False).astype(np.float64).reshape(-1, width)
    if np.isnan(values_NV).any():
        row = int(np.isnan(values_NV).any(axis=1).argmax())
        raise EvaluationError(f"{name} of row {row} is not a number: the model's logits are NaN or overflowed")
    return values_NV


def read_beside(answers: pa.Table, name: str, own_NV: Floats) -> Floats | None:
    """Return the teacher's column of lists, which is shaped as the model's; None without one.

    Raises:
        EvaluationError: it answers with other classes, or as `read_matrix`.
    """
    if name not in answers.column_names:
        return None
    teacher_NV = read_matrix(answers, name)
    if teacher_NV.shape != own_NV.shape:
        raise EvaluationError(
            f"the teacher answers with {teacher_NV.shape[1]} classes, the model with "
            f"{own_NV.shape[1]}: evaluate models of the same classes"
        )
    return teacher_NV


def read_weights(answers: pa.Table) -> Floats:
    """Return the rows' counts as weights, ``[N]``.

    Raises:
        EvaluationError: no rows, or counts that are not positive.
    """
    if answers.num_rows == 0:
        raise EvaluationError("there are no predictions to measure: the split has no usable row")
    weight_N: Floats = answers["count"].to_numpy().astype(np.float64)
    if not (weight_N > 0).all():
        raise EvaluationError(f"counts must be positive, found {weight_N.min():g}: the predictions table is damaged")
    return weight_N


def require_same_rows(first: pa.Table, second: pa.Table) -> None:
    """Refuse to pair tables of different rows.

    Raises:
        EvaluationError: their row ids differ.
    """
    if not first["row_id"].equals(second["row_id"]):
        raise EvaluationError(
            "a paired comparison needs the same rows in the same order: the two models' predictions "
            f"differ in their row ids ({first.num_rows} and {second.num_rows} rows)"
        )
