"""Read a file of text records: unpacked, of the content that its name promises, in UTF-8."""

import bz2
import codecs
import gzip
import io
import lzma
import zlib
from collections.abc import Callable
from typing import IO, cast

import pyarrow as pa

from ray_distill.errors import SnapshotError
from ray_distill.snapshots.sources.budget import Budget, unpack
from ray_distill.snapshots.sources.resolve import SourceFile
from ray_distill.storage.files import read_bytes

_UTF8 = codecs.BOM_UTF8
#: Longer marks first: UTF-32's begins with that of UTF-16.
_MARKS = {
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
#: First bytes of files whose names mislead, and how to go on.
_MISNAMED = {
    b"PK\x03\x04": ("an Excel workbook or a ZIP archive", "export the sheet as 'CSV UTF-8', or unpack the archive"),
    b"\xd0\xcf\x11\xe0": ("an old Excel workbook", "export the sheet as 'CSV UTF-8'"),
    b"PAR1": ("Parquet", "name it .parquet, or set snapshot.format: parquet"),
    b"\x1f\x8b": ("packed by gzip", "name it .gz"),
    b"\x28\xb5\x2f\xfd": ("packed by zstd", "name it .zst"),
    b"BZh": ("packed by bzip2", "name it .bz2"),
    b"\xfd7zXZ": ("packed by xz", "name it .xz"),
    b"SQLite format 3": ("a SQLite database", "export the table as Parquet or CSV"),
    b"version https://git-lfs": ("a pointer of Git LFS", "fetch the data with `git lfs pull`"),
    b"<!DOCTYPE": ("a web page", "download the file again"),
    b"<html": ("a web page", "download the file again"),
}
_HEAD = 1024


def _unzstd(data: bytes) -> IO[bytes]:
    stream: IO[bytes] = pa.input_stream(pa.BufferReader(data), compression="zstd")
    return stream


def _ungzip(data: bytes) -> IO[bytes]:
    return cast(IO[bytes], gzip.GzipFile(fileobj=io.BytesIO(data)))


def _unxz(data: bytes) -> IO[bytes]:
    return lzma.LZMAFile(io.BytesIO(data))


_UNPACK: dict[str, tuple[str, Callable[[bytes], IO[bytes]]]] = {
    ".gz": ("gzip", _ungzip),
    ".bz2": ("bzip2", lambda data: bz2.BZ2File(io.BytesIO(data))),
    ".xz": ("xz", _unxz),
    ".zst": ("zstd", _unzstd),
}


def read_records(file: SourceFile, budget: Budget) -> bytes:
    """Read a CSV or JSON file as UTF-8 bytes without a byte-order mark.

    Raises:
        SnapshotError: it is damaged, or of another format than its name states; or as `Budget.spend`.
        StorageError: it cannot be read.
    """
    data = _unpacked(file, budget)
    for start, (found, way_out) in _MISNAMED.items():
        if data.startswith(start):
            raise SnapshotError(f"{file.name} is {found}, not {file.format.upper()}: {way_out}")
    return _as_utf8(data, file.name)


def restore_advice(file: SourceFile) -> str:
    """Return the way out where a file is not of its format."""
    is_pointer = file.size < _HEAD and read_bytes(file.url).startswith(b"version https://git-lfs")
    return "it is a pointer of Git LFS: `git lfs pull`" if is_pointer else "restore or remove the file"


def _unpacked(file: SourceFile, budget: Budget) -> bytes:
    budget.spend(file.size, file.name)
    data = read_bytes(file.url)
    if file.packing is None:
        return data
    name, opened = _UNPACK[file.packing]
    try:
        with opened(data) as stream:
            return unpack(stream, budget, file.name)
    except (OSError, EOFError, ValueError, zlib.error, lzma.LZMAError, pa.ArrowException) as error:
        raise SnapshotError(f"{file.name} is not a whole {name} file ({error}): restore it") from error


def _as_utf8(data: bytes, where: str) -> bytes:
    mark, encoding = next(((mark, name) for mark, name in _MARKS.items() if data.startswith(mark)), (b"", ""))
    if mark:
        try:
            return data.decode(encoding).encode()
        except UnicodeError as error:
            raise SnapshotError(
                f"{where} begins as {encoding.upper()} but is not ({error}): save it as UTF-8"
            ) from error
    if b"\0" in data[:_HEAD]:
        raise SnapshotError(
            f"{where} has zero bytes at its beginning: it is UTF-16 without a byte-order mark, or not a text; save it "
            "as UTF-8"
        )
    return data.removeprefix(_UTF8)
