"""Apply a corruption to a table row by row, with chances from the seed and the row id."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa

#: (value, severity 1..3, generator) -> corrupted value of the same kind.
Change = Callable[[Any, int, np.random.Generator], Any]


def corrupt_column(
    rows: pa.Table, column: str, change: Change, *, severity: int, generator: np.random.Generator
) -> pa.Table:
    """Return ``rows`` with every value of one column changed; ids, order, labels and types stay.

    A row's corruption depends on the generator's state and the row's id, not on which rows stand beside it, so
    that a split can be corrupted in parts.
    """
    assert severity in (1, 2, 3), severity
    seed = int(generator.integers(1 << 62))
    ids, values = rows.column("row_id").to_pylist(), rows.column(column).to_pylist()
    changed = [
        None if value is None else change(value, severity, np.random.default_rng([seed, int.from_bytes(row_id, "big")]))
        for row_id, value in zip(ids, values, strict=True)
    ]
    position = rows.schema.get_field_index(column)
    field = rows.schema.field(position)
    return rows.set_column(position, field, pa.array(changed, field.type))
