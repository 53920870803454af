"""All tasks by the name a config uses. Adding one is a file and a line."""

from collections.abc import Mapping

from ray_distill.errors import ConfigError
from ray_distill.tasks.base import Task
from ray_distill.tasks.image_classification import ImageClassification
from ray_distill.tasks.text_classification import TextClassification

TASKS: Mapping[str, Task] = {
    "text_classification": TextClassification(),
    "image_classification": ImageClassification(),
}


def get_task(name: str) -> Task:
    """The task of this name.

    Raises:
        ConfigError: there is none.
    """
    if name not in TASKS:
        raise ConfigError(f"there is no task {name!r}: use {' or '.join(TASKS)}")
    return TASKS[name]
