"""Source columns of any usable type, turned into the few types a snapshot has.

Each function returns the converted column and a mask of the rows it could not convert (which are null).
"""

import re
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from ray_distill.errors import SnapshotError
from ray_distill.snapshots.rows import Mask

TIME = pa.timestamp("us", tz="UTC")

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_NUMBER = re.compile(r"[+-]?\d+(\.\d+)?")
#: A year, or a calendar date without separators, of this century or the last.
_DATE = re.compile(r"(19|20)\d\d((0[1-9]|1[0-2])(0[1-9]|[12]\d|3[01]))?")
#: Days since 1900, from 1954 to 2119, as spreadsheets write dates.
_SHEET_DAYS = (20_000, 80_000)
#: Years 1 to 9999. Epoch *milliseconds* fall outside, so that a wrong unit is found out.
_SECONDS = (-62_135_596_800, 253_402_300_799)
_EXACT = 2**53


def to_text(column: pa.ChunkedArray | pa.Array, name: str, numbers: bool = True) -> tuple[pa.Array, Mask]:
    """Return ``column`` as large_string; whole floats read as integers, NaN as null.

    Args:
        column: texts, UTF-8 bytes, or one plain value a row.
        name: its name in the source.
        numbers: whether numbers, times and truth values have a text too.

    Raises:
        SnapshotError: a type without one obvious text, such as a list.
    """
    column = _plain(column)
    kind = column.type
    if _is_bytes(kind) or pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        return _decode(_joined(column.cast(pa.large_binary())))
    if not (_is_scalar(kind) if numbers else pa.types.is_null(kind)):
        expected = "text or numbers" if numbers else "text"
        raise SnapshotError(f"column {name!r} has {kind}, expected {expected}: convert it in the source")
    if pa.types.is_floating(kind):
        column = _floats_to_text(column)
    return _joined(column.cast(pa.large_string())), np.zeros(len(column), dtype=bool)


def mixed_to_text(values: Sequence[str | float | None]) -> pa.Array:
    """Return plain values as large_string; floats become texts together, as in `to_text`."""
    numbers = pa.array([value if isinstance(value, float) else None for value in values], pa.float64())
    texts = pa.array([None if isinstance(value, float) else value for value in values], pa.large_string())
    return pc.coalesce(texts, to_text(numbers, "number")[0])


def to_bytes(column: pa.ChunkedArray, name: str) -> pa.Array:
    """Return a column of encoded images, binary or struct {bytes, path}, as large_binary.

    Raises:
        SnapshotError: another type.
    """
    if pa.types.is_struct(column.type) and "bytes" in [field.name for field in column.type]:
        column = pc.struct_field(column, "bytes")
    if pa.types.is_null(column.type) or _is_bytes(column.type):
        return _joined(column.cast(pa.large_binary()))
    found = str(column.type).removeprefix("large_")
    raise SnapshotError(f"column {name!r} has {found}, expected encoded images as binary or as struct {{bytes, path}}")


def to_time(column: pa.ChunkedArray, name: str) -> tuple[pa.Array, Mask]:
    """Convert timestamps, dates, ISO 8601 texts or epoch seconds to UTC microseconds.

    Times without a zone are UTC.

    Raises:
        SnapshotError: a type that is not a time, or numbers that are all calendar dates or years.
    """
    column = _plain(column)
    kind = column.type
    if pa.types.is_timestamp(kind) or pa.types.is_date(kind):
        column = column.cast(pa.timestamp("us", tz=getattr(kind, "tz", None)), safe=False)
        return _joined(column.cast(TIME)), np.zeros(len(column), dtype=bool)
    texts, bad = to_text(column, name)
    _refuse_dates(texts, name)
    if pa.types.is_integer(kind) or pa.types.is_floating(kind):
        return _seconds_to_time(column)
    parsed = [None if text is None else parse_time(text) for text in texts.to_pylist()]
    times = pa.array(parsed, pa.int64()).cast(TIME)
    return times, bad | (_mask(pc.is_null(times)) & _mask(pc.is_valid(texts)))


