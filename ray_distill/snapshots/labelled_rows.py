"""Count the rows of each split that have a truth, by class."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ray_distill.snapshots.manifest import SnapshotManifest


@dataclass(frozen=True, kw_only=True)
class LabelledRows:
    """Rows of one split: all of them, and those with a truth."""

    rows: int
    labelled: int
    """Rows with a truth; all rows where the truth follows from the input."""
    classes: Mapping[str, int]
    """Labelled rows by class; a row with a set of classes counts for each. Empty where there are no classes."""


def labelled_rows(manifest: SnapshotManifest) -> dict[str, LabelledRows]:
    """Return the counts of each split of a snapshot; a row counts once, however often it came."""
    return {
        name: LabelledRows(
            rows=split.rows,
            labelled=split.rows if manifest.truth == "none" else split.labelled,
            classes={} if manifest.truth == "none" else split.classes,
        )
        for name, split in manifest.splits.items()
    }


def in_words(manifest: SnapshotManifest) -> str:
    """Return the labelled rows of each split, with its source of its own, or its views."""
    views = manifest.view_counts
    notes = dict.fromkeys(manifest.own, " (a source of its own)")
    if views is not None:
        notes["train"] = f" ({sum(views['kept'].values()):,} of them views of the other {views['rows']:,})"
    return ", ".join(
        f"{name} {found.labelled:,} of {found.rows:,}{notes.get(name, '')}"
        for name, found in labelled_rows(manifest).items()
    )


def views_in_words(counts: Mapping[str, Any]) -> str:
    """Return how many train rows are views, of how many rows, and the views by kind.

    Args:
        counts: `SnapshotManifest.view_counts`.
    """
    kinds = ", ".join(f"{kind} {rows:,}" for kind, rows in counts["kept"].items())
    made = f"{sum(counts['kept'].values()):,} train rows are views of the other {counts['rows']:,}"
    return f"{made} ({kinds})" if kinds else made
