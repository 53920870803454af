"""Find values that YAML misreads, and values that no field of their kind can use."""

import datetime
import json
import math
import re
import unicodedata
from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel

from ray_distill.config.campaign import Campaign
from ray_distill.config.paths import path_role, wrong_place
from ray_distill.config.reading.document import Document
from ray_distill.config.reading.shapes import Place, is_section, walk
from ray_distill.redact import HIDDEN, is_secret, redact

#: What a shell or a template would replace: ${DATA}, $DATA, {{ data }}, and ~ for the home folder.
_PLACEHOLDER = re.compile(r"\$\{[^}]*\}|\$[A-Za-z_]\w*|\{\{.*?\}\}|^~[\w.-]*(?=/|$)")
#: Fields without a path in which a placeholder is as surely a mistake.
_ADDRESSES = ("uri", "registry_uri", "experiment", "model_name", "alias", "revision")

#: Fields whose texts are data, by their last name: they may have line breaks, and some may be blank.
_DATA = frozenset({"prefix", "prompts", "classes", "label_missing"})
_BLANK = frozenset({"prefix", "label_missing"})
#: Longest text of a field that is not data: paths are limited to this by the operating system.
MOST_CHARACTERS = 4096

#: Bounds of a signed integer of 64 bits, and of a number of 32 bits other than 0: nothing computes with others.
_INT64 = 2**63
_FLOAT32 = (1.2e-38, 3.4e38)


def misread(document: Document) -> Iterator[tuple[str, str]]:
    """Yield the dotted path of each value that is not what its writer means, and why."""
    if why := _names(document.value):
        yield "", why
    for place in walk(document.value, Campaign):
        if why := _why(place, document.written.get(place.path)):
            yield place.path, why


def _why(place: Place, written: str | None) -> str | None:
    if isinstance(place.value, str):
        return _placeholder(place) or _text(place)
    if place.value is None:
        empty = written == "" and any(is_section(kind) for kind in place.kinds)
        return "is empty: put settings below it, or leave it out for its default" if empty else None
    if isinstance(place.value, dict | list | tuple):
        return _names(place.value) if isinstance(place.value, dict) else None
    return _number(place) or _of_another_type(place, written)


def _names(section: dict[Any, Any]) -> str | None:
    """Return why the names in a section are wrong: YAML reads yes and null as no texts."""
    other = next((name for name in section if not isinstance(name, str | int) or isinstance(name, bool)), "")
    if other == "":
        return None
    shown = json.dumps(other, default=str)
    return f"has a field whose name YAML reads as {shown}, as it does with yes, no, on, off and ~: put it into quotes"


def _of_another_type(place: Place, written: str | None) -> str | None:
    """Return why a number, a truth value or a date cannot stand in a field of other types."""
    if _is_taken(place):
        return None
    shown = str(place.value) if written is None else written
    if str in place.kinds:
        return f"{shown} is read as {_kind(place.value)}: put it into quotes, '{shown}'"
    if isinstance(place.value, bool):
        return f"{shown} is read as {_kind(place.value)}, which is not allowed here"
    if bool in place.kinds:
        return f"should be true or false; found {shown}"
    return None


def _is_taken(place: Place) -> bool:
    """Return whether a value of its very type may stand there."""
    numbers = {int, float} if type(place.value) in (int, float) else {type(place.value)}
    known = {kind for kind in place.kinds if isinstance(kind, type)}
    return not place.kinds or Any in place.kinds or bool(numbers & known)


def _kind(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return "a date" if isinstance(value, datetime.date) else "a number"


def _number(place: Place) -> str | None:
    """Return why a number cannot be computed with, or a free value cannot be stored as JSON."""
    value, free = place.value, Any in place.kinds or not place.kinds
    if isinstance(value, bool):
        return None
    if isinstance(value, int) and not -_INT64 <= value < _INT64:
        return f"should be a whole number of less than 2^63, of either sign; found one of {value.bit_length()} bits"
    if isinstance(value, float) and not math.isfinite(value):
        return f"should be a finite number; found {value}" if free else None
    if isinstance(value, float) and value and not _FLOAT32[0] <= abs(value) <= _FLOAT32[1] and not _for_function(place):
        return f"is {value:g}, beyond the numbers of 32 bits that models compute with: set 0, or a number of use"
    if not isinstance(value, int | float | datetime.date):
        return f"is {type(value).__name__} in YAML, which no setting has: write a text, a number, a list or a section"
    return None


def _for_function(place: Place) -> bool:
    """Return whether a value is an argument of the user's own function."""
    return ".arguments." in f".{place.path}"


def _text(place: Place) -> str | None:
    """Return why a text cannot stand in a field, or None."""
    value, name = place.value, _field_name(place)
    if is_secret(name) and value == HIDDEN:
        return f"is {HIDDEN}, which stands for a secret that was removed from this file: put the secret back"
    if any(unicodedata.category(one) == "Cs" or one == "\0" for one in value):
        return f"has characters that no text of UTF-8 has; found {redact(value)[:80]!r}"
    if Any in place.kinds or not place.kinds:
        return None
    if not _takes_text(place):
        expected = "true or false" if bool in place.kinds else "a number"
        return f"is a text: write {expected} without quotes; found {redact(value)[:80]!r}"
    if name in _DATA:
        return None if value.strip() or name in _BLANK else "is empty: write a text, or leave it out"
    if not value.strip():
        return "is empty: write a text, or leave it out for its default" if str in place.kinds else None
    if any(unicodedata.category(one) == "Cc" for one in value):
        return f"has control characters, such as a line break; found {redact(value)[:80]!r}"
    if len(value) > MOST_CHARACTERS:
        return f"has {len(value):,} characters, at most {MOST_CHARACTERS:,} are allowed"
    role = path_role(place.field) if place.field is not None else None
    return wrong_place(value, role) if role else None


def _takes_text(place: Place) -> bool:
    """Return whether a text may stand in a field: not in one of numbers or truth values alone."""
    plain = {kind for kind in place.kinds if kind is not type(None)}
    extra = None if place.field is None else place.field.json_schema_extra
    if isinstance(extra, dict) and extra.get("auto"):
        return bool(place.value == "auto")
    return not plain <= {int, float, bool} and not (plain & {int, float, bool} and _has_section(plain))


def _has_section(kinds: set[Any]) -> bool:
    return any(isinstance(kind, type) and issubclass(kind, BaseModel) for kind in kinds) and str not in kinds


def _field_name(place: Place) -> str:
    """Return the last name in a path that is not the number of a list's item."""
    return next((name for name in reversed(place.path.split(".")) if not name.isdigit()), "")


def _placeholder(place: Place) -> str | None:
    """Return why a placeholder in a path, an address or a name is a mistake, or None."""
    field = place.field
    if field is None or not (path_role(field) or place.path.rpartition(".")[2] in _ADDRESSES):
        return None
    found = _PLACEHOLDER.search(place.value)
    if found is None:
        return None
    return (
        f"{found.group()} is not replaced: a campaign's file reads no variables, so that it means the same on every "
        f"machine; write the value{_for_the_shell(place, found.group())}"
    )


def _for_the_shell(place: Place, found: str) -> str:
    """Return how to pass a value that the shell can replace; empty for any other."""
    if found != "~" and not found.startswith("$"):
        return ""
    value = place.value.replace("~", "$HOME", 1) if found == "~" else place.value
    return f', or pass it: --set "{place.path}={value}"'
