"""Read an input column row by row, and separate unusable rows with their reasons."""

from collections.abc import Callable, Mapping
from typing import TypeVar

import pyarrow as pa

from ray_distill.labels.model.ragged import RaggedArray
from ray_distill.tasks.encoded import Encoded, Rejected
from ray_distill.tasks.inputs.modality import Processor

T = TypeVar("T")


class Unusable(ValueError):
    """Say why one row cannot be used; never raised out of this folder."""


def sift(
    rows: pa.Table, column: str, read: Callable[[bytes], T]
) -> tuple[list[T], pa.FixedSizeBinaryArray, tuple[Rejected, ...]]:
    """Read an input column row by row: accepted values, their row ids, and rejected rows.

    ``read`` accepts a value, or gives the reason why it does not.

    Args:
        rows: a table with ``row_id`` and the input column (text or binary).
        column: name of the input column.
        read: turns a value's bytes into what a processor takes, or raises `Unusable`.
    """
    ids = rows.column("row_id").cast(pa.binary(16)).combine_chunks()
    values: list[T] = []
    keep: list[int] = []
    rejected: list[Rejected] = []
    for row, data in enumerate(rows.column(column).cast(pa.large_binary()).to_pylist()):
        try:
            values.append(read(_present(data, column)))
            keep.append(row)
        except Unusable as reason:
            rejected.append(Rejected(row_id=ids[row].as_py(), reason=str(reason)))
    return values, ids.take(pa.array(keep, pa.int64())), tuple(rejected)


def encoded(
    row_ids: pa.FixedSizeBinaryArray,
    features: dict[str, RaggedArray],
    rejected: tuple[Rejected, ...],
    processor: Processor,
) -> Encoded:
    """Assemble `Encoded`, and check that the processor gave every row its features."""
    for name, feature in features.items():
        assert len(feature.offsets) == len(row_ids) + 1, (name, type(processor).__name__)
    return Encoded(row_ids=row_ids, features=features, rejected=rejected)


def one_row(features: Mapping[str, RaggedArray]) -> Encoded:
    """Return the features of a made-up row."""
    return Encoded(row_ids=pa.array([bytes(16)], pa.binary(16)), features=features)


def _present(data: bytes | None, column: str) -> bytes:
    if data is None:
        raise Unusable(f"no {column}")
    return data
