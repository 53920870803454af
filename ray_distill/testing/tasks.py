"""The conformance suite of tasks: tests that every task in the catalogue passes.

Users run it on tasks of their own.

from ray_distill.testing.tasks import CHECKS, TaskCase

CASE = TaskCase(task=my_task, processor=my_processor, rows=my_rows, config=my_campaign)

@pytest.mark.parametrize("check", CHECKS.values(), ids=CHECKS.keys())
def test_my_task_conforms(check):
    check(CASE)
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from ray_distill.config import Campaign
from ray_distill.tasks.encoded import Encoded
from ray_distill.tasks.inputs.modality import Processor
from ray_distill.tasks.task import Task


@dataclass(frozen=True, kw_only=True)
class TaskCase:
    """A task with all that its checks need."""

    task: Task
    processor: Processor
    rows: pa.Table
    """At least three usable rows: ``row_id``, the input column, and the columns of the truth where there are some."""
    config: Campaign
    """A campaign of the task that nothing is wrong with."""

    @property
    def encoded(self) -> Encoded:
        """The rows as features."""
        return self.task.inputs.encode(self.rows, self.processor)


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
    assert [row.row_id for row in encoded.rejected] == [case.rows["row_id"][middle].as_py()]
    assert encoded.rejected[0].reason, "a rejected row needs a reason"
    others = case.encoded.take(np.delete(np.arange(case.rows.num_rows), middle))
    for name, feature in encoded.features.items():
        np.testing.assert_array_equal(feature.values, others.features[name].values, err_msg=name)
    assert case.task.inputs.encode(case.rows.slice(0, 0), case.processor).rows == 0


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
    batch = case.task.inputs.collate(example, np.zeros(1, np.int64))
    assert example.rows == 1 and batch.keys() == case.task.inputs.collate(case.encoded, np.zeros(1, np.int64)).keys()


def check_views(case: TaskCase) -> None:
    """Require a statistic a row for drift tests, and some text for a terminal.

    Missing inputs need both too.
    """
    inputs, column = case.task.inputs, case.rows[case.task.inputs.column]
    statistics = inputs.statistics(column)
    assert statistics and all(values.shape == (case.rows.num_rows,) for values in statistics.values())
    assert inputs.show(column.cast(pa.large_binary())[0].as_py()) and inputs.show(None)


def check_corruptions(case: TaskCase) -> None:
    """Require corruptions to keep ids, order and types, and to follow their seed.

    The rows that they return must still be encoded.
    """
    for name, corrupt in case.task.inputs.corruptions.items():
        for severity in (1, 2, 3):
            damaged = corrupt(case.rows, severity, np.random.default_rng(0))
            assert damaged.schema == case.rows.schema and damaged["row_id"].equals(case.rows["row_id"]), name
            assert damaged.equals(corrupt(case.rows, severity, np.random.default_rng(0))), f"{name} is not seeded"
            assert case.task.inputs.encode(damaged, case.processor).rows, name


def check_positions(case: TaskCase) -> None:
    """Require ascending positions inside each row, and a truth at each.

    Any choice of rows must have the same ones.
    """
    encoded, store = case.encoded, case.task.answers.store
    positions, truth = store.positions(encoded), store.truth(encoded, case.rows)
    assert positions.offsets.tolist() == truth.offsets.tolist() and len(positions.offsets) == encoded.rows + 1
    assert len(truth.values) == len(positions.values) == positions.offsets[-1]
    for row in range(encoded.rows):
        own = positions.values[positions.offsets[row] : positions.offsets[row + 1]]
        assert len(own) and (np.diff(own) > 0).all() and own[0] >= 0, f"positions of row {row}: {own}"
        alone = store.positions(encoded.take(np.array([row], np.int64)))
        np.testing.assert_array_equal(alone.values, own)


def check_metrics(case: TaskCase) -> None:
    """Require one table of metrics with the headline, the limits and all shown or measured."""
    answers = case.task.answers
    used = {answers.headline, *answers.beside, *answers.robust, *answers.limits}
    assert used <= set(answers.metrics.names), f"not in the table: {sorted(used - set(answers.metrics.names))}"
    assert answers.metrics[answers.headline].higher_is_better is not None, "a headline has a better side"


def check_refusal(case: TaskCase) -> None:
    """Require a good campaign to pass, and each refusal to begin with the path of a setting."""
    assert case.task.refuse(case.config) == []
    column = "no_such_target" if case.config.snapshot.columns.target is None else None
    columns = case.config.snapshot.columns.model_copy(update={"target": column})
    snapshot = case.config.snapshot.model_copy(update={"columns": columns})
    wrong = case.task.refuse(case.config.model_copy(update={"snapshot": snapshot}))
    assert any(line.startswith("snapshot.columns.target") for line in wrong), wrong


#: Checks by name; each raises AssertionError where the task does not conform.
CHECKS: Mapping[str, Callable[[TaskCase], None]] = {
    "encoding": check_encoding,
    "rejection": check_rejection,
    "collation": check_collation,
    "example": check_example,
    "views": check_views,
    "corruptions": check_corruptions,
    "positions": check_positions,
    "metrics": check_metrics,
    "refusal": check_refusal,
}
