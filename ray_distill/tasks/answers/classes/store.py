"""Labelling of classifiers: one answered position a row."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ray_distill.tasks.encoded import Encoded, Ragged


def positions(encoded: Encoded) -> Ragged:
    """Return position 0 of every row: a classifier answers once a row."""
    return Ragged(values=np.zeros(encoded.rows, np.int32), offsets=np.arange(encoded.rows + 1, dtype=np.int64))


def truth(encoded: Encoded, rows: pa.Table | None = None) -> Ragged:
    """Return the class index of every row; -1 where the ``label`` is unknown.

    Indices are int32, in the snapshot's order.
    """
    assert rows is not None, "the truth of a classifier is a column of the snapshot"
    at = pc.index_in(encoded.row_ids, value_set=rows["row_id"].cast(pa.binary(16)).combine_chunks())
    labels = pc.fill_null(rows["label"].take(at), -1)
    return Ragged(values=np.asarray(labels, np.int32), offsets=np.arange(encoded.rows + 1, dtype=np.int64))
