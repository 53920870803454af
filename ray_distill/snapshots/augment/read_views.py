"""Find the views of a snapshot, and its rows that are none."""

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from ray_distill.snapshots.augment.sorted_rows import ids_of
from ray_distill.snapshots.augment.views import PARENT, PARTNER, SPLIT, SortedIds
from ray_distill.snapshots.identity import ROW_ID_BYTES, ids_to_arrow
from ray_distill.snapshots.reader import Snapshot


def views_of(snapshot: Snapshot, parents: SortedIds) -> SortedIds:
    """Return the ids of the views that have one of these rows as parent or partner, ascending.

    Args:
        snapshot: any snapshot; one without views has none.
        parents: ids, ascending.
    """
    found = [np.empty(0, f"S{ROW_ID_BYTES}")]
    if snapshot.manifest.view_counts is not None and len(parents):
        values = ids_to_arrow(np.ascontiguousarray(parents).view(np.uint8).reshape(-1, ROW_ID_BYTES))
        for shard in snapshot.shards:
            if shard.split == SPLIT:
                rows = snapshot.read_shard(shard, ["row_id", PARENT, PARTNER])
                found.append(ids_of(rows)[_among(rows[PARENT], values) | _among(rows[PARTNER], values)])
    return np.sort(np.concatenate(found))


def without_views(rows: pa.Table) -> pa.Table:
    """Return the rows that are not views.

    The table has the column `PARENT` if its snapshot has views.
    """
    return rows.filter(pc.is_null(rows[PARENT])) if PARENT in rows.column_names else rows


def _among(ids: pa.ChunkedArray, values: pa.Array) -> npt.NDArray[np.bool_]:
    found: npt.NDArray[np.bool_] = pc.is_in(ids, value_set=values).to_numpy(zero_copy_only=False)
    return found
