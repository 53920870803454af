"""Define what all codecs share: their protocol, and binary cells.

Binary cells are the one physical form of ragged numbers in a shard.
"""

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ray_distill.config import SignalConfig
from ray_distill.errors import CorruptStore
from ray_distill.labels.format.fitted_arrays import Fits
from ray_distill.labels.model.distributions import Distributions, Family
from ray_distill.labels.model.part_specs import DistributionsSpec
from ray_distill.labels.model.ragged import Offsets


class Codec(Protocol):
    """One stored form of distributions. Its name and version are in the manifest's part."""

    @property
    def name(self) -> str:
        """Name of the codec."""

    @property
    def version(self) -> int:
        """Version of its stored form; an old one stays readable for ever."""

    @property
    def cell_encoding(self) -> str:
        """Parquet encoding of binary cells."""

    @property
    def compression(self) -> str:
        """Parquet compression of a shard's pages: ``lz4`` or ``zstd``."""

    @property
    def encodings(self) -> tuple[str, ...]:
        """Names in a configuration, ``labels.signal.encoding``, that may lead to it."""

    @property
    def families(self) -> tuple[Family, ...]:
        """Kinds of distributions that it stores."""

    def serves(self, signal: SignalConfig) -> bool:
        """Return whether this codec stores what is configured."""

    def options(self, signal: SignalConfig) -> dict[str, Any]:
        """Return the codec's settings for a configuration; they become the part's ``options``."""

    def fit(self, distributions: Distributions, spec: DistributionsSpec) -> Fits:
        """Return the arrays that the codec needs, fitted before the first unit.

        They are fitted on a slice of the calibration split.
        """

    def encode(self, distributions: Distributions, spec: DistributionsSpec, fits: Fits) -> Mapping[str, pa.Array]:
        """Return the columns of a shard, one value a row; equal distributions give equal bytes.

        Args:
            distributions: what the part's estimator gives.
            spec: the part of the store's manifest; ``options`` are this codec's settings.
            fits: the store's fitted arrays, by name.

        Raises:
            LabelError: the distributions are not of the kind this codec stores.
        """

    def decode(self, table: pa.Table, spec: DistributionsSpec, fits: Fits) -> Distributions:
        """Return the distributions of a shard's rows, as writable or shared numpy arrays.

        Raises:
            CorruptStore: columns are missing or disagree with each other.
        """


def cells(values: npt.NDArray[Any], offsets: Offsets) -> pa.LargeBinaryArray:
    """Return one binary cell a row.

    The cell of row r contains the little-endian bytes of ``values[offsets[r]:offsets[r+1]]``.
    """
    data = np.ascontiguousarray(values, dtype=values.dtype.newbyteorder("<"))
    ends = np.asarray(offsets * data.itemsize, dtype="<i8")
    return pa.LargeBinaryArray.from_buffers(
        pa.large_binary(), len(offsets) - 1, [None, pa.py_buffer(ends.tobytes()), pa.py_buffer(data.tobytes())]
    )


def uncells(table: pa.Table, name: str, dtype: npt.DTypeLike) -> tuple[npt.NDArray[Any], Offsets]:
    """Return the values of a column of binary cells, and where each row's begin.

    The values are neither copied nor looped over. The offsets are those of each row's first value.

    Raises:
        CorruptStore: the column is missing, or of another type, or a cell contains part of a value.
    """
    array = _large_binary(table, name)
    dtype = np.dtype(dtype).newbyteorder("<")
    if not len(array):
        return np.empty(0, dtype=dtype), np.zeros(1, dtype=np.int64)
    _, ends, data = array.buffers()
    offsets = np.frombuffer(ends, dtype="<i8", count=len(array) + 1, offset=array.offset * 8)
    first, last = int(offsets[0]), int(offsets[-1])
    offsets = (offsets - first).astype(np.int64)
    if np.any(offsets % dtype.itemsize):
        raise CorruptStore(f"column {name}: a cell is not a whole number of {dtype.itemsize}-byte values")
    raw = np.frombuffer(data, dtype=np.uint8)[first:last] if last > first else np.empty(0, dtype=np.uint8)
    return raw.view(dtype), offsets // dtype.itemsize


def _large_binary(table: pa.Table, name: str) -> pa.LargeBinaryArray:
    if name not in table.column_names:
        raise CorruptStore(f"column {name} is missing, found {', '.join(table.column_names)}")
    column = table.column(name)
    if column.type != pa.large_binary() or column.null_count:
        raise CorruptStore(f"column {name}: expected large_binary without nulls, found {column.type}")
    if column.num_chunks == 1:  # as a shard is written: no copy
        return column.chunk(0)
    return pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], pa.large_binary())


def require_lengths(name: str, found: int, expected: int) -> None:
    """Refuse a column whose length disagrees with the others.

    Raises:
        CorruptStore: names the column and both lengths.
    """
    if found != expected:
        raise CorruptStore(f"column {name}: found {found} values, expected {expected} from the columns beside it")


def row_totals(offsets: Offsets, per_position: Offsets) -> Offsets:
    """Return offsets of the rows' entries.

    The positions of row r are ``offsets[r]:offsets[r+1]`` of ``per_position``.
    """
    return per_position[offsets]
