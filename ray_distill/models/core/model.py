"""The loaded model as plain data, and what a ``module:function`` must return."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Final, NamedTuple

from torch import nn

from ray_distill.labels.model.part_specs import AnswerSpace
from ray_distill.models.core.shape_probe import States, probe
from ray_distill.tasks.catalogue import get_task
from ray_distill.tasks.inputs.modality import Processor

#: Key of `Model.decision` for a temperature that is not part of the weights; the families' ``answer_requests``, which
#: import nothing, have the same word.
TEMPERATURE: Final = "temperature"


class ModelParts(NamedTuple):
    """Parts of a model that a ``module:function`` returns.

    ``module.forward(**features, output_hidden_states: bool)`` returns an object with ``logits`` ``[B, V]``
    and, if it has any, ``hidden_states`` (a tuple of ``[B, L, D]``, ``[B, C, H, W]`` or ``[B, D]``). A function with a
    parameter ``weights`` is called with False where only the processor is needed, and may return any module then.

    A language model answers with ``logits`` ``[B, L, V]``; its ``classes`` are empty where the module has a ``config``
    with ``vocab_size`` V, as those of transformers have, else any V names.
    """

    module: nn.Module
    processor: Processor
    classes: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Factory:
    """A ``module:function`` and the arguments it was called with."""

    name: str
    arguments: Mapping[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """Return the model's facts as plain JSON values."""
        return {"name": self.name, "arguments": dict(self.arguments)}


@dataclass(frozen=True, kw_only=True)
class Model:
    """A model ready to run: weights, processor, class names and what identifies them."""

    task: str
    module: nn.Module
    """In eval mode, on its device, in its dtype; ``forward`` of this folder calls it."""
    processor: Processor
    space: AnswerSpace
    """Classes in the order of the logits; a language model's vocabulary may exceed its tokenizer's."""
    fingerprint: str
    """Fingerprint of everything that decides the answer: weights, dtype, head, processor."""
    url: str
    """Its origin: a folder, a URL or ``module:function``."""
    factory: Factory | None = None
    describe: Mapping[str, Any] = field(default_factory=dict)
    """Facts for the model card: architecture, parameters, how the weights came about."""
    decision: Mapping[str, Any] = field(default_factory=dict)
    """How probabilities become answers, as the family fitted it: plain JSON, empty if nothing was fitted."""

    @property
    def temperature(self) -> float:
        """Divisor of the logits wherever they become probabilities; 1 if it is part of the weights."""
        return float(self.decision.get(TEMPERATURE, 1.0))

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, in the order of the logits; empty where they have none."""
        return self.space.names

    @property
    def vocabulary(self) -> int:
        """Number of classes without names; 0 where they have names."""
        return 0 if self.space.names else self.space.size

    @property
    def class_count(self) -> int:
        """Width V of the logits."""
        return self.space.size

    @cached_property
    def states(self) -> States:
        """Return the shapes of the hidden states, from one made-up example, run once.

        Raises:
            ModelError: the model does not run, or has another number of outputs than classes.
        """
        task = get_task(self.task)
        return probe(
            self.module,
            self.processor,
            shape=task.answers.model.logits_shape(self.class_count),
            inputs=task.inputs,
            url=self.url,
        )

    @cached_property
    def apart(self) -> tuple[nn.Module, nn.Linear] | None:
        """Return body and head where the head can be applied to chosen positions; else None."""
        return get_task(self.task).answers.model.separate(self.module)

    @property
    def widths(self) -> tuple[int, ...]:
        """Width D of each hidden state, 0 = the embeddings; empty where the model shows none."""
        return self.states.widths

    @property
    def layers(self) -> int:
        """Number of hidden states less one: the greatest layer index; -1 where the model shows none."""
        return len(self.widths) - 1
