"""All tasks by the name a config uses. Adding one is a file and a line."""

from collections.abc import Mapping
from typing import TypeVar

from ray_distill.errors import ConfigError
from ray_distill.tasks.base import LabelTask, Task, TokenTask
from ray_distill.tasks.causal_lm import CausalLM
from ray_distill.tasks.image_classification import ImageClassification
from ray_distill.tasks.seq2seq import Seq2Seq
from ray_distill.tasks.text_classification import TextClassification

T = TypeVar("T")

#: Those whose models choose among named classes.
TASKS: Mapping[str, Task] = {"text_classification": TextClassification(), "image_classification": ImageClassification()}

#: Those whose models answer at tokens.
TOKEN_TASKS: Mapping[str, TokenTask] = {"causal_lm": CausalLM(), "seq2seq": Seq2Seq()}

#: All of them.
LABEL_TASKS: Mapping[str, LabelTask] = {**TASKS, **TOKEN_TASKS}


def get_task(name: str) -> Task:
    """The classification task of this name.

    Raises:
        ConfigError: there is none.
    """
    return _find(TASKS, name)


def get_token_task(name: str) -> TokenTask:
    """The task of this name, whose models answer at tokens; errors as `get_task`."""
    return _find(TOKEN_TASKS, name)


def get_label_task(name: str) -> LabelTask:
    """The task of this name, of whatever kind; errors as `get_task`."""
    return _find(LABEL_TASKS, name)


def _find(tasks: Mapping[str, T], name: str) -> T:
    if name not in tasks:
        raise ConfigError(f"there is no task {name!r}: use {' or '.join(tasks)}")
    return tasks[name]
