"""Loss curves as they are kept for the report."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from ray_distill.config import parse_config
from ray_distill.evaluation.measures.cost import StageCost, stage_metrics
from ray_distill.runtime.core.session import Session, session
from ray_distill.runtime.stages import train
from ray_distill.runtime.stages.train import Curves
from ray_distill.runtime.training.launch import StepMetrics
from ray_distill.storage import files


def _add(curves: Curves, arm: str, steps: range, loss: float) -> None:
    for step in steps:
        curves.add(StepMetrics(arm=arm, step=step, values={"loss": loss, "examples_per_second": 1.0}))


class Told:
    """A run and gauges that keep what they are told."""

    def __init__(self) -> None:
        self.values: list[Mapping[str, float]] = []
        self.costs: list[StageCost] = []

    def metrics(self, values: Mapping[str, float], step: int = 0) -> None:
        self.values.append(values)

    def cost(self, cost: StageCost) -> None:
        self.costs.append(cost)


def test_cost_is_told_while_the_training_runs(config, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the first step at once, then every so many seconds: to the run under the names of the end, and as gauges."""
    told = Told()
    with session(config) as held, held.stage("train", cores=4) as stage:
        curves = Curves(held, replace(stage, run=told), told)  # type: ignore[arg-type]
        _add(curves, "student", range(1, 4), 1.0)
        monkeypatch.setattr(train, "COST_SECONDS", 0.0)
        _add(curves, "student", range(4, 5), 1.0)
    costs = [values for values in told.values if "train_cost_usd" in values]
    assert [values["train_core_hours"] for values in costs] == [cost.core_hours for cost in told.costs]
    assert len(costs) == 2 and 0 < costs[0]["train_core_hours"] < costs[1]["train_core_hours"]
    assert set(costs[0]) == set(stage_metrics(stage.meter.cost))


def _curves(held: Session) -> Curves:
    with held.stage("train") as stage:
        return Curves(held, stage)


@pytest.fixture
def config(tmp_path: Path):
    return parse_config(
        {
            "campaign": "c",
            "task": "text_classification",
            "output": str(tmp_path),
            "snapshot": {"source": "x"},
            "labels": {"teacher": {"model": "big"}},
            "tracking": {"enabled": False},
        }
    )


def test_a_run_that_goes_on_from_a_checkpoint_replaces_what_it_repeats(config) -> None:
    """Steps 4 and 5 were done twice: the curve has each step once, with the later value; other arms stay."""
    with session(config) as held:
        first = _curves(held)
        _add(first, "baseline_hard_labels", range(1, 3), 9.0)
        _add(first, "student", range(1, 6), 1.0)
        first.keep()
        second = _curves(held)
        _add(second, "student", range(4, 7), 2.0)
        second.keep()
        kept = files.read_json(held.url("state", "curves.json"))
    assert kept["student"] == [[1, 1.0], [2, 1.0], [3, 1.0], [4, 2.0], [5, 2.0], [6, 2.0]]
    assert kept["baseline_hard_labels"] == [[1, 9.0], [2, 9.0]]


def test_a_model_that_is_trained_anew_gets_a_new_curve(config) -> None:
    """Beginning at step 1 forgets the arm's earlier curve."""
    with session(config) as held:
        curves = _curves(held)
        _add(curves, "student", range(1, 6), 1.0)
        _add(curves, "student", range(1, 3), 2.0)
        curves.keep()
        assert files.read_json(held.url("state", "curves.json")) == {"student": [[1, 2.0], [2, 2.0]]}
