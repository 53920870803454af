"""Models of classifiers: named classes, and one softmax a row."""

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
    REGRESSION,
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
from ray_distill.models.heads.logistic import fit_classes, require_every_class
from ray_distill.models.students.kind import StudentKind
from ray_distill.models.students.named_classes import named_student
from ray_distill.tasks.facets import HeadFit
from ray_distill.tasks.task import Task
from ray_distill.teachers.reduce import reduce_logits as reduce

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

FAMILY: Final[Family] = "categorical"


def check_model(task: Task, *, model: TeacherConfig, space: AnswerSpace | None, model_config: Any) -> None:
    """Refuse logits that are not one distribution over classes; see `ModelFacet`."""
    other = f"{task.inputs.name}_multi_label"
    if getattr(model_config, "problem_type", None) == MULTI_LABEL:
        raise ModelError(
            f"{model.model} has problem_type {MULTI_LABEL} in its config, so its logits are one yes or no for each "
            f"class, and {task.name} needs one class a row: use the task {other}"
        )
    if getattr(model_config, "problem_type", None) == REGRESSION:
        raise ModelError(
            f"{model.model} has problem_type {REGRESSION} in its config, so its logits are numbers and not a "
            f"distribution, and {task.name} needs one class a row: use a classifier, or, if its logits are those of a "
            "softmax, set problem_type to single_label_classification in its config.json"
        )
    if space is not None and space.size == 1:
        raise ModelError(
            f"{model.model} answers with one logit, a yes or no for {space.names[0]!r}, and {task.name} needs at least "
            f"two classes: use the task {other}"
        )
    check_id2label(model, model_config)


def head_fit(truth: npt.NDArray[Any], classes: Sequence[str], *, seed: int) -> HeadFit:
    """Return a multinomial logistic regression on class indices ``[R]``."""
    labels_R = np.asarray(truth, np.int64)
    require_every_class(labels_R, classes)
    return partial(fit_classes, labels_R=labels_R, classes=len(classes), seed=seed)


def student(
    config: StudentModel, *, task: Task, classes: tuple[str, ...], width: int | None, teacher: TeacherConfig, seed: int
) -> StudentKind:
    """Return the rules for students over these class names."""
    return named_student(config, task=task, classes=classes, teacher=teacher, seed=seed)
