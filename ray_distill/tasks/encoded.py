"""Model inputs between encoding and collation: ragged features, and rejected rows."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ray_distill.labels.model.ragged import RaggedArray

if TYPE_CHECKING:
    from torch import Tensor

#: Model inputs as tensors, by the name the model's forward takes; the first dimension is the example.
Batch: TypeAlias = "Mapping[str, Tensor]"

#: Features of token ids: of texts, and of what a decoder reads.
TOKEN_IDS = ("input_ids", "decoder_input_ids")


@dataclass(frozen=True, kw_only=True)
class Rejected:
    """A row that cannot be used, with the reason; ``row_id`` is its 16 bytes."""

    row_id: bytes
    reason: str


@dataclass(frozen=True, kw_only=True)
class Encoded:
    """Model inputs of some rows: features by the name the model's forward takes."""

    row_ids: pa.FixedSizeBinaryArray
    features: Mapping[str, RaggedArray]
    rejected: tuple[Rejected, ...] = field(default=())
    """Rows of the input that are *not* in ``row_ids``."""

    @property
    def rows(self) -> int:
        """Number of usable rows."""
        return len(self.row_ids)

    @property
    def lengths(self) -> npt.NDArray[np.int32] | None:
        """Return tokens of each row, ``[R, F]``, by feature of token ids; None without any.

        Each feature is padded by itself.
        """
        found = [np.diff(self.features[name].offsets) for name in TOKEN_IDS if name in self.features]
        return np.stack(found, axis=1).astype(np.int32) if found else None

    def take(self, index: npt.NDArray[np.int64]) -> "Encoded":
        """Return the given rows, in the given order."""
        features = {name: feature.take(index) for name, feature in self.features.items()}
        return Encoded(row_ids=self.row_ids.take(pa.array(index, pa.int64())), features=features)

    def to_table(self) -> pa.Table:
        """Return an Arrow table: ``row_id`` and a large_list a feature.

        The inner shape is in the field's metadata.
        """
        arrays: list[pa.Array] = [self.row_ids]
        fields = [pa.field("row_id", pa.binary(16))]
        for name, feature in self.features.items():
            inner = feature.values.shape[1:]
            size = int(np.prod(inner, dtype=np.int64))
            flat = pa.array(feature.values.reshape(-1))
            arrays.append(pa.LargeListArray.from_arrays(pa.array(feature.offsets * size), flat))
            metadata = {"shape": ",".join(str(n) for n in inner), "pad": str(feature.pad)}
            fields.append(pa.field(name, arrays[-1].type, metadata=metadata))
        return pa.table(arrays, schema=pa.schema(fields))

    @classmethod
    def from_table(cls, table: pa.Table) -> "Encoded":
        """Rebuild from `to_table`'s form; extra columns that are not lists are ignored."""
        features = {}
        for column in table.schema:
            if not pa.types.is_large_list(column.type):
                continue
            shape = (column.metadata or {}).get(b"shape", b"").decode()
            inner = tuple(int(n) for n in shape.split(",")) if shape else ()
            size = int(np.prod(inner, dtype=np.int64))
            array = table.column(column.name).combine_chunks()
            if isinstance(array, pa.ChunkedArray):
                array = pa.concat_arrays(array.chunks) if array.num_chunks else pa.array([], column.type)
            offsets = np.asarray(array.offsets, dtype=np.int64)
            values = np.asarray(array.values)[offsets[0] : offsets[-1]].reshape(-1, *inner)
            pad = int((column.metadata or {}).get(b"pad", b"0"))
            features[column.name] = RaggedArray(values=values, offsets=(offsets - offsets[0]) // size, pad=pad)
        ids = table.column("row_id").combine_chunks()
        return cls(row_ids=ids, features=features)
