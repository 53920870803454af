"""Mark cells that are too large, whatever column they are in."""

import pyarrow as pa
import pyarrow.compute as pc

from ray_distill.snapshots.rows import Mask


def without_huge(values: pa.ChunkedArray, largest: int) -> tuple[pa.ChunkedArray, Mask | None]:
    """Return a column with null for each text or file that is too large, and a mask of them.

    The mask is None if there is none.
    """
    kind = values.type.value_type if pa.types.is_dictionary(values.type) else values.type
    if not is_bytes(kind):
        return values, None
    lengths = values if kind == values.type else values.cast(kind)
    huge = pc.fill_null(pc.greater(pc.binary_length(lengths), largest), False)
    if not pc.any(huge).as_py():
        return values, None
    mask: Mask = huge.to_numpy()
    return pc.if_else(huge, pa.scalar(None, kind), lengths), mask


def is_bytes(kind: pa.DataType) -> bool:
    """Return whether a type has texts or bytes of any length."""
    return bool(
        pa.types.is_string(kind)
        or pa.types.is_large_string(kind)
        or pa.types.is_binary(kind)
        or pa.types.is_large_binary(kind)
    )
