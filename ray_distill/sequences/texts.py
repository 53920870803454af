"""The row that a prompt and an answer make."""

import json
from collections.abc import Collection
from typing import Any

from ray_distill.snapshots.pairs import read_pair, with_target
from ray_distill.snapshots.sources.nested import canonical


def with_answer(row: str, answer: str, form: str) -> str:
    """The row with a teacher's answer in place of its own.

    Args:
        row: the input of the parent row: a text, a conversation in JSON, or a source with or without a target.
        answer: what was written.
        form: ``text``: the answer is put behind the text. ``chat``: assistant messages at the end give way to the
            answer, and the conversation is in its canonical form. ``pair``: the answer is the target.

    Raises:
        ValueError: the row is no conversation, or no source.
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


def teaches(row: str, form: str, roles: Collection[str]) -> bool:
    """Whether something can be learnt of a row as it is: a pair with a target, a conversation where a role speaks."""
    return _has_target(row) if form == "pair" else _speaks(row, roles)


def _has_target(row: str) -> bool:
    try:
        return read_pair(row).target is not None
    except ValueError:
        return False


def _speaks(row: str, roles: Collection[str]) -> bool:
    """Whether one of these roles has a message in a conversation; False for what is no conversation."""
    try:
        found: Any = json.loads(row)
        messages = found["messages"] if isinstance(found, dict) else found
        return any(message["role"] in roles for message in messages)
    except (ValueError, TypeError, KeyError):
        return False
