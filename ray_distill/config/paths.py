"""List the paths and URLs in a campaign: fields marked `section.INPUT` or `section.OUTPUT`."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, Literal

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from ray_distill.redact import has_credentials

#: A function of the user's own, which stands where a checkpoint may stand.
_FUNCTION = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


@dataclass(frozen=True, kw_only=True)
class NamedPath:
    """A path or URL, and the field that has it."""

    field: str
    """Dotted."""
    value: str
    role: Literal["input", "output"]

    @property
    def relative(self) -> bool:
        """Return whether another folder, or another user, makes it another place."""
        local = self.value.removeprefix("file://").removeprefix("local://")
        return "://" not in local and "::" not in local and not PurePosixPath(local).is_absolute()


def paths_of(section: BaseModel, prefix: str = "") -> Iterator[NamedPath]:
    """Yield the paths and URLs that a section and the sections in it set, in their order."""
    for name, field in type(section).model_fields.items():
        value, dotted = getattr(section, name), f"{prefix}{name}"
        if role := path_role(field):
            yield from (NamedPath(field=dotted, value=item, role=role) for item in _texts(value))
        elif isinstance(value, BaseModel):
            yield from paths_of(value, f"{dotted}.")
        elif isinstance(value, tuple):
            for at, item in enumerate(value):
                if isinstance(item, BaseModel):
                    yield from paths_of(item, f"{dotted}.{at}.")


def path_role(field: FieldInfo) -> Literal["input", "output"] | None:
    """Return what a field's path is for; None if the field has no path."""
    extra = field.json_schema_extra
    role = extra.get("path") if isinstance(extra, dict) else None
    return role if role in ("input", "output") else None  # type: ignore[return-value]


def wrong_place(value: str, role: Literal["input", "output"]) -> str | None:
    """Return why a path or URL cannot be meant, or None.

    Credentials are accepted of what is read alone: references, reports and state files name the places that are
    written, and later commands open them by these names.
    """
    if re.search(r"(^|::)memory:(//)?", value):
        return (
            "memory:// is empty in every new process, so neither a worker nor the next command finds anything there: "
            "name a folder, or a URL of an object store"
        )
    if role == "output" and has_credentials(value):
        return (
            "has a password, a key or a signature in it, and every reference and report names this place: leave it "
            "out, and give credentials as the client of the file system reads them (environment, or fsspec's "
            "configuration)"
        )
    return None


def _texts(value: Any) -> list[str]:
    texts = [value] if isinstance(value, str) else list(value or ())
    return [text for text in texts if not _FUNCTION.fullmatch(text)]
