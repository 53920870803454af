"""Bound cells and unpacked files by size, if possible before they are decoded.

A small file may unpack to a thousand times its size. So what is read of a file into memory is at most `RATIO` times its
size, or the larger of `FLOOR` bytes and 16 of the largest accepted cells.
"""

from collections.abc import Sequence
from typing import IO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ray_distill.errors import SnapshotError
from ray_distill.snapshots.rows import Mask, Reason, Why

#: Largest accepted ratio of unpacked to packed bytes beyond `FLOOR`; text and tables stay below 30.
RATIO = 200
#: Bytes of a file that are unpacked without regard to the ratio.
FLOOR = 256 << 20

_PIECE = 16 << 20
#: Bytes a row that Parquet may need beside the values: lengths and levels.
_BESIDE = 64


def read_groups(parquet: pq.ParquetFile, names: Sequence[str], largest: int) -> tuple[pa.Table, Why]:
    """Read columns of all row groups, except groups that cannot be decoded within the bounds.

    The rows of such a group are nulls and have a reason: a group is the smallest part that its file describes.
    """
    bad = [_is_beyond(parquet.metadata.row_group(at), names, largest) for at in range(parquet.num_row_groups)]
    if not any(bad):
        table = parquet.read(columns=list(names))
        return table, np.zeros(len(table), dtype=np.int8)
    schema = parquet.read_row_groups([], columns=list(names)).schema
    rows = [parquet.metadata.row_group(at).num_rows for at in range(parquet.num_row_groups)]
    tables = [
        _nulls(schema, count) if beyond else parquet.read_row_group(at, columns=list(names))
        for at, (count, beyond) in enumerate(zip(rows, bad, strict=True))
    ]
    why = np.repeat(np.where(bad, np.int8(Reason.HUGE_CELL), np.int8(0)), rows)
    return pa.concat_tables(tables), why


def _nulls(schema: pa.Schema, rows: int) -> pa.Table:
    fields = [field.with_nullable(True) for field in schema]
    return pa.table([pa.nulls(rows, field.type) for field in fields], schema=pa.schema(fields, schema.metadata))


def _is_beyond(group: pq.RowGroupMetaData, names: Sequence[str], largest: int) -> bool:
    """Return whether a column must have too large a cell, or unpacks beyond the bounds."""
    sizes: dict[str, list[int]] = {}
    for at in range(group.num_columns):
        column = group.column(at)
        name = next((name for name in names if f"{column.path_in_schema}.".startswith(f"{name}.")), None)
        if name is not None:
            before = sizes.setdefault(name, [0, 0])
            before[0] += column.total_uncompressed_size
            before[1] += column.total_compressed_size
    return any(
        unpacked > group.num_rows * (largest + _BESIDE) or too_dense(unpacked, packed, largest)
        for unpacked, packed in sizes.values()
    )


def too_dense(unpacked: int, packed: int, largest: int = 0) -> bool:
    """Return whether a size is beyond what a file of ``packed`` bytes may unpack to."""
    return unpacked > max(FLOOR, 16 * largest) and unpacked > RATIO * packed


def without_huge(values: pa.ChunkedArray, largest: int) -> tuple[pa.ChunkedArray, Mask | None]:
    """Return a column with null for each text or file that is too large, and a mask of them.

    The mask is None if there is none.
    """
    kind = values.type.value_type if pa.types.is_dictionary(values.type) else values.type
    lengths = values if kind == values.type else values.cast(kind)
    if not (
        pa.types.is_string(kind)
        or pa.types.is_large_string(kind)
        or pa.types.is_binary(kind)
        or pa.types.is_large_binary(kind)
    ):
        return values, None
    huge = pc.fill_null(pc.greater(pc.binary_length(lengths), largest), False)
    if not pc.any(huge).as_py():
        return values, None
    mask: Mask = huge.to_numpy()
    return pc.if_else(huge, pa.scalar(None, kind), lengths), mask


def unpack(stream: IO[bytes], packed: int, where: str) -> bytes:
    """Return all bytes of an unpacking stream.

    Raises:
        SnapshotError: it has more than the bounds accept.
    """
    found = bytearray()
    while piece := stream.read(_PIECE):
        found += piece
        if too_dense(len(found), packed):
            raise SnapshotError(
                f"{where} unpacks to more than {len(found):,} bytes from {packed:,}, over {RATIO} times its size: "
                "unpack it and inspect it; a file that is really so large is read unpacked"
            )
    return bytes(found)
