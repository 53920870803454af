"""Write greedy continuations of a few prompts with every model, side by side.

Prompts and answers are raw text, and go to the review page and the tracking server: nothing is written unless
``evaluation.prompts`` is set.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa
import torch

from ray_distill.errors import EvaluationError
from ray_distill.evaluation.predict.texts import Written
from ray_distill.models.core.forward import forward
from ray_distill.models.core.model import Model
from ray_distill.models.text.lm_processor import LanguageProcessor
from ray_distill.models.text.prompts import Prompt, given_prompt, prompt_of_document
from ray_distill.tasks.answers.tokens.evaluation.predictions import check_alike

#: Documents of the test split that are continued where the configuration has the word ``test``.
FROM_TEST = 5


def choose_prompts(
    models: Mapping[str, Model], requested: Sequence[str] | str, documents: pa.ChunkedArray, *, new_tokens: int
) -> list[Prompt]:
    """Choose the prompts that all models are to continue.

    Args:
        models: by arm, of one tokenizer.
        requested: ``evaluation.prompts``: texts, or the word ``test`` for beginnings of the first documents.
        documents: texts of the test split.
        new_tokens: tokens of a document after its beginning that are shown as the reference.

    Raises:
        EvaluationError: the models have different tokens, or none.
        ModelError: a given prompt cannot be continued.
    """
    check_alike(models)
    first = next(iter(models.values()))
    if not isinstance(first.processor, LanguageProcessor):
        raise EvaluationError(
            f"evaluation.prompts: {first.url} has no tokenizer that could turn tokens into text: leave it out"
        )
    if not isinstance(requested, str):
        return [given_prompt(text, first.processor) for text in requested]
    return list(_from_test(documents, first.processor, new_tokens))


def write_side_by_side(
    models: Mapping[str, Model], prompts: Sequence[Prompt], *, new_tokens: int
) -> tuple[Written, ...]:
    """Continue each prompt with every model's likeliest tokens.

    Writing stops at the end of the answer or after ``new_tokens``.

    Each prompt runs alone, so that no answer depends on the others.
    """
    stops = _stops(models)
    return tuple(
        Written(
            prompt=prompt.shown,
            reference=prompt.reference,
            answers={arm: _answer(model, prompt, stops, new_tokens) for arm, model in models.items()},
        )
        for prompt in prompts
    )


def greedy(model: Model, ids: Sequence[int], *, stops: frozenset[int], new_tokens: int) -> list[int]:
    """Return the tokens that a model appends, without the one that ended it.

    It runs over all tokens again for each, as `forward` does for every model: prompts are few.
    """
    device, found = next(model.module.parameters()).device, list(ids)
    for _ in range(new_tokens):
        tokens_BL = torch.tensor([found], dtype=torch.int64, device=device)
        with torch.inference_mode():
            output = forward(model.module, {"input_ids": tokens_BL, "attention_mask": torch.ones_like(tokens_BL)})
        token = int(output.logits_BV[0, -1].argmax())
        if token in stops:
            break
        found.append(token)
    return found[len(ids) :]


def _from_test(documents: pa.ChunkedArray, processor: LanguageProcessor, new_tokens: int) -> Iterator[Prompt]:
    found = 0
    for document in documents:
        prompt = prompt_of_document(document.as_py() or "", processor, reference_tokens=new_tokens)
        if prompt is not None:
            found += 1
            yield prompt
        if found == FROM_TEST:
            return


def _answer(model: Model, prompt: Prompt, stops: frozenset[int], new_tokens: int) -> str:
    processor: Any = model.processor
    room = min(new_tokens, processor.max_length - len(prompt.ids_L))
    ids = greedy(model, prompt.ids_L.tolist(), stops=stops, new_tokens=room)
    return str(processor.tokenizer.decode(ids, skip_special_tokens=True))


def _stops(models: Mapping[str, Model]) -> frozenset[int]:
    """Return the tokens that end an answer: those that any model or the tokenizer names.

    They are the same for all models.

    In a conversation any special token ends it: a student may not have learnt which one ends a turn; none is a word.
    """
    processor: Any = next(iter(models.values())).processor
    named: list[Any] = [processor.tokenizer.eos_token_id]
    for model in models.values():
        for settings in (getattr(model.module, "config", None), getattr(model.module, "generation_config", None)):
            ends = getattr(settings, "eos_token_id", None)
            named += ends if isinstance(ends, list) else [ends]
    if processor.settings.format == "chat":
        named += processor.tokenizer.all_special_ids
    return frozenset(int(token) for token in named if token is not None)
