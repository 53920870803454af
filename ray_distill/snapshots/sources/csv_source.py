"""Read CSV files: by pyarrow, or record by record where a record is malformed.

A record with the wrong number of fields, or a quote that never closes, costs its own line only: reading goes
on with the next line. Empty fields are null. Fields are separated by commas, or, as Excel writes them in many
countries, by semicolons or tabs: by the first of `DELIMITERS` for which the header has the columns that are read, or
by what a first line ``sep=;`` states.
"""

import codecs
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import csv

from ray_distill.errors import SnapshotError
from ray_distill.snapshots.rows import Mask, Reason, Rows, file_rows
from ray_distill.snapshots.sources.columns import InputColumn, columns_beside, require_columns

Fields = list[bytes]

DELIMITERS = (b",", b";", b"\t", b"|")

_FIELD = {
    delimiter: re.compile(
        rb'(?:"((?:[^"]++|"")*+)")?([^'
        + re.escape(delimiter)
        + rb"\r\n]*+)("
        + re.escape(delimiter)
        + rb"|\r?\n|\r|\Z)"
    )
    for delimiter in DELIMITERS
}
#: A quoted field that goes on after a backslash and a quote.
_ESCAPED = {
    delimiter: re.compile(
        rb"(?:\A|[\r\n]|"
        + re.escape(delimiter)
        + rb')"(?:[^"\\]++|\\[^"]|"")*+\\"[^"\r\n'
        + re.escape(delimiter)
        + rb"]"
    )
    for delimiter in DELIMITERS
}
_STATED = re.compile(rb"sep=([,;\t|])[ \t]*(?:\r?\n|\r)", re.IGNORECASE)
_LINE_END = re.compile(rb"\r?\n|\r|\Z")
_BLANK = re.compile(rb"[\r\n]*+")
#: Appended as a last record. If it does not come back as the last, an open quote has swallowed it.
_SENTINEL = b"the end of the file"
_LARGEST_BLOCK = 1 << 30
#: Records that are lists of Python at a time.
_BATCH_RECORDS = 1 << 16


def read_csv(data: bytes, mapping: Mapping[str, str], source: int, column: InputColumn, *, where: str) -> Rows:
    """Read a CSV file with a header; columns arrive as large_binary, by snapshot column.

    Columns that belong to the input (`columns_beside`) arrive too.

    Raises:
        SnapshotError: no header, or a column is missing.
    """
    stated = _STATED.match(data)
    data = data[stated.end() :] if stated else data
    header, start, delimiter = _header(data, mapping, (stated[1],) if stated else DELIMITERS)
    if not data.strip() or header is None:
        found = "not CSV" if data.strip() else "empty"
        raise SnapshotError(f"{where} is {found}: a header with column names is needed")
    require_columns(mapping, _names(header), where, column.companions.forms)
    _refuse_backslashes(data, delimiter, where)
    mapping = {**mapping, **columns_beside(column, _names(header))}
    table = _read_whole(data, mapping, len(header), delimiter)
    if table is not None:
        rows = file_rows(table, np.zeros(len(table), dtype=np.int8), source)
    else:
        rows = _read_records(data, start, mapping=mapping, header=header, source=source, delimiter=delimiter)
    return rows.mark(_is_header(rows.table, mapping), Reason.REPEATED_HEADER)


def _refuse_backslashes(data: bytes, delimiter: bytes, where: str) -> None:
    """Refuse quotes that a backslash escapes: read as CSV, the text would lose them.

    Raises:
        SnapshotError: a quoted field goes on after such a quote.
    """
    if b'\\"' in data and _ESCAPED[delimiter].search(data):
        raise SnapshotError(
            f"{where} has quotes escaped by a backslash within quoted fields, as Spark and MySQL write them, and in "
            "CSV they are doubled: write it again with doubled quotes (Spark: .option('escape', '\"')), or as Parquet"
        )


