"""Classes that a mean over all rows hides are named with their counts, and none in a healthy result."""

import numpy as np
import pyarrow as pa

from ray_distill.tasks.answers.classes.evaluation.remarks import remarks

NAMES = ("ham", "spam", "rare", "odd")


def answers(labels: list[int | None], predicted: list[int]) -> pa.Table:
    """Answers that give their class 0.97."""
    logp = np.log(np.where(np.arange(len(NAMES)) == np.array(predicted)[:, None], 0.97, 0.01))
    return pa.table(
        {
            "row_id": pa.array([index.to_bytes(16, "big") for index in range(len(labels))], pa.binary(16)),
            "logp": pa.array(list(logp), pa.list_(pa.float64())),
            "count": pa.array([1] * len(labels), pa.int64()),
            "label": pa.array(labels, pa.int32()),
        }
    )


LABELS: list[int | None] = [0] * 100 + [1] * 100 + [2] * 20 + [3] * 20
RIGHT = [label or 0 for label in LABELS]


def test_a_healthy_result_has_none() -> None:
    """Also without a teacher, and without labels."""
    table = answers(LABELS, RIGHT)
    assert remarks({"student": table, "teacher": table}, NAMES) == remarks({"student": table}, NAMES) == []
    assert remarks({"student": answers([None] * len(LABELS), RIGHT)}, NAMES) == []


def test_a_class_that_is_never_right_is_named() -> None:
    """With its rows; a class of fewer than five is not."""
    predicted = [0 if label == 2 else label for label in RIGHT]
    note, *_ = remarks({"student": answers(LABELS, predicted), "teacher": answers(LABELS, RIGHT)}, NAMES)
    assert note.startswith("The student has no row of rare (0 of 20) right")
    few = answers([*LABELS[:200], 2, 2, 2, 2], [*RIGHT[:200], 0, 0, 0, 0])
    assert not any("no row" in one for one in remarks({"student": few}, NAMES))


def test_a_macro_f1_far_below_accuracy_is_named_with_the_worst_classes() -> None:
    """A quarter of two small classes is right: accuracy 0.875, macro-F1 0.66."""
    predicted = [label if label < 2 or index % 4 == 0 else 0 for index, label in enumerate(RIGHT)]
    (note,) = remarks({"student": answers(LABELS, predicted)}, NAMES)
    assert "macro-F1, 0.6" in note and "its accuracy, 0.875" in note
    assert "worst on rare (5 of 20), odd (5 of 20), " in note


def test_a_class_that_the_teacher_does_not_know_is_named() -> None:
    """The student's own result on it does not count."""
    predicted = [0 if label == 3 and index % 5 else label for index, label in enumerate(RIGHT)]
    notes = remarks({"student": answers(LABELS, RIGHT), "teacher": answers(LABELS, predicted)}, NAMES)
    (note,) = notes
    assert note.startswith("The teacher is weak on odd (4 of 20), against an accuracy of 0.933")
    assert "student.losses.hard.weight" in note
