"""The family of answers of each task, readable without torch."""

from collections.abc import Mapping

from ray_distill.errors import ConfigError
from ray_distill.tasks.answers.classes import CLASSES
from ray_distill.tasks.answers.family import Answers
from ray_distill.tasks.answers.tokens import TOKENS

ANSWERS: Mapping[str, Answers] = {
    "text_classification": CLASSES,
    "image_classification": CLASSES,
    "causal_lm": TOKENS,
    "seq2seq": TOKENS,
}


def answers_of(task: str) -> Answers:
    """Return the family of a task's answers.

    Raises:
        ConfigError: there is no such task.
    """
    if task not in ANSWERS:
        raise ConfigError(f"there is no task {task!r}: use {' or '.join(ANSWERS)}")
    return ANSWERS[task]
