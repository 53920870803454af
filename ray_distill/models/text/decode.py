"""Decode generated tokens, and join an answer with its prompt to a row."""

import json
from typing import Any

import numpy as np

from ray_distill.models.text.chat import Template
from ray_distill.models.text.lm_processor import IntArray, LanguageProcessor
from ray_distill.sequences.texts import with_answer
from ray_distill.tasks.inputs.conversation import Unfit, read_chat


def text_of(processor: LanguageProcessor, prompt: IntArray, tokens: IntArray) -> str:
    """Return the text of ``tokens`` after ``prompt``, without special tokens.

    It is what they add to the prompt's own text: a tokenizer whose tokens begin with a space would lose the first one.
    """
    before, whole = _decoded(processor, prompt), _decoded(processor, np.concatenate([prompt, tokens]))
    return whole[len(before) :] if whole.startswith(before) else _decoded(processor, tokens)


def reads_back(processor: LanguageProcessor, row: str, answer: str, prompt: IntArray, *, tokens: IntArray) -> bool:
    """Return whether the row with its answer is tokenized to the generated tokens."""
    try:
        text = with_answer(row, answer, processor.settings.format)
        if processor.chat:
            text = Template(tokenizer=processor.tokenizer, roles=processor.settings.roles).render(read_chat(text))
    except (Unfit, json.JSONDecodeError):
        return False
    found: Any = processor.tokenizer(text, add_special_tokens=not processor.chat, verbose=False)["input_ids"]
    wrote = [*prompt.tolist(), *tokens.tolist()]
    return list(found[: len(wrote)]) == wrote


def _decoded(processor: LanguageProcessor, tokens: IntArray) -> str:
    return str(
        processor.tokenizer.decode(tokens.tolist(), skip_special_tokens=True, clean_up_tokenization_spaces=False)
    )
