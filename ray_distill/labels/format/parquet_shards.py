"""Convert labels and quarantined rows to the bytes of Parquet files, and back.

`hidden_states` does the same for hidden states.

The same content always gives the same bytes: no times, no random names, fixed writer settings.
"""

from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ray_distill.errors import CorruptStore, LabelError
from ray_distill.labels.format.codecs import find_codec
from ray_distill.labels.format.fitted_arrays import Fits
from ray_distill.labels.model import rowids
from ray_distill.labels.model.distributions import Distributions
from ray_distill.labels.model.part_specs import DistributionsSpec
from ray_distill.labels.model.rowids import RowIds
from ray_distill.labels.model.validity import Rejects


def encode_labels(ids: RowIds, distributions: Distributions, spec: DistributionsSpec, fits: Fits) -> bytes:
    """Return a shard of labels: ``row_id`` and the columns of the part's codec."""
    codec = find_codec(spec.codec)
    columns = codec.encode(distributions, spec, fits)
    return to_parquet(pa.table({"row_id": rowids.to_arrow(ids), **columns}), codec.cell_encoding, codec.compression)


def decode_labels(data: bytes, spec: DistributionsSpec, fits: Fits, name: str) -> tuple[RowIds, Distributions]:
    """Return row ids and distributions of a shard.

    Raises:
        CorruptStore: names the file.
    """
    table = from_parquet(data, name)
    try:
        return ids_of(table), find_codec(spec.codec).decode(table, spec, fits)
    except CorruptStore as error:
        raise CorruptStore(f"{name}: {error}") from error


def encode_quarantine(rejected: Rejects) -> bytes:
    """Return a shard of rejected rows: ``row_id`` and ``reason``, ordered by id."""
    ordered = sorted(rejected)
    return to_parquet(
        pa.table(
            {
                "row_id": pa.array([row for row, _ in ordered], rowids.ROW_ID),
                "reason": pa.array([reason for _, reason in ordered], pa.string()),
            }
        )
    )


def decode_quarantine(data: bytes, name: str) -> tuple[RowIds, list[str]]:
    """Return row ids and reasons of rejected rows; errors as `decode_labels`."""
    table = from_parquet(data, name)
    try:
        return ids_of(table), column_of(table, "reason", pa.string())
    except CorruptStore as error:
        raise CorruptStore(f"{name}: {error}") from error


def read_row_ids(source: Any, name: str) -> RowIds:
    """Read the row ids of a shard, without its other columns.

    The digest is not checked, because nothing is trained from these bytes.

    Args:
        source: a seekable file object.
        name: the file's URL, for messages.
    """
    try:
        return rowids.to_numpy(pq.read_table(source, columns=["row_id"]).column("row_id"))
    except (pa.ArrowException, KeyError, OSError, LabelError) as error:
        raise CorruptStore(f"{name}: its row ids cannot be read ({error}); restore the file") from error


def ids_of(table: pa.Table) -> RowIds:
    """Return the row ids of a shard's table.

    Raises:
        CorruptStore: there is no such column.
    """
    if "row_id" not in table.column_names or table.column("row_id").type != rowids.ROW_ID:
        raise CorruptStore("column row_id is missing or not 16 bytes wide")
    return rowids.to_numpy(table.column("row_id"))


def column_of(table: pa.Table, name: str, kind: pa.DataType) -> Any:
    """Return a plain column: integers as numpy, anything else as a list.

    Raises:
        CorruptStore: it is missing, of another type, or has nulls.
    """
    if name not in table.column_names or table.column(name).type != kind or table.column(name).null_count:
        raise CorruptStore(f"column {name} is missing or not {kind} without nulls")
    column = table.column(name)
    return column.to_numpy() if pa.types.is_integer(kind) else column.to_pylist()


def to_parquet(table: pa.Table, cell_encoding: str = "PLAIN", compression: str = "zstd") -> bytes:
    """Return a table as the bytes of one Parquet file; equal tables give equal bytes.

    ``encoding`` is that of its binary cells.
    """
    encodings = {item.name: cell_encoding if pa.types.is_large_binary(item.type) else "PLAIN" for item in table.schema}
    sink = pa.BufferOutputStream()
    # Cells are opaque bytes: dictionaries and statistics would only cost time and, for a large cell, space.
    pq.write_table(
        table,
        sink,
        row_group_size=max(len(table), 1),
        compression=compression,
        compression_level=3 if compression == "zstd" else None,
        use_dictionary=False,
        column_encoding=encodings,
        write_statistics=False,
        version="2.6",
        data_page_version="1.0",
    )
    return bytes(sink.getvalue())


def from_parquet(data: bytes, name: str) -> pa.Table:
    """Return the table of a Parquet file.

    Raises:
        CorruptStore: the bytes are none; names the file.
    """
    try:
        # Units are read several at a time: threads for the columns of one only wait for each other.
        return pq.ParquetFile(pa.BufferReader(data)).read(use_threads=False)
    except (pa.ArrowException, OSError) as error:
        raise CorruptStore(f"{name}: not a readable Parquet file ({error}); restore it") from error
