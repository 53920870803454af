"""Labelling of multi-label models: one answered position a row, whose truth is a set."""

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from ray_distill.labels.model.distributions import Distributions, log_sigmoid
from ray_distill.labels.model.ragged import RaggedArray
from ray_distill.tasks.answers.labels.sets import greatest, label_matrix
from ray_distill.tasks.encoded import Encoded


def positions(encoded: Encoded) -> RaggedArray:
    """Return position 0 of every row: a multi-label model answers once a row."""
    return RaggedArray(values=np.zeros(encoded.rows, np.int32), offsets=np.arange(encoded.rows + 1, dtype=np.int64))


def truth(encoded: Encoded, rows: pa.Table | None = None) -> RaggedArray:
    """Return the set of every row as 0 and 1, int8 ``[P, V]``; -1 in the line of an unknown one.

    V reaches to the greatest index among the rows, because a snapshot's rows do not have the number of its classes.
    """
    assert rows is not None, "the truth of a multi-label model is a column of the snapshot"
    return sets_of(encoded, rows, greatest(rows["label"]) + 1)


def sets_of(encoded: Encoded, rows: pa.Table, classes: int) -> RaggedArray:
    """Return `truth` over this number of classes, in the snapshot's order."""
    at = pc.index_in(encoded.row_ids, value_set=rows["row_id"].cast(pa.binary(16)).combine_chunks())
    values = label_matrix(rows["label"].take(at), classes)
    return RaggedArray(values=values, offsets=np.arange(encoded.rows + 1, dtype=np.int64))


def shares(
    distributions: Distributions, classes: npt.NDArray[np.int64] | None
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64] | None]:
    """Return the probabilities of yes and of no by label, by row, ``[R, 2 V]``.

    Each is divided by V, so that a row sums to 1: the divergence of two means is then the mean over labels of the
    divergence of each yes or no.
    """
    assert distributions.log_odds is not None
    z_RV = distributions.log_odds.reshape(distributions.rows, distributions.classes).astype(np.float64)
    return np.concatenate([np.exp(log_sigmoid(z_RV)), np.exp(log_sigmoid(-z_RV))], axis=1) / z_RV.shape[1], None
