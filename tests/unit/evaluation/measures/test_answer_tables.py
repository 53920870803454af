"""Tables of answers as arrays: lists of one length, weights, the same rows."""

import numpy as np
import pyarrow as pa
import pytest

from ray_distill.errors import EvaluationError
from ray_distill.evaluation.measures.answer_tables import (
    list_column,
    read_beside,
    read_matrix,
    read_weights,
    require_same_rows,
)


def test_a_matrix_survives_its_column() -> None:
    """One list a row, read back as float64; chunks do not matter."""
    values_NV = np.array([[1.0, -2.0], [0.5, 4.0]], np.float32)
    table = pa.table({"logp": list_column(values_NV)})
    assert read_matrix(pa.concat_tables([table, table]), "logp").tolist() == [*values_NV.tolist()] * 2
    assert read_beside(table, "teacher_logp", values_NV) is None


@pytest.mark.parametrize(
    ("rows", "reason"),
    [([[1.0], [1.0, 2.0]], "same number"), ([[]], "at least one"), ([[1.0], None], "same"), ([[np.nan]], "row 0")],
)
def test_lists_that_cannot_be_answers_are_refused(rows: list[list[float] | None], reason: str) -> None:
    """Other lengths, none at all, a missing row, NaN."""
    with pytest.raises(EvaluationError, match=reason):
        read_matrix(pa.table({"logp": pa.array(rows, pa.list_(pa.float32()))}), "logp")


def test_a_teacher_of_other_classes_is_refused() -> None:
    """The sentence gives both numbers."""
    table = pa.table({"teacher_logp": list_column(np.zeros((2, 3), np.float32))})
    with pytest.raises(EvaluationError, match="3 classes, the model with 2"):
        read_beside(table, "teacher_logp", np.zeros((2, 2)))


def test_weights_are_positive_counts_of_some_rows() -> None:
    """No rows, or a count of 0, mean that something is wrong."""
    assert read_weights(pa.table({"count": [1, 3]})).tolist() == [1.0, 3.0]
    with pytest.raises(EvaluationError, match="no predictions"):
        read_weights(pa.table({"count": pa.array([], pa.int64())}))
    with pytest.raises(EvaluationError, match="found 0"):
        read_weights(pa.table({"count": [1, 0]}))


def test_pairs_have_the_same_rows() -> None:
    """In the same order."""
    first = pa.table({"row_id": [1, 2]})
    require_same_rows(first, first)
    with pytest.raises(EvaluationError, match="same rows in the same order"):
        require_same_rows(first, pa.table({"row_id": [2, 1]}))
