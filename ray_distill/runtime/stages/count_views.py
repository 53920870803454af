"""Count the views that teach a student, and those on which the teacher is unsure."""

from typing import Any

from ray_distill.artifacts import LabelSetRef
from ray_distill.config import Campaign
from ray_distill.labels.store.reader import open_label_set
from ray_distill.runtime.core import console
from ray_distill.runtime.core.connection import on_cluster
from ray_distill.snapshots.labelled_rows import views_in_words
from ray_distill.snapshots.manifest import SnapshotManifest
from ray_distill.snapshots.reader import open_snapshot
from ray_distill.students.data.view_filter import filter_views
from ray_distill.tracking.base import Run


def report_views(run: Run, config: Campaign, labels: LabelSetRef) -> dict[str, int]:
    """Report and record the views of a labelled snapshot.

    Returns:
        ``teach`` and ``unsure``; empty for a snapshot without views.
    """
    counts, augment = open_snapshot(labels.snapshot).manifest.view_counts, config.snapshot.augment
    if counts is None:
        return {}
    most = None if augment is None else augment.most_entropy
    found = {"teach": sum(counts["kept"].values()), "unsure": 0}
    if most is not None:
        found = on_cluster(count_views, labels, most, what="counting views on which the teacher is unsure")
    run.metrics({f"views_{name}": float(rows) for name, rows in found.items()})
    console.report(f"label: {in_words(found)}", **found)
    return found


def count_views(labels: LabelSetRef, most_entropy: float) -> dict[str, int]:
    """Return the counts of `report_views`; reads the labels of all views."""
    snapshot = open_snapshot(labels.snapshot)
    found = filter_views(snapshot, open_label_set(labels, snapshot), most_entropy)
    return {"teach": found.kept, "unsure": len(found.unsure)}


def describe_views(manifest: SnapshotManifest, counts: dict[str, Any] | None) -> dict[str, str]:
    """Return a fact for the review page: the views by kind, and how many of them teach.

    Args:
        manifest: of the labelled snapshot; nothing is returned for one without views.
        counts: of `report_views`, if they were recorded.
    """
    if manifest.view_counts is None:
        return {}
    return {"views": "; ".join([views_in_words(manifest.view_counts), *([in_words(counts)] if counts else [])])}


def in_words(counts: dict[str, Any]) -> str:
    """Return the counts of `report_views` for people."""
    unsure = counts["unsure"]
    left_out = f"; {unsure:,} teach nobody, because the teacher is unsure on them" if unsure else ""
    return f"{counts['teach']:,} views of train rows teach the student{left_out}"
