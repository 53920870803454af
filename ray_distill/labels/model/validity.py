"""Whether a teacher's answer is fit to be stored: finite, and probabilities that sum to 1."""

import numpy as np
import pyarrow as pa

from ray_distill.errors import LabelError
from ray_distill.labels.model import rowids
from ray_distill.labels.model.signal import Signal, Vectors, layer_of

Rejects = list[tuple[bytes, str]]


def split_unusable(row_ids: pa.Array, signal: Signal) -> tuple[pa.Array, Signal, Rejects]:
    """Split rows that can be stored from those that cannot: NaN, infinities, mass that is not 1.

    Returns:
        The usable row ids and their signal, in order, and ``(row id, reason)`` of each other row.
    """
    reasons = unusable(signal)
    if not reasons:
        return row_ids, signal, []
    keep = np.setdiff1d(np.arange(len(row_ids), dtype=np.int64), np.fromiter(reasons, dtype=np.int64))
    rejected = [(row_ids[row].as_py(), reason) for row, reason in sorted(reasons.items())]
    return row_ids.take(pa.array(keep)), signal.take(keep), rejected


def unusable(signal: Signal) -> dict[int, str]:
    """Return the rows that cannot be stored, each with the first reason found."""
    found: dict[int, str] = {}
    for name, part in signal.parts.items():
        vectors = isinstance(part, Vectors)
        for rows, reason in part.invalid_rows():
            for row in rows:
                found.setdefault(int(row), f"hidden state of layer {layer_of(name)} is {reason}" if vectors else reason)
    return found


def require_usable(row_ids: rowids.RowIds, signal: Signal) -> None:
    """Refuse a signal that must not be stored.

    Raises:
        LabelError: names the rows and reasons.
    """
    reasons = unusable(signal)
    if reasons:
        row, reason = min(reasons.items())
        name = rowids.hexadecimal(row_ids[row : row + 1])[0]
        raise LabelError(
            f"{len(reasons)} of {len(row_ids)} rows cannot be stored, first {name}: {reason}; reject them "
            "(split_unusable) or correct the teacher"
        )
