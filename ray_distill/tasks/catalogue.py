"""All tasks by the name a config uses. Adding one is a file and a line."""

from collections.abc import Mapping

from ray_distill.errors import ConfigError
from ray_distill.tasks.base import LabelTask, Task
from ray_distill.tasks.causal_lm import CausalLM
from ray_distill.tasks.image_classification import ImageClassification
from ray_distill.tasks.text_classification import TextClassification

TASKS: Mapping[str, Task] = {
    "text_classification": TextClassification(),
    "image_classification": ImageClassification(),
}

#: Those that can be labelled: students of some cannot be trained yet.
LABEL_TASKS: Mapping[str, LabelTask] = {**TASKS, "causal_lm": CausalLM()}


def get_label_task(name: str) -> LabelTask:
    """The task of this name, as labelling sees it.

    Raises:
        ConfigError: there is none.
    """
    if name not in LABEL_TASKS:
        raise ConfigError(f"there is no task {name!r}: use {' or '.join(LABEL_TASKS)}")
    return LABEL_TASKS[name]


def get_task(name: str) -> Task:
    """The task of this name.

    Raises:
        ConfigError: there is none.
    """
    if name not in TASKS:
        raise ConfigError(f"there is no task {name!r}: use {' or '.join(TASKS)}")
    return TASKS[name]
