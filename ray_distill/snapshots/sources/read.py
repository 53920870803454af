"""Read source files into rows: each format's reader, then the same checks for all."""

import gzip
import zlib
from collections.abc import Mapping, Sequence
from itertools import groupby

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ray_distill.errors import SnapshotError
from ray_distill.snapshots.pairs import pair_texts
from ray_distill.snapshots.rows import Mask, Reason, Rows, concat_rows, file_rows
from ray_distill.snapshots.sources.columns import require_columns
from ray_distill.snapshots.sources.convert import to_bytes, to_text, to_time
from ray_distill.snapshots.sources.csv_source import read_csv
from ray_distill.snapshots.sources.image_source import read_images
from ray_distill.snapshots.sources.json_source import read_jsonl
from ray_distill.snapshots.sources.nested import column_to_json, is_nested
from ray_distill.snapshots.sources.resolve import SourceFile
from ray_distill.storage.files import open_input, read_bytes
from ray_distill.storage.remote import protocol


def read_rows(files: Sequence[SourceFile], mapping: Mapping[str, str], input_column: str, nested: bool = False) -> Rows:
    """Read all files, in order, as rows of one schema.

    Columns: the input (``text`` large_string or ``image`` large_binary), ``label`` always, and the others that
    ``mapping`` names: ``time`` in UTC microseconds, the rest large_string with empty texts as null. Rows that cannot be
    used are there too, marked. Where the input may be ``nested``, lists and objects become canonical JSON. A ``target``
    in ``mapping`` is not a column of its own: the input is then a source with its target (`pairs`).

    Raises:
        SnapshotError: a file is damaged, has another format or lacks a column.
        StorageError: a file cannot be read.
    """
    parts: list[Rows] = []
    keys: set[str] = set()
    json_lines = False
    for (kind, _), run in groupby(enumerate(files), key=lambda item: (item[1].format, protocol(item[1].url))):
        indexed = list(run)
        if kind == "images":
            parts.append(_read_images(indexed, mapping, input_column))
            continue
        for index, file in indexed:
            rows, found = _read_table(file, index, mapping, input_column, nested)
            parts.append(_normalise(rows, mapping, input_column, file.name, nested))
            json_lines |= file.format == "jsonl"
            keys |= found
    if json_lines:
        require_columns(mapping, sorted(keys), "the JSON Lines source, in any line,")
    return concat_rows(parts)


def _read_images(indexed: list[tuple[int, SourceFile]], mapping: Mapping[str, str], input_column: str) -> Rows:
    first, file = indexed[0]
    if input_column != "image":
        raise SnapshotError(f"{file.name} is an image, but this task reads {input_column}: check snapshot.source")
    return _normalise(read_images([item for _, item in indexed], first, mapping), mapping, input_column, file.name)


def _read_table(
    file: SourceFile, index: int, mapping: Mapping[str, str], input_column: str, nested: bool
) -> tuple[Rows, set[str]]:
    """Read the rows of one table and the names of its columns."""
    if file.format == "parquet":
        rows = _read_parquet(file, mapping, index)
        return rows, set(mapping.values())
    if input_column != "text":
        raise SnapshotError(
            f"{file.name}: images are read from folders or from Parquet, found {file.format}: convert the source"
        )
    data = _read_plain(file)
    if file.format == "csv":
        return read_csv(data, mapping, index, file.name), set(mapping.values())
    rows, keys = read_jsonl(data, mapping, index, input_column, nested)
    if (rows.why == 0).any():
        require_columns({input_column: mapping[input_column]}, sorted(keys), file.name)
    return rows, keys


def _read_plain(file: SourceFile) -> bytes:
    data = read_bytes(file.url)
    if not file.compressed:
        return data
    try:
        return gzip.decompress(data)
    except (OSError, EOFError, zlib.error) as error:
        raise SnapshotError(f"{file.name} is not a whole gzip file ({error}): restore it") from error


def _read_parquet(file: SourceFile, mapping: Mapping[str, str], index: int) -> Rows:
    try:
        with open_input(file.url) as stream, pq.ParquetFile(stream) as parquet:
            require_columns(mapping, parquet.schema_arrow.names, file.name)
            table = parquet.read(columns=sorted(set(mapping.values())))
    except (pa.ArrowException, OSError) as error:
        raise SnapshotError(f"{file.name} cannot be read as Parquet ({error}): restore or remove the file") from error
    table = pa.table({part: table.column(name) for part, name in mapping.items()})
    return file_rows(table, np.zeros(len(table), dtype=np.int8), index)


def _normalise(rows: Rows, mapping: Mapping[str, str], input_column: str, where: str, nested: bool = False) -> Rows:
    """Bring every column to its one type and mark the rows where that fails."""
    columns: dict[str, pa.Array] = {}
    for part, column in zip(rows.table.column_names, rows.table.columns, strict=True):
        name = mapping.get(part, part)
        try:
            columns[part], bad, reason = _convert(part, name, column, nested)
        except SnapshotError as error:
            raise SnapshotError(f"{where}: {error}") from error
        except pa.ArrowInvalid as error:
            raise SnapshotError(f"{where}: column {name!r} ({column.type}) cannot be converted: {error}") from error
        rows = rows.mark(bad, reason)
    if input_column == "text":
        rows = rows.mark(_is_missing(columns["text"]), Reason.MISSING_TEXT)
    if "target" in columns:
        columns["text"] = pair_texts(columns["text"], columns.pop("target"))
    columns.setdefault("label", pa.nulls(len(rows), pa.large_string()))
    order = [input_column, "label", *(part for part in mapping if part not in (input_column, "target", "label"))]
    table = pa.table({part: columns[part] for part in order})
    return Rows(table=table, why=rows.why, source=rows.source, record=rows.record)


def _convert(part: str, name: str, column: pa.ChunkedArray, nested: bool) -> tuple[pa.Array, Mask, Reason]:
    if part == "image":
        return to_bytes(column, name), np.zeros(len(column), dtype=bool), Reason.NONE
    if part == "time":
        return *to_time(column, name), Reason.UNREADABLE_TIME
    if part == "text" and nested and is_nested(column.type):
        return *column_to_json(column), Reason.WRONG_TYPE
    text, bad = to_text(column, name, numbers=part != "text")
    if part != "text":
        text = pc.if_else(pc.equal(text, ""), None, text)
    return text, bad, Reason.NOT_UTF8


def _is_missing(text: pa.Array) -> Mask:
    missing = pc.fill_null(pc.equal(pc.utf8_trim_whitespace(text), ""), True)
    result: Mask = missing.to_numpy(zero_copy_only=False)
    return result
