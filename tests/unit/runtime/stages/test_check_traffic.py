"""The sample of newer traffic by which a teacher is checked, and rows that nobody can answer."""

from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from ray_distill.errors import EvaluationError
from ray_distill.evaluation.predict.panel import Panel
from ray_distill.labels.model.work_units import WorkUnit
from ray_distill.runtime.stages import check_traffic
from ray_distill.tasks.catalogue import get_task


@dataclass(frozen=True)
class Shards:
    """A snapshot of two shards of 100 rows, whose rows have numbers; ``known`` have labels."""

    known: frozenset[int] = frozenset()

    @property
    def shards(self) -> list[Any]:
        return [SimpleNamespace(name="first"), SimpleNamespace(name="second")]

    def read_shard(self, shard: Any, columns: list[str]) -> pa.Table:
        start = 0 if shard.name == "first" else 100
        numbers = range(start, start + 100)
        table = pa.table(
            {"number": list(numbers), "label": pa.array([0 if n in self.known else None for n in numbers], pa.int32())}
        )
        return table.select(columns)


def _unit(shard: str, rows: range) -> WorkUnit:
    return WorkUnit(unit_id=f"{shard}{rows.start}", shard=shard, start=rows.start, stop=rows.stop, rows=tuple(rows))


UNITS = (_unit("first", range(50, 70)), _unit("first", range(70, 100)), _unit("second", range(0, 100)))


def _numbers(known: range, most: int) -> list[int]:
    opened: Any = Shards(frozenset(known))
    return check_traffic.new_rows(opened, UNITS, ["number"], most=most)["number"].to_pylist()


def test_without_labels_the_first_new_rows_are_taken() -> None:
    """Of the units alone, across shards."""
    assert _numbers(range(0), 60) == [*range(50, 110)]
    assert _numbers(range(0), 1000) == [*range(50, 200)]


def test_labelled_rows_are_preferred_where_they_suffice() -> None:
    """Labels of rows that are in no unit do not count; nineteen labelled rows do not suffice."""
    assert _numbers(range(90, 140), 30) == [*range(90, 120)]
    assert _numbers(range(0, 69), 30) == [*range(50, 80)]
    assert _numbers(range(0, 70), 30) == [*range(50, 70)]


def test_the_units_to_choose_from_are_bounded() -> None:
    """The first that have the rows together, and all where they are fewer."""
    assert check_traffic.first_units(UNITS, 20) == UNITS[:1]
    assert check_traffic.first_units(UNITS, 21) == UNITS[:2]
    assert check_traffic.first_units(UNITS, 10_000) == UNITS
    assert check_traffic.first_units((), 5) == ()


def _panel(bad: set[int]) -> Panel:
    """A family whose models cannot answer a batch with a bad row in it."""

    def answer(panel: Panel, rows: pa.Table) -> dict[str, pa.Table]:
        if bad & set(rows["number"].to_pylist()):
            raise EvaluationError("not a number")
        return {"teacher": rows}

    judge = SimpleNamespace(answer=answer, confidence=lambda table: np.ones(table.num_rows))
    task: Any = SimpleNamespace(answers=SimpleNamespace(judge=judge))
    panel = Panel(task=get_task("text_classification"), models={"teacher": SimpleNamespace()}, batch=4, bins=4)  # type: ignore[dict-item]
    return replace(panel, task=task)


def test_rows_that_no_model_can_answer_are_left_out() -> None:
    """The others keep their order; if none is left, the error is that of the models, such as other classes."""
    rows = pa.table({"number": list(range(9))})
    found = check_traffic._answer(_panel({0, 4, 5}), rows)
    assert found["teacher"]["number"].to_pylist() == [1, 2, 3, 6, 7, 8]
    with pytest.raises(EvaluationError, match="not a number"):
        check_traffic._answer(_panel(set(range(9))), rows)
