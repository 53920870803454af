"""Turn a JSON document that contains rows into JSON Lines, an element at a time."""

import io
import json
import re
from collections.abc import Iterator

from ray_distill.errors import SnapshotError
from ray_distill.snapshots.sources.budget import ROW_BYTES, Budget

#: A larger document is refused: unlike JSON Lines, it cannot be cut into pieces without being parsed.
LARGEST = 1 << 30

#: Characters in which a value is parsed at first, and by how much more the next time if it has not ended.
_WINDOW, _GROWTH = 1 << 12, 16
#: Characters of a token that is not a text, at most: a number may be longer, and then ends as a shorter one.
_LONGEST_TOKEN = 64

_DECODER = json.JSONDecoder()
_BLANK = " \t\r\n"
_FIRST = re.compile(rb"\S")
_WAY_OUT = "write one object a line (`jq -c '.[]' FILE`; of objects one after another `jq -c . FILE`)"


class _NotADocument(ValueError):
    """Why a text is not one JSON document."""


def document_to_lines(data: bytes, *, column: str, where: str, strict: bool, budget: Budget) -> bytes:
    """Return the rows of ``[{…}, …]`` or ``{"data": [{…}, …]}`` as JSON Lines.

    JSON Lines are returned as they are.

    Args:
        data: UTF-8; bytes that are not stay as they are, and cost their row.
        column: a column that every row has: one object on one line is a row if it has it.
        where: the file.
        strict: the file must be JSON; else what is not a document is read as JSON Lines.
        budget: what the rows may take; an element that is too large for a cell is not parsed.

    Raises:
        SnapshotError: it is a document without rows, a broken one, or too large, as a whole or in one element.
    """
    at, largest = _FIRST.search(data), budget.largest
    start = b"" if at is None else at[0]
    if (
        at is None
        or start not in (b"[", b"{")
        or (start == b"{" and _begins_with_row(data, at.start(), column, lines=not strict, largest=largest))
    ):
        return data
    if len(data) > LARGEST:
        raise SnapshotError(
            f"{where} is one JSON document of {len(data) / 2**30:.1f} GiB, and at most {LARGEST >> 30} GiB are read at "
            f"once: {_WAY_OUT}"
        )
    budget.spend(len(data) + ROW_BYTES * data.count(b"{"), where)
    text = data.decode(errors="surrogateescape")
    try:
        lines = _array(text, largest) if start == b"[" else _object(text, column, where, largest)
    except _NotADocument as error:
        if strict:
            raise SnapshotError(
                f"{where} is not JSON Lines, and not one JSON document ({error}): mend it, or {_WAY_OUT}"
            ) from error
        return data
    return lines


def _begins_with_row(data: bytes, at: int, column: str, *, lines: bool, largest: int) -> bool:
    """Return whether the first line is a row.

    It is, if it is a whole object that is followed by others or has the column. One that is too large to be parsed is,
    if others follow and the file is named as ``lines``.
    """
    end = data.find(b"\n", at)
    stop = len(data) if end < 0 else end
    more = end >= 0 and _FIRST.search(data, end) is not None
    if stop - at > largest:
        return lines and more
    try:
        value = json.loads(data[at:stop])
    except (ValueError, RecursionError):
        return False
    lists = [key for key, item in value.items() if _has_rows(item, column)] if isinstance(value, dict) else []
    return more or column in value or len(lists) != 1


def _has_rows(value: object, column: str) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(item, dict) and column in item for item in value)


def _array(text: str, largest: int) -> bytes:
    lines, _, end = _elements(text, _skip(text, 0), largest)
    if _skip(text, end) < len(text):
        raise _NotADocument(f"more follows the array at {_place(text, _skip(text, end))}")
    return lines


