"""Turn a JSON document that contains rows into JSON Lines, an element at a time."""

import json
import re
from collections.abc import Iterator

from ray_distill.errors import SnapshotError

#: A larger document is refused: unlike JSON Lines, it cannot be cut into pieces without being parsed.
LARGEST = 1 << 30

_DECODER = json.JSONDecoder()
_BLANK = " \t\r\n"
_FIRST = re.compile(rb"\S")
_WAY_OUT = "write one object a line (`jq -c '.[]' FILE`; of objects one after another `jq -c . FILE`)"


class _NotADocument(ValueError):
    """Why a text is not one JSON document."""


def document_to_lines(data: bytes, *, column: str, where: str, strict: bool) -> bytes:
    """Return the rows of ``[{…}, …]`` or ``{"data": [{…}, …]}`` as JSON Lines.

    JSON Lines are returned as they are.

    Args:
        data: UTF-8; bytes that are not stay as they are, and cost their row.
        column: a column that every row has: one object on one line is a row if it has it.
        where: the file.
        strict: the file must be JSON; else what is not a document is read as JSON Lines.

    Raises:
        SnapshotError: it is a document without rows, a broken one, or one that is too large.
    """
    at = _FIRST.search(data)
    start = b"" if at is None else at[0]
    if at is None or start not in (b"[", b"{") or (start == b"{" and _begins_with_row(data, at.start(), column)):
        return data
    if len(data) > LARGEST:
        raise SnapshotError(
            f"{where} is one JSON document of {len(data) / 2**30:.1f} GiB, and at most {LARGEST >> 30} GiB are read at "
            f"once: {_WAY_OUT}"
        )
    text = data.decode(errors="surrogateescape")
    try:
        lines = _array(text) if start == b"[" else _object(text, column, where)
    except _NotADocument as error:
        if strict:
            raise SnapshotError(
                f"{where} is not JSON Lines, and not one JSON document ({error}): mend it, or {_WAY_OUT}"
            ) from error
        return data
    # A line end within a value stands between tokens only: JSON escapes those of texts.
    joined = "\n".join(line.replace("\r", " ").replace("\n", " ") for line in lines)
    return joined.encode(errors="surrogateescape")


def _begins_with_row(data: bytes, at: int, column: str) -> bool:
    """Return whether the first line is a row.

    It is, if it is a whole object that is followed by others or has the column.
    """
    end = data.find(b"\n", at)
    try:
        value = json.loads(data[at : len(data) if end < 0 else end])
    except (ValueError, RecursionError):
        return False
    lists = [key for key, item in value.items() if _has_rows(item, column)] if isinstance(value, dict) else []
    more = end >= 0 and _FIRST.search(data, end) is not None
    return more or column in value or len(lists) != 1


def _has_rows(value: object, column: str) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(item, dict) and column in item for item in value)


def _array(text: str) -> list[str]:
    lines, end = _elements(text, _skip(text, 0))
    if _skip(text, end) < len(text):
        raise _NotADocument(f"more follows the array at {_place(text, _skip(text, end))}")
    return lines


def _object(text: str, column: str, where: str) -> list[str]:
    """Return the elements of the only list of objects in an object.

    An object that has the column is a row itself.
    """
    lists, keys, at = {}, [], _skip(text, 0) + 1
    while True:
        key, at = _value(text, _skip(text, at))
        at = _skip(text, at)
        if not isinstance(key, str) or text[at : at + 1] != ":":
            raise _NotADocument(f"expected a key and a value at {_place(text, at)}")
        keys.append(key)
        at = _skip(text, at + 1)
        if text[at : at + 1] == "[":
            lines, at = _elements(text, at)
            if lines and all(line.startswith("{") for line in lines):
                lists[key] = lines
        else:
            _, at = _value(text, at)
        at = _skip(text, at)
        if text[at : at + 1] != ",":
            break
        at += 1
    if text[at : at + 1] != "}" or _skip(text, at + 1) < len(text):
        raise _NotADocument(f"more follows the object at {_place(text, _skip(text, at + 1))}")
    if column in keys and not isinstance(json.loads(text)[column], dict):
        return [text]
    if len(lists) != 1:
        found = f"the lists {', '.join(lists)}" if lists else f"the keys {', '.join(keys[:8])} and no list of objects"
        raise SnapshotError(
            f"{where} is one JSON object with {found}; expected one list of rows: write the rows as JSON Lines "
            f"(`jq -c '.KEY[]' FILE`; from pandas `to_json(orient='records', lines=True)`)"
        )
    return next(iter(lists.values()))


def _elements(text: str, at: int) -> tuple[list[str], int]:
    """Return the texts of an array's elements, and where it ends.

    Each value is parsed and dropped.
    """
    lines: list[str] = []
    at = _skip(text, at + 1)
    if text[at : at + 1] == "]":
        return lines, at + 1
    for start, end in _spans(text, at):
        lines.append(text[start:end])
        at = end
    return lines, _skip(text, at) + 1


def _spans(text: str, at: int) -> Iterator[tuple[int, int]]:
    while True:
        start = _skip(text, at)
        _, end = _value(text, start)
        yield start, end
        at = _skip(text, end)
        if text[at : at + 1] == "]":
            return
        if text[at : at + 1] != ",":
            raise _NotADocument(f"expected , or ] at {_place(text, at)}")
        at += 1


def _value(text: str, at: int) -> tuple[object, int]:
    try:
        return _DECODER.raw_decode(text, at)
    except json.JSONDecodeError as error:
        raise _NotADocument(f"{error.msg} at line {error.lineno}, column {error.colno}") from error
    except RecursionError as error:
        raise _NotADocument(f"values nested too deeply at {_place(text, at)}") from error


def _skip(text: str, at: int) -> int:
    while at < len(text) and text[at] in _BLANK:
        at += 1
    return at


def _place(text: str, at: int) -> str:
    line = text.count("\n", 0, at) + 1
    return f"line {line}, column {at - text.rfind(chr(10), 0, at)}"
