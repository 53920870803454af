"""Find values that YAML reads otherwise than intended, and placeholders that stay."""

import datetime
import re
from collections.abc import Iterator
from typing import Any

from ray_distill.config.campaign import Campaign
from ray_distill.config.paths import path_role
from ray_distill.config.reading.document import Document
from ray_distill.config.reading.shapes import Place, is_section, walk

#: What a shell or a template would replace: ${DATA}, $DATA, {{ data }}, and ~ for the home folder.
_PLACEHOLDER = re.compile(r"\$\{[^}]*\}|\$[A-Za-z_]\w*|\{\{.*?\}\}|^~(?=/|$)")
#: Fields without a path in which a placeholder is as surely a mistake.
_ADDRESSES = ("uri", "registry_uri", "experiment", "model_name", "alias", "revision")


def misread(document: Document) -> Iterator[tuple[str, str]]:
    """Yield the dotted path of each value that is not what its writer means, and why."""
    for place in walk(document.value, Campaign):
        if why := _why(place, document.written.get(place.path)):
            yield place.path, why


def _why(place: Place, written: str | None) -> str | None:
    if isinstance(place.value, str):
        return _placeholder(place)
    if place.value is None:
        empty = written == "" and any(is_section(kind) for kind in place.kinds)
        return "is empty: put settings below it, or leave it out for its default" if empty else None
    if _is_taken(place) or written is None or isinstance(place.value, dict | list):
        return None
    if str in place.kinds:
        return f"{written} is read as {_kind(place.value)}: put it into quotes, '{written}'"
    if isinstance(place.value, bool):
        return f"{written} is read as {_kind(place.value)}, which is not allowed here"
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
        f'machine; write the value, or pass it: --set "{place.path}={place.value}"'
    )
