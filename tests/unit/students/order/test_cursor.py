"""The order of examples."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_distill.students.order.cursor import Cursor, cursor_at, epoch_order, global_batch_at, steps_per_epoch
from ray_distill.students.order.micro_batches import Budget, micro_batches


def seen(rows: int, global_batch: int, world: int, micro: int, epoch: int = 0) -> list[int]:
    """Rows all ranks really train on over one epoch, in the order of the steps."""
    found = []
    steps = steps_per_epoch(rows, global_batch)
    for step in range(epoch * steps, (epoch + 1) * steps):
        batch = global_batch_at(7, step, rows, global_batch)
        for rank in range(world):
            for part in micro_batches(batch, rank=rank, world=world, budget=Budget(rows=micro)):
                found += part.rows[part.real].tolist()
    return found


@pytest.mark.parametrize("world", [1, 2, 3])
def test_each_example_exactly_once_an_epoch(world: int) -> None:
    """With a short last batch and an uneven division, every row comes once and only once."""
    for epoch in (0, 1):
        assert sorted(seen(52, 12, world, 5, epoch)) == list(range(52))


@given(rows=st.integers(1, 200), global_batch=st.integers(1, 64), world=st.integers(1, 5), micro=st.integers(1, 16))
def test_order_is_independent_of_world_and_micro_batch(rows: int, global_batch: int, world: int, micro: int) -> None:
    """The rows of all ranks in order are those of a single process in one pass a step."""
    assert seen(rows, global_batch, world, micro) == epoch_order(7, 0, rows).tolist()


@pytest.mark.parametrize(
    ("rows", "global_batch", "sizes"),
    [(25, 12, [12, 13]), (26, 12, [12, 12, 2]), (24, 12, [12, 12]), (1, 12, [1]), (3, 2, [3]), (3, 1, [1, 1, 1])],
)
def test_a_lone_row_at_the_end_joins_the_batch_before_it(rows: int, global_batch: int, sizes: list[int]) -> None:
    """Batch norm has no variance of one row, so an epoch ends with a batch of two rows at least."""
    assert steps_per_epoch(rows, global_batch) == len(sizes)
    for epoch in (0, 1):
        steps = range(epoch * len(sizes), (epoch + 1) * len(sizes))
        assert [len(global_batch_at(7, step, rows, global_batch)) for step in steps] == sizes


def test_epochs_and_seeds_differ_and_repeat() -> None:
    """The order is a function of (seed, epoch): another one each epoch, the same each time."""
    orders = [epoch_order(seed, epoch, 50).tolist() for seed, epoch in ((1, 0), (1, 1), (2, 0))]
    assert len({tuple(order) for order in orders}) == 3
    assert epoch_order(1, 1, 50).tolist() == orders[1]


def test_cursor_is_three_integers() -> None:
    """The state of the sampler follows from the step."""
    assert cursor_at(11, 52, 12) == Cursor(epoch=2, step=11, global_batch=12)
    assert cursor_at(11, 52, 12).to_dict() == {"epoch": 2, "step": 11, "global_batch": 12}
