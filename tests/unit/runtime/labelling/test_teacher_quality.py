"""What the teacher's check does where the calibration split cannot decide: it passes, and every doubt is stated."""

import math

import pytest

from ray_distill.artifacts import Estimate
from ray_distill.config import CheckConfig
from ray_distill.errors import TeacherRefused
from ray_distill.runtime.labelling.teacher_quality import TeacherCheck, doubts, refuse_weak_teacher


def _accuracy(value: float, rows: int, half: float = math.nan) -> Estimate:
    return Estimate(value=value, low=value - half, high=value + half, n=rows)


def _doubts(check: TeacherCheck, floor: CheckConfig | None = None, **classes: int) -> list[str]:
    return doubts(check, floor or CheckConfig(), rows="labelled rows", classes=classes)


def test_a_calibration_split_of_one_class_decides_nothing() -> None:
    """Nothing exceeds the 1.0 of the commonest answer: a faultless teacher passes, and the sentence has the remedy."""
    check = TeacherCheck(teacher={"accuracy": _accuracy(1.0, 40)}, trivial={"accuracy": 1.0})
    refuse_weak_teacher(check, CheckConfig(), "big")
    majority, absent = _doubts(check, politics=40, sport=0)
    assert "whether the teacher beats the commonest answer cannot be decided" in majority
    assert "on 40 labelled rows" in majority and "labels.check.beat_majority: false" in majority
    assert absent == "no labelled row of the calibration split has sport: the check covers 1 of 2 classes"


@pytest.mark.parametrize(("rows", "trivial", "refused"), [(20, 0.95, False), (2000, 0.95, True), (2000, 0.9995, False)])
def test_a_tie_refuses_only_where_a_faultless_teacher_would_pass(rows: int, trivial: float, refused: bool) -> None:
    """One rare row of twenty proves nothing; a hundred of two thousand do; one of two thousand does not."""
    check = TeacherCheck(teacher={"accuracy": _accuracy(trivial, rows)}, trivial={"accuracy": trivial})
    if refused:
        with pytest.raises(TeacherRefused, match="does not exceed the 0.9500"):
            refuse_weak_teacher(check, CheckConfig(), "big")
        return
    refuse_weak_teacher(check, CheckConfig(), "big")
    assert "cannot be decided" in _doubts(check)[0]


def test_sets_without_any_label_decide_nothing() -> None:
    """All sets of the split are empty: the mAP is undefined, the commonest set is always right; both are stated."""
    check = TeacherCheck(
        teacher={"subset_accuracy": _accuracy(0.9, 30)}, trivial={"subset_accuracy": 1.0, "micro_f1": 0.0}
    )
    refuse_weak_teacher(check, CheckConfig(), "big")
    majority, undefined = _doubts(check)
    assert "scores subset_accuracy 1.0000" in majority
    assert "unknown for micro_f1, which the labels of the calibration split do not define" in undefined
    with pytest.raises(
        TeacherRefused, match="map was not measured, because the labels of the calibration split do not"
    ):
        refuse_weak_teacher(check, CheckConfig.model_validate({"limits": {"map": {"min": 0.5}}}), "big")


def test_few_rows_are_stated_with_the_number_that_would_decide() -> None:
    """A floor that the interval straddles is kept, or missed, but never in silence."""
    floor = CheckConfig.model_validate({"limits": {"accuracy": {"min": 0.85}}})
    check = TeacherCheck(teacher={"accuracy": _accuracy(0.9, 50, 0.08)}, trivial={"accuracy": 0.5})
    refuse_weak_teacher(check, floor, "big")
    (kept,) = _doubts(check, floor)
    assert "accuracy 0.9000 [0.8200, 0.9800] keeps the floor of 0.85, but not beyond doubt on 50 labelled rows" in kept
    assert "about 270 labelled rows would decide" in kept
    below = TeacherCheck(teacher={"accuracy": _accuracy(0.8, 50, 0.1)})
    with pytest.raises(TeacherRefused, match=r"its interval 0.7000 to 0.9000 on 50 rows reaches across"):
        refuse_weak_teacher(below, floor, "big")
    close = TeacherCheck(teacher={"accuracy": _accuracy(0.55, 50, 0.14)}, trivial={"accuracy": 0.5})
    assert "exceeds the 0.5000 of the commonest answer, but not beyond doubt" in _doubts(close)[0]


def test_absent_classes_are_named_up_to_five_and_counted_beyond() -> None:
    """A split without labels has no absent class to name."""
    counts = {f"c{at}": int(at == 0) for at in range(9)}
    (line,) = _doubts(TeacherCheck(teacher={}), **counts)
    assert line.startswith("no labelled row of the calibration split has c1, c2, c3, c4, c5 and 3 more: ")
    assert _doubts(TeacherCheck(teacher={}), a=0, b=0) == []
