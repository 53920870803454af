"""Find classes that a mean over all rows hides.

The student never has them right, they are far below the rest, or the teacher is weak on them.
"""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import pyarrow as pa

from ray_distill.tasks.answers.classes.evaluation.by_class import ClassQuality, class_qualities
from ray_distill.tasks.answers.classes.evaluation.measures import Scores, read_scores

#: Rows of a class below which nothing is reported about it.
_ROWS = 5
#: Distance of macro-F1 from accuracy that is reported.
_FAR = 0.1
#: Share of the teacher's accuracy below which its recall of a class is weak, by the upper end of the interval.
_WEAK = 0.6
#: Most classes that a sentence lists.
_LISTED = 5


def remarks(answers: Mapping[str, pa.Table], names: Sequence[str]) -> list[str]:
    """Return findings about single classes; see `JudgeFacet`."""
    labelled = read_scores(answers["student"]).labelled
    if not len(labelled.weight_N):
        return []
    student = class_qualities(labelled)
    classes = len(np.union1d(labelled.label_N, labelled.logp_NV.argmax(axis=1)))
    found = [*_never(student, names), *_uneven(student, classes, accuracy=_accuracy(labelled), names=names)]
    if "teacher" in answers:
        teacher = read_scores(answers["teacher"]).labelled
        found += _weak_teacher(class_qualities(teacher), _accuracy(teacher), names)
    return found


def _never(found: Sequence[ClassQuality], names: Sequence[str]) -> Iterator[str]:
    missed = [one for one in found if one.recall.value == 0 and one.recall.n >= _ROWS]
    if missed:
        yield (
            f"The student has no row of {_listed(missed, names)} right: the share of all rows hides that. More "
            "train rows of these classes in snapshot.source, or student.training.sampling: {by: class}, would help."
        )


def _accuracy(labelled: Scores) -> float:
    return float(np.average(labelled.correct, weights=labelled.weight_N))


def _uneven(found: Sequence[ClassQuality], classes: int, *, accuracy: float, names: Sequence[str]) -> Iterator[str]:
    macro = sum(one.f1 for one in found) / classes  # classes that are predicted alone count with 0, as in the metric
    if accuracy - macro > _FAR:
        worst = sorted(found, key=lambda one: (one.f1, -one.recall.n))[:_LISTED]
        yield (
            f"The student's macro-F1, {macro:.3f}, is far below its accuracy, {accuracy:.3f}: it is worst on "
            f"{_listed(worst, names)}. Where these classes count as much as others, limit macro_f1 in gate.limits."
        )


def _weak_teacher(found: Sequence[ClassQuality], accuracy: float, names: Sequence[str]) -> Iterator[str]:
    weak = [one for one in found if one.recall.n >= _ROWS and one.recall.high < _WEAK * accuracy]
    if weak:
        yield (
            f"The teacher is weak on {_listed(weak, names)}, against an accuracy of {accuracy:.3f}: its labels teach "
            "the student the same mistakes. True labels of train rows of these classes, with a higher "
            "student.losses.hard.weight, or a better teacher, would change that."
        )


def _listed(found: Sequence[ClassQuality], names: Sequence[str]) -> str:
    called = names or [f"class {index}" for index in range(1 + max(one.label for one in found))]
    shown = [f"{called[one.label]} ({round(one.recall.value * one.recall.n)} of {one.recall.n})" for one in found]
    rest = len(found) - _LISTED
    return ", ".join(shown[:_LISTED]) + (f" and {rest:,} more" if rest > 0 else "")
