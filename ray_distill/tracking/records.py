"""Convert records to the names, sizes and numbers that MLflow accepts.

This module does not import MLflow.
"""

import hashlib
import json
import math
import posixpath
import re
from collections.abc import Iterator, Mapping
from typing import Any

from ray_distill.redact import HIDDEN, is_secret, redact

# MLflow 3 refuses or truncates longer values (mlflow.utils.validation).
MAX_KEY = 250
MAX_PARAM = 6000
MAX_TAG = 8000
MAX_DIGEST = 36

_FORBIDDEN = re.compile(r"[^\w\-. :/]")


def clean_name(name: str) -> str:
    """Turn a name into a valid one: no commas, brackets or parent paths, at most 250 characters."""
    name = _FORBIDDEN.sub("_", name) or "_"
    if posixpath.normpath(name) != name or name.startswith(("/", "..")) or name == ".":
        name = name.replace("/", "_").replace("..", "_")
        name = "_" if name == "." else name
    return name if len(name) <= MAX_KEY else f"{name[: MAX_KEY - 17]}-{_digest(name)}"


def shorten(text: str, limit: int) -> str:
    """Truncate a long text to ``limit`` characters, the full length and digest included."""
    if len(text) <= limit:
        return text
    note = f"… ({len(text)} characters, sha256 {_digest(text)})"
    return text[: limit - len(note)] + note


def flatten(values: Mapping[str, Any]) -> dict[str, str]:
    """Flatten nested mappings to dotted names with text values, without secrets.

    For example, ``{"a": {"b": 1}}`` gives ``{"a.b": "1"}``.
    """
    found = {key: HIDDEN if is_secret(key) else redact(_text(value)) for key, value in _leaves(values, "")}
    return {clean_name(key): shorten(value, MAX_PARAM) for key, value in found.items()}


def clean_tags(values: Mapping[str, str]) -> dict[str, str]:
    """Return tags with names and values that MLflow accepts, without secrets."""
    return {clean_name(key): shorten(redact(str(value)), MAX_TAG) for key, value in values.items()}


def split_metrics(values: Mapping[str, float | None]) -> tuple[dict[str, float], dict[str, str]]:
    """Split metrics into finite numbers and, for all others, tags ``unmeasured.<name>``."""
    numbers = {clean_name(name): math.nan if value is None else float(value) for name, value in values.items()}
    finite = {name: value for name, value in numbers.items() if math.isfinite(value)}
    absent = {clean_name(f"unmeasured.{name}"): str(numbers[name]) for name in numbers.keys() - finite.keys()}
    return finite, absent


def split_params(new: Mapping[str, str], old: Mapping[str, str]) -> tuple[dict[str, str], dict[str, str]]:
    """Split params into new ones to log and tags for those that contradict recorded ones.

    MLflow never changes a param. A reopened run may have another value, and the user must see both.
    """
    fresh = {key: value for key, value in new.items() if key not in old}
    conflicts = {key: value for key, value in new.items() if key in old and old[key] != value}
    tags = {
        clean_name(f"param_conflict.{key}"): f"{value} (first recorded: {old[key]})" for key, value in conflicts.items()
    }
    return fresh, clean_tags(tags)


def one_line(error: BaseException) -> str:
    """Describe an exception in one line without secrets, for a tag or a message."""
    text = redact(" ".join(str(error).split()))
    return shorten(f"{type(error).__name__}: {text}" if text else type(error).__name__, 500)


def _leaves(values: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _text(value: Any) -> str:
    if isinstance(value, list | tuple | dict):
        return json.dumps(value, default=str)
    return str(value)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
