"""Models of label sets: named labels, and one sigmoid each.

A checkpoint is accepted where its config declares what its logits are: ``problem_type: multi_label_classification``.
Without it nothing distinguishes its logits from those of a softmax, and labels would silently be wrong. A user whose
checkpoint does have sigmoids sets that field in its ``config.json``, which changes its revision too. Models that a
function returns, and fitted heads, are sigmoids by the choice of the task.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from ray_distill.config import StudentModel, TeacherConfig
from ray_distill.errors import ModelError
from ray_distill.labels.model.distributions import Family
from ray_distill.labels.model.part_specs import AnswerSpace
from ray_distill.models.core.row_classes import (
    HEADLESS,
    MULTI_LABEL,
    check_classes,
    check_id2label,
    describe,
    limit_entries,
    logits_shape,
    separate,
    space,
    space_of,
    stored_form,
)
from ray_distill.models.heads.logistic import fit_each, require_both_answers
from ray_distill.models.students.kind import StudentKind
from ray_distill.models.students.named_classes import named_student
from ray_distill.tasks.facets import HeadFit
from ray_distill.tasks.task import Task
from ray_distill.teachers.reduce_sigmoids import reduce_sigmoids as reduce

__all__ = [
    "HEADLESS",
    "check_classes",
    "describe",
    "limit_entries",
    "logits_shape",
    "reduce",
    "separate",
    "space",
    "space_of",
    "stored_form",
]

FAMILY: Final[Family] = "bernoulli"


def check_model(task: Task, *, model: TeacherConfig, space: AnswerSpace | None, model_config: Any) -> None:
    """Refuse a checkpoint that does not declare sigmoids; see the top of this module."""
    found, softmax = getattr(model_config, "problem_type", None), f"{task.inputs.name}_classification"
    if model_config is not None and found != MULTI_LABEL:
        raise ModelError(
            f"{model.model} has {f'problem_type {found}' if found else 'no problem_type'} in its config, and "
            f"{task.name} needs logits that are one sigmoid a label: use the task {softmax}, or, if its logits are "
            f"sigmoids, set problem_type to {MULTI_LABEL} in its config.json"
        )
    check_id2label(model, model_config)


def head_fit(truth: npt.NDArray[Any], classes: Sequence[str], *, seed: int) -> HeadFit:
    """Return one logistic regression a label, on sets ``[R, ≤ V]`` of 0 and 1.

    Labels behind the last column apply to no row, and are refused as such.
    """
    labels_RV = np.zeros((len(truth), len(classes)), np.int64)
    labels_RV[:, : truth.shape[1]] = truth
    require_both_answers(labels_RV, classes)
    return partial(fit_each, labels_RV=labels_RV, seed=seed)


def student(
    config: StudentModel, *, task: Task, classes: tuple[str, ...], width: int | None, teacher: TeacherConfig, seed: int
) -> StudentKind:
    """Return the rules for students over these labels; their config declares sigmoids."""
    return named_student(config, task=task, classes=classes, teacher=teacher, seed=seed, problem_type=MULTI_LABEL)
