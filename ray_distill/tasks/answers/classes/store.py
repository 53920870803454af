"""Labelling of classifiers: one answered position a row."""

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from ray_distill.labels.model.distributions import Distributions
from ray_distill.labels.model.ragged import RaggedArray, owner
from ray_distill.tasks.encoded import Encoded


def positions(encoded: Encoded) -> RaggedArray:
    """Return position 0 of every row: a classifier answers once a row."""
    return RaggedArray(values=np.zeros(encoded.rows, np.int32), offsets=np.arange(encoded.rows + 1, dtype=np.int64))


def truth(encoded: Encoded, rows: pa.Table | None = None) -> RaggedArray:
    """Return the class index of every row; -1 where the ``label`` is unknown.

    Indices are int32, in the snapshot's order.
    """
    assert rows is not None, "the truth of a classifier is a column of the snapshot"
    at = pc.index_in(encoded.row_ids, value_set=rows["row_id"].cast(pa.binary(16)).combine_chunks())
    labels = pc.fill_null(rows["label"].take(at), -1)
    return RaggedArray(values=np.asarray(labels, np.int32), offsets=np.arange(encoded.rows + 1, dtype=np.int64))


def shares(distributions: Distributions, classes: npt.NDArray[np.int64] | None) -> tuple[npt.NDArray[np.float64], None]:
    """Return the probabilities of all classes; see `StoreFacet`."""
    return class_probabilities(distributions), None


def class_probabilities(distributions: Distributions) -> npt.NDArray[np.float64]:
    """Return the stored distributions over all classes: ``[P, V]``.

    A tail is spread evenly over the classes not stored.
    """
    positions, classes = len(distributions.position), distributions.classes
    at = owner(distributions.entry_offsets)
    stored = np.diff(distributions.entry_offsets)
    tail = np.exp(distributions.log_tail[:, distributions.temperatures.index(1.0)].astype(np.float64))
    rest = np.where(stored < classes, tail / np.maximum(classes - stored, 1), 0.0)
    full = np.repeat(rest[:, None], classes, axis=1)
    full[at, distributions.ids] = np.exp(distributions.logp.astype(np.float64))
    assert full.shape == (positions, classes)
    return full
