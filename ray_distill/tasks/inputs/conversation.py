"""Read conversations and render them by a template, alike in every stage and when served.

This file is copied beside a served checkpoint, so it imports the standard library alone.

A row is a list of messages, or an object with ``messages`` and what stands beside them, as in OpenAI's API:
``tools`` (``functions`` in older files), ``documents``, ``chat_template_kwargs`` and ``parallel_tool_calls``, which the
template receives, and ``system``, the first message. Messages ``{from, value}`` of ShareGPT are read too.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

#: Roles of messages; a template may have fewer.
ROLES = ("system", "developer", "user", "assistant", "tool", "function")
#: Columns or keys beside the messages that belong to a conversation.
BESIDE = ("system", "tools", "functions", "documents", "chat_template_kwargs", "parallel_tool_calls")
#: A column of messages that come before those of a row that begins with an answer (``chosen``, ``completion``).
PROMPT = "prompt"
#: A template that prints today's date would give a row other tokens tomorrow than those that were labelled.
STILL = "{%- macro strftime_now(format) -%}26 Jul 2024{%- endmacro -%}\n"

#: Type of a message's part that is a text, in OpenAI's API; the others are images, sounds and files.
_TEXT_PART = "text"
_SPEAKERS = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "system": "system",
    "tool": "tool",
    "observation": "tool",
}
#: Arguments of a rendering that no row may set.
_OWN = ("conversation", "messages", "tools", "documents", "chat_template", "add_generation_prompt", "tokenize")


class Unfit(ValueError):
    """Why one text cannot be used; never leaves the stage but as a reason."""


@dataclass(frozen=True, kw_only=True)
class Conversation:
    """Messages as a template takes them, and the tools that the assistant may call."""

    messages: tuple[dict[str, Any], ...]
    tools: tuple[dict[str, Any], ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    """Other variables of the template: documents, and what ``chat_template_kwargs`` names."""


def assemble(value: Any, beside: Mapping[str, Any]) -> Any:
    """Return a row's conversation in OpenAI's form, with what stands in columns beside it.

    Args:
        value: messages, or an object with messages; anything else is returned as it is.
        beside: values of the columns `BESIDE` and `PROMPT`; empty ones do not count.

    Raises:
        ValueError: a key is beside the messages and in their object, with another value.
    """
    kept = {name: item for name, item in beside.items() if item is not None and item not in ("", [], {})}
    if isinstance(value, dict) and "messages" not in value and isinstance(value.get("conversations"), list):
        value = {"messages": value["conversations"], **{k: v for k, v in value.items() if k != "conversations"}}
    prompt = kept.pop(PROMPT, None)
    if isinstance(value, list):
        messages = _prompted(prompt, _spoken(value))
        return {"messages": messages, **kept} if kept else messages
    if not isinstance(value, dict) or not isinstance(value.get("messages"), list):
        return value
    for name, item in kept.items():
        if value.get(name, item) != item:
            raise ValueError(f"{name} stands beside the messages and with them, with other values")
    return {**value, "messages": _spoken(value["messages"]), **kept}


def _prompted(prompt: Any, messages: list[Any]) -> list[Any]:
    """Return an answer's messages behind those of its prompt; other messages as they are."""
    first = messages[0] if messages and isinstance(messages[0], dict) else {}
    return [*_spoken(prompt), *messages] if isinstance(prompt, list) and first.get("role") == "assistant" else messages


def _spoken(messages: list[Any]) -> list[Any]:
    """Return messages ``{from, value}`` as ``{role, content}``; others as they are."""
    if not all(isinstance(message, dict) and {"from", "value"} <= message.keys() for message in messages):
        return messages
    return [
        {"role": _SPEAKERS.get(message["from"], message["from"]), "content": message["value"]} for message in messages
    ]


def read_chat(text: str) -> Conversation:
    """Read a conversation, see the head of this file.

    Contents in parts are joined, and the arguments of a tool call that are JSON in a string are read, as templates
    need them; the other fields of a message are kept.

    Raises:
        Unfit: it is not JSON or not a conversation; the reason names the message.
    """
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise Unfit(f"not JSON: {error}") from error
    found = assemble(found, {})
    found = {"messages": found} if isinstance(found, list) else found
    if not isinstance(found, dict) or not isinstance(found.get("messages"), list):
        raise Unfit("no conversation: expected a list of messages, or an object with the key messages")
    if not found["messages"]:
        raise Unfit("no messages")
    messages = tuple(_message(value, f"message {number}") for number, value in enumerate(found["messages"], 1))
    return Conversation(
        messages=_with_system(messages, found.get("system")), tools=tuple(_tools(found)), options=_options(found)
    )


def render(tokenizer: Any, conversation: Conversation, *, prompt: bool) -> str:
    """Render a conversation; with ``prompt``, up to the header of an answer.

    What the template raises is raised.
    """
    tools = list(conversation.tools) or None
    return str(
        tokenizer.apply_chat_template(
            list(conversation.messages),
            tools=tools,
            chat_template=template_of(tokenizer, conversation),
            add_generation_prompt=prompt,
            tokenize=False,
            **conversation.options,
        )
    )


def template_of(tokenizer: Any, conversation: Conversation) -> str:
    """Return the template of a conversation; it has no clock."""
    source = str(tokenizer.get_chat_template(tools=list(conversation.tools) or None))
    return STILL + source if "strftime_now" in source else source


def _with_system(messages: tuple[dict[str, Any], ...], system: Any) -> tuple[dict[str, Any], ...]:
    if system in (None, ""):
        return messages
    if messages[0]["role"] == "system":
        raise Unfit("system stands beside the messages, which begin with a system message")
    return ({"role": "system", "content": _content(system, "system")}, *messages)


def _tools(found: Mapping[str, Any]) -> Sequence[dict[str, Any]]:
    tools = _objects(_parsed(found.get("tools")), "tools")
    functions = _objects(_parsed(found.get("functions")), "functions")
    if tools and functions:
        raise Unfit("both tools and functions: expected one of them")
    return tools or [{"type": "function", "function": function} for function in functions]


def _options(found: Mapping[str, Any]) -> dict[str, Any]:
    given = _parsed(found.get("chat_template_kwargs")) or {}
    if not isinstance(given, dict):
        raise Unfit("chat_template_kwargs must be an object")
    taken = sorted(set(given) & set(_OWN))
    if taken:
        raise Unfit(f"chat_template_kwargs sets {', '.join(taken)}, which the rendering itself sets")
    documents = list(_objects(_parsed(found.get("documents")), "documents"))
    parallel = found.get("parallel_tool_calls")
    options = {"documents": documents} if documents else {}
    return options | ({} if parallel is None else {"parallel_tool_calls": parallel}) | given


def _parsed(value: Any) -> Any:
    """Return the value of JSON in a string, as columns of Parquet and CSV often have it."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value) if value else None
    except (ValueError, RecursionError):
        return value


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
