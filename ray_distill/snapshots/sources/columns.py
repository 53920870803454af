"""Map source columns to snapshot columns, and report missing ones."""

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa

from ray_distill.config import Columns
from ray_distill.errors import SnapshotError
from ray_distill.snapshots.rows import Why

#: Names with a meaning of their own in a snapshot; a slice cannot take them.
RESERVED = ("row_id", "text", "target", "image", "label", "count", "group", "time")


@dataclass(frozen=True, kw_only=True)
class InputColumn:
    """The column of a task's inputs, and the kind of its values."""

    name: str
    """Name in a snapshot, and in `snapshot.columns` the field that names the source's column."""
    binary: bool = False
    """Values are encoded files such as images; else texts."""
    verify: Callable[[pa.ChunkedArray], Why] | None = None
    """Return a reason for each input that is not usable, 0 for the others; null and blank texts are always found."""
    nested: bool = False
    """Lists and objects are conversations, kept as canonical JSON; else they are errors."""


def source_columns(columns: Columns, column: InputColumn) -> dict[str, str]:
    """Return source column by snapshot column: input, target, label, group, time, slices.

    Raises:
        SnapshotError: a slice has a reserved name, or is named twice.
    """
    for name in columns.slices:
        reserved = name in RESERVED or name == column.name
        if reserved or columns.slices.count(name) > 1:
            raise SnapshotError(
                f"snapshot.columns.slices: {name!r} is {'reserved' if reserved else 'named twice'}; slices "
                f"need distinct names other than {', '.join(RESERVED)}: rename the column in the source"
            )
    named = {"label": columns.label, "group": columns.group, "time": columns.time}
    if not column.binary:
        named["target"] = columns.target
    mapping = {column.name: getattr(columns, column.name, column.name)}
    mapping |= {part: name for part, name in named.items() if name is not None}
    return mapping | {name: name for name in columns.slices}


class MissingColumn(SnapshotError):
    """A source has no column for the ``part`` of a snapshot."""

    def __init__(self, message: str, part: str) -> None:
        super().__init__(message)
        self.part = part

    def __reduce__(self) -> tuple[type["MissingColumn"], tuple[str, str]]:
        return type(self), (str(self), self.part)


def require_columns(mapping: Mapping[str, str], found: Sequence[str], where: str) -> None:
    """Require each source column exactly once.

    Raises:
        MissingColumn: names the column, what was found and the nearest name.
        SnapshotError: a column occurs twice.
    """
    for part, name in mapping.items():
        if name not in found:
            near = difflib.get_close_matches(name, found, n=1, cutoff=0.5)
            advice = f"did you mean {near[0]!r}? " if near else ""
            unlabelled = " (--set snapshot.columns.label=null if no row is labelled)" if part == "label" else ""
            raise MissingColumn(
                f"{where} has no column {name!r} for the {part}; found: {', '.join(found) or 'none'}. {advice}"
                f"Set snapshot.columns{unlabelled}",
                part,
            )
        if list(found).count(name) > 1:
            raise SnapshotError(f"{where} has the column {name!r} {list(found).count(name)} times: rename one")
