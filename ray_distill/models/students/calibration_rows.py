"""Read the calibration rows on which parts of a teacher are measured."""

import math

import numpy as np
import pyarrow.compute as pc

from ray_distill.models.core.model import Model
from ray_distill.snapshots.reader import Snapshot
from ray_distill.tasks.catalogue import get_task
from ray_distill.tasks.encoded import Batch

#: Rows of a pass of the teacher.
BATCH = 16
#: Most logits of the teacher on all rows, which are kept in memory.
LOGITS = 1 << 27


def calibration_batches(snapshot: Snapshot, teacher: Model, *, rows: int) -> list[Batch]:
    """Return the first calibration rows by id, or train rows if the calibration split is empty.

    Ids are hashes, so the first ids are a random sample. Rows of similar length share a batch.

    Args:
        snapshot: the campaign's own.
        teacher: its processor reads the rows.
        rows: how many; fewer where the teacher answers at each token with many classes.

    Raises:
        SnapshotError, StorageError: the rows cannot be read.
    """
    inputs, columns = get_task(teacher.task).inputs, ["row_id", get_task(teacher.task).inputs.column]
    found = snapshot.read("calibration", columns)
    found = found if found.num_rows else snapshot.read("train", columns)
    first = pc.sort_indices(found["row_id"].combine_chunks())[:rows]
    encoded = inputs.encode(found.take(first), teacher.processor)
    lengths = encoded.lengths
    longest = np.ones(encoded.rows, np.int64) if lengths is None else lengths.max(axis=1)
    shape = get_task(teacher.task).answers.model.logits_shape(teacher.class_count)
    each = math.prod(int(longest.max(initial=1)) if size is None else size for size in shape)
    order = np.argsort(longest[: max(1, LOGITS // each)], kind="stable").astype(np.int64)
    return [inputs.collate(encoded, order[start : start + BATCH]) for start in range(0, len(order), BATCH)]
