"""How a global batch is cut into forward passes: by rows, or by tokens."""

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_distill.config import TrainingConfig
from ray_distill.errors import ConfigError
from ray_distill.labels.model.ragged import RaggedArray
from ray_distill.students.order.micro_batches import (
    Budget,
    Lengths,
    MicroBatch,
    cut_by_rows,
    cut_by_tokens,
    micro_batches,
)
from ray_distill.tasks.encoded import Encoded
from ray_distill.tasks.packing import collate_packed


@given(batch=st.integers(1, 60), world=st.integers(1, 5), micro=st.integers(1, 16))
def test_every_rank_runs_as_many_passes_of_the_same_sizes(batch: int, world: int, micro: int) -> None:
    """Nothing hangs: ranks have equal micro-batches, filled up with rows of the batch itself."""
    budget = Budget(rows=micro)
    shares = [micro_batches(np.arange(batch), rank=rank, world=world, budget=budget) for rank in range(world)]
    assert len({tuple(len(part.rows) for part in share) for share in shares}) == 1
    assert all(0 <= row < batch for share in shares for part in share for row in part.rows)


@given(batch=st.integers(2, 60), world=st.integers(1, 5), micro=st.integers(2, 16))
def test_no_pass_has_a_lone_row(batch: int, world: int, micro: int) -> None:
    """Batch norm has no variance of one row: a rank's share has two rows at least, and so has each of its passes.

    Every row still comes once, and a pass has at most as many rows as configured, or three where that is two.
    """
    budget = Budget(rows=micro)
    shares = [micro_batches(np.arange(batch), rank=rank, world=world, budget=budget) for rank in range(world)]
    sizes = {len(part.rows) for share in shares for part in share}
    assert sizes <= set(range(2, max(micro, 3) + 1))
    assert [row for share in shares for part in share for row in part.rows[part.real]] == list(range(batch))
    assert len(shares[0]) <= budget.passes(batch, world) + (batch < 2 * world)


@pytest.mark.parametrize(
    ("size", "rows", "sizes"),
    [
        (65, 64, [63, 2]),
        (64, 64, [64]),
        (9, 4, [4, 3, 2]),
        (5, 2, [2, 3]),
        (3, 1, [1, 1, 1]),
        (1, 64, [1]),
        (3, 2, [3]),
    ],
)
def test_a_lone_row_gets_a_partner(size: int, rows: int, sizes: list[int]) -> None:
    """global_batch % micro_batch == 1 leaves no pass of one row, unless passes of one row are configured."""
    assert [len(cut) for cut in cut_by_rows(size, rows)] == sizes
    assert Budget(rows=rows).passes(size, 1) == len(sizes)


@given(batch=st.integers(1, 70), world=st.integers(1, 5), groups=st.integers(1, 4), group=st.integers(1, 7))
def test_groups_stay_together(batch: int, world: int, groups: int, group: int) -> None:
    """Blocks of the batch, counted from its first row, lie whole in one micro-batch of one rank; every row comes once,
    and every rank has as many passes of as many rows."""
    budget = Budget(rows=groups * group, group=group)
    shares = [micro_batches(np.arange(batch), rank=rank, world=world, budget=budget) for rank in range(world)]
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
        Budget.of(TrainingConfig(micro_batch=micro_batch), group=16)


#: Tokens of rows; the second feature is what a decoder reads.
LENGTHS = st.lists(st.tuples(st.integers(1, 12), st.integers(0, 5)), min_size=1, max_size=40).map(
    lambda found: np.array(found, np.int32)
)


def by_tokens(lengths_BF: Lengths, world: int, budget: Budget) -> list[list[MicroBatch]]:
    """The micro-batches of all ranks."""
    return [
        micro_batches(np.arange(len(lengths_BF)) + 100, rank=rank, world=world, budget=budget, lengths_BF=lengths_BF)
        for rank in range(world)
    ]


