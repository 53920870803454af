"""Read and render conversations, and find the spans that each role wrote."""

import json
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from transformers.utils import chat_template_utils

from ray_distill.config.labels import LanguageConfig
from ray_distill.tasks.inputs.chat import CHAT

#: Type of a message's part that is a text, in OpenAI's API; the others are images, sounds and files.
_TEXT_PART = "text"
#: Roles of messages; a template may have fewer.
ROLES = ("system", "developer", "user", "assistant", "tool", "function")

#: A message's end is found by rendering all before it, so that the work grows with the square of their number.
MOST_MESSAGES = 1000

_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")
#: A template that prints today's date would give a row other tokens tomorrow than those that were labelled.
_STILL = "{%- macro strftime_now(format) -%}26 Jul 2024{%- endmacro -%}\n"
#: Stands for an answer; no template has it in its own text.
_ANSWER = "<answer/>"


class Unfit(ValueError):
    """Why one text cannot be used; never leaves this folder but as a reason."""


@dataclass(frozen=True, kw_only=True)
class Conversation:
    """Messages as a template takes them, and the tools that the assistant may call."""

    messages: tuple[dict[str, Any], ...]
    tools: tuple[dict[str, Any], ...] = ()


@dataclass(frozen=True, kw_only=True)
class Template:
    """A tokenizer with a chat template, and the roles that are learnt."""

    tokenizer: Any
    roles: Collection[str]

    def render(self, conversation: Conversation) -> str:
        """Render the whole conversation as one text.

        Raises:
            Unfit: the template refuses it, or it is not a text.
        """
        return _encodable(self._render(conversation, len(conversation.messages)))

    def prompt(self, conversation: Conversation) -> str:
        """Render a conversation up to the header of an answer; errors as `render`."""
        return _encodable(self._render(conversation, len(conversation.messages), prompt=True))

    def after_answer(self) -> str:
        """Return the text that the template adds behind an answer; empty if it is unclear."""
        answered = Conversation(messages=({"role": "user", "content": "a"}, {"role": "assistant", "content": _ANSWER}))
        try:
            return self.render(answered).partition(_ANSWER)[2]
        except Unfit:
            return ""

    def spans(self, conversation: Conversation, text: str, until: int) -> list[tuple[int, int]]:
        """Return the spans ``[start, end)`` of ``text`` by the learnt roles, with end of turn.

        Args:
            conversation: what was rendered.
            text: what `render` gave for it.
            until: characters from here on are of no interest.

        Raises:
            Unfit: the template does not let it be found out.
        """
        source = self._source(conversation)
        if set(self.roles) == {"assistant"} and _GENERATION.search(source):
            return self._marked(conversation, source)
        return list(self._by_prefixes(conversation, text, until))

    def _marked(self, conversation: Conversation, source: str) -> list[tuple[int, int]]:
        """Return the assistant's spans as the template marks them."""
        _, found = chat_template_utils.render_jinja_template(
            conversations=[list(conversation.messages)],
            tools=list(conversation.tools) or None,
            chat_template=source,
            return_assistant_tokens_mask=True,
            **self.tokenizer.special_tokens_map,
        )
        return [(int(start), int(end)) for start, end in found[0]]

    def _by_prefixes(self, conversation: Conversation, text: str, until: int) -> Iterator[tuple[int, int]]:
        specials = tuple(str(token) for token in self.tokenizer.all_special_tokens)
        for index, message in enumerate(conversation.messages):
            if message["role"] not in self.roles:
                continue
            start = self._start(conversation, text, index)
            if start >= until:
                return
            if index >= MOST_MESSAGES:
                raise Unfit(
                    f"more than {MOST_MESSAGES} messages, whose roles the template does not mark: "
                    "use one with {% generation %}, or cut the conversation"
                )
            end = self._prefix(conversation, text, index + 1, prompt=False)
            yield start, start + _closed(text[start:end], specials)

    def _start(self, conversation: Conversation, text: str, index: int) -> int:
        """Return the start of a message; an assistant's begins after its header."""
        prompt = conversation.messages[index]["role"] == "assistant"
        if index:
            return self._prefix(conversation, text, index, prompt=prompt)
        if not prompt:
            return 0
        # No template renders no messages at all: the header is what a prompt for the second message would add.
        alone = self._render(conversation, 1)
        header = self._render(conversation, 1, prompt=True)[len(alone) :]
        found = text.find(header)
        return found + len(header) if found >= 0 else 0

    def _prefix(self, conversation: Conversation, text: str, messages: int, *, prompt: bool) -> int:
        part = (
            text
            if messages == len(conversation.messages) and not prompt
            else self._render(conversation, messages, prompt=prompt)
        )
        if not text.startswith(part):
            raise Unfit(
                f"the chat template writes the first {messages} messages otherwise once others follow, so the "
                "spans of the roles are unknown: use a template with {% generation %}, or one answer a row"
            )
        return len(part)

    def _render(self, conversation: Conversation, messages: int, *, prompt: bool = False) -> str:
        try:
            return str(
                self.tokenizer.apply_chat_template(
                    list(conversation.messages[:messages]),
                    tools=list(conversation.tools) or None,
                    chat_template=self._source(conversation),
                    add_generation_prompt=prompt,
                    tokenize=False,
                )
            )
        except Exception as error:  # a template is a program: it raises what it likes
            which = "it" if messages == len(conversation.messages) else f"its first {messages} messages alone"
            raise Unfit(f"the chat template cannot render {which}: {type(error).__name__}: {error}") from error

    def _source(self, conversation: Conversation) -> str:
        source = str(self.tokenizer.get_chat_template(tools=list(conversation.tools) or None))
        return _STILL + source if "strftime_now" in source else source


