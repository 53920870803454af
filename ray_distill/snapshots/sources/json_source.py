"""Read JSON Lines: pieces by pyarrow, or line by line where a line is bad."""

import json
import re
from collections.abc import Collection, Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import json as arrow_json

from ray_distill.snapshots.rows import Reason, Rows, file_rows
from ray_distill.snapshots.sources.columns import InputColumn, columns_beside
from ray_distill.snapshots.sources.convert import mixed_to_text, to_text
from ray_distill.snapshots.sources.nested import canonical

_PIECE_BYTES = 4 << 20
_SAMPLED_LINES = 50
_TYPES = {str: pa.string(), int: pa.int64(), bool: pa.bool_(), float: pa.float64()}
#: Integers from here on are not exact among floats.
_INEXACT = 2.0**53
_TEXT = re.compile(rb"\S")

Piece = tuple[pa.Table, npt.NDArray[np.int8]]


def read_jsonl(
    data: bytes, mapping: Mapping[str, str], source: int, column: InputColumn, *, sets: bool = False
) -> tuple[Rows, set[str]]:
    """Read one JSON object a line into large_string columns. Blank lines are skipped.

    Args:
        data: the file.
        mapping: source column by snapshot column.
        source: index of the file.
        column: the column of the inputs.
        sets: labels may be lists, which become JSON arrays as texts.

    Returns:
        The rows, and the keys seen. (A key that a line leaves out is null there.)
    """
    keys: set[str] = set()
    beside = columns_beside(column, column.companions.names)
    mapping = {**mapping, **beside}
    nested = frozenset(part for part, lists in ((column.name, column.nested), ("label", sets)) if lists) | {*beside}
    read = partial(_read_lines, mapping=mapping, input_column=column.name, keys=keys, nested=nested)
    pieces = [
        _huge(read([b"{}"]))
        if piece is None
        else _read_piece(piece, mapping, input_column=column.name, keys=keys, nested=nested)
        for piece in _pieces(data, column.largest)
    ] or [read([])]
    why = np.concatenate([why for _, why in pieces])
    return file_rows(pa.concat_tables([table for table, _ in pieces]), why, source), keys


def _huge(piece: Piece) -> Piece:
    table, why = piece
    return table, np.full_like(why, Reason.HUGE_CELL)


def _pieces(data: bytes, largest: int) -> Iterator[bytes | None]:
    """Cut at line ends into pieces of about 4 MB, and None for a line that is too large.

    A bad line slows its own piece only; one that is too large is neither copied nor parsed.
    """
    at = 0
    while at < len(data):
        end = _line_end(data, at + _PIECE_BYTES)
        if end - at > largest:
            yield from _lines(data, at, end, largest)
        else:
            yield data[at:end]
        at = end


def _lines(data: bytes, at: int, end: int, largest: int) -> Iterator[bytes | None]:
    start = at
    while at < end:
        stop = _line_end(data, at)
        if stop - at - data.endswith(b"\n", at, stop) > largest and _TEXT.search(data, at, stop):
            if start < at:
                yield data[start:at]
            yield None
            start = stop
        at = stop
    if start < end:
        yield data[start:end]


def _line_end(data: bytes, at: int) -> int:
    end = data.find(b"\n", at)
    return len(data) if end < 0 else end + 1


def _read_piece(
    piece: bytes, mapping: Mapping[str, str], *, input_column: str, keys: set[str], nested: Collection[str]
) -> Piece:
    lines = [line for line in piece.split(b"\n") if line.strip()]
    schema = _guess_schema(lines[:_SAMPLED_LINES], mapping, input_column, keys)
    table = None if schema is None else _read_whole(piece, schema)
    if table is None or len(table) != len(lines):
        return _read_lines(lines, mapping, input_column=input_column, keys=keys, nested=nested)
    columns = {part: to_text(table.column(name), name)[0] for part, name in mapping.items()}
    keys.update(name for part, name in mapping.items() if columns[part].null_count < len(lines))
    return pa.table(columns), np.zeros(len(lines), dtype=np.int8)


