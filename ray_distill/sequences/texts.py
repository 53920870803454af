"""The row that a prompt and an answer make."""

import json
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
