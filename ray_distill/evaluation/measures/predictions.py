"""The predictions table that every measure reads: a model's answers beside what is known of the rows."""

from collections.abc import Sequence

import pyarrow as pa
import pyarrow.compute as pc

from ray_distill.errors import EvaluationError


def join_predictions(
    rows: pa.Table, predictions: pa.Table, *, teacher: pa.Table | None = None, slices: Sequence[str] = ()
) -> pa.Table:
    """Put predictions in the order of ``rows`` and add what measuring needs.

    Args:
        rows: snapshot rows: ``row_id``, ``count``, ``label`` where there is one, the slice columns.
        predictions: ``row_id`` and ``logp``, in any order.
        teacher: the teacher's predictions, which become ``teacher_logp``.
        slices: columns of ``rows`` to keep, by which quality is reported too.

    Returns:
        ``row_id``, ``logp``, ``count``, ``label``, ``teacher_logp``, and the slice columns, where they exist.

    Raises:
        EvaluationError: a row without its prediction.
    """
    columns = {"row_id": rows["row_id"], "logp": _in_order(rows, predictions, "model"), "count": rows["count"]}
    if "label" in rows.column_names:
        columns["label"] = rows["label"]
    if teacher is not None:
        columns["teacher_logp"] = _in_order(rows, teacher, "teacher")
    return pa.table(columns | {name: rows[name] for name in slices})


def _in_order(rows: pa.Table, predictions: pa.Table, who: str) -> pa.ChunkedArray:
    index = pc.index_in(rows["row_id"], value_set=predictions["row_id"].combine_chunks())
    if index.null_count:
        raise EvaluationError(
            f"the {who} gave no prediction for {index.null_count} of {rows.num_rows} rows: leave out "
            "the rows it rejected for all models, so that all are judged on the same"
        )
    return predictions["logp"].take(index)
