"""A task: how inputs are read, and what is answered."""

from dataclasses import dataclass

from ray_distill.config import Campaign
from ray_distill.tasks.answers.family import Answers
from ray_distill.tasks.inputs.modality import Inputs


@dataclass(frozen=True, kw_only=True)
class Task:
    """A kind of problem: the product of a modality and a family of answers."""

    name: str
    """As the configuration names it: a key of the catalogue, or ``package.module:object``."""
    inputs: Inputs
    answers: Answers
    auto_class: str
    """The transformers class that loads the task's checkpoints, such as ``AutoModelForSequenceClassification``."""

    def refuse(self, config: Campaign) -> list[str]:
        """List the settings that do not go with this task.

        Each is ``<config path>: <what is wrong>; <what to do>``.
        """
        return [*self.inputs.refuse(config), *self.answers.refuse(config)]
