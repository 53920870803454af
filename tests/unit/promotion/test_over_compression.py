"""A student that keeps its answers and loses its calibration is named, with what to change; others are not."""

import pytest

from ray_distill.artifacts import Calibration, Efficiency, Estimate, EvalReport, ModelReport
from ray_distill.config import GateConfig, Limit
from ray_distill.promotion.over_compression import over_compression
from tests.unit.promotion.test_gate import STUDENT

FITTED = Calibration(temperature=1.4, where="head", against="true labels", rows=160, ece_before=0.2, ece_after=0.1)
EFFICIENCY = Efficiency(parameters=1, bytes_on_disk=1, latency_ms_p50=1.0, latency_ms_p95=1.0, examples_per_second=1.0)


def judged(*, accuracy: float, ece: float | None) -> EvalReport:
    """A student beside a teacher of accuracy 0.95 and ECE 0.02."""

    def model(name: str, **metrics: float) -> ModelReport:
        found = {
            key: Estimate(value=value, low=value - 0.01, high=value + 0.01, n=900) for key, value in metrics.items()
        }
        return ModelReport(name=name, url=name, efficiency=EFFICIENCY, metrics=found)

    student = model("student", accuracy=accuracy, **({} if ece is None else {"ece": ece}))
    models = {"student": student, "teacher": model("teacher", accuracy=0.95, ece=0.02)}
    return EvalReport(
        url="r", fingerprint="e", task="text_classification", student=STUDENT, models=models, comparisons={}
    )


def test_kept_accuracy_with_lost_calibration_is_named() -> None:
    """By the task's own margin of 0.05, or the gate's; the difference and the remedies are there."""
    found = over_compression(judged(accuracy=0.94, ece=0.11), GateConfig(), FITTED)
    assert found.startswith(
        "Over-compression: the student keeps the limits of accuracy, and its probabilities are worse"
    )
    assert "ece minus the teacher's is +0.0900" in found and "+0.05 is allowed" in found
    assert "Its temperature, 1.4, was fitted on 160 rows" in found and "student.model" in found
    assert "doubt" not in found
    doubted = over_compression(judged(accuracy=0.94, ece=0.08), GateConfig(), FITTED)
    assert "worse than the teacher's, if not beyond doubt: ece minus" in doubted
    wide = GateConfig(limits={"ece": Limit(teacher_margin=0.1)})
    assert over_compression(judged(accuracy=0.94, ece=0.11), wide, FITTED) == ""
    absolute = GateConfig(limits={"ece": Limit(max=0.5)})
    assert over_compression(judged(accuracy=0.94, ece=0.11), absolute, FITTED) == found


@pytest.mark.parametrize(("accuracy", "ece"), [(0.94, 0.06), (0.80, 0.11), (0.80, 0.02), (0.94, None)])
def test_other_students_are_not(accuracy: float, ece: float | None) -> None:
    """Calibrated ones, those that lost accuracy too, and those whose calibration was not measured."""
    assert over_compression(judged(accuracy=accuracy, ece=ece), GateConfig(), FITTED) == ""
    assert over_compression(judged(accuracy=0.94, ece=0.11), GateConfig(limits={"accuracy": None}), FITTED) == ""


def test_the_remedy_follows_what_was_done() -> None:
    """A student that is exported as trained is calibrated first; one with too few rows gets more."""
    report = judged(accuracy=0.94, ece=0.11)
    assert "exported as trained (student.calibrate): calibrate it, or" in over_compression(report, GateConfig(), None)
    few = Calibration(temperature=1.0, reason="the calibration split has few rows")
    assert "because the calibration split has few rows: raise snapshot.splits.calibration" in over_compression(
        report, GateConfig(), few
    )
