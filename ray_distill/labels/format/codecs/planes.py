"""Byte planes: numbers split into columns of single bytes.

An entropy coder compresses planes far better than words.

A plane is a column of binary cells, one a row. Rare large numbers leave an escape in the plane and go to a column of
their own, so that the common ones cost one byte before compression.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ray_distill.errors import CorruptStore
from ray_distill.labels.format.codecs.base import cells, require_lengths, uncells
from ray_distill.labels.model.ragged import Offsets

#: One number below `CONTEXTS` an entry.
Context = npt.NDArray[np.uint8]

#: Columns that the codes of gaps are spread over.
CONTEXTS = 4

#: In `escaped` columns: the number itself stands in the column of wide numbers.
ESCAPE = 255

#: Gaps below this are their own code; codes up to `ESCAPE` are blocks of 256 gaps, whose low byte stands apart.
DIRECT = 192

#: First gap that stands in the column of wide numbers.
WIDE_GAP = DIRECT + (ESCAPE - DIRECT) * 256


def split(name: str, words: npt.NDArray[Any], offsets: Offsets) -> dict[str, pa.Array]:
    """Split unsigned or float words into ``name.0`` (lowest bytes) to ``name.<itemsize-1>``."""
    little = np.ascontiguousarray(words, dtype=words.dtype.newbyteorder("<"))
    octets = little.view(np.uint8).reshape(-1, little.itemsize)
    return {f"{name}.{byte}": cells(octets[:, byte], offsets) for byte in range(little.itemsize)}


def join(table: pa.Table, name: str, dtype: npt.DTypeLike, offsets: Offsets) -> npt.NDArray[Any]:
    """Return the words that `split` split.

    Raises:
        CorruptStore: a plane is missing, or its cells do not have the lengths of ``offsets``.
    """
    kind = np.dtype(dtype).newbyteorder("<")
    octets = np.empty((int(offsets[-1]), kind.itemsize), dtype=np.uint8)
    for byte in range(kind.itemsize):
        octets[:, byte] = plane(table, f"{name}.{byte}", offsets)
    return octets.reshape(-1).view(kind)


def plane(table: pa.Table, name: str, offsets: Offsets) -> npt.NDArray[np.uint8]:
    """Return one column of bytes; errors as `join`."""
    values, found = uncells(table, name, np.uint8)
    require_offsets(name, found, offsets)
    return values


def require_offsets(name: str, found: Offsets, expected: Offsets) -> None:
    """Refuse cells whose lengths differ from those of the columns beside them.

    Raises:
        CorruptStore: names the column, its first row that differs and both lengths.
    """
    require_lengths(name, int(found[-1]), int(expected[-1]))
    if not np.array_equal(found, expected):
        row = int(np.flatnonzero(np.diff(found) != np.diff(expected))[0])
        raise CorruptStore(
            f"column {name}: the cell of row {row} has {found[row + 1] - found[row]} values, "
            f"expected {expected[row + 1] - expected[row]} from the columns beside it"
        )


def escaped(name: str, values: npt.NDArray[Any], offsets: Offsets) -> dict[str, pa.Array]:
    """Return numbers below `ESCAPE` as column ``name``, and any others as ``name.wide``."""
    wide = values >= ESCAPE
    columns = {name: cells(np.where(wide, ESCAPE, values).astype(np.uint8), offsets)}
    return columns | _wide(name, values, wide, offsets, planes=False)


def unescaped(table: pa.Table, name: str, offsets: Offsets) -> npt.NDArray[np.int64]:
    """Return the numbers that `escaped` stored; errors as `join`."""
    codes = plane(table, name, offsets)
    values = codes.astype(np.int64)
    _read_wide(table, name, values, codes == ESCAPE, offsets=offsets, least=ESCAPE, planes=False)
    return values


def gaps(name: str, values: npt.NDArray[np.int64], offsets: Offsets, context: Context) -> dict[str, pa.Array]:
    """Return columns of numbers from 0 that are mostly small.

    ``name.<context>`` has a code for each, ``name.low`` the low bytes of those from `DIRECT` on, ``name.wide`` those
    from `WIDE_GAP` on, in planes.
    """
    blocks, wide = values >= DIRECT, values >= WIDE_GAP
    codes = np.where(wide, ESCAPE, np.where(blocks, DIRECT + ((values - DIRECT) >> 8), values)).astype(np.uint8)
    low, parts = blocks & ~wide, [context == part for part in range(CONTEXTS)]
    return {
        **{f"{name}.{part}": cells(codes[mask], chosen(mask, offsets)) for part, mask in enumerate(parts)},
        f"{name}.low": cells(((values[low] - DIRECT) & 255).astype(np.uint8), chosen(low, offsets)),
        **_wide(name, values, wide, offsets, planes=True),
    }


def ungaps(table: pa.Table, name: str, offsets: Offsets, context: Context) -> npt.NDArray[np.int64]:
    """Return the numbers that `gaps` stored; errors as `join`."""
    codes = np.empty(len(context), dtype=np.uint8)
    for part in range(CONTEXTS):
        mask = context == part
        codes[mask] = plane(table, f"{name}.{part}", chosen(mask, offsets))
    values = codes.astype(np.int64)
    at = np.flatnonzero(codes >= DIRECT)
    at = at[codes[at] < ESCAPE]
    low = plane(table, f"{name}.low", np.searchsorted(at, offsets))
    values[at] = ((values[at] - DIRECT) << 8) + DIRECT + low
    _read_wide(table, name, values, codes == ESCAPE, offsets=offsets, least=WIDE_GAP, planes=True)
    return values


def stored_gaps(table: pa.Table, name: str) -> int:
    """Return how many numbers `gaps` stored; errors as `join`."""
    return sum(len(uncells(table, f"{name}.{part}", np.uint8)[0]) for part in range(CONTEXTS))


def contexts(offsets: Offsets) -> Context:
    """Return the quarter of its position that each entry is in.

    Gaps grow from quarter to quarter, and are coded separately.
    """
    counts = np.diff(offsets)
    width = int(counts[0]) if len(counts) else 0
    if np.all(counts == width):
        return np.tile((CONTEXTS * np.arange(width) // max(width, 1)).astype(np.uint8), len(counts))
    within = np.arange(offsets[-1]) - np.repeat(offsets[:-1], counts)
    quarter: Context = (CONTEXTS * within // np.repeat(counts, counts)).astype(np.uint8)
    return quarter


def chosen(mask: npt.NDArray[np.bool_], offsets: Offsets) -> Offsets:
    """Return offsets of the rows' values that a mask keeps."""
    return np.searchsorted(np.flatnonzero(mask), offsets).astype(np.int64)


def _wide(
    name: str, values: npt.NDArray[Any], wide: npt.NDArray[np.bool_], offsets: Offsets, *, planes: bool
) -> dict[str, pa.Array]:
    if not wide.any():  # most shards: a column more would cost its place in the footer
        return {}
    words, at = values[wide].astype(np.uint32), chosen(wide, offsets)
    return split(f"{name}.wide", words, at) if planes else {f"{name}.wide": cells(words, at)}


def _read_wide(
    table: pa.Table,
    name: str,
    values: npt.NDArray[np.int64],
    wide: npt.NDArray[np.bool_],
    *,
    offsets: Offsets,
    least: int,
    planes: bool,
) -> None:
    if not wide.any() and (f"{name}.wide.0" if planes else f"{name}.wide") not in table.column_names:
        return
    at = chosen(wide, offsets)
    if planes:
        found = join(table, f"{name}.wide", np.uint32, at)
    else:
        found, starts = uncells(table, f"{name}.wide", np.uint32)
        require_offsets(f"{name}.wide", starts, at)
    if len(found) and int(found.min()) < least:
        raise CorruptStore(f"column {name}.wide: found {found.min()}, expected numbers of at least {least}")
    values[wide] = found
