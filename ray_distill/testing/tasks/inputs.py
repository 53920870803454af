"""Conformance of a task's inputs: features, rejection, tensors, views and corruptions."""

import numpy as np
import pyarrow as pa

from ray_distill.tasks.encoded import Encoded
from ray_distill.testing.tasks.case import TaskCase


def check_encoding(case: TaskCase) -> None:
    """Require every row in order, one value list a row, and equal features after Arrow."""
    encoded = case.encoded
    assert encoded.rows == case.rows.num_rows >= 3, f"expected all of three or more rows, found {encoded.rows}"
    assert encoded.row_ids.to_pylist() == case.rows["row_id"].to_pylist(), "the order of rows changed"
    again = Encoded.from_table(encoded.to_table())
    for name, feature in encoded.features.items():
        assert len(feature.offsets) == encoded.rows + 1 and feature.offsets[-1] == len(feature.values), name
        np.testing.assert_array_equal(again.features[name].values, feature.values, err_msg=name)


def check_rejection(case: TaskCase) -> None:
    """Require a missing input to be rejected with a reason, and its neighbours to be encoded.

    The neighbours are encoded as before.
    """
    column, middle = case.task.inputs.column, 1
    values = [None if row == middle else value for row, value in enumerate(case.rows[column].to_pylist())]
    at = case.rows.schema.get_field_index(column)
    damaged = case.rows.set_column(at, column, pa.array(values, case.rows.schema.field(column).type))
    encoded = case.task.inputs.encode(damaged, case.processor)
    rejected = [row.row_id for row in encoded.rejected]
    assert rejected == [case.rows["row_id"][middle].as_py()], f"a missing input was not rejected, only {rejected}"
    assert encoded.rejected[0].reason, "a rejected row needs a reason"
    others = case.encoded.take(np.delete(np.arange(case.rows.num_rows), middle))
    for name, feature in encoded.features.items():
        np.testing.assert_array_equal(feature.values, others.features[name].values, err_msg=name)
    assert case.task.inputs.encode(case.rows.slice(0, 0), case.processor).rows == 0, "no rows became some"


def check_collation(case: TaskCase) -> None:
    """Require tensors with one entry a row in the requested order, independent of other rows."""
    encoded, inputs = case.encoded, case.task.inputs
    order = np.arange(encoded.rows, dtype=np.int64)[::-1].copy()
    batch = inputs.collate(encoded, order)
    assert batch, "a batch without tensors"
    for place, row in enumerate(order):
        for name, tensor in inputs.collate(encoded, np.array([row], np.int64)).items():
            assert len(batch[name]) == encoded.rows, name
            own = batch[name][place][tuple(slice(0, size) for size in tensor.shape[1:])]
            assert own.equal(tensor[0]), f"{name}: row {row} differs with the batch it is in"
    assert not inputs.answering or batch[inputs.answering].ndim == 2, "models answer at tokens [B, L]"


def check_example(case: TaskCase) -> None:
    """Require the made-up example to be one row that collates to the features of real rows."""
    example = case.task.inputs.example(case.processor)
    first = np.zeros(1, np.int64)
    made, real = (set(case.task.inputs.collate(encoded, first)) for encoded in (example, case.encoded))
    assert example.rows == 1, f"the example has {example.rows} rows"
    assert made == real, f"the example has the features {sorted(made)}, real rows have {sorted(real)}"


def check_views(case: TaskCase) -> None:
    """Require a statistic a row for drift tests, and some text for a terminal.

    Missing inputs need both too.
    """
    inputs, column = case.task.inputs, case.rows[case.task.inputs.column]
    statistics = inputs.statistics(column)
    assert statistics, "no statistics for drift tests"
    for name, values in statistics.items():
        assert values.shape == (case.rows.num_rows,), f"{name} has the shape {values.shape}, not one number a row"
    for value in (column.cast(pa.large_binary())[0].as_py(), None):
        assert inputs.show(value), f"nothing is shown of {value!r}"


def check_corruptions(case: TaskCase) -> None:
    """Require corruptions to keep ids, order and types, and to follow their seed.

    The rows that they return must still be encoded.
    """
    for name, corrupt in case.task.inputs.corruptions.items():
        for severity in (1, 2, 3):
            damaged = corrupt(case.rows, severity, np.random.default_rng(0))
            assert damaged.schema == case.rows.schema, f"{name} changed the columns to {damaged.schema.names}"
            assert damaged["row_id"].equals(case.rows["row_id"]), f"{name} changed the rows"
            assert damaged.equals(corrupt(case.rows, severity, np.random.default_rng(0))), f"{name} is not seeded"
            assert case.task.inputs.encode(damaged, case.processor).rows, f"{name} left no row that can be read"
