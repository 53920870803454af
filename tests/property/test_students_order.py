"""The order of examples: each once an epoch, a pure function, the same at any world size, few units read twice."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from ray_distill.students.order.cursor import epoch_order
from ray_distill.students.order.epoch_order import UNITS_A_LANE, Order, Plan, units_of
from ray_distill.students.order.micro_batches import Budget, micro_batches


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    """Units of uneven sizes, more of them than are mixed or fewer; batches that lanes can share or not."""
    units = np.array(draw(st.lists(st.integers(1, 9), min_size=1, max_size=120)), np.int64)
    return Plan(units=units, global_batch=draw(st.integers(1, 48)), mixed=draw(st.sampled_from([1, 2, 3, 8, 16, 64])))


def epoch_of(plan: Plan, seed: int, epoch: int) -> list[np.ndarray]:
    """The batches of an epoch."""
    order = Order(plan, seed)
    return [order.batch(step) for step in range(epoch * plan.steps, (epoch + 1) * plan.steps)]


@given(plans(), st.integers(0, 2), st.integers(0, 2))
def test_each_row_comes_once_an_epoch_and_batches_are_full(plan: Plan, seed: int, epoch: int) -> None:
    """Uneven ends neither drop nor repeat a row: all batches are full but the last."""
    batches = epoch_of(plan, seed, epoch)
    assert sorted(np.concatenate(batches).tolist()) == list(range(plan.rows))
    assert {len(batch) for batch in batches[:-1]} <= {plan.global_batch}
    alone = plan.rows == 1 or plan.global_batch == 1
    assert len(batches[-1]) in range(1 if alone else 2, plan.global_batch + 2) and len(batches[-1]) <= plan.largest


@given(plans(), st.lists(st.integers(0, 300), min_size=1, max_size=12))
def test_a_step_is_a_function_of_its_number_alone(plan: Plan, steps: list[int]) -> None:
    """Whatever was asked before, in whichever order: a run resumed at any step has the same batches."""
    used = Order(plan, 5)
    for step in steps:
        assert used.batch(step).tolist() == Order(plan, 5).batch(step).tolist()


@given(plans(), st.integers(1, 6), st.integers(1, 7), st.integers(0, 40))
def test_ranks_share_one_order(plan: Plan, world: int, micro: int, step: int) -> None:
    """Each rank asks for its own places; together, padding left out, they are the batch of a single process."""
    slots = np.arange(Order(plan, 5).size(step))
    found: list[int] = []
    for rank in range(world):
        order = Order(plan, 5)
        for part in micro_batches(slots, rank=rank, world=world, budget=Budget(rows=micro)):
            found += order.rows_at(step, part.rows)[part.real].tolist()
    assert found == Order(plan, 5).batch(step).tolist()


@given(plans(), st.integers(0, 2))
def test_few_units_are_open_and_few_are_read_twice(plan: Plan, epoch: int) -> None:
    """A unit is forgotten when a lane's next windows are open: what is read again for it stays below one in
    `UNITS_A_LANE`, and no more than two windows of each lane are ever open.
    """
    bounds = np.append(0, np.cumsum(plan.units))
    last_use: dict[tuple[int, int], int] = {}
    share = plan.global_batch // plan.lanes
    reads, most = 0, 0
    for step, batch in enumerate(epoch_of(plan, 3, epoch)):
        if len(batch) != plan.global_batch:
            break
        unit, lane = np.searchsorted(bounds, batch, side="right") - 1, np.arange(len(batch)) // share
        most = max(most, len(set(zip(lane, unit, strict=True))))
        for key in set(zip(lane.tolist(), unit.tolist(), strict=True)):
            reads += key not in last_use
            last_use[key] = step
    assert reads <= len(plan.units) + plan.lanes - 1
    if not plan.whole and plan.lanes > 1:
        assert (plan.lanes - 1) * UNITS_A_LANE < len(plan.units)
        assert most <= plan.lanes * 2 * (plan.window + 1)


@given(plans(), st.integers(0, 2))
def test_a_single_window_is_the_order_of_small_data(plan: Plan, epoch: int) -> None:
    """Where no more units are there than are mixed, rows are shuffled over everything, as `epoch_order` does."""
    one = Plan(units=plan.units, global_batch=plan.global_batch, mixed=len(plan.units))
    assert np.concatenate(epoch_of(one, 7, epoch)).tolist() == epoch_order(7, epoch, plan.rows).tolist()


def test_lanes_and_windows_mix() -> None:
    """64 units: a batch of 16 comes from 8 lanes, two rows of each, out of two units a lane; epochs differ."""
    plan = Plan(units=np.full(64, 10), global_batch=16, mixed=16)
    assert (plan.lanes, plan.window) == (8, 2)
    batch = Order(plan, 0).batch(2)
    assert len(np.unique(batch // 10)) >= 8
    firsts = {tuple(Order(plan, seed).batch(step).tolist()) for seed in (0, 1) for step in (0, plan.steps)}
    assert len(firsts) == 4


def test_units_of_a_choice_of_rows() -> None:
    """Units without a chosen row count for nothing."""
    assert units_of(np.array([0, 1, 7]), np.array([0, 2, 5, 9])).tolist() == [2, 1]
    assert units_of(np.array([4, 9]), None).tolist() == [2]
