"""The order of examples: a pure function of (seed, epoch, number of rows, global batch).

It knows neither files nor ranks beyond the share it is asked for, so a run can be resumed, or repeated on
other hardware, with the same batches; its state is the number of the step.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ray_distill.errors import ConfigError

Index = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Cursor:
    """Where a run is: the next step to do, counted from 0 over all epochs."""

    epoch: int
    step: int
    global_batch: int

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON values."""
        return {"epoch": self.epoch, "step": self.step, "global_batch": self.global_batch}


@dataclass(frozen=True, kw_only=True)
class MicroBatch:
    """The rows of one forward pass on one rank; ``real`` is False on rows repeated as padding."""

    rows: Index
    real: npt.NDArray[np.bool_]


def steps_per_epoch(rows: int, global_batch: int) -> int:
    """Optimiser steps an epoch; the last batch may be short and is kept."""
    return math.ceil(rows / global_batch)


def cursor_at(step: int, rows: int, global_batch: int) -> Cursor:
    """The cursor before the given step."""
    return Cursor(epoch=step // steps_per_epoch(rows, global_batch), step=step, global_batch=global_batch)


def epoch_order(seed: int, epoch: int, rows: int) -> Index:
    """Permutation of ``0..rows-1`` for an epoch."""
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, epoch]))).permutation(rows)


def global_batch_at(seed: int, step: int, rows: int, global_batch: int) -> Index:
    """Rows of the global batch of a step; over an epoch's steps each row comes exactly once."""
    epoch, inside = divmod(step, steps_per_epoch(rows, global_batch))
    return epoch_order(seed, epoch, rows)[inside * global_batch : (inside + 1) * global_batch]


def share_of(rows: int, world: int, group: int = 1) -> int:
    """Rows of each rank's share of a batch: as many whole groups on every rank, filled up where they do not suffice."""
    return math.ceil(math.ceil(rows / group) / world) * group


def require_groups(micro_batch: int, group: int) -> None:
    """Refuse micro-batches that would split a group.

    Raises:
        ConfigError: says which sizes would do.
    """
    if micro_batch % group:
        below, above = micro_batch // group * group, -(-micro_batch // group) * group
        raise ConfigError(
            f"student.training.micro_batch is {micro_batch}, and a loss compares groups of {group} rows, which no "
            f"micro-batch may split: set it to {f'{below} or ' if below else ''}{above}, or the losses' group to a "
            f"divisor of {micro_batch}")


def micro_batches(batch: Index, *, rank: int, world: int, micro_batch: int, group: int = 1) -> list[MicroBatch]:
    """This rank's contiguous share of a batch, in micro-batches: the same number, of the same sizes, on every rank.

    A batch that the ranks cannot share evenly is filled up with its own first rows, marked as not real:
    collectives need equal numbers of passes, and losses give such rows no weight. Blocks of ``group`` rows, counted
    from the batch's first, stay together.

    Raises:
        ConfigError: a micro-batch would split a group.
    """
    require_groups(micro_batch, group)
    share = share_of(len(batch), world, group)
    filled = np.resize(batch, share * world)
    real = np.arange(share * world) < len(batch)
    ours = slice(rank * share, (rank + 1) * share)
    rows, real = filled[ours], real[ours]
    return [
        MicroBatch(rows=rows[start : start + micro_batch], real=real[start : start + micro_batch])
        for start in range(0, share, micro_batch)]
