"""Shuffle examples in units that are read whole, with few units open at a time.

The order is a pure function of (seed, epoch, global batch, rows of each unit, `Plan.mixed`). It does not depend on
ranks, files, attempts or compaction, and the only state is the number of the step.

The units of an epoch are permuted and laid end to end; that line is cut into lanes; block c of every global batch
comes from lane c; and inside a lane rows are shuffled within windows of a few units. A rank has a contiguous share of
each batch, so only the windows of its own lanes are open, and it reads each unit about once. If one window contains all
units, the order is `cursor.epoch_order`.
"""

from collections import OrderedDict
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from ray_distill.students.order.cursor import Index, batch_end, epoch_order, steps_per_epoch

#: Default number of units that are open at a time.
MIXED_UNITS = 64

#: Least average number of units a lane. A unit across the cut between two lanes is read twice, so at most one unit in
#: this number is read twice.
UNITS_A_LANE = 8


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Everything that determines the order, except seed and epoch."""

    units: Index
    """``[U]`` rows of each unit, in the order in which rows are numbered."""
    global_batch: int
    mixed: int = MIXED_UNITS
    """Units over which rows are shuffled at a time, all lanes together; if there are no more, over all units."""

    @cached_property
    def rows(self) -> int:
        """Number of rows, N."""
        return int(self.units.sum())

    @property
    def steps(self) -> int:
        """Return the number of global batches of an epoch."""
        return steps_per_epoch(self.rows, self.global_batch)

    @property
    def largest(self) -> int:
        """Return the rows of the largest batch: the global batch, or one more with a lone row."""
        return max(self.global_batch, self.batch_rows(self.steps - 1))

    @property
    def whole(self) -> bool:
        """Whether one window contains all units."""
        return len(self.units) <= self.mixed

    @cached_property
    def lanes(self) -> int:
        """Number of lanes, C.

        C is the largest divisor of the global batch for which each lane has enough units, and two open units.
        """
        most = min(self.mixed // 2, len(self.units) // UNITS_A_LANE, self.global_batch)
        if self.whole or most < 2:
            return 1
        return max(lanes for lanes in range(1, most + 1) if self.global_batch % lanes == 0)

    @property
    def window(self) -> int:
        """Number of units of a window."""
        return max(1, self.mixed // self.lanes)

    def batch_rows(self, inside: int) -> int:
        """Return the number of rows of the global batch with number ``inside`` in its epoch."""
        return batch_end(inside, self.rows, self.global_batch) - inside * self.global_batch


@dataclass(frozen=True, kw_only=True)
class Epoch:
    """Lanes and windows of one epoch: a few numbers a unit, no number a row."""

    unit: Index
    """``[U]`` units in the order in which they are laid end to end."""
    first: Index
    """``[U]`` number of the first row of each unit, in the order of ``unit``."""
    at: Index
    """``[U+1]`` start of each unit on the line, in the order of ``unit``."""
    lane: Index
    """``[C+1]`` start of each lane on the line."""
    window: Index
    """``[W+1]`` start of each window on the line; no window is in two lanes."""


class Order:
    """Rows of the global batches of a run, with a cache of epoch layouts and open windows."""

    def __init__(self, plan: Plan, seed: int) -> None:
        self.plan = plan
        self._seed = seed
        self._epochs: OrderedDict[int, Epoch | Index] = OrderedDict()
        self._windows: OrderedDict[tuple[int, int], Index] = OrderedDict()

    def size(self, step: int) -> int:
        """Return the number of rows of a step's global batch; steps count from 0 over all epochs."""
        return self.plan.batch_rows(step % self.plan.steps)

    def batch(self, step: int) -> Index:
        """Return the rows of a step's global batch; each row occurs exactly once an epoch."""
        return self.rows_at(step, np.arange(self.size(step), dtype=np.int64))

    def rows_at(self, step: int, slots: npt.NDArray[np.int64]) -> Index:
        """Return the rows in some slots of a step's global batch, at the cost of those rows alone."""
        epoch, inside = divmod(step, self.plan.steps)
        made = self._open(epoch)
        if not isinstance(made, Epoch):
            return made[inside * self.plan.global_batch + slots]
        place = _on_line(self.plan, made, inside, slots)
        window = np.searchsorted(made.window, place, side="right") - 1
        by = np.argsort(window, kind="stable")
        found = np.empty(len(place), dtype=np.int64)
        for own in np.split(by, np.flatnonzero(np.diff(window[by])) + 1) if len(by) else ():
            number = int(window[own[0]])
            found[own] = self._shuffled(epoch, made, number)[place[own] - made.window[number]]
        return found

    def _open(self, epoch: int) -> Epoch | Index:
        """Return the layout of an epoch, or its whole permutation if one window contains all units."""
        if epoch not in self._epochs:
            self._epochs[epoch] = (
                epoch_order(self._seed, epoch, self.plan.rows)
                if self.plan.whole
                else lay_out(self.plan, self._seed, epoch)
            )
            while len(self._epochs) > 2:  # prefetching also reads the next epoch
                self._epochs.popitem(last=False)
        return self._epochs[epoch]

    def _shuffled(self, epoch: int, made: Epoch, number: int) -> Index:
        """Return the rows of a window in training order; the most recently used windows are cached."""
        key = epoch, number
        if key in self._windows:
            self._windows.move_to_end(key)
            return self._windows[key]
        self._windows[key] = found = window_rows(made, self._seed, epoch, number)
        while len(self._windows) > 2 * self.plan.lanes:  # a batch may be in two windows of a lane
            self._windows.popitem(last=False)
        return found