def _is_header(table: pa.Table, mapping: Mapping[str, str]) -> Mask:
    """Return ``[N]``: whether a record is the header again, as in files joined by ``cat``."""
    same: Mask = np.full(len(table), len(set(mapping.values())) > 1)
    for part, name in mapping.items():
        forms = pa.array([name.encode(), codecs.BOM_UTF8 + name.encode()], pa.large_binary())
        same &= pc.is_in(table.column(part), value_set=forms).to_numpy()
    return same


def _header(data: bytes, mapping: Mapping[str, str], delimiters: Sequence[bytes]) -> tuple[Fields | None, int, bytes]:
    """Return the header's fields, where the records start, and the delimiter.

    The fields are None if a quote never closes. If no delimiter gives all columns, the one that gives most fields is
    what a message shows.
    """
    at = _BLANK.match(data).end()  # type: ignore[union-attr]
    found = [(*_record(data, at, delimiter), delimiter) for delimiter in delimiters]
    fit = (item for item in found if item[0] is not None and set(mapping.values()) <= set(_names(item[0])))
    return next(fit, None) or max(found, key=lambda item: len(item[0] or ()))


def _names(header: Fields) -> list[str]:
    return [name.decode(errors="replace") for name in header]


def _read_whole(data: bytes, mapping: Mapping[str, str], width: int, delimiter: bytes = b",") -> pa.Table | None:
    """Return the columns, or None if a record is malformed."""
    data = data + b"\n" + delimiter.join([_SENTINEL] * width) + b"\n"
    names = list(dict.fromkeys(mapping.values()))
    try:
        table = csv.read_csv(
            pa.BufferReader(data),
            read_options=csv.ReadOptions(block_size=min(len(data) + 1, _LARGEST_BLOCK)),
            parse_options=csv.ParseOptions(newlines_in_values=True, delimiter=delimiter.decode()),
            convert_options=csv.ConvertOptions(
                column_types=dict.fromkeys(names, pa.large_binary()),
                include_columns=names,
                null_values=[""],
                strings_can_be_null=True,
            ),
        )
    except pa.ArrowInvalid:
        return None
    if any(table.column(name)[-1].as_py() != _SENTINEL for name in names):
        return None
    return pa.table({part: table.column(name) for part, name in mapping.items()}).slice(0, len(table) - 1)


def _read_records(
    data: bytes, start: int, *, mapping: Mapping[str, str], header: Fields, source: int, delimiter: bytes = b","
) -> Rows:
    index = {part: header.index(name.encode()) for part, name in mapping.items()}
    schema = pa.schema(dict.fromkeys(mapping, pa.large_binary()))
    records, tables, why = _records(data, start, len(header), delimiter), [schema.empty_table()], [np.zeros(0, np.int8)]
    while batch := list(islice(records, _BATCH_RECORDS)):
        columns = {
            part: [None if fields is None else fields[at] or None for fields in batch] for part, at in index.items()
        }
        tables.append(pa.table(columns, schema=schema))
        why.append(np.array([Reason.MALFORMED_CSV if fields is None else 0 for fields in batch], dtype=np.int8))
    return file_rows(pa.concat_tables(tables), np.concatenate(why), source)


def _records(data: bytes, at: int, width: int, delimiter: bytes) -> Iterator[Fields | None]:
    """Yield records from ``at`` on, None for a malformed one; blank lines are skipped."""
    while (at := _BLANK.match(data, at).end()) < len(data):  # type: ignore[union-attr]
        fields, end = _record(data, at, delimiter)
        if fields is None or len(fields) != width:
            fields, end = None, _LINE_END.search(data, at).end()  # type: ignore[union-attr]
        yield fields
        at = end


def _record(data: bytes, at: int, delimiter: bytes = b",") -> tuple[Fields | None, int]:
    """Return fields of the record at ``at`` and where the next starts.

    None if a quote never closes.
    """
    fields: Fields = []
    while True:
        match = _FIELD[delimiter].match(data, at)
        assert match is not None, "the pattern matches at any position"
        quoted, plain, end = match.groups()
        if quoted is None and plain.startswith(b'"'):
            return None, at
        fields.append(plain if quoted is None else quoted.replace(b'""', b'"') + plain)
        at = match.end()
        if end != delimiter:
            return fields, at
