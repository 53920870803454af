"""Forecasts of stages from made-up timings."""

import pytest

from ray_distill.cli.render_plan import show_plan
from ray_distill.config import Campaign, parse_config
from ray_distill.evaluation.measures.cost import StageCost, stage_cost
from ray_distill.runtime.forecast.stage_forecasts import (
    Span,
    StageForecast,
    TimedEvaluation,
    TrainingSize,
    forecast_evaluation,
    forecast_labelling,
    forecast_training,
    with_followed,
)
from ray_distill.students.time_steps import TimedArm
from tests.unit.runtime.forecast.test_forecast import REPORT, forms

HOUR = 3600.0


def config(**training: object) -> Campaign:
    """Two workers of two cores, three epochs of batches of 10, at 1 EUR a core-hour."""
    return parse_config(
        {
            "campaign": "c",
            "task": "text_classification",
            "snapshot": {"source": "x"},
            "labels": {"teacher": {"model": "m:f"}, "resources": {"cpus": 4}},
            "student": {
                "training": {
                    "epochs": 3,
                    "global_batch": 10,
                    "learning_rate": 1e-3,
                    "workers": 2,
                    "cpus": 2,
                    "evaluate_every": 50,
                    **training,
                }
            },
            "evaluation": {"latency_requests": 100},
            "cost": {"core_hour": 1.0, "currency": "EUR"},
        }
    )


def arm(name: str, *seconds: float) -> TimedArm:
    return TimedArm(arm=name, step_seconds=seconds, row_seconds=0.5)


SIZE = TrainingSize(examples=995, validation_rows=40, student_bytes=1000)


def test_a_training_is_its_steps_and_validations_for_each_arm_and_rate() -> None:
    """300 steps and 6 validations of 20 rows a worker; every arm at both rates; four cores reserved."""
    timed = [arm("student", 2.0, 2.0, 2.0), arm("baseline_hard_labels", 1.0)]
    found = forecast_training(config(learning_rate=[1e-3, 1e-4]), timed, SIZE, once=7.0, memory_gib=1.5)
    seconds = 7 + 2 * (300 * 2 + 300 * 1 + 2 * 6 * 20 * 0.5)
    assert found.seconds == found.low == found.high == pytest.approx(seconds)
    assert found.core_hours == found.money == pytest.approx(4 * seconds / HOUR)
    assert (found.bytes_written, found.memory_gib, found.accelerator_hours) == (2000, 1.5, 0)
    assert "2 arms, 300 steps each, from 4 timed steps" in found.basis


def test_the_range_is_that_of_the_timed_steps() -> None:
    """From the fastest tenth to the slowest; the sum of spans is a span."""
    span = Span.of([float(number) for number in range(11)])
    assert (span.low, span.mean, span.high) == (1.0, 5.0, 9.0)
    found = forecast_training(config(), [arm("student", *range(11))], SIZE, once=0.0, memory_gib=1.0)
    assert (found.high - found.low) == pytest.approx(300 * 8)


def test_an_evaluation_is_every_model_and_three_on_damaged_rows() -> None:
    """100 rows: teacher and three arms once, teacher and student twice more; each answer is measured, in a process that
    takes six seconds to start."""
    timed = TimedEvaluation(
        load_seconds={"teacher": 10.0, "student": 1.0},
        row_seconds={"teacher": (1.0, 1.0), "student": (0.1, 0.1)},
        measure_seconds=0.01,
        request_seconds=0.2,
        memory_gib=2.0,
        seconds=30.0,
    )
    found = forecast_evaluation(config(), timed, arms=3, rows=100, damaged=2, champion=False, once=6.0)
    answers, measured, requests = 100 * (1.3 + 2 * 1.1), 0.01 * 100 * (4 + 2 * 2), 0.2 * 100 * 4 / 2
    assert found.seconds == pytest.approx(6 + 10 + 3 + answers + measured + requests)
    assert found.core_hours == pytest.approx(4 * found.seconds / HOUR)
    more = forecast_evaluation(config(), timed, arms=3, rows=100, damaged=2, champion=True, once=6.0)
    assert more.seconds - found.seconds == pytest.approx(1 + 100 * 0.1 * 3 + 0.01 * 100 * 3 + 0.2 * 100 / 2)


def cost(stage: str, seconds: float) -> StageCost:
    return stage_cost(stage, seconds, cores=1, accelerators=0, bytes_written=5, prices=config().cost)


def forecast(stage: str, seconds: float) -> StageForecast:
    return forecast_labelling(cost("label", seconds), error=0.5).with_changes(stage=stage)


def test_a_stage_that_has_run_keeps_the_forecast_from_before() -> None:
    """A stage that has not run has the new one, and one that is not forecast any more stays with what it cost."""
    earlier = [forecast("label", 100.0), forecast("train", 50.0), forecast("evaluate", 9.0)]
    now = [forecast("train", 70.0), forecast("evaluate", 11.0)]
    found = {one.stage: one for one in with_followed(now, earlier, [cost("label", 120.0), cost("train", 40.0)])}
    assert {name: one.seconds for name, one in found.items()} == {"train": 50.0, "evaluate": 11.0, "label": 100.0}
    assert {name: one.followed and one.followed.wall_seconds for name, one in found.items()} == {
        "train": 40.0,
        "evaluate": None,
        "label": 120.0,
    }


def test_a_person_reads_every_stage_the_sum_and_what_followed() -> None:
    """A column of what followed only where something did."""
    stages = [forecast("label", 60.0), forecast("train", 600.0)]
    report = REPORT.with_changes(options=forms(10).options)
    text = show_plan(report.with_changes(stages=tuple(stages)))
    for part in ("label", "5 min 00 s to 15 min 00 s", "campaign", "11 min 00 s", "train: a rehearsal"):
        assert part in text, text
    assert "followed" not in text
    beside = with_followed(stages, [], [cost("train", 660.0)])
    text = show_plan(report.with_changes(stages=beside))
    assert "followed" in text and "11 min 00 s, 0.183 EUR" in text
    assert REPORT.from_dict(REPORT.with_changes(stages=beside).to_dict()).stages == beside
