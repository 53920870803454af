"""Combine a prompt's row with an answer, and check whether a row has a learning target."""

import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from ray_distill.snapshots.pairs import read_pair, with_target
from ray_distill.snapshots.sources.nested import canonical


@dataclass(frozen=True, kw_only=True)
class RowForm:
    """How rows of one form receive an answer, and which of them have a learning target."""

    with_answer: Callable[[str, str], str]
    """(row, answer) -> the row with the answer instead of its own; ValueError if the row is not of this form."""
    has_target: Callable[[str, Collection[str]], bool] | None = None
    """(row, roles of a conversation) -> whether the row has a learning target; None: every row has one."""
    without_target: Callable[[Collection[str]], str] = lambda roles: ""
    """Describe rows without a target, by the roles of a conversation."""


def with_answer(row: str, answer: str, form: str) -> str:
    """Return the row with the teacher's answer instead of its own.

    Args:
        row: the input of the parent row: a text, a conversation in JSON, or a source with or without a target.
        answer: the generated text.
        form: key of `FORMS`.

    Raises:
        ValueError: the row is not a conversation, or not a source.
    """
    return FORMS[form].with_answer(row, answer)


def _appended(row: str, answer: str) -> str:
    return row + answer


def _replied(row: str, answer: str) -> str:
    """Replace the assistant's messages at the end of a conversation; return its canonical form."""
    found: Any = json.loads(row)
    messages = list(found["messages"] if isinstance(found, dict) else found)
    while messages and messages[-1]["role"] == "assistant":
        messages.pop()
    messages.append({"role": "assistant", "content": answer})
    return canonical({**found, "messages": messages} if isinstance(found, dict) else messages, padded=False)


def _has_message(row: str, roles: Collection[str]) -> bool:
    """Return whether a conversation has a message of one of the roles; False for other rows."""
    try:
        found: Any = json.loads(row)
        messages = found["messages"] if isinstance(found, dict) else found
        return any(message["role"] in roles for message in messages)
    except (ValueError, TypeError, KeyError):
        return False


def _pair_has_target(row: str, roles: Collection[str]) -> bool:
    try:
        return read_pair(row).target is not None
    except ValueError:
        return False


#: Forms of a row that a teacher writes. ``text``: the answer is appended. ``chat``: it replaces messages of the
#: assistant at the end. ``pair``: it becomes the target.
FORMS: Mapping[str, RowForm] = {
    "text": RowForm(with_answer=_appended),
    "chat": RowForm(
        with_answer=_replied,
        has_target=_has_message,
        without_target=lambda roles: f"conversations without a message of {' or '.join(roles)}",
    ),
    "pair": RowForm(
        with_answer=with_target, has_target=_pair_has_target, without_target=lambda roles: "sources without a target"
    ),
}
