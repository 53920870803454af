"""Read Parquet a row group at a time, each measured before its texts are decoded.

Repeated texts are stored once in a column's dictionary: it is measured, and the texts are repeated within the bounds
alone. A row group is the smallest part that its file describes, so one that cannot be unpacked is left out whole.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import IO

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ray_distill.snapshots.rows import Mask, Reason, Why, reasons
from ray_distill.snapshots.sources.budget import ROW_BYTES, Budget
from ray_distill.snapshots.sources.columns import is_bytes, without_huge

#: Bytes of a value in a list beside its content: levels, offsets, and what is decoded of them.
_VALUE_BYTES = 16
#: Rows, and bytes that they could take, of a row group that is decoded in batches, at most. A text with prefix coding
#: could be as long as its whole column, so batches of large row groups are few rows.
_BATCH_ROWS, _BATCH_BYTES = 1 << 16, 1 << 30
#: Batches and their bytes that become one table: a table for each would take more memory than its rows.
_JOINED_BATCHES, _JOINED_BYTES = 1024, 16 << 20
#: Bytes of a column in a row group that are read with their dictionary kept; Arrow can keep 2 GiB.
_KEPT_BYTES = 1 << 30
#: Bytes that Arrow may reserve at once for texts of a dictionary.
_RESERVED = 16 << 20

Group = tuple[pa.Table, Why]


@dataclass(frozen=True, kw_only=True)
class _Reading:
    """A file that is read: as it is, and with dictionaries kept."""

    plain: pq.ParquetFile
    kept: pq.ParquetFile
    names: list[str]
    budget: Budget
    where: str

    def chunks(self, group: int) -> Iterator[tuple[str, pq.ColumnChunkMetaData]]:
        """Yield the column and the description of each part of a row group that is read."""
        described = self.plain.metadata.row_group(group)
        for at in range(described.num_columns):
            chunk = described.column(at)
            name = next((name for name in self.names if f"{chunk.path_in_schema}.".startswith(f"{name}.")), None)
            if name is not None:
                yield name, chunk


def read_groups(
    stream: IO[bytes], parquet: pq.ParquetFile, names: Sequence[str], budget: Budget, *, where: str
) -> Group:
    """Read columns of all row groups, texts as their large types.

    A cell that is too large is null and has a reason, and so have all rows of a group that cannot be unpacked.

    Args:
        stream: the file.
        parquet: the same, opened.
        names: the columns.
        budget: what the rows may take.
        where: the file's name.

    Raises:
        SnapshotError: as `Budget.spend`.
    """
    texts = [chunk for chunk in _leaves(parquet) if _is_repeated(chunk)]
    kept = pq.ParquetFile(
        stream, metadata=parquet.metadata, read_dictionary=sorted({chunk.path_in_schema for chunk in texts})
    )
    reading = _Reading(plain=parquet, kept=kept, names=list(names), budget=budget, where=where)
    schema = _schema(reading)
    groups = [_read_group(reading, at, schema) for at in range(parquet.num_row_groups)]
    why = np.concatenate([np.zeros(0, np.int8), *(why for _, why in groups)])
    return pa.concat_tables([schema.empty_table(), *(table.cast(schema) for table, _ in groups)]), why


def _schema(reading: _Reading) -> pa.Schema:
    """Return the columns that are read, with the types that `_decode` gives them."""
    found, _ = _decode(reading.plain.read_row_groups([], columns=reading.names), reading)
    return pa.schema([field.with_nullable(True) for field in found.schema])


def _leaves(parquet: pq.ParquetFile) -> Iterator[pq.ColumnChunkMetaData]:
    for at in range(parquet.num_row_groups):
        group = parquet.metadata.row_group(at)
        yield from (group.column(column) for column in range(group.num_columns))


def _read_group(reading: _Reading, at: int, schema: pa.Schema) -> Group:
    rows = reading.plain.metadata.row_group(at).num_rows
    reading.budget.spend(ROW_BYTES * rows, reading.where)
    if _is_beyond(reading, at):
        return _nulls(schema, rows), np.full(rows, np.int8(Reason.HUGE_CELL))
    _spend_described(reading, at)
    prefixed = [chunk.total_uncompressed_size for _, chunk in reading.chunks(at) if _is_prefixed(chunk)]
    repeated = [chunk.total_uncompressed_size for _, chunk in reading.chunks(at) if _is_repeated(chunk)]
    if prefixed or max(repeated, default=0) > _KEPT_BYTES:
        longest = max([1, *prefixed, _longest_repeated(reading, at)])
        most = min(_BATCH_BYTES, reading.budget.most - reading.budget.spent)
        return _read_batches(reading, at, rows=max(1, min(_BATCH_ROWS, most // longest)))
    table = reading.kept.read_row_group(at, columns=reading.names)
    nested = [field.name for field in table.schema if pa.types.is_nested(field.type)]
    if nested:  # Arrow has no cast for dictionaries within lists, so these are measured, then read again.
        reading.budget.spend(sum(map(_text_bytes, table.select(nested).columns)), reading.where)
        again = reading.plain.read_row_group(at, columns=nested)
        for name in nested:
            table = table.set_column(table.column_names.index(name), name, again.column(name))
    return _decode(table, reading)


def _spend_described(reading: _Reading, at: int) -> None:
    """Count what the footer shows: entries of lists, and values that are not in a dictionary."""
    size, rows = 0, reading.plain.metadata.row_group(at).num_rows
    for name, chunk in reading.chunks(at):
        if pa.types.is_nested(reading.plain.schema_arrow.field(name).type):
            size += _VALUE_BYTES * chunk.num_values
        size += 0 if chunk.has_dictionary_page else chunk.total_uncompressed_size
        size += rows * _width(reading.plain, name)
    reading.budget.spend(size, reading.where)


def _width(parquet: pq.ParquetFile, name: str) -> int:
    """Return the bytes of each value of a column of fixed binary width, else 0."""
    kind = parquet.schema_arrow.field(name).type
    return int(kind.byte_width) if pa.types.is_fixed_size_binary(kind) else 0


def _is_beyond(reading: _Reading, at: int) -> bool:
    """Return whether a column must have a huge cell and is large, or unpacks beyond the bounds."""
    rows, largest = reading.plain.metadata.row_group(at).num_rows, reading.budget.largest
    sizes: dict[str, list[int]] = {}
    for name, chunk in reading.chunks(at):
        before = sizes.setdefault(name, [0, 0])
        before[0] += chunk.total_uncompressed_size
        before[1] += chunk.total_compressed_size
        if _width(reading.plain, name) > largest:
            return True
    return any(
        unpacked > max(16, rows) * (largest + ROW_BYTES) or reading.budget.is_dense(unpacked, packed)
        for unpacked, packed in sizes.values()
    )


def _nulls(schema: pa.Schema, rows: int) -> pa.Table:
    return pa.table([pa.nulls(rows, field.type) for field in schema], schema=schema)


def _is_prefixed(chunk: pq.ColumnChunkMetaData) -> bool:
    """Return whether texts may repeat the beginning of others, which no dictionary shows."""
    return "DELTA_BYTE_ARRAY" in chunk.encodings


def _is_repeated(chunk: pq.ColumnChunkMetaData) -> bool:
    """Return whether texts may be in a dictionary."""
    return chunk.physical_type == "BYTE_ARRAY" and bool(chunk.has_dictionary_page)


def _longest_repeated(reading: _Reading, at: int) -> int:
    """Return the bytes of the longest text in the dictionaries of a row group."""
    longest = dict.fromkeys({name for name, chunk in reading.chunks(at) if _is_repeated(chunk)}, 0)
    for name in longest:
        for batch in reading.kept.iter_batches(batch_size=1, row_groups=[at], columns=[name]):
            lengths = [pc.max(pc.binary_length(values)).as_py() or 0 for values in _dictionaries(batch.column(0))]
            longest[name] = max(lengths, default=0)
            if longest[name]:
                break
    return max(longest.values(), default=0)


def _dictionaries(column: pa.Array) -> Iterator[pa.Array]:
    """Yield the dictionaries of texts in a column, also of those within lists and objects."""
    kind = column.type
    if pa.types.is_dictionary(kind):
        if is_bytes(kind.value_type):
            yield column.dictionary
    elif pa.types.is_struct(kind):
        for part in column.flatten():
            yield from _dictionaries(part)
    elif pa.types.is_map(kind):
        yield from _dictionaries(column.keys)
        yield from _dictionaries(column.items)
    elif pa.types.is_nested(kind):
        yield from _dictionaries(column.flatten())


def _read_batches(reading: _Reading, at: int, *, rows: int) -> Group:
    found = [_decode(table, reading) for table in _joined(reading, at, rows)]
    return pa.concat_tables([table for table, _ in found]), np.concatenate([why for _, why in found])


def _joined(reading: _Reading, at: int, rows: int) -> Iterator[pa.Table]:
    """Decode a row group in batches of ``rows``, whose texts count; yield tables of many."""
    batches: list[pa.RecordBatch] = []
    size = 0
    for batch in reading.plain.iter_batches(batch_size=rows, row_groups=[at], columns=reading.names):
        texts = sum(map(_text_bytes, batch.columns))
        reading.budget.spend(texts, reading.where)
        batches.append(batch)
        size += texts
        if size >= _JOINED_BYTES or len(batches) >= _JOINED_BATCHES:
            yield pa.Table.from_batches(batches).combine_chunks()
            batches, size = [], 0
    if batches:
        yield pa.Table.from_batches(batches).combine_chunks()


def _decode(table: pa.Table, reading: _Reading) -> Group:
    """Return the texts of a table, null where too large; count those in dictionaries."""
    why = np.zeros(len(table), dtype=np.int8)
    columns: dict[str, pa.ChunkedArray] = {}
    for name, column in zip(table.column_names, table.columns, strict=True):
        if pa.types.is_dictionary(column.type) and is_bytes(column.type.value_type):
            column, huge = _expand(column, reading)
        else:
            column, found = without_huge(column, reading.budget.largest)
            huge = np.zeros(len(table), dtype=bool) if found is None else found
            column = column.cast(_large(column.type)) if is_bytes(column.type) else column
        columns[name] = column
        why = np.where(why == 0, reasons(huge, Reason.HUGE_CELL), why)
    return pa.table(columns), why


def _expand(column: pa.ChunkedArray, reading: _Reading) -> tuple[pa.ChunkedArray, Mask]:
    kind, chunks, masks = _large(column.type.value_type), [], [np.zeros(0, dtype=bool)]
    for chunk in column.chunks:
        lengths = _lengths(chunk)
        huge = lengths > reading.budget.largest
        reading.budget.spend(int(lengths[~huge].sum()), reading.where)
        values = chunk.dictionary.cast(kind)
        values = pc.if_else(pc.greater(pc.binary_length(values), reading.budget.largest), pa.scalar(None, kind), values)
        # Arrow reserves the mean length of the dictionary's values for each row.
        step = max(1, _RESERVED * len(values) // max(1, values.nbytes))
        chunks += [values.take(chunk.indices[start : start + step]) for start in range(0, len(chunk), step)]
        masks.append(huge)
    return pa.chunked_array(chunks, kind), np.concatenate(masks)


def _lengths(chunk: pa.DictionaryArray) -> npt.NDArray[np.int64]:
    """Return ``[N]``: the bytes of each value; 0 for nulls."""
    sizes = pc.fill_null(pc.binary_length(chunk.dictionary), 0).to_numpy(zero_copy_only=False).astype(np.int64)
    places = pc.fill_null(chunk.indices, len(sizes)).to_numpy(zero_copy_only=False)
    lengths: npt.NDArray[np.int64] = np.append(sizes, 0)[places]
    return lengths


def _large(kind: pa.DataType) -> pa.DataType:
    return pa.large_string() if pa.types.is_string(kind) or pa.types.is_large_string(kind) else pa.large_binary()


def _text_bytes(column: pa.ChunkedArray | pa.Array) -> int:
    """Return the bytes of all texts in a column, also of those within lists and objects."""
    if isinstance(column, pa.ChunkedArray):
        return sum(map(_text_bytes, column.chunks))
    kind = column.type
    if pa.types.is_dictionary(kind):
        return int(_lengths(column).sum()) if is_bytes(kind.value_type) else 0
    if pa.types.is_struct(kind):
        return sum(map(_text_bytes, column.flatten()))
    if pa.types.is_map(kind):
        return _text_bytes(column.keys) + _text_bytes(column.items)
    if pa.types.is_nested(kind):
        return _text_bytes(column.flatten())
    return int(pc.sum(pc.binary_length(column)).as_py() or 0) if is_bytes(kind) else 0