def _guess_schema(
    lines: list[bytes], mapping: Mapping[str, str], input_column: str, keys: set[str]
) -> pa.Schema | None:
    """Return the types of the keys in the first lines, or None if not plain and uniform.

    Types are explicit because Arrow would parse a text with the form of a time as a time.
    """
    try:
        sample = [json.loads(line) for line in lines]
    except (ValueError, RecursionError):
        return None
    if not all(isinstance(value, dict) for value in sample):
        return None
    keys.update(key for value in sample for key in value)
    types = {}
    for name in mapping.values():
        kinds = {type(value[name]) for value in sample if value.get(name) is not None}
        kinds -= {int} if float in kinds else set()
        allowed = {str} if name == mapping[input_column] else set(_TYPES)
        if len(kinds) > 1 or not kinds <= allowed:
            return None
        types[name] = _TYPES[kinds.pop()] if kinds else pa.string()
    return pa.schema(types)


def _read_whole(piece: bytes, schema: pa.Schema) -> pa.Table | None:
    options = arrow_json.ParseOptions(explicit_schema=schema, unexpected_field_behavior="ignore")
    try:
        piece.decode()
        table = arrow_json.read_json(
            pa.BufferReader(piece),
            read_options=arrow_json.ReadOptions(block_size=len(piece) + 1),
            parse_options=options,
        )
    except (UnicodeDecodeError, pa.ArrowInvalid):
        return None
    floats = [column for column in table.columns if pa.types.is_floating(column.type)]
    return None if any(pc.any(pc.greater_equal(pc.abs(column), _INEXACT)).as_py() for column in floats) else table


def _read_lines(
    lines: list[bytes], mapping: Mapping[str, str], *, input_column: str, keys: set[str], nested: Collection[str]
) -> Piece:
    why = np.zeros(len(lines), dtype=np.int8)
    columns: dict[str, list[str | float | None]] = {part: [None] * len(lines) for part in mapping}
    for at, line in enumerate(lines):
        value, why[at] = _parse(line)
        keys.update(value)
        for part, name in mapping.items():
            text, reason = _text(value.get(name), only_text=part == input_column, nested=part in nested)
            if part == "label" and isinstance(value.get(name), list) and part not in nested:
                reason = Reason.LABEL_LIST
            columns[part][at] = text
            why[at] = why[at] or reason
    return pa.table({part: mixed_to_text(values) for part, values in columns.items()}), why


def _parse(line: bytes) -> tuple[dict[str, Any], Reason]:
    try:
        value = json.loads(line.decode())
    except UnicodeDecodeError:
        return {}, Reason.NOT_UTF8
    except (ValueError, RecursionError):
        return {}, Reason.MALFORMED_JSON
    return (value, Reason.NONE) if isinstance(value, dict) else ({}, Reason.MALFORMED_JSON)


def _text(value: Any, only_text: bool, nested: bool) -> tuple[str | float | None, Reason]:
    """Return the text of one JSON value (a float stays one), or the reason why it has none."""
    if value is None:
        return None, Reason.NONE
    if isinstance(value, str):
        # An escape such as \ud800 alone is JSON, but no text.
        is_text = not any("\ud800" <= character <= "\udfff" for character in value)
        return (value, Reason.NONE) if is_text else (None, Reason.NOT_UTF8)
    if nested and isinstance(value, list | dict):
        try:
            return canonical(value, padded=False), Reason.NONE
        except UnicodeEncodeError:
            return None, Reason.NOT_UTF8
        except ValueError:
            return None, Reason.WRONG_TYPE
    if only_text or not isinstance(value, bool | int | float):
        return None, Reason.WRONG_TYPE
    if isinstance(value, float):
        return value, Reason.NONE
    return str(value).lower(), Reason.NONE
