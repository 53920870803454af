"""Map source columns to snapshot columns, and report missing ones."""

import difflib
from collections.abc import Mapping, Sequence

from ray_distill.config import Columns
from ray_distill.errors import SnapshotError

#: Names with a meaning of their own in a snapshot; a slice cannot take them.
RESERVED = ("row_id", "text", "target", "image", "label", "count", "group", "time")


def source_columns(columns: Columns, input_column: str) -> dict[str, str]:
    """Return source column by snapshot column: input, target, label, group, time, slices.

    Raises:
        SnapshotError: a slice has a reserved name, or is named twice.
    """
    for name in columns.slices:
        if name in RESERVED or columns.slices.count(name) > 1:
            raise SnapshotError(
                f"snapshot.columns.slices: {name!r} is {'reserved' if name in RESERVED else 'named twice'}; slices "
                f"need distinct names other than {', '.join(RESERVED)}: rename the column in the source"
            )
    named = {"label": columns.label, "group": columns.group, "time": columns.time}
    if input_column == "text":
        named["target"] = columns.target
    mapping = {input_column: columns.text if input_column == "text" else columns.image}
    mapping |= {part: name for part, name in named.items() if name is not None}
    return mapping | {name: name for name in columns.slices}


def require_columns(mapping: Mapping[str, str], found: Sequence[str], where: str) -> None:
    """Require each source column exactly once.

    Raises:
        SnapshotError: names the column, what was found and the nearest name.
    """
    for part, name in mapping.items():
        if name not in found:
            near = difflib.get_close_matches(name, found, n=1, cutoff=0.5)
            advice = f"did you mean {near[0]!r}? " if near else ""
            unlabelled = " (--set snapshot.columns.label=null if no row is labelled)" if part == "label" else ""
            raise SnapshotError(
                f"{where} has no column {name!r} for the {part}; found: {', '.join(found) or 'none'}. {advice}"
                f"Set snapshot.columns{unlabelled}"
            )
        if list(found).count(name) > 1:
            raise SnapshotError(f"{where} has the column {name!r} {list(found).count(name)} times: rename one")
