"""Resolve the sources of a snapshot: patterns, formats, folders of images by class."""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, Literal
from urllib.parse import unquote

from ray_distill.config import SnapshotConfig
from ray_distill.config.snapshot import as_tuple
from ray_distill.errors import SnapshotError
from ray_distill.fingerprint import fingerprint
from ray_distill.redact import lasting
from ray_distill.snapshots.sources.layout import refuse_splits, refuse_tables
from ray_distill.storage import remote
from ray_distill.storage.files import FileInfo, absolute, glob_files, is_local, modified

Format = Literal["parquet", "jsonl", "csv", "images"]

#: Suffixes by which ``format: auto`` distinguishes formats. JSON and CSV may also end in one of `PACKINGS`.
FORMATS: dict[str, Format] = {
    ".parquet": "parquet",
    ".pq": "parquet",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".csv": "csv",
    ".tsv": "csv",
    **dict.fromkeys((".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".pgm"), "images"),
}

PACKINGS = (".gz", ".bz2", ".xz", ".zst")
_PACKABLE = ("jsonl", "csv")
_SHEET = "export the sheet as 'CSV UTF-8', or write it to Parquet"
_ARROW = "write it to Parquet (`pyarrow.parquet.write_table`)"
_ARCHIVE = "unpack it, and name the folder"
#: Common suffixes of files that are not read, and how to go on.
_ADVICE = {
    **dict.fromkeys((".xlsx", ".xls", ".xlsm", ".ods"), _SHEET),
    **dict.fromkeys((".arrow", ".feather", ".ipc", ".orc", ".avro"), _ARROW),
    **dict.fromkeys((".zip", ".tar", ".tgz", ".7z", ".rar"), _ARCHIVE),
    **dict.fromkeys((".heic", ".heif", ".avif", ".jp2", ".dcm", ".exr", ".hdr", ".svg", ".psd"), "convert it to PNG"),
    **dict.fromkeys((".lz4", ".snappy", ".lzo", ".br"), f"unpack it, or pack it as one of {', '.join(PACKINGS)}"),
}
#: What desktops leave in folders, beside hidden files.
_LITTER = ("thumbs.db", "desktop.ini")

#: Value of a partition whose rows have none.
_NO_PARTITION = "__HIVE_DEFAULT_PARTITION__"

_USER = re.compile(r"(?<=://)[^/@]*@")


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
        """Its URL as messages, quarantine and keys have it: without user and signature."""
        return shown_url(self.url)

    @property
    def packing(self) -> str | None:
        """Return the suffix of the program that packed it, such as ``.gz``, or None."""
        return next((suffix for suffix in PACKINGS if _without_query(self.url).lower().endswith(suffix)), None)


def shown_url(url: str) -> str:
    """Return a URL without a user, a password and a signature."""
    return _USER.sub("", str(lasting(url)))


def _without_query(name: str, url: str | None = None) -> str:
    """Return the name of a file at a URL without the query that signs it."""
    return name if is_local(url or name) else name.partition("?")[0]


def partitions_of(url: str) -> dict[str, str | None]:
    """Return the columns in the names of a file's folders, such as Hive's ``day=2026-11-20/``."""
    folders = (folder.partition("=") for folder in url.split("/")[:-1] if "=" in folder.strip("="))
    return {unquote(name): None if text == _NO_PARTITION else unquote(text) for name, _, text in folders}


def match_sources(patterns: Sequence[str], kind: str, *, splits: bool = False) -> list[SourceFile]:
    """Return the files of ``patterns``, in their order, then by name; each file once.

    Links are followed. Hidden files (a name that starts with a dot) are left out, and so is what table writers and
    desktops leave beside data (``_SUCCESS``, ``_temporary/…``, ``Thumbs.db``).

    Args:
        patterns: files, folders or globs, on any fsspec URL.
        kind: a format, or ``auto`` to go by each file's suffix.
        splits: a pattern may name several splits of a data set, such as the folders train and test.

    Raises:
        SnapshotError: a pattern matches nothing, a file's format is unknown, or as `refuse_tables` and `refuse_splits`.
    """
    found: dict[tuple[str, str | None], SourceFile] = {}
    for pattern in patterns:
        for file in _match(pattern, kind, splits=splits):
            found.setdefault((_real(file.url), file.folder), file)
    return list(found.values())


def _match(pattern: str, kind: str, *, splits: bool) -> list[SourceFile]:
    shown, found = shown_url(pattern), glob_files(pattern, follow=True)
    refuse_tables(pattern, shown, found)
    seen = [item for item in found if not _is_hidden(item.name)]
    files = [_source_file(item, kind) for item in seen]
    if not files:
        raise SnapshotError(f"source {shown!r} matches no file: check the path or the glob")
    if not splits:
        refuse_splits(shown, [item.name for item in seen], images=files[0].format == "images")
    return files


def _real(url: str) -> str:
    """Return what a file is: several links to it are one file."""
    return os.path.realpath(absolute(url).removeprefix("file://")) if is_local(url) else url


def describe_sources(config: SnapshotConfig) -> list[dict[str, Any]]:
    """Return a cheap key of the source files, without reading them: equal if unchanged.

    Returns:
        One dict a file of ``source``, ``exclude`` and the sources of splits: ``role``, ``name``, ``size`` in bytes, and
        ``version``, which changes when the file does (from its entity tag or checksum where the file system has one,
        else from its modification time).

    Raises:
        SnapshotError: as `match_sources`.
        StorageError: a file cannot be accessed.
    """
    roles = {"source": (config.source, config.format), "exclude": (config.exclude, config.format)}
    roles |= {split: (own.source, own.format) for split, own in config.own_sources.items()}
    return [
        {"role": role, "name": file.name, "size": file.size, "version": _version(_real(file.url))}
        for role, (source, kind) in roles.items()
        for file in match_sources(as_tuple(source), kind, splits=role == "exclude")
    ]


def _version(url: str) -> str:
    if is_local(url):  # whose checksum counts the path and the inode: a copied campaign has others
        return str(modified(url))
    filesystem, path = remote.resolve(url)
    if remote.protocol(url) in ("http", "https"):  # whose checksum is of the whole URL: another signature, another file
        found = remote.attempt(url, "read its checksum", lambda: filesystem.info(path))
        return fingerprint(lasting({name: str(value) for name, value in found.items()}))
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
    name = _without_query(item.name, item.url).lower()
    packing = next((suffix for suffix in PACKINGS if name.endswith(suffix)), "")
    suffix = PurePosixPath(name.removesuffix(packing)).suffix
    found, where = FORMATS.get(suffix), shown_url(item.url)
    if found is None:
        advice = _ADVICE.get(suffix, "narrow the source by a glob, or set snapshot.format")
        raise SnapshotError(
            f"{where}: the format of {suffix or 'a file without suffix'} is unknown; known are {', '.join(FORMATS)}: "
            f"{advice}"
        )
    if packing and found not in _PACKABLE:
        raise SnapshotError(f"{where} is packed ({packing}), and {suffix} is read unpacked only: unpack it")
    return found


def _is_hidden(name: str) -> bool:
    path = PurePosixPath(name)
    if path.name.lower() in _LITTER or any(part.startswith(".") for part in path.parts):
        return True
    is_image = FORMATS.get(path.suffix.lower()) == "images"
    return not is_image and any(part.startswith("_") for part in path.parts)
