"""Refuse folders that are more than their files: table formats, and splits side by side."""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from ray_distill.errors import SnapshotError, StorageError
from ray_distill.storage.files import FileInfo, absolute, exists, join, list_files

_DELTA, _HUDI, _ICEBERG = "_delta_log", ".hoodie", "metadata"
_KINDS = {_DELTA: "Delta", _HUDI: "Hudi", _ICEBERG: "Iceberg"}
#: Iceberg's files of a table's state: ``v3.metadata.json``, ``00003-<uuid>.metadata.json``, also compressed.
_ICEBERG_STATE = re.compile(r"(v\d+|\d+-[0-9a-f-]{8,})(\.gz)?\.metadata\.json(\.gz)?")
_WAYS = {
    _DELTA: "`DeltaTable(…).file_uris()`, unless it has deletion vectors",
    _ICEBERG: "`table.scan().plan_files()`, unless it has delete files",
    _HUDI: "a snapshot query's `input_file_name()`, unless it is merge-on-read",
}
#: Folders of partitions, ``day=2026-11-20``: none is the root of a table, and there may be thousands.
_PARTITION = re.compile(r"[^/=]+=[^/]*")

_TRAIN = ("train", "training")
_OTHERS = ("test", "testing", "val", "valid", "validation", "dev", "eval", "holdout")
_SPLIT = re.compile(rf"(?:split=)?({'|'.join((*_TRAIN, *_OTHERS))})(?:[-_.]\d.*)?", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class _Table:
    mark: str
    root: str


def refuse_tables(pattern: str, shown: str, found: Sequence[FileInfo]) -> None:
    """Refuse a folder or a glob that reads a Delta, Iceberg or Hudi table file by file.

    The folder of such a table also contains files that it has deleted or replaced. A file that is named itself is read:
    its owner has chosen it.

    Args:
        pattern: a source.
        shown: the source, as messages show it.
        found: all files that it names, hidden ones too.

    Raises:
        SnapshotError: names the table's format and root, and how to read it.
    """
    if len(found) == 1 and found[0].url == pattern:
        return
    table = next(_tables_below(found), None) or next(_tables_around(pattern, found), None)
    if table is not None:
        raise SnapshotError(
            f"source {shown!r}: {PurePosixPath(table.root).name} is the folder of a table of the format "
            f"{_KINDS[table.mark]} (it has {table.mark}/), which also contains files that the table has deleted or "
            f"replaced; export its live rows to plain Parquet, or list its live files one by one in the source "
            f"({_WAYS[table.mark]})"
        )


def _tables_below(found: Iterable[FileInfo]) -> Iterator[_Table]:
    for item in found:
        parts = item.name.split("/")
        for at, part in enumerate(parts[:-1]):
            if part in (_DELTA, _HUDI) or (part == _ICEBERG and _ICEBERG_STATE.fullmatch(parts[at + 1])):
                below = "/".join(parts[at:])
                yield _Table(mark=part, root=item.url.removesuffix(below).rstrip("/"))


def _tables_around(pattern: str, found: Sequence[FileInfo]) -> Iterator[_Table]:
    """Find tables by the folders above the files.

    Below a folder that was listed, all files are known.
    """
    base = absolute(pattern).rstrip("/")
    listed = bool(found) and all(absolute(item.url).startswith(f"{base}/") for item in found)
    starts = {base} if listed else {absolute(item.url).rpartition("/")[0] for item in found}
    for folder in sorted({above for start in starts for above in _with_parents(start)}):
        if not _PARTITION.fullmatch(folder.rpartition("/")[2]):
            mark = _mark_of(folder)
            if mark:
                yield _Table(mark=mark, root=folder)


def _with_parents(folder: str) -> Iterator[str]:
    scheme, separator, path = folder.rpartition("://")
    parts = path.split("/")
    for length in range(len(parts), 0, -1):
        if parts[length - 1]:
            yield f"{scheme}{separator}{'/'.join(parts[:length])}"


def _mark_of(folder: str) -> str | None:
    try:
        for mark in (_DELTA, _HUDI):
            if exists(join(folder, mark)):
                return mark
        if exists(join(folder, _ICEBERG)):
            states = list_files(join(folder, _ICEBERG))
            return _ICEBERG if any(_ICEBERG_STATE.fullmatch(item.name) for item in states) else None
    except StorageError:  # a folder above the source may be closed to its reader
        return None
    return None


def refuse_splits(shown: str, names: Sequence[str], *, images: bool) -> None:
    """Refuse a source whose files or folders are a training split beside others.

    Their rows would be mixed; in folders of images, the names of the splits would become classes.

    Args:
        shown: the source, as messages show it.
        names: the names of its files, relative to the source.
        images: folders are classes.

    Raises:
        SnapshotError: names the splits found and how to choose one.
    """
    for parent, children in _children(names).items():
        splits = {child: match[1].lower() for child in children if (match := _SPLIT.fullmatch(child))}
        train = [child for child, split in splits.items() if split in _TRAIN]
        rest = [child for child, split in splits.items() if split in _OTHERS]
        alone = images and splits and children == set(splits) and any(name.count("/") > 1 for name in names)
        if (train and rest) or (alone and not parent):
            found = ", ".join(sorted(splits)[:4])
            taken = "their names would become classes" if images else "their rows would be mixed"
            example = _example(shown, parent, (train or list(splits))[0])
            raise SnapshotError(
                f"source {shown!r}: {parent or 'it'} has the splits {found} side by side, and {taken}; name one of "
                f"them as snapshot.source (such as {example!r}), another as snapshot.test.source, or list those to be "
                "joined as several sources"
            )


def _example(shown: str, parent: str, child: str) -> str:
    base = shown.rstrip("/").split("*")[0].rpartition("/")[0] if "*" in shown else shown.rstrip("/")
    return "/".join(part for part in (base, parent, child) if part)


def _children(names: Iterable[str]) -> dict[str, set[str]]:
    """Return the folders and the stems of files in each folder."""
    found: dict[str, set[str]] = {}
    for name in names:
        *folders, file = name.split("/")
        for at, child in enumerate([*folders, file.partition(".")[0]]):
            found.setdefault("/".join(folders[:at]), set()).add(child)
    return found
