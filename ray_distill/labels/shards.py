"""The bytes of a store's Parquet files: labels, hidden states, quarantine.

The same content always gives the same bytes: no times, no random names, fixed writer settings.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from ray_distill.errors import CorruptStore, LabelError
from ray_distill.labels import rowids
from ray_distill.labels.checks import Rejects
from ray_distill.labels.codecs import find_codec
from ray_distill.labels.codecs.base import cells, require_lengths, uncells
from ray_distill.labels.fits import Fits
from ray_distill.labels.manifest import StoreManifest
from ray_distill.labels.rowids import RowIds
from ray_distill.labels.signal import Distributions, Hidden

_STORED = {"float32": np.float32, "float16": np.float16, "bfloat16": np.uint16}


def encode_labels(ids: RowIds, distributions: Distributions, manifest: StoreManifest, fits: Fits) -> bytes:
    """A shard of labels: ``row_id`` and the columns of the manifest's codec."""
    columns = find_codec(manifest.codec).encode(distributions, manifest, fits)
    return _to_parquet(pa.table({"row_id": rowids.to_arrow(ids), **columns}))


def decode_labels(data: bytes, manifest: StoreManifest, fits: Fits, name: str) -> tuple[RowIds, Distributions]:
    """Row ids and distributions of a shard.

    Raises:
        CorruptStore: names the file.
    """
    table = _from_parquet(data, name)
    try:
        return _ids(table), find_codec(manifest.codec).decode(table, manifest, fits)
    except CorruptStore as error:
        raise CorruptStore(f"{name}: {error}") from error


def encode_hidden(ids: RowIds, hidden: Hidden, layer: int, manifest: StoreManifest, fits: Fits) -> bytes:
    """A shard of hidden states: ``row_id``, ``vectors`` (how many), ``values`` (their bytes).

    Raises:
        LabelError: values beyond the range of the stored type.
    """
    width = hidden.values.shape[1]
    stored = narrow(hidden.values, manifest.hidden_dtype)
    return _to_parquet(pa.table({
        "row_id": rowids.to_arrow(ids), "vectors": pa.array(np.diff(hidden.offsets).astype(np.int32)),
        "values": cells(stored.reshape(-1), hidden.offsets * width)}))


def decode_hidden(
    data: bytes, layer: int, manifest: StoreManifest, fits: Fits, name: str
) -> tuple[RowIds, Hidden]:
    """Row ids and hidden states of a shard; errors as `decode_labels`."""
    table, dtype = _from_parquet(data, name), manifest.hidden_dtype
    try:
        values, ends = uncells(table, "values", _STORED[dtype])
        vectors = _column(table, "vectors", pa.int32())
        offsets = np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(vectors, dtype=np.int64)])
        width = len(values) // max(int(offsets[-1]), 1)
        require_lengths("values", len(values), int(offsets[-1]) * width)
        if not np.array_equal(ends, offsets * width):
            raise CorruptStore("columns vectors and values disagree about the rows' sizes")
        return _ids(table), Hidden(offsets=offsets, values=widen(values, dtype).reshape(int(offsets[-1]), width))
    except CorruptStore as error:
        raise CorruptStore(f"{name}: {error}") from error


def encode_quarantine(rejected: Rejects) -> bytes:
    """A shard of rejected rows: ``row_id`` and ``reason``, ordered by id."""
    ordered = sorted(rejected)
    return _to_parquet(pa.table({
        "row_id": pa.array([row for row, _ in ordered], rowids.ROW_ID),
        "reason": pa.array([reason for _, reason in ordered], pa.string())}))


def decode_quarantine(data: bytes, name: str) -> tuple[RowIds, list[str]]:
    """Row ids and reasons of rejected rows; errors as `decode_labels`."""
    table = _from_parquet(data, name)
    try:
        return _ids(table), _column(table, "reason", pa.string())
    except CorruptStore as error:
        raise CorruptStore(f"{name}: {error}") from error


def read_row_ids(source: Any, name: str) -> RowIds:
    """Row ids of a shard, without its other columns. The digest is not checked: nothing is trained from this.

    Args:
        source: a seekable file object.
        name: the file's URL, for messages.
    """
    try:
        return rowids.to_numpy(pq.read_table(source, columns=["row_id"]).column("row_id"))
    except (pa.ArrowException, KeyError, OSError, LabelError) as error:
        raise CorruptStore(f"{name}: its row ids cannot be read ({error}); restore the file") from error


def narrow(values: npt.NDArray[np.float32], dtype: str) -> npt.NDArray[Any]:
    """float32 values in the stored type; bfloat16 as its 16 bits, rounded to nearest even.

    Raises:
        LabelError: a finite value becomes infinite.
    """
    if dtype == "bfloat16":
        bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
        rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
        stored: npt.NDArray[Any] = rounded.astype(np.uint16)
    else:
        with np.errstate(over="ignore"):
            stored = values.astype(_STORED[dtype])
    if not np.isfinite(widen(stored, dtype)).all():
        raise LabelError(
            f"a hidden state of {np.abs(values).max():g} does not fit {dtype}: set labels.hidden.dtype to float32"
            + ("" if dtype == "bfloat16" else " or bfloat16"))
    return stored


def widen(stored: npt.NDArray[Any], dtype: str) -> npt.NDArray[np.float32]:
    """float32 values of what `narrow` stored; exact."""
    if dtype == "bfloat16":
        return (stored.astype(np.uint32) << np.uint32(16)).view(np.float32)
    return stored.astype(np.float32, copy=False)


def _ids(table: pa.Table) -> RowIds:
    if "row_id" not in table.column_names or table.column("row_id").type != rowids.ROW_ID:
        raise CorruptStore("column row_id is missing or not 16 bytes wide")
    return rowids.to_numpy(table.column("row_id"))


def _column(table: pa.Table, name: str, kind: pa.DataType) -> Any:
    if name not in table.column_names or table.column(name).type != kind or table.column(name).null_count:
        raise CorruptStore(f"column {name} is missing or not {kind} without nulls")
    column = table.column(name)
    return column.to_numpy() if pa.types.is_integer(kind) else column.to_pylist()


def _to_parquet(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    # Cells are opaque bytes: dictionaries and statistics would only cost time and, for a large cell, space.
    pq.write_table(
        table, sink, row_group_size=max(len(table), 1), compression="zstd", compression_level=3, use_dictionary=False,
        column_encoding=dict.fromkeys(table.column_names, "PLAIN"), write_statistics=False, version="2.6",
        data_page_version="1.0")
    return bytes(sink.getvalue())


def _from_parquet(data: bytes, name: str) -> pa.Table:
    try:
        return pq.read_table(pa.BufferReader(data))
    except (pa.ArrowException, OSError) as error:
        raise CorruptStore(f"{name}: not a readable Parquet file ({error}); restore it") from error