def units_of(rows: Index, bounds: Index | None) -> Index:
    """Return the number of selected rows in each unit that has any.

    Args:
        rows: ``[N]`` the selected rows, ascending.
        bounds: ``[U+1]`` number of the first row of each unit; None = all rows are one unit.
    """
    if bounds is None:
        return np.array([len(rows)], dtype=np.int64)
    counts = np.diff(np.searchsorted(rows, bounds)).astype(np.int64)
    return counts[counts > 0]


def lay_out(plan: Plan, seed: int, epoch: int) -> Epoch:
    """Compute the lanes and windows of an epoch."""
    unit = _generator(seed, epoch, 1).permutation(len(plan.units))
    rows = plan.units[unit]
    at, lane = _starts(rows), _lane_starts(plan)
    return Epoch(unit=unit, first=_starts(plan.units)[unit], at=at, lane=lane, window=_window_starts(plan, at, lane))


def window_rows(made: Epoch, seed: int, epoch: int, number: int) -> Index:
    """Return the rows of a window, shuffled."""
    low, high = int(made.window[number]), int(made.window[number + 1])
    place = low + _generator(seed, epoch, 2, number).permutation(high - low)
    unit = np.searchsorted(made.at, place, side="right") - 1
    return made.first[unit] + place - made.at[unit]


def _on_line(plan: Plan, made: Epoch, inside: int, slots: npt.NDArray[np.int64]) -> Index:
    """Return the places on the line of the rows in a batch's slots.

    A short last batch has equally many rows from every lane, so that ranks need no other lanes at an epoch's end.
    """
    size, lanes = plan.batch_rows(inside), plan.lanes
    each, more = divmod(size, lanes)
    # each of the first `more` lanes has one more row in the batch
    edge = more * (each + 1)
    early = slots < edge
    lane = np.where(early, slots // (each + 1), more + (slots - edge) // max(each, 1))
    within = np.where(early, slots % (each + 1), (slots - edge) % max(each, 1))
    return made.lane[lane] + inside * (plan.global_batch // lanes) + within


def _lane_starts(plan: Plan) -> Index:
    """Return the starts of the lanes; the length of a lane is its number of rows in all batches."""
    each, more = divmod(plan.batch_rows(plan.steps - 1), plan.lanes)
    last = each + (np.arange(plan.lanes) < more)
    return _starts((plan.steps - 1) * (plan.global_batch // plan.lanes) + last)


def _window_starts(plan: Plan, at: Index, lane: Index) -> Index:
    """Cut every lane into windows of `Plan.window` whole units.

    The first cut differs by lane.

    If all lanes changed their windows at the same step, training would wait for all their units at once.
    """
    cuts = []
    for number, (low, high) in enumerate(zip(lane[:-1], lane[1:], strict=True)):
        first = int(np.searchsorted(at, low, side="right")) + number % plan.window
        cuts += [np.array([low]), at[first : int(np.searchsorted(at, high)) : plan.window]]
    starts = np.append(np.concatenate(cuts), lane[-1])
    found: Index = starts[np.append(True, np.diff(starts) > 0)]
    return found


def _starts(lengths: Index) -> Index:
    starts = np.zeros(len(lengths) + 1, dtype=np.int64)
    np.cumsum(lengths, out=starts[1:])
    return starts


def _generator(*key: int) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(key)))