@given(
    lengths_BF=LENGTHS,
    world=st.integers(1, 5),
    rows=st.integers(1, 8),
    tokens=st.integers(51, 120),
    group=st.integers(1, 3),
)
def test_passes_by_tokens(lengths_BF: Lengths, world: int, rows: int, tokens: int, group: int) -> None:
    """Every row comes once; every rank has as many passes, none of them empty; groups stay whole; none holds more than
    the budget, padding included."""
    budget = Budget(rows=rows * group, tokens=tokens, group=group)
    shares = by_tokens(lengths_BF, world, budget)
    assert len({len(share) for share in shares}) == 1
    assert 1 <= len(shares[0]) <= budget.passes(len(lengths_BF), world)
    found: list[int] = []
    for part in (part for share in shares for part in share):
        assert 0 < len(part.rows) <= budget.rows and len(part.rows) % group == 0
        assert len(part.rows) * int(lengths_BF[part.rows - 100].max(axis=0).sum()) <= tokens
        for block, real in zip(part.rows.reshape(-1, group), part.real.reshape(-1, group), strict=True):
            assert (np.diff(block[real]) == 1).all()
        found += part.rows[part.real].tolist()
    assert sorted(found) == list(range(100, 100 + len(lengths_BF)))


def test_rows_of_like_length_share_a_pass() -> None:
    """Four short rows and two long ones take two passes instead of six, the long ones first."""
    lengths = np.array([[9], [2], [10], [3], [2], [3]], np.int32)
    assert [cut.tolist() for cut in cut_by_tokens(lengths, Budget(rows=64, tokens=20))] == [[2, 0], [3, 5, 1, 4]]


@given(
    lengths=st.lists(st.integers(1, 30), min_size=1, max_size=40),
    packed=st.integers(8, 32),
    rows=st.integers(1, 9),
    times=st.integers(1, 4),
)
def test_packed_passes_hold_the_budget_as_they_are_collated(
    lengths: list[int], packed: int, rows: int, times: int
) -> None:
    """What the documents of a pass become, packed again by themselves, is no larger than the budget."""
    budget = Budget(rows=rows, tokens=max(packed * times, 30), packed=packed)
    offsets = np.append(0, np.cumsum(lengths))
    encoded = Encoded(
        row_ids=pa.array([b"0" * 16] * len(lengths), pa.binary(16)),
        features={"input_ids": RaggedArray(values=np.zeros(offsets[-1], np.int32), offsets=offsets)},
    )
    assert encoded.lengths is not None
    cuts = cut_by_tokens(encoded.lengths, budget)
    for cut in cuts:
        tensors, _ = collate_packed(encoded, cut, packed)
        assert tensors["input_ids"].numel() <= budget.tokens
        assert len(cut) <= rows or len(tensors["input_ids"]) == 1  # one sequence is never parted
    assert sorted(np.concatenate(cuts).tolist()) == list(range(len(lengths)))


@pytest.mark.parametrize(
    ("training", "lengths", "group", "told"),
    [
        ({"micro_tokens": 100}, None, 1, "these examples have no tokens"),
        ({"micro_tokens": 100}, [[90, 20]], 1, "the longest example may take 110"),
        ({"micro_tokens": 100}, [[30]], 4, "the longest examples of a group of 4 may take 120"),
        ({"micro_tokens": 100, "packed": 128}, [[30]], 1, "less than one packed sequence of 128 tokens"),
        ({"micro_tokens": 100, "packed": 50}, [[30]], 4, "cannot keep the groups of 4 rows together"),
    ],
)
def test_what_cannot_be_cut_by_tokens_is_refused(
    training: dict[str, Any], lengths: list[list[int]] | None, group: int, told: str
) -> None:
    """Before the first step, with what would do."""
    with pytest.raises(ConfigError, match=told):
        Budget.of(TrainingConfig.model_validate(training), group).check(
            None if lengths is None else np.array(lengths, np.int32)
        )
