"""Walk the fields that a section may have, beside the values that a file has."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo


@dataclass(frozen=True, kw_only=True)
class Place:
    """A value in a file, and the kinds of value that may stand there."""

    path: str
    """Dotted."""
    value: Any
    kinds: tuple[Any, ...]
    """Types without unions; empty where no field is known."""
    field: FieldInfo | None
    """The field that has it, or a part of it."""


def walk(value: Any, model: type[BaseModel]) -> Iterator[Place]:
    """Yield every value of a mapping with its place in a model; repeated ones once."""
    yield from _walk(value, (model,), path="", field=None, seen=set())


def _walk(value: Any, kinds: tuple[Any, ...], *, path: str, field: FieldInfo | None, seen: set[int]) -> Iterator[Place]:
    if path:
        yield Place(path=path, value=value, kinds=kinds, field=field)
    if not isinstance(value, dict | list) or id(value) in seen:
        return
    seen.add(id(value))
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, item in items:
        known = [found for kind in kinds for found in _child(kind, key)]
        inner = tuple(one for annotation, _ in known for one in flat(annotation))
        own = next((found for _, found in known if found is not None), field)
        yield from _walk(item, inner, path=f"{path}.{key}" if path else str(key), field=own, seen=seen)


def flat(annotation: Any) -> tuple[Any, ...]:
    """Return the members of a union, or the type itself."""
    origin = get_origin(annotation)
    if origin is Annotated:
        return flat(get_args(annotation)[0])
    if origin in (Union, UnionType):
        return tuple(one for member in get_args(annotation) for one in flat(member))
    return (annotation,)


def is_section(kind: Any) -> bool:
    """Return whether a type is a section of the configuration."""
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def field_of(model: type[BaseModel], name: str) -> FieldInfo | None:
    """Return a model's field by its name or alias."""
    found = model.model_fields.get(name)
    return found or next((field for field in model.model_fields.values() if field.alias == name), None)


def names_of(model: type[BaseModel]) -> list[str]:
    """Return the names by which a file sets a model's fields."""
    return [field.alias or name for name, field in model.model_fields.items()]


def section_at(model: type[BaseModel], path: Sequence[str]) -> type[BaseModel] | None:
    """Return the section at a path below a model; None if there is none."""
    kinds: tuple[Any, ...] = (model,)
    for key in path:
        kinds = tuple(one for kind in kinds for annotation, _ in _child(kind, key) for one in flat(annotation))
    return next((kind for kind in kinds if is_section(kind)), None)


def everywhere(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield name and dotted path of every field below a model; ``*`` is a name of a user's."""
    for name in names_of(model):
        field = field_of(model, name)
        yield name, f"{prefix}{name}"
        for kind in flat(field.annotation if field else None):
            inner = get_args(kind)[1:] if get_origin(kind) in (dict, Mapping) else (kind,)
            for section in (one for member in inner for one in flat(member) if is_section(one)):
                yield from everywhere(section, f"{prefix}{name}.{'' if inner == (kind,) else '*.'}")


def _child(kind: Any, key: Any) -> list[tuple[Any, FieldInfo | None]]:
    """Return the annotation, and the field, of what a key names in a value of this kind."""
    if is_section(kind):
        field = field_of(kind, str(key))
        if field is not None:
            return [(field.annotation, field)]
        return [(Any, None)] if kind.model_config.get("extra") == "allow" else []
    origin, members = get_origin(kind), get_args(kind)
    if origin in (dict, Mapping):
        return [(members[1], None)]
    if origin is tuple and isinstance(key, int):
        repeated = len(members) == 2 and members[1] is Ellipsis
        return [(members[0] if repeated else members[key], None)] if repeated or key < len(members) else []
    return [(Any, None)] if kind is Any else []
