"""Rows taken from distributions: whole lines of a matrix where all positions are equally wide, ranges where not."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_distill.errors import LabelError
from ray_distill.labels.format.chunked_distributions import DistributionParts
from ray_distill.labels.model.distributions import Distributions, Draws
from ray_distill.labels.model.ragged import running
from ray_distill.labels.model.signal import concat_signals, signal_of


@st.composite
def distributions(draw: st.DrawFn) -> Distributions:
    """Rows of 0 to 3 positions, all of one width (0 too) or of several; entries are told apart by their number."""
    rows = np.array(draw(st.lists(st.integers(0, 3), min_size=1, max_size=8)), np.int64)
    positions = int(rows.sum())
    one = draw(st.none() | st.integers(0, 4))
    widths = (
        [one] * positions
        if one is not None
        else draw(st.lists(st.integers(0, 4), min_size=positions, max_size=positions))
    )
    offsets = running(np.array(widths, np.int64))
    entries = np.arange(offsets[-1])
    return Distributions(
        classes=99,
        temperatures=(1.0,),
        row_offsets=running(rows),
        position=np.arange(positions, dtype=np.int32),
        entry_offsets=offsets,
        ids=entries.astype(np.int32),
        logp=-entries.astype(np.float32),
        log_tail=np.arange(positions, dtype=np.float32)[:, None],
        entropy=np.zeros(positions, np.float32),
        draws=Draws(
            number=3, exponent=1.0, count=entries.astype(np.int32), log_normaliser=np.zeros(positions, np.float32)
        ),
    )


@given(distributions(), st.data())
def test_rows_keep_their_positions_and_entries(found: Distributions, data: st.DataObject) -> None:
    """Any choice, in any order, with repeats: each row's entries are those that it had."""
    index = data.draw(st.lists(st.integers(0, found.rows - 1), max_size=10))
    taken = found.take(np.array(index, np.int64))
    assert taken.rows == len(index) and taken.draws is not None
    for at, row in enumerate(index):
        ours = range(int(taken.row_offsets[at]), int(taken.row_offsets[at + 1]))
        theirs = range(int(found.row_offsets[row]), int(found.row_offsets[row + 1]))
        assert taken.position[ours.start : ours.stop].tolist() == list(theirs)
        for own, other in zip(ours, theirs, strict=True):
            entries = slice(int(found.entry_offsets[other]), int(found.entry_offsets[other + 1]))
            mine = slice(int(taken.entry_offsets[own]), int(taken.entry_offsets[own + 1]))
            for name in ("ids", "logp"):
                assert getattr(taken, name)[mine].tolist() == getattr(found, name)[entries].tolist()
            assert taken.draws.count[mine].tolist() == taken.ids[mine].tolist()


@given(st.lists(distributions(), min_size=1, max_size=4), st.data())
def test_rows_of_several_are_those_of_each(several: list[Distributions], data: st.DataObject) -> None:
    """Rows of parts, whichever and in whatever order, are what they are in all of them put together by copying."""
    parts = DistributionParts.join([DistributionParts.join(several[:2]), *several[2:]])
    together = concat_signals([signal_of(distributions=found) for found in several]).distributions
    assert together is not None and parts.rows == together.rows
    for name in ("row_offsets", "log_tail", "entropy"):
        assert np.array_equal(getattr(parts, name), getattr(together, name))
    index = np.array(data.draw(st.lists(st.integers(0, parts.rows - 1), max_size=10)), np.int64)
    ours, theirs = parts.take(index), together.take(index)
    for name in ("row_offsets", "position", "entry_offsets", "ids", "logp", "log_tail", "entropy"):
        found, expected = getattr(ours, name), getattr(theirs, name)
        assert np.array_equal(found, expected) and found.dtype == expected.dtype
    assert ours.draws is not None and theirs.draws is not None
    assert np.array_equal(ours.draws.count, theirs.draws.count)
    assert np.array_equal(ours.draws.log_normaliser, theirs.draws.log_normaliser)


@given(distributions(), distributions())
def test_parts_of_different_kinds_are_not_joined(one: Distributions, other: Distributions) -> None:
    """What is over other classes is no part of the same set."""
    with pytest.raises(LabelError, match="different kinds"):
        DistributionParts.join([one, replace(other, classes=98)])
