"""Curves as the training stage records them in the tracker."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from ray_distill.config import parse_config
from ray_distill.errors import StorageError
from ray_distill.evaluation.measures.cost import StageCost, stage_metrics
from ray_distill.runtime.core.session import Session, Stage, open_session
from ray_distill.runtime.stages import train
from ray_distill.runtime.stages.train import Curves
from ray_distill.storage import files
from ray_distill.students.telemetry.curves import CurveWriter, curve_url


def _train(folder: Path, arm: str, steps: range, loss: float) -> None:
    """Write the curve of a run that goes on before the first step."""
    writer = CurveWriter(curve_url(str(folder), arm), after=steps.start - 1, steps=8)
    for step in steps:
        writer.add(step, {"loss": loss, "examples_per_second": 1.0})
    writer.complete()
    writer.close()


class Recorded:
    """A run and gauges that keep what they receive."""

    run_id = "run"

    def __init__(self) -> None:
        self.values: list[Mapping[str, float]] = []
        self.losses: list[tuple[int, float]] = []
        self.costs: list[StageCost] = []

    def metrics(self, values: Mapping[str, float], step: int = 0) -> None:
        self.values.append(values)
        self.losses += [(step, value) for name, value in values.items() if name == "student_loss"]

    def cost(self, cost: StageCost) -> None:
        self.costs.append(cost)


def _curves(session: Session, stage: Stage, folder: Path, run: Recorded) -> Curves:
    return Curves(session, replace(stage, run=run), str(folder), run)  # type: ignore[arg-type]


def test_cost_is_recorded_while_the_training_runs(config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At once, then every so many seconds: to the run under the names of the end, and as gauges."""
    run = Recorded()
    with open_session(config) as session, session.stage("train", cores=4) as stage:
        curves = _curves(session, stage, tmp_path, run)
        for _ in range(3):
            curves.poll()
        monkeypatch.setattr(train, "COST_SECONDS", 0.0)
        curves.poll()
    costs = [values for values in run.values if "train_cost_usd" in values]
    assert [values["train_core_hours"] for values in costs] == [cost.core_hours for cost in run.costs]
    assert len(costs) == 2 and 0 < costs[0]["train_core_hours"] < costs[1]["train_core_hours"]
    assert set(costs[0]) == set(stage_metrics(stage.meter.cost))


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


def test_a_run_in_the_tracker_gets_each_step_once(config, tmp_path: Path) -> None:
    """Also from commands that go on after others, though steps were trained twice; another run gets them all."""
    run = Recorded()
    with open_session(config) as session, session.stage("train") as stage:
        first = _curves(session, stage, tmp_path, run)
        _train(tmp_path, "baseline_hard_labels", range(1, 3), 9.0)
        _train(tmp_path, "student", range(1, 6), 1.0)
        first.record()
        _train(tmp_path, "student", range(4, 7), 2.0)
        first.record()
        _train(tmp_path, "student", range(6, 9), 3.0)
        _curves(session, stage, tmp_path, run).record()
        assert run.losses == [*((step, 1.0) for step in range(1, 6)), (6, 2.0), (7, 3.0), (8, 3.0)]
        other = Recorded()
        other.run_id = "other"
        _curves(session, stage, tmp_path, other).record()
    assert other.losses == [
        *((step, 1.0) for step in range(1, 4)),
        *((4, 2.0), (5, 2.0)),
        *((6, 3.0), (7, 3.0), (8, 3.0)),
    ]


def test_a_long_training_is_few_rows_of_the_tracker(config, tmp_path: Path) -> None:
    """Three arms of 3,000 steps and 16 metrics: 200 of 3,000 points a curve, in polls of any size."""
    run, arms = Recorded(), ("student", "baseline_hard_labels", "baseline_teacher_hard_labels")
    writers = [CurveWriter(curve_url(str(tmp_path), arm), after=0, steps=3000) for arm in arms]
    values = {"loss": 1.0, **{f"seconds_{number}": 1.0 for number in range(15)}}
    with open_session(config) as session, session.stage("train") as stage:
        curves = _curves(session, stage, tmp_path, run)
        for step in range(1, 3001):
            for writer in writers:
                writer.add(step, values)
                if step % 700 == 0 or step == 3000:
                    writer.complete()
            if step % 700 == 0:
                curves.record()
        curves.record()
    for writer in writers:
        writer.close()
    recorded = [name for values in run.values for name in values if not name.startswith("train_")]
    assert len(recorded) == 3 * 16 * 201
    assert [step for step, _ in run.losses] == [*range(1, 3000, 15), 3000]


def test_curves_that_cannot_be_read_are_read_at_the_next_poll(
    config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Training goes on; only the end of the stage needs them."""
    run = Recorded()

    def away(url: str) -> list[files.FileInfo]:
        raise StorageError("away")

    with open_session(config) as session, session.stage("train") as stage:
        curves = _curves(session, stage, tmp_path, run)
        _train(tmp_path, "student", range(1, 3), 1.0)
        with monkeypatch.context() as patch:
            patch.setattr(files, "list_files", away)
            curves.poll()
            with pytest.raises(StorageError, match="away"):
                curves.record()
        curves.poll()
    assert run.losses == [(1, 1.0), (2, 1.0)]
    assert "the curves cannot be read now: away" in "".join(capsys.readouterr())
