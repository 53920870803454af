"""Resolve the sources of a snapshot: patterns, formats, folders of images by class."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, Literal

from ray_distill.config import SnapshotConfig
from ray_distill.errors import SnapshotError
from ray_distill.storage import remote
from ray_distill.storage.files import FileInfo, absolute, glob_files

Format = Literal["parquet", "jsonl", "csv", "images"]

#: Suffixes by which ``format: auto`` distinguishes formats. JSON Lines and CSV may also end in ``.gz``.
FORMATS: dict[str, Format] = {
    ".parquet": "parquet",
    ".pq": "parquet",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".csv": "csv",
    **dict.fromkeys((".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".pgm"), "images"),
}

_CREDENTIALS = re.compile(r"(?<=://)[^/@]*@")


@dataclass(frozen=True, kw_only=True)
class SourceFile:
    """A file to read; ``folder`` is the class of an image: its folder below the root, or None."""

    url: str
    size: int
    """bytes"""
    format: Format
    folder: str | None

    @property
    def name(self) -> str:
        """Its URL as messages and quarantine may show it: without credentials."""
        return _CREDENTIALS.sub("", self.url)

    @property
    def compressed(self) -> bool:
        """Return whether it is packed with gzip."""
        return self.url.endswith(".gz")


def source_patterns(source: str | tuple[str, ...]) -> tuple[str, ...]:
    """Return the patterns of a ``source`` field, which may be one or several."""
    return (source,) if isinstance(source, str) else source


def match_sources(patterns: Sequence[str], kind: str) -> list[SourceFile]:
    """Return the files of ``patterns``, in their order, then by name; each file once.

    Hidden files (a name that starts with a dot) are left out, and so is what table writers leave beside their
    data (``_SUCCESS``, ``_temporary/…``).

    Args:
        patterns: files, folders or globs, on any fsspec URL.
        kind: a format, or ``auto`` to go by each file's suffix.

    Raises:
        SnapshotError: a pattern matches nothing, or a file's format is unknown.
    """
    found: dict[str, SourceFile] = {}
    for pattern in patterns:
        files = [_source_file(item, kind) for item in glob_files(pattern) if not _is_hidden(item.name)]
        if not files:
            raise SnapshotError(f"source {_CREDENTIALS.sub('', pattern)!r} matches no file: check the path or the glob")
        for file in files:
            found.setdefault(absolute(file.url), file)
    return list(found.values())


def describe_sources(config: SnapshotConfig) -> list[dict[str, Any]]:
    """Return a cheap key of the source files, without reading them: equal if unchanged.

    Returns:
        One dict a file of ``source`` and ``exclude``: ``role``, ``name``, ``size`` in bytes, and ``version``,
        which changes when the file does (from its entity tag or checksum where the file system has one, else
        from its modification time).

    Raises:
        SnapshotError: as `match_sources`.
        StorageError: a file cannot be accessed.
    """
    roles = {"source": source_patterns(config.source), "exclude": config.exclude}
    return [
        {"role": role, "name": file.name, "size": file.size, "version": _version(file.url)}
        for role, patterns in roles.items()
        for file in match_sources(patterns, config.format)
    ]


def _version(url: str) -> str:
    filesystem, path = remote.resolve(url)
    return str(remote.attempt(url, "read its checksum", lambda: filesystem.checksum(path)))


def _source_file(item: FileInfo, kind: str) -> SourceFile:
    chosen = _format(item) if kind == "auto" else kind
    folder = str(PurePosixPath(item.name).parent)
    return SourceFile(
        url=item.url,
        size=item.size,
        format=chosen,  # type: ignore[arg-type]
        folder=folder if chosen == "images" and folder != "." else None,
    )


def _format(item: FileInfo) -> Format:
    path = PurePosixPath(item.name.lower().removesuffix(".gz"))
    found = FORMATS.get(path.suffix)
    if found is None:
        raise SnapshotError(
            f"{_CREDENTIALS.sub('', item.url)}: the format of {path.suffix or 'a file without suffix'} is unknown; "
            f"known are {', '.join(FORMATS)}: narrow the source by a glob, or set snapshot.format"
        )
    return found


def _is_hidden(name: str) -> bool:
    path = PurePosixPath(name)
    if any(part.startswith(".") for part in path.parts):
        return True
    is_image = FORMATS.get(path.suffix.lower()) == "images"
    return not is_image and any(part.startswith("_") for part in path.parts)
