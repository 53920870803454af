"""Sets of labels as lists and as matrices, and the truth and shares of labelled rows."""

import numpy as np
import pyarrow as pa
import pytest
from scipy.special import expit

from ray_distill.labels.model.distributions import bernoulli
from ray_distill.tasks.answers.labels import store
from ray_distill.tasks.answers.labels.sets import greatest, label_matrix, set_column
from ray_distill.tasks.encoded import Encoded
from ray_distill.testing.labels import row_id

SETS = [[0, 2], [], None, [1]]


def column(sets: list[list[int] | None]) -> pa.Array:
    return pa.array(sets, pa.list_(pa.int32()))


def test_lists_become_lines_and_return() -> None:
    """Empty is known and no label applies; null is unknown in the whole line; slices and chunks do not matter."""
    lines = [[1, 0, 1], [0, 0, 0], [-1, -1, -1], [0, 1, 0]]
    assert label_matrix(column(SETS), 3).tolist() == lines
    padded = column([[2], *SETS, [2]])
    assert label_matrix(padded.slice(1, 4), 3).tolist() == lines
    chunks = pa.chunked_array([column(SETS[:1]), column(SETS[1:])])
    assert label_matrix(chunks, 3).tolist() == lines
    known = np.array(lines)[[0, 1, 3]] == 1
    assert set_column(known).to_pylist() == [[0, 2], [], [1]] and set_column(known).type == pa.list_(pa.int32())


@pytest.mark.parametrize(("sets", "wanted"), [(SETS, 2), ([[], None], -1), ([], -1), ([[0]], 0)])
def test_the_greatest_index_of_any_set(sets: list[list[int] | None], wanted: int) -> None:
    """-1 where there is none."""
    assert greatest(column(sets)) == wanted


def test_truth_follows_the_encoded_rows() -> None:
    """Rows in the order they were encoded, as wide as the snapshot's labels reach, or as is wanted."""
    rows = pa.table({"row_id": pa.array([row_id(n) for n in range(4)], pa.binary(16)), "label": column(SETS)})
    encoded = Encoded(row_ids=rows["row_id"].take([3, 0, 2]).combine_chunks(), features={})
    truth = store.truth(encoded, rows)
    assert truth.values.tolist() == [[0, 1, 0], [1, 0, 1], [-1, -1, -1]] and truth.values.dtype == np.int8
    assert truth.offsets.tolist() == [0, 1, 2, 3] == store.positions(encoded).offsets.tolist()
    assert store.sets_of(encoded, rows, 5).values.shape == (3, 5)


def test_shares_are_a_yes_and_a_no_of_every_label() -> None:
    """Each row sums to 1, so that drift is the mean over labels of each one's divergence."""
    z = np.array([[0.0, 2.0], [-40.0, 1.0]])
    found, classes = store.shares(bernoulli(z, row_offsets=np.arange(3)), None)
    assert classes is None and found.sum(axis=1) == pytest.approx([1, 1])
    assert found == pytest.approx(np.concatenate([expit(z), expit(-z)], axis=1) / 2)
