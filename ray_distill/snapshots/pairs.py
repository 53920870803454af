"""Encode a source and its target as one text, the input of a sequence-to-sequence row."""

import json
from typing import NamedTuple

import pyarrow as pa

from ray_distill.snapshots.sources.nested import canonical


class Pair(NamedTuple):
    """A source and its target."""

    source: str
    target: str | None
    """None = it is still to be written."""


def pair_text(source: str, target: str | None) -> str:
    """Return the text of a row: canonical JSON, without a missing or blank ``target``.

    Raises:
        ValueError: one of them is not UTF-8.
    """
    return canonical({"source": source, "target": target if target and target.strip() else None}, padded=False)


def read_pair(text: str) -> Pair:
    """Decode a text of `pair_text`.

    Raises:
        ValueError: it is none such.
    """
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = None
    if (
        not isinstance(value, dict)
        or not {"source"} <= set(value) <= {"source", "target"}
        or not all(isinstance(part, str) for part in value.values())
    ):
        raise ValueError("not a source with its target: freeze the rows with snapshot.columns.target")
    return Pair(value["source"], value.get("target"))


def with_target(text: str, target: str) -> str:
    """Replace the target of a row, e.g. with a generated one; errors as `read_pair`."""
    return pair_text(read_pair(text).source, target)


def pair_texts(source: pa.Array, target: pa.Array) -> pa.Array:
    """Join two columns of texts, large_string; null where there is no source."""
    return pa.array(
        [
            None if read is None else pair_text(read, written)
            for read, written in zip(source.to_pylist(), target.to_pylist(), strict=True)
        ],
        pa.large_string(),
    )