def _refuse_dates(texts: pa.Array, name: str) -> None:
    """Refuse numbers such as 20260131, 2026 and 46053.5, which as seconds are times of 1970.

    Raises:
        SnapshotError: every value is such a number.
    """
    sample = texts.drop_null().slice(0, 1)
    if not len(sample) or not (_DATE.fullmatch(sample[0].as_py().strip()) or _is_sheet_day(sample[0].as_py().strip())):
        return
    values = {text.strip() for text in texts.unique().to_pylist() if text is not None}
    if all(map(_is_sheet_day, values)):
        raise SnapshotError(
            f"column {name!r} has numbers such as {min(values)}, which are days as spreadsheets count them, and "
            "numbers are read as seconds since 1970: write times as 2026-01-31T10:00:00Z in the source"
        )
    if all(_DATE.fullmatch(value) for value in values):
        raise SnapshotError(
            f"column {name!r} has numbers such as {min(values)}, which are dates or years, and numbers are read as "
            "seconds since 1970: write dates as 2026-01-31 in the source"
        )


def _is_sheet_day(text: str) -> bool:
    return bool(_NUMBER.fullmatch(text)) and _SHEET_DAYS[0] <= float(text) < _SHEET_DAYS[1]


def parse_time(text: str) -> int | None:
    """Return microseconds since 1970 of an ISO 8601 time or of epoch seconds; else None."""
    text = text.strip()
    if _NUMBER.fullmatch(text):
        seconds = float(text)
        return round(seconds * 1e6) if _SECONDS[0] <= seconds <= _SECONDS[1] else None
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return None
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return (moment - _EPOCH) // timedelta(microseconds=1)


def _seconds_to_time(column: pa.ChunkedArray) -> tuple[pa.Array, Mask]:
    valid = _mask(pc.is_valid(column))
    seconds = _joined(column).to_numpy(zero_copy_only=False).astype(np.float64)
    usable = valid & (seconds >= _SECONDS[0]) & (seconds <= _SECONDS[1])
    micros = np.round(np.where(usable, seconds, 0) * 1e6).astype(np.int64)
    return pa.array(micros, mask=~usable).cast(TIME), valid & ~usable


def _floats_to_text(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Convert whole numbers to texts without ".0".

    A column of integers with nulls often arrives as floats.
    """
    column = column.cast(pa.float64())
    column = pc.if_else(pc.is_nan(column), None, column)
    whole = pc.and_(pc.equal(pc.floor(column), column), pc.less(pc.abs(column), _EXACT))
    integers = pc.if_else(whole, column, None).cast(pa.int64())
    return pc.coalesce(integers.cast(pa.large_string()), column.cast(pa.large_string()))


def _decode(column: pa.Array) -> tuple[pa.Array, Mask]:
    """Decode UTF-8: Arrow checks a whole column; only a bad column is decoded row by row."""
    try:
        return column.cast(pa.large_string()), np.zeros(len(column), dtype=bool)
    except pa.ArrowInvalid:
        bad = np.array([value is not None and not _is_utf8(value) for value in column.to_pylist()], dtype=bool)
        return pc.if_else(pa.array(bad), None, column).cast(pa.large_string()), bad


def _is_utf8(value: bytes) -> bool:
    try:
        value.decode()
    except UnicodeDecodeError:
        return False
    return True


def _plain(column: pa.ChunkedArray | pa.Array) -> pa.ChunkedArray:
    column = pa.chunked_array([column]) if isinstance(column, pa.Array) else column
    return column.cast(column.type.value_type) if pa.types.is_dictionary(column.type) else column


def _joined(column: pa.ChunkedArray) -> pa.Array:
    return pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], column.type)


def _is_bytes(kind: pa.DataType) -> bool:
    return bool(
        pa.types.is_binary(kind)
        or pa.types.is_large_binary(kind)
        or pa.types.is_binary_view(kind)
        or pa.types.is_fixed_size_binary(kind)
    )


def _is_scalar(kind: pa.DataType) -> bool:
    return bool(
        pa.types.is_null(kind)
        or pa.types.is_boolean(kind)
        or pa.types.is_integer(kind)
        or pa.types.is_floating(kind)
        or pa.types.is_decimal(kind)
        or pa.types.is_temporal(kind)
    )


def _mask(column: pa.ChunkedArray | pa.Array) -> npt.NDArray[np.bool_]:
    result: npt.NDArray[np.bool_] = np.asarray(column, dtype=bool)
    return result
