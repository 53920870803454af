"""Compute the order of examples from (seed, epoch, number of rows, global batch) alone.

The order depends on neither files nor ranks, so a run can be resumed, or repeated on other hardware, with the same
batches; the only state is the number of the step.
"""

import math

import numpy as np
import numpy.typing as npt

from ray_distill.artifacts import Document

Index = npt.NDArray[np.int64]


class Cursor(Document):
    """Position of a run: the next step, counted from 0 over all epochs."""

    epoch: int
    step: int
    global_batch: int


def steps_per_epoch(rows: int, global_batch: int) -> int:
    """Return the optimiser steps an epoch; a short last batch is kept, except one of a lone row.

    A lone row joins the batch before it: batch norm has no variance of one row, and relations of rows no partner.
    """
    steps = math.ceil(rows / global_batch)
    return steps - 1 if steps > 1 and rows % global_batch == 1 else steps


def batch_end(inside: int, rows: int, global_batch: int) -> int:
    """Return where batch ``inside`` of an epoch ends, in the order of the rows."""
    return rows if inside + 1 == steps_per_epoch(rows, global_batch) else (inside + 1) * global_batch


def cursor_at(step: int, rows: int, global_batch: int) -> Cursor:
    """Return the cursor before the given step."""
    return Cursor(epoch=step // steps_per_epoch(rows, global_batch), step=step, global_batch=global_batch)


def epoch_order(seed: int, epoch: int, rows: int) -> Index:
    """Return the permutation of ``0..rows-1`` for an epoch."""
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, epoch]))).permutation(rows)


def global_batch_at(seed: int, step: int, rows: int, global_batch: int) -> Index:
    """Return the rows of a step's global batch; each row occurs exactly once an epoch."""
    epoch, inside = divmod(step, steps_per_epoch(rows, global_batch))
    return epoch_order(seed, epoch, rows)[inside * global_batch : batch_end(inside, rows, global_batch)]
