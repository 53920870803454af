"""Make prompts: the beginning of a text, or a conversation before the assistant's turn."""

import json
from dataclasses import dataclass, replace

import numpy as np

from ray_distill.errors import ModelError
from ray_distill.models.text.chat import Template
from ray_distill.models.text.lm_processor import IntArray, LanguageProcessor
from ray_distill.tasks.inputs.conversation import Conversation, Unfit, read_chat

#: Tokens of a document that are its beginning at most; at most half of it.
BEGINNING = 32


@dataclass(frozen=True, kw_only=True, eq=False)
class Prompt:
    """Tokens ``[L]`` to continue, as text, and the known continuation."""

    ids_L: IntArray
    shown: str
    reference: str | None = None


def given_prompt(text: str, processor: LanguageProcessor) -> Prompt:
    """Read a prompt: a text; for chat a conversation as JSON, or a user's message.

    The last message of a conversation is dropped if it is the assistant's.

    Raises:
        ModelError: it is empty, too long, or a conversation that cannot be read.
    """
    try:
        prompt = _conversation(_read(text), processor) if processor.chat else _text(text, processor)
    except Unfit as why:
        raise ModelError(f"the prompt {text[:60]!r} cannot be used: {why}") from why
    if not 0 < len(prompt.ids_L) < processor.max_length:
        raise ModelError(
            f"the prompt {text[:60]!r} has {len(prompt.ids_L)} tokens, and the model reads "
            f"{processor.max_length}: nothing can follow it"
        )
    return prompt


def prompt_of_document(text: str, processor: LanguageProcessor, *, reference_tokens: int) -> Prompt | None:
    """Return the beginning of a text, or a conversation before its last answer; or None.

    Args:
        text: a row's.
        processor: of the models that are to go on.
        reference_tokens: tokens of a text after its beginning that are kept as the reference.
    """
    if not processor.chat:
        return _beginning(text, processor, reference_tokens)
    try:
        prompt = _conversation(_until_last_answer(read_chat(text)), processor)
    except Unfit:
        return None
    return prompt if len(prompt.ids_L) < processor.max_length else None


def _text(text: str, processor: LanguageProcessor) -> Prompt:
    return Prompt(ids_L=_open_end(processor, text, special=True), shown=text)


def _beginning(text: str, processor: LanguageProcessor, reference_tokens: int) -> Prompt | None:
    ids_L = _open_end(processor, text, special=True)
    begin = min(BEGINNING, len(ids_L) // 2, processor.max_length - 1)
    if not begin:
        return None
    follows_L = ids_L[begin : begin + reference_tokens]
    return Prompt(ids_L=ids_L[:begin], shown=_words(processor, ids_L[:begin]), reference=_words(processor, follows_L))


def _conversation(conversation: Conversation, processor: LanguageProcessor) -> Prompt:
    """Return the conversation up to an assistant's last message, which becomes the reference."""
    *before, last = conversation.messages
    answered = last["role"] == "assistant"
    messages = before if answered else list(conversation.messages)
    if not messages:
        raise Unfit("nothing comes before the assistant's message")
    template = Template(tokenizer=processor.tokenizer, roles=processor.settings.roles)
    text = template.prompt(replace(conversation, messages=tuple(messages)))
    return Prompt(
        ids_L=_open_end(processor, text, special=False),
        reference=_content_of(last) if answered else None,
        shown="\n".join(f"{message['role']}: {_content_of(message)}" for message in messages),
    )


def _until_last_answer(conversation: Conversation) -> Conversation:
    answers = [index for index, message in enumerate(conversation.messages) if message["role"] == "assistant"]
    if not answers:
        raise Unfit("no message of the assistant")
    return replace(conversation, messages=conversation.messages[: answers[-1] + 1])


def _read(text: str) -> Conversation:
    """Read a conversation in JSON; any other text is a user's message.

    Raises:
        Unfit: it is JSON, but no conversation.
    """
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        found = None
    if isinstance(found, list | dict):
        return read_chat(text)
    return Conversation(messages=({"role": "user", "content": text},))


def _content_of(message: dict[str, object]) -> str:
    """Return the content of a message, and its tool calls as JSON."""
    calls = json.dumps(message["tool_calls"]) if "tool_calls" in message else ""
    return f"{message.get('content') or ''}{calls}"


def _open_end(processor: LanguageProcessor, text: str, *, special: bool) -> IntArray:
    """Return the tokens of a text without the end that some tokenizers append."""
    tokenizer = processor.tokenizer
    found = tokenizer(text, add_special_tokens=special, truncation=False, verbose=False)
    ids_L = np.array(found["input_ids"], np.int32)
    ended = special and len(ids_L) and ids_L[-1] == tokenizer.eos_token_id
    return ids_L[:-1] if ended else ids_L


def _words(processor: LanguageProcessor, ids_L: IntArray) -> str:
    return str(processor.tokenizer.decode(ids_L.tolist(), skip_special_tokens=True))