def _object(text: str, column: str, where: str, largest: int) -> bytes:
    """Return the elements of the only list of objects in an object.

    An object that has the column is a row itself.
    """
    lists: dict[str, bytes] = {}
    starts: dict[str, str] = {}
    at = _skip(text, 0) + 1
    while True:
        key, at = _value(text, _skip(text, at), largest)
        at = _skip(text, at)
        if not isinstance(key, str) or text[at : at + 1] != ":":
            raise _NotADocument(f"expected a key and a value at {_place(text, at)}")
        at = _skip(text, at + 1)
        starts[key] = text[at : at + 1]
        if starts[key] == "[":
            lines, only_objects, at = _elements(text, at, largest)
            if lines and only_objects:
                lists[key] = lines
        else:
            _, at = _value(text, at, largest)
        at = _skip(text, at)
        if text[at : at + 1] != ",":
            break
        at += 1
    if text[at : at + 1] != "}" or _skip(text, at + 1) < len(text):
        raise _NotADocument(f"more follows the object at {_place(text, _skip(text, at + 1))}")
    if starts.get(column, "{") != "{":
        return _line(text)
    if len(lists) != 1:
        keys = ", ".join([*starts][:8])
        found = f"the lists {', '.join(lists)}" if lists else f"the keys {keys} and no list of objects"
        raise SnapshotError(
            f"{where} is one JSON object with {found}; expected one list of rows: write the rows as JSON Lines "
            f"(`jq -c '.KEY[]' FILE`; from pandas `to_json(orient='records', lines=True)`)"
        )
    return next(iter(lists.values()))


def _elements(text: str, at: int, largest: int) -> tuple[bytes, bool, int]:
    """Return an array's elements as lines, whether all are objects, and where the array ends.

    Each value is parsed and dropped.
    """
    lines, only_objects = io.BytesIO(), True
    at = _skip(text, at + 1)
    if text[at : at + 1] == "]":
        return b"", True, at + 1
    for start, end in _spans(text, at, largest):
        lines.write(_line(text[start:end]))
        only_objects &= text[start] == "{"
        at = end
    return lines.getvalue(), only_objects, _skip(text, at) + 1


def _line(element: str) -> bytes:
    # A line end within a value stands between tokens only: JSON escapes those of texts.
    return (element.replace("\r", " ").replace("\n", " ") + "\n").encode(errors="surrogateescape")


def _spans(text: str, at: int, largest: int) -> Iterator[tuple[int, int]]:
    while True:
        start = _skip(text, at)
        _, end = _value(text, start, largest)
        yield start, end
        at = _skip(text, end)
        if text[at : at + 1] == "]":
            return
        if text[at : at + 1] != ",":
            raise _NotADocument(f"expected , or ] at {_place(text, at)}")
        at += 1


def _value(text: str, at: int, largest: int) -> tuple[object, int]:
    """Parse one value; a window that grows bounds what is parsed of one that is too large."""
    size = min(_WINDOW, largest + 1)
    while (found := _in_window(text, at, size)) is None:
        if size > largest:
            raise _NotADocument(
                f"the value at {_place(text, at)} does not end within the {largest:,} bytes that "
                "snapshot.max_cell_bytes accepts"
            )
        size = min(size * _GROWTH, largest + 1)
    return found


def _in_window(text: str, at: int, size: int) -> tuple[object, int] | None:
    """Parse a value within a window of a text; return None if the window may be too small."""
    whole = at + size > len(text)
    try:
        value, end = _DECODER.raw_decode(text[at : at + size])
    except json.JSONDecodeError as error:
        if not whole and (error.pos >= size - _LONGEST_TOKEN or error.msg.startswith("Unterminated string")):
            return None
        raise _NotADocument(f"{error.msg} at {_place(text, at + error.pos)}") from error
    except RecursionError as error:
        raise _NotADocument(f"values nested too deeply at {_place(text, at)}") from error
    return None if end == size and not whole else (value, at + end)


def _skip(text: str, at: int) -> int:
    while at < len(text) and text[at] in _BLANK:
        at += 1
    return at


def _place(text: str, at: int) -> str:
    line = text.count("\n", 0, at) + 1
    return f"line {line}, column {at - text.rfind(chr(10), 0, at)}"
