"""Conformance of how a task's models are judged: answers, measures and paired differences."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import pyarrow as pa

from ray_distill.artifacts import Estimate
from ray_distill.snapshots.reader import Snapshot
from ray_distill.testing.tasks.case import TaskCase

#: Absolute, in float32: answers are computed in other batches.
TOLERANCE = 1e-4


def check_answers(case: TaskCase) -> None:
    """Require one answer a row of each model, in the order of the rows."""
    judge, rows = case.task.answers.judge, case.counted
    backwards = rows.take(pa.array(range(rows.num_rows - 1, -1, -1)))
    for given, answers in ((rows, case.answers), (backwards, judge.answer(case.panel(), backwards))):
        for arm, table in answers.items():
            assert table["row_id"].to_pylist() == given["row_id"].to_pylist(), f"{arm}: other rows, or another order"
            assert table["count"].to_pylist() == given["count"].to_pylist(), f"{arm}: other counts"
    damaged = judge.answer_damaged(case.panel(), rows)
    assert set(damaged) == {"teacher", "student"}, f"on corrupted rows answers are of {sorted(damaged)}"
    for table in damaged.values():
        judge.measure(table, case.how)


def check_measures(case: TaskCase) -> None:
    """Require metrics of the table alone, with values and intervals inside their bounds.

    The headline must be among them, and another unit of counts must not change a value.
    """
    answers = case.task.answers
    for arm, table in case.answers.items():
        found = answers.judge.measure(table, case.how)
        assert answers.headline in found, f"the headline {answers.headline} was not measured"
        for name, estimate in found.items():
            metric = answers.metrics.find(name)
            assert metric is not None, f"{name} is not in the table of metrics"
            assert metric.low <= estimate.value <= metric.high, f"{arm}: {name} is {estimate.value}"
            assert not estimate.low > estimate.value and not estimate.high < estimate.value, (
                f"{arm}: {name}: {estimate}"
            )
            assert estimate.n > 0, f"{arm}: {name} was measured on no row"
        doubled = answers.judge.measure(_doubled(table), case.how)
        assert _same(doubled, found), f"{arm}: measures differ with the unit of counts"


def check_parts(case: TaskCase) -> None:
    """Require answers to parts of a split, put together, to be measured as those to the whole."""
    judge, rows, half = case.task.answers.judge, case.counted, case.counted.num_rows // 2
    parts = [judge.answer(case.panel(), part) for part in (rows.slice(0, half), rows.slice(half))]
    for arm, table in case.answers.items():
        joined = pa.concat_tables([part[arm] for part in parts])
        found, expected = judge.measure(joined, case.how), judge.measure(table, case.how)
        assert _same(found, expected, TOLERANCE), f"{arm}: parts are measured as {found}, the whole as {expected}"


def check_comparison(case: TaskCase) -> None:
    """Require a model not to differ from itself.

    Two models must differ by the difference of their measures.
    """
    answers, tables = case.task.answers, case.answers
    for name, estimate in answers.judge.compare(tables["student"], tables["student"], case.how).items():
        assert estimate.value == 0, f"{name}: a model differs from itself by {estimate.value}"
        assert not estimate.low > 0 and not estimate.high < 0, f"{name}: {estimate}"
    first, second = (answers.judge.measure(tables[arm], case.how) for arm in ("student", "teacher"))
    differences = answers.judge.compare(tables["student"], tables["teacher"], case.how)
    assert answers.headline in differences, f"the headline {answers.headline} was not compared"
    for name, difference in differences.items():
        expected = first[name].value - second[name].value
        assert math.isclose(difference.value, expected, abs_tol=TOLERANCE), (
            f"{name}: {difference.value}, not {expected}"
        )


def check_reference(case: TaskCase) -> None:
    """Require a copy of the teacher to be at no distance from it."""
    answers = case.task.answers
    tables = answers.judge.answer(case.panel(teacher=case.teacher, student=case.teacher), case.counted)
    found = answers.judge.measure(tables["student"], case.how)
    distances = [metric for metric in answers.metrics.metrics if metric.of_teacher and metric.name in found]
    assert distances, "no metric compares a student with its teacher"
    for metric in distances:
        best = metric.high if metric.better == "more" else 0.0
        value = found[metric.name].value
        assert math.isclose(value, best, abs_tol=TOLERANCE), f"{metric.name} of the teacher itself is {value}"


def check_confidence(case: TaskCase) -> None:
    """Require a probability a row."""
    for arm, table in case.answers.items():
        found_N = case.task.answers.judge.confidence(table)
        assert found_N.shape == (table.num_rows,), f"{arm}: {table.num_rows} rows have confidences {found_N.shape}"
        assert ((found_N >= 0) & (found_N <= 1 + TOLERANCE)).all(), f"{arm}: confidences are {found_N}"


def check_trivial(case: TaskCase) -> None:
    """Require the trivial answer to score metrics of the table, of which more is better."""
    found = case.task.answers.judge.trivial(case.panel(), cast(Snapshot, Splits(rows=case.counted)))
    for name, value in found.items():
        metric = case.task.answers.metrics.find(name)
        assert metric is not None and metric.better == "more", f"{name} is not a metric of which more is better"
        assert metric.low <= value <= metric.high, f"{name} is {value}"


@dataclass(frozen=True, kw_only=True)
class Splits:
    """A snapshot whose splits all have the same rows."""

    rows: pa.Table

    def read(self, split: str, columns: Sequence[str] | None = None) -> pa.Table:
        """Read some columns."""
        return self.rows if columns is None else self.rows.select(list(columns))


def _doubled(table: pa.Table) -> pa.Table:
    at = table.schema.get_field_index("count")
    counts = np.asarray(table["count"]) * 2
    return table.set_column(at, table.schema.field(at), pa.array(counts, table.schema.field(at).type))


def _same(found: dict[str, Estimate], expected: dict[str, Estimate], tolerance: float = 1e-9) -> bool:
    return found.keys() == expected.keys() and all(
        math.isclose(found[name].value, estimate.value, rel_tol=tolerance, abs_tol=tolerance)
        for name, estimate in expected.items()
    )
