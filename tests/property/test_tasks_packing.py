"""Packing: every document once, whole, in a row that has room for it, and found where it is said to be."""

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from ray_distill.labels.model import rowids
from ray_distill.labels.model.ragged import RaggedArray
from ray_distill.tasks.encoded import Encoded
from ray_distill.tasks.packing import collate_packed, pack
from ray_distill.testing.labels import row_id

LENGTHS = st.lists(st.integers(1, 30), max_size=40).map(lambda found: np.array(found, np.int64))
CAPACITY = st.integers(1, 40)


def _naive(lengths: list[int], capacity: int) -> list[list[int]]:
    """First-fit decreasing, said plainly."""
    rows: list[list[int]] = []
    for document in sorted(range(len(lengths)), key=lambda at: -lengths[at]):
        fitting = [row for row in rows if sum(lengths[at] for at in row) + lengths[document] <= capacity]
        (fitting[0] if fitting else rows.append([]) or rows[-1]).append(document)  # type: ignore[func-returns-value]
    return [sorted(row) for row in rows]


def _encoded(lengths: np.ndarray, pad: int = 7) -> Encoded:
    """Documents of distinct tokens: 1,000 times the document, and the place in it."""
    values = np.concatenate([[], *(1000 * at + np.arange(n) for at, n in enumerate(lengths, 1))]).astype(np.int32)
    feature = RaggedArray(values=values, offsets=np.append(0, np.cumsum(lengths)).astype(np.int64), pad=pad)
    ids = pa.array([row_id(n) for n in range(len(lengths))], rowids.ROW_ID)
    return Encoded(row_ids=ids, features={"input_ids": feature})


@given(LENGTHS, CAPACITY)
def test_rows_are_those_of_first_fit_decreasing(lengths: np.ndarray, capacity: int) -> None:
    """The tree finds what a search through all rows finds; documents too long for a row stand alone, uncut."""
    rows = pack(lengths, capacity)
    assert [row.tolist() for row in rows] == _naive(lengths.tolist(), capacity)
    assert sorted(at for row in rows for at in row.tolist()) == list(range(len(lengths)))
    assert all(lengths[row].sum() <= capacity or len(row) == 1 for row in rows)


@given(LENGTHS, CAPACITY)
def test_rows_are_about_as_few_as_can_be(lengths: np.ndarray, capacity: int) -> None:
    """Fewer than twice the rows that the tokens alone would need, and one."""
    fitting = lengths[lengths <= capacity]
    rows = len(pack(fitting, capacity))
    assert rows <= 2 * -(-int(fitting.sum()) // capacity) + 1
    assert rows >= -(-int(fitting.sum()) // capacity)


@given(LENGTHS, CAPACITY, st.randoms())
def test_documents_are_where_they_are_said_to_be(lengths: np.ndarray, capacity: int, random: object) -> None:
    """Token t of document r is at place[r] + t, with position t; all else is padding, with positions of its own."""
    index = np.array(random.sample(range(len(lengths)), len(lengths)), np.int64)  # type: ignore[attr-defined]
    index = index[: max(1, len(index) // 2)]
    batch, place = collate_packed(_encoded(lengths), index, capacity)
    ids, positions = batch["input_ids"].numpy(), batch["position_ids"].numpy()
    assert (
        ids.shape == positions.shape
        and ids.dtype == positions.dtype == np.int64
        and set(batch) == {"input_ids", "position_ids"}
    )
    rest = np.ones(ids.size, bool)
    for document, start in zip(index, place, strict=True):
        span = slice(start, start + lengths[document])
        assert ids.reshape(-1)[span].tolist() == (1000 * (document + 1) + np.arange(lengths[document])).tolist()
        assert positions.reshape(-1)[span].tolist() == list(range(lengths[document]))
        assert start // ids.shape[1] == (start + lengths[document] - 1) // ids.shape[1], "in one row"
        rest[span] = False
    assert (ids.reshape(-1)[rest] == 7).all() and rest.sum() == ids.size - lengths[index].sum()
    assert ids.shape[1] <= max(capacity, lengths[index].max(initial=0))
    for row, padding in zip(positions, rest.reshape(ids.shape), strict=True):
        assert row[padding].tolist() == list(range(padding.sum())) and not padding[: len(row) - padding.sum()].any()


def test_nothing_packs_into_nothing() -> None:
    """No documents make no rows."""
    batch, place = collate_packed(_encoded(np.array([3, 4])), np.zeros(0, np.int64), 8)
    assert pack(np.zeros(0, np.int64), 8) == [] and place.tolist() == []
    assert {name: tuple(tensor.shape) for name, tensor in batch.items()} == {
        "input_ids": (0, 0),
        "position_ids": (0, 0),
    }
