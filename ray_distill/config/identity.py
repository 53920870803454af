"""Extract the part of a configuration that decides results: the source of every key.

A field decides a result unless its ``json_schema_extra`` has ``decides: false``, so that a new option can never be
ignored by accident when results are reused.
"""

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import to_jsonable_python

from ray_distill.redact import lasting


def identity(section: BaseModel) -> dict[str, Any]:
    """Return the deciding fields of a section and of the sections in it, as plain JSON values.

    A field that is not given counts as its default: both have one identity. Defaults are part of it, so that a
    release that changes a default, or adds a field, makes results anew instead of reusing those of another meaning.
    Secrets are no part of it: a new password, or a new signature of a URL, is the same campaign.
    """
    found: dict[str, Any] = lasting(_deciding(section))
    return found


def decides(field: FieldInfo) -> bool:
    """Return whether a result depends on a field."""
    extra = field.json_schema_extra
    return not (isinstance(extra, dict) and extra.get("decides") is False)


def _deciding(section: BaseModel) -> dict[str, Any]:
    fields = type(section).model_fields
    found = {name: getattr(section, name) for name, field in fields.items() if decides(field)}
    return {name: _plain(value) for name, value in (found | (section.model_extra or {})).items()}


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return _deciding(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    return to_jsonable_python(value)
