"""Map source columns to snapshot columns, and report missing ones."""

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from ray_distill.config import Columns
from ray_distill.config.snapshot import LARGEST_CELL, LARGEST_EXPANSION
from ray_distill.errors import SnapshotError
from ray_distill.snapshots.rows import Mask, Why

#: (nested input, values of the columns beside it) -> the whole input
Assemble = Callable[[Any, Mapping[str, Any]], Any]

#: Prefix of the columns beside the input, until they are joined with it.
BESIDE = "beside:"

#: Names with a meaning of their own in a snapshot; a slice cannot take them.
RESERVED = ("row_id", "text", "target", "image", "label", "count", "group", "time")


@dataclass(frozen=True, kw_only=True)
class Companions:
    """Columns that belong to a nested input, and how they become one value with it."""

    names: tuple[str, ...] = ()
    """They are read where a source has them."""
    assemble: Assemble | None = None
    """Joins an input with what stands beside it; ValueError if the two disagree."""
    refuse: Callable[[str], str | None] | None = None
    """Returns why a text is not of the form; a source in which no row is of it is refused."""
    forms: Mapping[tuple[str, ...], str] = field(default_factory=dict)
    """Advice where a source lacks the input's column and has these columns."""


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
    """Lists and objects are kept as canonical JSON; else they are errors."""
    companions: Companions = Companions()
    """Columns that belong to a nested input."""
    largest: int = LARGEST_CELL
    """Bytes of the largest usable cell, of any column, and of the largest line of JSON."""
    expansion: int = LARGEST_EXPANSION
    """Largest accepted ratio of decoded to stored bytes."""


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


#: Advice for traffic of which no row has a label.
_UNLABELLED = " (--set snapshot.columns.label=null if no row is labelled)"


class MissingColumn(SnapshotError):
    """A source has no column for the ``part`` of a snapshot."""

    def __init__(self, message: str, part: str) -> None:
        super().__init__(message)
        self.part = part

    def of(self, section: str) -> "MissingColumn":
        """Return this error for a source of labelled rows, whose columns are set in another section."""
        return MissingColumn(str(self).replace(_UNLABELLED, "").replace("snapshot.columns", section), self.part)

    def __reduce__(self) -> tuple[type["MissingColumn"], tuple[str, str]]:
        return type(self), (str(self), self.part)


def columns_beside(column: InputColumn, found: Sequence[str]) -> dict[str, str]:
    """Return the columns of a source that belong to its input, by the names of their parts."""
    return {f"{BESIDE}{name}": name for name in column.companions.names if column.nested and name in found}


def require_columns(
    mapping: Mapping[str, str], found: Sequence[str], where: str, forms: Mapping[tuple[str, ...], str] | None = None
) -> None:
    """Require each source column exactly once.

    Args:
        mapping: source column by part.
        found: the columns of the source.
        where: the source.
        forms: advice by the columns of a known form, where the text's column is missing.

    Raises:
        MissingColumn: names the column, what was found and the nearest name.
        SnapshotError: a column occurs twice.
    """
    for part, name in mapping.items():
        if name not in found:
            near = difflib.get_close_matches(name, found, n=1, cutoff=0.5)
            advice = f"did you mean {near[0]!r}? " if near else ""
            unlabelled = _UNLABELLED if part == "label" else ""
            known = (
                way for names, way in (forms or {}).items() if part == next(iter(mapping)) and {*names} <= {*found}
            )
            raise MissingColumn(
                f"{where} has no column {name!r} for the {part}; found: {', '.join(found) or 'none'}. {advice}"
                f"{next(known, f'Set snapshot.columns{unlabelled}')}",
                part,
            )
        if list(found).count(name) > 1:
            raise SnapshotError(f"{where} has the column {name!r} {list(found).count(name)} times: rename one")


def without_huge(values: pa.ChunkedArray, largest: int) -> tuple[pa.ChunkedArray, Mask | None]:
    """Return a column with null for each text or file that is too large, and a mask of them.

    The mask is None if there is none.
    """
    kind = values.type.value_type if pa.types.is_dictionary(values.type) else values.type
    if not is_bytes(kind):
        return values, None
    lengths = values if kind == values.type else values.cast(kind)
    huge = pc.fill_null(pc.greater(pc.binary_length(lengths), largest), False)
    if not pc.any(huge).as_py():
        return values, None
    mask: Mask = huge.to_numpy()
    return pc.if_else(huge, pa.scalar(None, kind), lengths), mask


def is_bytes(kind: pa.DataType) -> bool:
    """Return whether a type has texts or bytes of any length."""
    return bool(
        pa.types.is_string(kind)
        or pa.types.is_large_string(kind)
        or pa.types.is_binary(kind)
        or pa.types.is_large_binary(kind)
    )
