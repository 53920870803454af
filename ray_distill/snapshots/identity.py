"""Row ids: what makes two rows the same input."""

import hashlib
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import pyarrow as pa

ROW_ID_BYTES = 16

#: ``[N, 16]``, one row id a line
Ids = npt.NDArray[np.uint8]


def row_id(content: bytes | memoryview, input_column: str) -> bytes:
    """Return the id of one input: BLAKE2b (128 bits) of its bytes, distinct by kind of input.

    Args:
        content: the UTF-8 bytes of a text, or the encoded bytes of an image; nothing is normalised.
        input_column: ``text`` or ``image``.
    """
    return hashlib.blake2b(content, digest_size=ROW_ID_BYTES, person=b"row." + input_column.encode()).digest()


def row_ids(inputs: pa.ChunkedArray, input_column: str) -> Ids:
    """Return ids ``[N, 16]`` uint8 of inputs (large_string or large_binary, without nulls)."""
    digests = b"".join(row_id(value, input_column) for chunk in inputs.chunks for value in _values(chunk))
    return np.frombuffer(digests, dtype=np.uint8).reshape(-1, ROW_ID_BYTES)


def _values(chunk: pa.Array) -> Iterator[memoryview]:
    """Yield each value's bytes, without making a Python object of its content."""
    _, offsets, data = chunk.buffers()
    if not len(chunk):
        return
    bounds = np.frombuffer(offsets, dtype=np.int64)[chunk.offset : chunk.offset + len(chunk) + 1].tolist()
    view = memoryview(data if data is not None else b"")
    for start, end in zip(bounds, bounds[1:], strict=False):
        yield view[start:end]


def id_order(ids: Ids) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint64]]:
    """Return ids as two big-endian integer columns, keys for `numpy.lexsort`."""
    halves = np.ascontiguousarray(ids).view(">u8").astype(np.uint64)
    return halves[:, 1], halves[:, 0]


def ids_to_arrow(ids: Ids) -> pa.FixedSizeBinaryArray:
    """Return ids as fixed_size_binary(16)."""
    buffer = pa.py_buffer(np.ascontiguousarray(ids))
    return pa.FixedSizeBinaryArray.from_buffers(pa.binary(ROW_ID_BYTES), len(ids), [None, buffer])
