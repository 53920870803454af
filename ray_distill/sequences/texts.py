"""Combine a prompt's row with an answer, and check whether a row has a learning target."""

import json
from collections.abc import Collection
from typing import Any

from ray_distill.snapshots.pairs import read_pair, with_target
from ray_distill.snapshots.sources.nested import canonical


def with_answer(row: str, answer: str, form: str) -> str:
    """Return the row with the teacher's answer instead of its own.

    Args:
        row: the input of the parent row: a text, a conversation in JSON, or a source with or without a target.
        answer: the generated text.
        form: ``text``: the answer is appended to the text. ``chat``: the answer replaces assistant messages at the
            end, and the conversation is brought into its canonical form. ``pair``: the answer becomes the target.

    Raises:
        ValueError: the row is not a conversation, or not a source.
    """
    if form == "text":
        return row + answer
    if form == "pair":
        return with_target(row, answer)
    found: Any = json.loads(row)
    messages = list(found["messages"] if isinstance(found, dict) else found)
    while messages and messages[-1]["role"] == "assistant":
        messages.pop()
    messages.append({"role": "assistant", "content": answer})
    return canonical({**found, "messages": messages} if isinstance(found, dict) else messages, padded=False)


def has_target(row: str, form: str, roles: Collection[str]) -> bool:
    """Return whether a row has a learning target.

    A pair needs a target, a conversation a message of one of the roles.
    """
    return _pair_has_target(row) if form == "pair" else _has_message(row, roles)


def _pair_has_target(row: str) -> bool:
    try:
        return read_pair(row).target is not None
    except ValueError:
        return False


def _has_message(row: str, roles: Collection[str]) -> bool:
    """Return whether a conversation has a message of one of the roles; False for other rows."""
    try:
        found: Any = json.loads(row)
        messages = found["messages"] if isinstance(found, dict) else found
        return any(message["role"] in roles for message in messages)
    except (ValueError, TypeError, KeyError):
        return False
