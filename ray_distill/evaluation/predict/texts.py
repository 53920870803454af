"""Texts that models wrote after the same prompts, for the review page and an artifact."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Written:
    """A prompt, what every model wrote after it, and what did follow where that is known."""

    prompt: str
    answers: Mapping[str, str]
    """Keyed by arm."""
    reference: str | None = None


def to_json(written: Sequence[Written], *, new_tokens: int) -> dict[str, Any]:
    """Return plain JSON values: the artifact ``generations.json``."""
    return {"decoding": "greedy", "new_tokens": new_tokens, "prompts": [asdict(item) for item in written]}


def from_json(value: Mapping[str, Any]) -> tuple[Written, ...]:
    """Return the texts that `to_json` wrote."""
    return tuple(Written(**item) for item in value["prompts"])
