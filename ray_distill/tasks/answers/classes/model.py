"""Models of classifiers: named classes, and one softmax a row."""

from collections.abc import Sequence
from functools import partial
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from torch import nn

from ray_distill.config import StudentModel, TeacherConfig
from ray_distill.errors import ModelError
from ray_distill.labels.model.distributions import Family
from ray_distill.labels.model.part_specs import AnswerSpace
from ray_distill.models.core.class_names import MULTI_LABEL, class_names, named, named_space, require_same_names
from ray_distill.models.heads.logistic import fit_classes, require_every_class
from ray_distill.models.students.kind import StudentKind
from ray_distill.models.students.named_classes import named_student
from ray_distill.tasks.facets import HeadFit
from ray_distill.tasks.task import Task
from ray_distill.teachers.reduce import reduce_logits as reduce

__all__ = ["reduce"]

FAMILY: Final[Family] = "categorical"
HEADLESS: Final = "; for an encoder without a classification head set `head` in the teacher's config"


def space(model_config: Any) -> AnswerSpace:
    """Return the class names of a transformers config."""
    return named(class_names(model_config))


def space_of(module: nn.Module, names: tuple[str, ...], url: str) -> AnswerSpace:
    """Return the class names of a function's model."""
    return named_space(names, url)


def describe(space: AnswerSpace) -> str:
    """Return the number of classes as a phrase."""
    return f"with {space.size} classes"


def check_model(task: Task, *, model: TeacherConfig, space: AnswerSpace | None, model_config: Any) -> None:
    """Refuse logits that are a sigmoid each; see `ModelFacet`."""
    other = f"{task.inputs.name}_multi_label"
    if getattr(model_config, "problem_type", None) == MULTI_LABEL:
        raise ModelError(
            f"{model.model} has problem_type {MULTI_LABEL} in its config, so its logits are one yes or no for each "
            f"class, and {task.name} needs one class a row: use the task {other}"
        )
    if space is not None and space.size == 1:
        raise ModelError(
            f"{model.model} answers with one logit, a yes or no for {space.names[0]!r}, and {task.name} needs at least "
            f"two classes: use the task {other}"
        )


def check_classes(space: AnswerSpace, snapshot: Sequence[str], url: str) -> None:
    """Refuse a teacher whose classes are not those of the snapshot."""
    require_same_names(space.names, snapshot, url)


def logits_shape(width: int) -> tuple[int | None, ...]:
    """Return ``[1, V]``."""
    return (1, width)


def separate(module: nn.Module) -> None:
    """Return None: there is one answer a row, and no position to choose."""


def limit_entries(k: int, space: AnswerSpace, url: str) -> int:
    """Return ``k``, or all classes where there are fewer."""
    return min(k, space.size)


def head_fit(truth: npt.NDArray[Any], classes: Sequence[str], *, seed: int) -> HeadFit:
    """Return a multinomial logistic regression on class indices ``[R]``."""
    labels_R = np.asarray(truth, np.int64)
    require_every_class(labels_R, classes)
    return partial(fit_classes, labels_R=labels_R, classes=len(classes), seed=seed)


def student(
    config: StudentModel, *, task: Task, classes: tuple[str, ...], width: int | None, teacher: TeacherConfig, seed: int
) -> StudentKind:
    """Return the rules for students over these class names."""
    return named_student(config, task=task.name, classes=classes, seed=seed)
