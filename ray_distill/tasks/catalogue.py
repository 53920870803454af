"""All tasks by the name a configuration uses; adding one is a line."""

from collections.abc import Mapping

from ray_distill.errors import ConfigError
from ray_distill.tasks.answers.classes import CLASSES
from ray_distill.tasks.answers.tokens import TOKENS
from ray_distill.tasks.inputs.chat import TEXT_OR_CHAT
from ray_distill.tasks.inputs.image import IMAGE
from ray_distill.tasks.inputs.pair import PAIR
from ray_distill.tasks.inputs.text import TEXT
from ray_distill.tasks.task import Task

TASKS: Mapping[str, Task] = {
    "text_classification": Task(name="text_classification", inputs=TEXT, answers=CLASSES),
    "image_classification": Task(name="image_classification", inputs=IMAGE, answers=CLASSES),
    "causal_lm": Task(name="causal_lm", inputs=TEXT_OR_CHAT, answers=TOKENS),
    "seq2seq": Task(name="seq2seq", inputs=PAIR, answers=TOKENS),
}


def get_task(name: str) -> Task:
    """Return the task of this name.

    Raises:
        ConfigError: there is none.
    """
    if name not in TASKS:
        raise ConfigError(f"there is no task {name!r}: use {' or '.join(TASKS)}")
    return TASKS[name]
