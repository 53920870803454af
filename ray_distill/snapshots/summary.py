"""Summarise the counts of a snapshot in a few lines for people."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from ray_distill.snapshots.label_reading.messages import counted, shown
from ray_distill.snapshots.labelled_rows import views_in_words
from ray_distill.snapshots.manifest import LabelsRead, SnapshotManifest, SplitCounts, Truth

#: How many classes a row has, by kind of truth, where it is not one.
_A_ROW: Mapping[Truth, str] = {"class": "", "classes": ", a set a row", "none": ""}
_CLASSES_SHOWN = 10
#: More classes than these are not counted by split.
_SPLIT_CLASSES_SHOWN = 5


def summarise(manifest: SnapshotManifest) -> str:
    """Return rows by outcome, split and class, and how labels were read."""
    rows = manifest.rows
    overlapping = f"{rows.overlapping:,} left out as rows of another source, " if manifest.own else ""
    lines = [
        f"{rows.read:,} rows read: {rows.kept:,} kept, {rows.merged:,} merged as duplicates, "
        f"{rows.excluded:,} excluded, {overlapping}{rows.dropped:,} dropped, {rows.quarantined:,} in quarantine",
        *_splits(manifest),
        *_views(manifest),
        f"  {len(manifest.classes)} classes{_A_ROW[manifest.truth]}: {_classes(manifest)}",
    ]
    for read in manifest.labels_read:
        lines += _labels(read, several=len(manifest.labels_read) > 1)
    if manifest.conflicts:
        lines.append(f"  {manifest.conflicts:,} inputs with contradicting labels (policy: {manifest.conflict_policy})")
    if manifest.groups_crossing:
        lines.append(f"  {manifest.groups_crossing:,} inputs in groups of several splits, kept in the earliest")
    lines += [f"  quarantine: {count:,} {reason}" for reason, count in manifest.quarantined.items()]
    return "\n".join(lines)


def _splits(manifest: SnapshotManifest) -> Iterator[str]:
    for name, counts in manifest.splits.items():
        line = f"  {name:<12}{counts.rows:>10,} rows, weight {counts.weight:,}, {counts.labelled:,} labelled"
        line += _by_class(counts)
        if name in manifest.own:
            line += f"; a source of its own, {manifest.own[name]:,} rows left out elsewhere because of it"
        yield line


def _views(manifest: SnapshotManifest) -> Iterator[str]:
    counts = manifest.view_counts
    if counts is not None:
        left_out = ", ".join(f"{rows:,} {reason}" for reason, rows in counts["left_out"].items())
        yield f"  {views_in_words(counts)}{left_out and f'; left out: {left_out}'}"


def _by_class(counts: SplitCounts) -> str:
    """Return the labelled rows by class, where classes are few and some rows have one."""
    if not counts.labelled or not 1 < len(counts.classes) <= _SPLIT_CLASSES_SHOWN:
        return ""
    return f" ({', '.join(f'{name} {rows:,}' for name, rows in counts.classes.items())})"


def _classes(manifest: SnapshotManifest) -> str:
    """Return the classes in order with their labelled rows; of many, the first and the last."""
    rows: Counter[str] = Counter()
    for split in manifest.splits.values():
        rows.update(split.classes)
    labelled = any(rows.values())
    names = [f"{name} ({rows[name]:,})" if labelled else name for name in manifest.classes]
    empty = [name for name in manifest.classes if not rows[name]]
    missing = f"; no labelled row: {_named(empty)}" if labelled and empty else ""
    return _shortened(names) + missing


def _named(names: Sequence[str], most: int = 5) -> str:
    return f"{len(names):,} classes" if len(names) > most else ", ".join(names)


def _labels(read: LabelsRead, *, several: bool) -> Iterator[str]:
    where = f" in {read.section}.label" if several else ""
    if read.values == "indices":
        yield f"  labels{where} are indices into the classes, counted from 0"
    if read.respelt:
        pairs = ", ".join(f"{shown(value)} as {shown(name)}" for value, name in read.respelt.items())
        yield f"  labels{where} read in another spelling: {pairs} (kept as written: {read.section}.label_values: names)"
    if read.unlabelled:
        yield f"  read as unlabelled{where}: {counted(read.unlabelled)} (as classes: list all in snapshot.classes)"
    if read.unknown:
        more = f" and {read.more:,} more values" if read.more else ""
        yield f"  not a class{where}: {counted(read.unknown)}{more}"


def _shortened(names: Sequence[str], most: int = _CLASSES_SHOWN) -> str:
    return ", ".join(names) if len(names) <= most else f"{', '.join(names[: most - 1])}, … {names[-1]}"
