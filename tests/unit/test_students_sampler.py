"""The order of examples and its division among ranks and micro-batches."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_distill.errors import ConfigError
from ray_distill.students.sampler import Cursor, cursor_at, epoch_order, global_batch_at, micro_batches, steps_per_epoch


def seen(rows: int, global_batch: int, world: int, micro: int, epoch: int = 0) -> list[int]:
    """Rows all ranks really train on over one epoch, in the order of the steps."""
    found = []
    steps = steps_per_epoch(rows, global_batch)
    for step in range(epoch * steps, (epoch + 1) * steps):
        batch = global_batch_at(7, step, rows, global_batch)
        for rank in range(world):
            for part in micro_batches(batch, rank=rank, world=world, micro_batch=micro):
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


@given(batch=st.integers(1, 60), world=st.integers(1, 5), micro=st.integers(1, 16))
def test_every_rank_runs_as_many_passes_of_the_same_sizes(batch: int, world: int, micro: int) -> None:
    """Nothing hangs: ranks have equal micro-batches, filled up with rows of the batch itself."""
    shares = [micro_batches(np.arange(batch), rank=rank, world=world, micro_batch=micro) for rank in range(world)]
    assert len({tuple(len(part.rows) for part in share) for share in shares}) == 1
    assert all(0 <= row < batch for share in shares for part in share for row in part.rows)


def test_epochs_and_seeds_differ_and_repeat() -> None:
    """The order is a function of (seed, epoch): another one each epoch, the same each time."""
    orders = [epoch_order(seed, epoch, 50).tolist() for seed, epoch in ((1, 0), (1, 1), (2, 0))]
    assert len({tuple(order) for order in orders}) == 3
    assert epoch_order(1, 1, 50).tolist() == orders[1]


def test_cursor_is_three_integers() -> None:
    """The state of the sampler follows from the step."""
    assert cursor_at(11, 52, 12) == Cursor(epoch=2, step=11, global_batch=12)
    assert cursor_at(11, 52, 12).to_dict() == {"epoch": 2, "step": 11, "global_batch": 12}


@given(batch=st.integers(1, 70), world=st.integers(1, 5), groups=st.integers(1, 4), group=st.integers(1, 7))
def test_groups_stay_together(batch: int, world: int, groups: int, group: int) -> None:
    """Blocks of the batch, counted from its first row, lie whole in one micro-batch of one rank; every row comes once,
    and every rank has as many passes of as many rows."""
    shares = [micro_batches(np.arange(batch), rank=rank, world=world, micro_batch=groups * group, group=group)
              for rank in range(world)]
    assert len({tuple(len(part.rows) for part in share) for share in shares}) == 1
    found = []
    for part in (part for share in shares for part in share):
        assert len(part.rows) % group == 0
        for start in range(0, len(part.rows), group):
            block = part.rows[start : start + group][part.real[start : start + group]]
            assert block.tolist() == list(range(len(found), len(found) + len(block)))
            assert len(block) in (0, group) or len(found) + len(block) == batch
            found += block.tolist()
    assert found == list(range(batch))


@pytest.mark.parametrize(("micro_batch", "told"), [(20, "set it to 16 or 32"), (10, "set it to 16, or the losses'")])
def test_micro_batches_that_split_a_group_are_refused(micro_batch: int, told: str) -> None:
    """Never silently different: the sizes that would do are named."""
    with pytest.raises(ConfigError, match=f"micro_batch is {micro_batch}, and a loss compares groups of 16.*{told}"):
        micro_batches(np.arange(64), rank=0, world=1, micro_batch=micro_batch, group=16)
