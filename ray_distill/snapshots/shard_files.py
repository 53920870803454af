"""Turn the rows of a shard into one Parquet file, and fingerprint them by value."""

from collections.abc import Sequence

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ray_distill.fingerprint import fingerprint

_ZSTD_LEVEL = 3

#: A row group is what training reads at a time where not everything fits into memory: a work unit's rows, fewer where
#: inputs are long, as their units have fewer, too. A shard has no more groups than ``_GROUPS``, unless they would have
#: more rows than a unit: its footer is read again for each part.
_GROUP_ROWS, _GROUP_BYTES, _GROUPS = 512, 1 << 16, 256


def content_of(table: pa.Table) -> str:
    """Fingerprint rows by value.

    The row id stands for the input, of which it is the hash.
    """
    values = {}
    for name, column in zip(table.column_names, table.columns, strict=True):
        plain = column.cast(pa.int64()) if pa.types.is_timestamp(column.type) else column
        values[name] = [item.hex() if isinstance(item, bytes) else item for item in plain.to_pylist()]
    return fingerprint(values)


def to_parquet(table: pa.Table, unique: Sequence[str]) -> bytes:
    """Return one Parquet file; equal tables give equal bytes, whatever their layout in memory.

    Args:
        table: the rows.
        unique: columns whose values hardly repeat.
    """
    sink = pa.BufferOutputStream()
    rows, size = table.num_rows, sum(_bytes_of(column) for column in table.columns)
    group = min(_GROUP_ROWS, max(1, _GROUP_BYTES * rows // max(1, size), rows // _GROUPS))
    repeating = [_leaf(field) for field in table.schema if field.name not in unique]
    pq.write_table(
        table.combine_chunks(),
        sink,
        compression="zstd",
        compression_level=_ZSTD_LEVEL,
        row_group_size=group,
        use_dictionary=repeating,
        write_statistics=repeating,
    )
    data: bytes = sink.getvalue().to_pybytes()
    return data


def type_name(kind: pa.DataType) -> str:
    """Return a type as the manifest names it.

    Arrow's name of a list contains a name for its items, which differs between its versions.
    """
    return f"list<{kind.value_type}>" if pa.types.is_list(kind) else str(kind)


def _leaf(field: pa.Field) -> str:
    """Return the path of a column's values in a Parquet file."""
    return f"{field.name}.list.element" if pa.types.is_list(field.type) else str(field.name)


def _bytes_of(column: pa.ChunkedArray) -> int:
    """Return the bytes of its values: memory use depends on how a column was made."""
    kind = column.type
    if not (
        pa.types.is_string(kind)
        or pa.types.is_large_string(kind)
        or pa.types.is_binary(kind)
        or pa.types.is_large_binary(kind)
    ):
        return 0
    return int(pc.sum(pc.binary_length(column)).as_py() or 0)
