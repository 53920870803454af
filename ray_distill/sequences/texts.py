"""The row that a prompt and an answer make."""

import json
from collections.abc import Collection
from typing import Any

from ray_distill.snapshots.nested import canonical


def with_answer(row: str, answer: str, language: str) -> str:
    """The row with a teacher's answer in place of its own.

    Args:
        row: the input of the parent row: a text, or a conversation in JSON.
        answer: what was written.
        language: ``text``: the answer is put behind the text. ``chat``: assistant messages at the end give way to the
            answer, and the conversation is in its canonical form.

    Raises:
        ValueError: the row is no conversation.
    """
    if language == "text":
        return row + answer
    found: Any = json.loads(row)
    messages = list(found["messages"] if isinstance(found, dict) else found)
    while messages and messages[-1]["role"] == "assistant":
        messages.pop()
    messages.append({"role": "assistant", "content": answer})
    return canonical({**found, "messages": messages} if isinstance(found, dict) else messages, padded=False)


def speaks(row: str, roles: Collection[str]) -> bool:
    """Whether one of these roles has a message in a conversation; False for what is no conversation."""
    try:
        found: Any = json.loads(row)
        messages = found["messages"] if isinstance(found, dict) else found
        return any(message["role"] in roles for message in messages)
    except (ValueError, TypeError, KeyError):
        return False
