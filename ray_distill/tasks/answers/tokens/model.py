"""Language models: a vocabulary without names, and one softmax at each answered token."""

from collections.abc import Sequence
from typing import Any, Final

import numpy.typing as npt
from torch import nn

from ray_distill.config import SignalConfig, StudentModel, TeacherConfig
from ray_distill.errors import ConfigError, ModelError
from ray_distill.labels.model.distributions import Family
from ray_distill.labels.model.part_specs import AnswerSpace
from ray_distill.models.core.head_extraction import body_and_head
from ray_distill.models.core.vocabulary import vocabulary_of, vocabulary_space
from ray_distill.models.students.kind import StudentKind
from ray_distill.models.students.teacher_tokens import token_student
from ray_distill.tasks.facets import HeadFit
from ray_distill.tasks.task import Task
from ray_distill.teachers.reduce import reduce_logits as reduce

__all__ = ["reduce"]

FAMILY: Final[Family] = "categorical"
HEADLESS: Final = ""


def space(model_config: Any) -> AnswerSpace:
    """Return the vocabulary of a transformers config."""
    return AnswerSpace(size=vocabulary_of(model_config))


def space_of(module: nn.Module, names: tuple[str, ...], url: str) -> AnswerSpace:
    """Return the vocabulary of a function's model; see `vocabulary_space`."""
    return vocabulary_space(module, names, url)


def describe(space: AnswerSpace) -> str:
    """Return the size of the vocabulary as a phrase."""
    return f"over {space.size:,} tokens"


def check_model(task: Task, *, model: TeacherConfig, space: AnswerSpace | None, model_config: Any) -> None:
    """Refuse a fitted head, which a language model does not have."""
    if model.head is not None:
        raise ConfigError(f"labels.teacher.head fits a classifier, and {task.name} has none: leave it out")


def check_classes(space: AnswerSpace, snapshot: Sequence[str], url: str) -> None:
    """Accept every vocabulary: a snapshot of texts has no classes."""


def logits_shape(width: int) -> tuple[int | None, ...]:
    """Return ``[1, L, V]``."""
    return (1, None, width)


def separate(module: nn.Module) -> tuple[nn.Module, nn.Linear] | None:
    """Return body and head (`body_and_head`), so that logits exist at answered tokens alone."""
    try:
        return body_and_head(module)
    except ModelError:
        return None


def stored_form(signal: SignalConfig, given: Sequence[str]) -> SignalConfig:
    """Return draws in the compact encoding, of all forms the smallest, and without bias.

    Settings that only the likeliest tokens have, ``k`` and temperatures, or an engine that cannot draw, make it those.
    """
    likeliest = {"k", "temperatures"} & signal.model_fields_set
    form = {"estimator": "topk" if likeliest or "sampled" not in given else "sampled", "encoding": "compact"}
    return SignalConfig.model_validate({**form, **signal.model_dump(exclude_unset=True)})


def limit_entries(k: int, space: AnswerSpace, url: str) -> int:
    """Return ``k``; refuse more than the vocabulary, which is a mistake."""
    if k > space.size:
        raise ConfigError(
            f"labels.signal.k is {k}, but {url} has a vocabulary of {space.size}: give "
            f"at most {space.size}, or take the estimator dense, which stores all of it"
        )
    return k


def head_fit(truth: npt.NDArray[Any], classes: Sequence[str], *, seed: int) -> HeadFit:
    """Refuse to fit a head."""
    raise ConfigError("labels.teacher.head fits a classifier, and a language model has none: leave it out")


def student(
    config: StudentModel, *, task: Task, classes: tuple[str, ...], width: int | None, teacher: TeacherConfig, seed: int
) -> StudentKind:
    """Return the rules for students over the teacher's tokens."""
    return token_student(config, task=task.name, teacher=teacher, width=width)
