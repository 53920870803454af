"""The order of examples: a pure function of (seed, epoch, number of rows, global batch).

It knows neither files nor ranks, so a run can be resumed, or repeated on other hardware, with the same batches; its
state is the number of the step.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

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
