"""All tasks by the name a configuration uses; adding one is a line.

``package.module:object`` is a user's own.
"""

from collections.abc import Mapping
from difflib import get_close_matches
from importlib import import_module

from ray_distill.errors import ConfigError
from ray_distill.tasks.answers.classes import CLASSES
from ray_distill.tasks.answers.labels import LABELS
from ray_distill.tasks.answers.tokens import TOKENS
from ray_distill.tasks.inputs.chat import TEXT_OR_CHAT
from ray_distill.tasks.inputs.image import IMAGE
from ray_distill.tasks.inputs.pair import PAIR
from ray_distill.tasks.inputs.text import TEXT
from ray_distill.tasks.task import Task

TASKS: Mapping[str, Task] = {
    task.name: task
    for task in (
        Task(name="text_classification", inputs=TEXT, answers=CLASSES, auto_class="AutoModelForSequenceClassification"),
        Task(name="image_classification", inputs=IMAGE, answers=CLASSES, auto_class="AutoModelForImageClassification"),
        Task(name="text_multi_label", inputs=TEXT, answers=LABELS, auto_class="AutoModelForSequenceClassification"),
        Task(name="image_multi_label", inputs=IMAGE, answers=LABELS, auto_class="AutoModelForImageClassification"),
        Task(name="causal_lm", inputs=TEXT_OR_CHAT, answers=TOKENS, auto_class="AutoModelForCausalLM"),
        Task(name="seq2seq", inputs=PAIR, answers=TOKENS, auto_class="AutoModelForSeq2SeqLM"),
    )
}


def get_task(name: str) -> Task:
    """Return the task of this name, from the catalogue or from ``package.module:object``.

    Raises:
        ConfigError: there is none, it cannot be imported, or it is not a `Task`.
    """
    if name in TASKS:
        return TASKS[name]
    if ":" in name:
        return _import(name)
    near = get_close_matches(name, TASKS)
    meant = f"did you mean {' or '.join(near)}? " if near else ""
    raise ConfigError(f"there is no task {name!r}: {meant}use {' or '.join(TASKS)}, or package.module:object")


def _import(name: str) -> Task:
    module, _, attribute = name.partition(":")
    try:
        found = getattr(import_module(module), attribute)
    except Exception as error:  # a user's module may raise anything when it is imported
        raise ConfigError(
            f"task: cannot import {name}: {type(error).__name__}: {error}; the module must be installed, or on "
            "PYTHONPATH, on every machine that runs the campaign"
        ) from error
    if not isinstance(found, Task):
        raise ConfigError(f"task: {name} is a {type(found).__name__}, not a ray_distill.tasks.task.Task")
    return found
