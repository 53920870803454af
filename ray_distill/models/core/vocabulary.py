"""Width of the logits of language models, whose classes are tokens without names."""

from typing import Any

from torch import nn

from ray_distill.errors import ModelError
from ray_distill.labels.model.part_specs import AnswerSpace


def vocabulary_of(model_config: Any) -> int:
    """Return the width of a language model's logits, by its config."""
    text_config = model_config.get_text_config()
    return int(getattr(text_config, "decoder_vocab_size", None) or text_config.vocab_size)


def vocabulary_space(module: nn.Module, names: tuple[str, ...], url: str) -> AnswerSpace:
    """Return the vocabulary of a function's model: as many tokens as names, else by its config.

    Raises:
        ModelError: it has neither names nor ``config.vocab_size``.
    """
    found = len(names) or getattr(getattr(module, "config", None), "vocab_size", None)
    if not isinstance(found, int) or found < 1:
        raise ModelError(
            f"{url} returned a {type(module).__name__} without classes, and the module has no "
            f"config.vocab_size: expected one of the two, as the width of its logits; found {found!r}"
        )
    return AnswerSpace(size=found)