def is_chat(settings: LanguageConfig) -> bool:
    """Return whether a row is a conversation; it is a plain text otherwise."""
    return settings.format == CHAT


def without_answer(conversation: Conversation) -> Conversation:
    """Return the conversation up to the assistant's last turn, which is to be written again.

    Raises:
        Unfit: there is nothing before it.
    """
    messages = list(conversation.messages)
    while messages and messages[-1]["role"] == "assistant":
        messages.pop()
    if not messages:
        raise Unfit("no prompt: nobody but the assistant speaks")
    return Conversation(messages=tuple(messages), tools=conversation.tools)


def read_chat(text: str) -> Conversation:
    """Read ``{"messages": [...], "tools": [...]}`` or a bare list, as in OpenAI's API.

    Contents in parts are joined, and the arguments of a tool call that are JSON in a string are read, as templates
    need them; the other fields of a message are kept.

    Raises:
        Unfit: it is not JSON or not a conversation; the reason names the message.
    """
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise Unfit(f"not JSON: {error}") from error
    found = {"messages": found} if isinstance(found, list) else found
    if not isinstance(found, dict) or not isinstance(found.get("messages"), list):
        raise Unfit("no conversation: expected a list of messages, or an object with the key messages")
    if not found["messages"]:
        raise Unfit("no messages")
    messages = tuple(_message(value, f"message {number}") for number, value in enumerate(found["messages"], 1))
    return Conversation(messages=messages, tools=tuple(_objects(found.get("tools"), "tools")))


def _encodable(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise Unfit(f"not UTF-8: half a character (\\u{ord(text[error.start]):04x}) in a message") from error
    return text


def _message(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise Unfit(f"{where} is {type(value).__name__}, expected an object with role and content")
    role = value.get("role")
    if role not in ROLES:
        raise Unfit(f"{where} has the unknown role {role!r}: expected one of {', '.join(ROLES)}")
    message = {name: item for name, item in value.items() if item is not None}
    calls = _objects(message.pop("tool_calls", None), f"the tool_calls of {where}")
    if calls:
        message["tool_calls"] = [_call(call) for call in calls]
    if "content" in message:
        message["content"] = _content(message["content"], where)
    elif not calls and "function_call" not in message:
        raise Unfit(f"{where} ({role}) has neither content nor tool_calls")
    return message


def _content(value: Any, where: str) -> str:
    parts = value if isinstance(value, list) else [{"type": _TEXT_PART, "text": value}]
    for part in parts:
        kind = part.get("type") if isinstance(part, dict) else type(part).__name__
        if kind != _TEXT_PART or not isinstance(part.get("text"), str):
            raise Unfit(
                f"the content of {where} has {kind!r}, expected text"
                if kind != _TEXT_PART
                else f"the content of {where} is {type(part.get('text')).__name__}, expected text"
            )
    return "".join(part["text"] for part in parts)


def _objects(value: Any, what: str) -> Sequence[dict[str, Any]]:
    if value is None:
        return ()
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise Unfit(f"{what} must be a list of objects")
    return value


def _call(call: dict[str, Any]) -> dict[str, Any]:
    """Return a tool call whose arguments are an object, which most templates write as JSON."""
    call = {name: item for name, item in call.items() if item is not None}
    if isinstance(call.get("function"), dict):
        call["function"] = _read_arguments(call["function"])
    return _read_arguments(call)


def _read_arguments(function: dict[str, Any]) -> dict[str, Any]:
    if not isinstance(function.get("arguments"), str):
        return function
    try:
        arguments = json.loads(function["arguments"])
    except (ValueError, RecursionError):
        return function
    return {**function, "arguments": arguments} if isinstance(arguments, dict) else function


def _closed(text: str, specials: tuple[str, ...]) -> int:
    """Return the length of a message up to the token that ends its turn."""
    bare = text.rstrip()
    return len(bare) if bare.endswith(specials) else len(text)
