"""Show the input of one row; the store itself contains no text and no image."""

from collections.abc import Callable

import numpy as np
import pyarrow as pa

from ray_distill.artifacts import SnapshotRef
from ray_distill.errors import SnapshotError
from ray_distill.labels.model import rowids
from ray_distill.snapshots.reader import open_snapshot


def show_input(snapshot: SnapshotRef | str, row_id: str, show: Callable[[bytes | None], str]) -> str:
    """Return the input of a row, as a terminal can show it.

    Args:
        snapshot: the one that the row was labelled from.
        row_id: 32 hexadecimal digits.
        show: renders an input; that of the task's inputs.

    Raises:
        SnapshotError: the snapshot does not contain the row.
    """
    opened, requested = open_snapshot(snapshot), bytes.fromhex(row_id)
    for shard in opened.shards:
        table = opened.read_shard(shard, ["row_id", opened.input_column])
        at = rowids.find(np.array([requested], dtype="S16"), rowids.to_numpy(table["row_id"]))[0]
        if at >= 0:
            return show(table[opened.input_column].cast(pa.large_binary())[int(at)].as_py())
    raise SnapshotError(
        f"{opened.ref.url}: the snapshot does not contain row {row_id}; name the one it was labelled from"
    )
