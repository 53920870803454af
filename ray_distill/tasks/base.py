"""What differs by problem, as one small protocol.

A task turns snapshot rows into model inputs, model outputs into predictions and predictions into measures.
It knows nothing of stores, clusters or training loops.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from ray_distill.artifacts import Estimate
from ray_distill.labels.model.signal import Signal, gather_ranges

#: A seeded corruption: (rows, severity 1..3, generator) -> rows of the same ids, in the same order.
Corruption = Callable[[pa.Table, int, np.random.Generator], pa.Table]


#: Features of token ids: of texts, and of what a decoder reads.
TOKEN_IDS = ("input_ids", "decoder_input_ids")


@dataclass(frozen=True, kw_only=True)
class Ragged:
    """One input feature of many rows: row r owns ``values[offsets[r]:offsets[r+1]]``."""

    values: npt.NDArray[Any]
    """``[N, *inner]``; the inner shape is the same for all rows."""
    offsets: npt.NDArray[np.int64]
    """``[R+1]``"""
    pad: int = 0
    """What `Task.collate` fills short rows with."""


@dataclass(frozen=True, kw_only=True)
class Rejected:
    """A row that cannot be used, and why; ``row_id`` is its 16 bytes."""

    row_id: bytes
    reason: str


@dataclass(frozen=True, kw_only=True)
class Encoded:
    """Model inputs of some rows: features by the name the model's forward takes."""

    row_ids: pa.FixedSizeBinaryArray
    features: Mapping[str, Ragged]
    rejected: tuple[Rejected, ...] = field(default=())
    """Rows of the input that are *not* in ``row_ids``."""

    @property
    def rows(self) -> int:
        """Number of usable rows."""
        return len(self.row_ids)

    @property
    def lengths(self) -> npt.NDArray[np.int32] | None:
        """``[R, F]``: tokens of each row, by feature of token ids, as each is padded by itself; None without any."""
        found = [np.diff(self.features[name].offsets) for name in TOKEN_IDS if name in self.features]
        return np.stack(found, axis=1).astype(np.int32) if found else None

    def take(self, index: npt.NDArray[np.int64]) -> "Encoded":
        """Return the given rows, in the given order."""
        features = {}
        for name, feature in self.features.items():
            offsets, flat = gather_ranges(feature.offsets, index)
            features[name] = Ragged(values=feature.values[flat], offsets=offsets, pad=feature.pad)
        return Encoded(row_ids=self.row_ids.take(pa.array(index, pa.int64())), features=features)

    def to_table(self) -> pa.Table:
        """As an Arrow table (``row_id`` and a large_list a feature, inner shape in the field's metadata)."""
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
            features[column.name] = Ragged(values=values, offsets=(offsets - offsets[0]) // size, pad=pad)
        ids = table.column("row_id").combine_chunks()
        return cls(row_ids=ids, features=features)


class Processor(Protocol):
    """What turns raw inputs into features: a tokenizer or an image processor, with its fingerprint."""

    @property
    def fingerprint(self) -> str:
        """Fingerprint of everything that decides the features."""

    def texts(self, texts: list[str]) -> Mapping[str, Ragged]:
        """Tokenise texts: ``input_ids`` (int32), and whatever else the model takes."""

    def images(self, images: list[npt.NDArray[np.uint8]]) -> Mapping[str, Ragged]:
        """Prepare images ``[H, W, C]`` uint8: ``pixel_values`` float32 ``[R, C, H, W]``."""


#: Model inputs as tensors, by the name the model's forward takes; the first dimension is the example.
Batch = Mapping[str, torch.Tensor]


class LabelTask(Protocol):
    """What labelling and training need to know of a kind of problem: how inputs become batches, what is answered."""

    @property
    def name(self) -> str:
        """The name a config uses."""

    @property
    def input_column(self) -> str:
        """The snapshot column that holds the input: ``text`` or ``image``."""

    def encode(self, rows: pa.Table, processor: Processor) -> Encoded:
        """Turn snapshot rows (``row_id``, the input column) into features; unusable rows go apart."""

    def collate(self, encoded: Encoded, index: npt.NDArray[np.int64]) -> Batch:
        """Tensors of the given rows; ragged features are padded at the end to the batch's longest."""

    def positions(self, encoded: Encoded) -> Ragged | None:
        """Where a model answers: tokens (int32) of each row, ascending; None where it answers once a row."""


class TokenTask(LabelTask, Protocol):
    """A kind of problem whose models answer at tokens, over a vocabulary; what is true there is known of every row."""

    @property
    def answering(self) -> str:
        """The feature at whose tokens a model answers: collated it is ``[B, L]``, and the logits are ``[B, L, V]``."""

    @property
    def corruptions(self) -> Mapping[str, Corruption]:
        """Seeded corruptions by name, of plain texts; conversations have none."""

    def positions(self, encoded: Encoded) -> Ragged:
        """See `LabelTask`: places among the row's tokens of ``answering``."""

    def truth(self, encoded: Encoded) -> Ragged:
        """The true token at each of `positions`, in their order."""


class Task(LabelTask, Protocol):
    """A kind of problem whose models choose among named classes, and how they are judged."""

    @property
    def corruptions(self) -> Mapping[str, Corruption]:
        """Seeded corruptions by name."""

    def align(self, signal: Signal, encoded: Encoded) -> Signal:
        """Map teacher positions to the student's; the identity for classification."""

    def predict(self, logits: torch.Tensor, row_ids: pa.Array) -> pa.Table:
        """One row an example: ``row_id`` and ``logp`` (list of float32, all classes, natural logs)."""

    def measure(self, predictions: pa.Table, *, seed: int, bootstrap: int, bins: int) -> dict[str, Estimate]:
        """Quality of predictions; pure.

        ``predictions`` has `predict`'s columns, ``count`` (int64 weight), ``label`` (int32 class index, null
        where unknown) and, where there is a teacher, ``teacher_logp``. Metrics that need what is absent are
        left out.
        """
