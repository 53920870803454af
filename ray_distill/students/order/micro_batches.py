"""Cut a global batch into the forward passes of each rank.

A batch is cut by rows, or by tokens with rows of similar length together.

Losses are shares of one mean over the global batch, so the curve does not depend on the cut. It does for a student
with batch norms, whose statistics are those of the rows of one pass.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt

from ray_distill.config import TrainingConfig
from ray_distill.errors import ConfigError
from ray_distill.students.order.cursor import Index
from ray_distill.tasks.packing import pack

#: ``[R, F]``: tokens of each row in each separately padded feature; an encoder-decoder has two.
Lengths = npt.NDArray[np.int32]


@dataclass(frozen=True, kw_only=True)
class MicroBatch:
    """The rows of one forward pass on one rank; ``real`` is False on rows repeated as padding."""

    rows: Index
    real: npt.NDArray[np.bool_]
    weight: npt.NDArray[np.float32] | None = None
    """Weight of each row in the losses; None = all weigh 1."""

    @property
    def weights(self) -> npt.NDArray[np.float32] | npt.NDArray[np.bool_]:
        """The weight of each row, 0 for padding."""
        return self.real if self.weight is None else self.real * self.weight


@dataclass(frozen=True, kw_only=True)
class Budget:
    """The limits of a forward pass."""

    rows: int
    """Most examples."""
    tokens: int = 0
    """Most tokens, padding included; 0 = only rows are limited, and their order is kept."""
    packed: int = 0
    """Tokens of a sequence that documents are packed into; 0 = one document a sequence."""
    group: int = 1
    """Number of rows that a loss compares with each other, and that stay together."""

    @classmethod
    def of(cls, training: TrainingConfig, group: int = 1) -> Self:
        """Return the configured limits.

        Raises:
            ConfigError: a micro-batch would split a group; the message names the valid sizes.
        """
        rows = training.micro_batch
        if rows % group:
            below, above = rows // group * group, -(-rows // group) * group
            raise ConfigError(
                f"student.training.micro_batch is {rows}, and a loss compares groups of {group} rows, which no "
                f"micro-batch may split: set it to {f'{below} or ' if below else ''}{above}, or the losses' group to a "
                f"divisor of {rows}"
            )
        if training.packed and training.micro_tokens and group > 1:
            raise ConfigError(
                f"student.training.micro_tokens: documents that are packed by their tokens cannot keep the groups of "
                f"{group} rows together that a loss compares; set micro_tokens to 0"
            )
        if training.packed > training.micro_tokens > 0:
            raise ConfigError(
                f"student.training.micro_tokens is {training.micro_tokens}, less than one packed sequence of "
                f"{training.packed} tokens"
            )
        return cls(rows=rows, tokens=training.micro_tokens, packed=training.packed, group=group)

    def passes(self, global_batch: int, world: int) -> int:
        """Return the most forward passes of a rank in a step, of the largest batch of a run."""
        size = share_of(global_batch, world, self.group)
        return size // self.group if self.tokens else len(cut_by_rows(size, self.rows))

    def share(self, batch: Index, *, rank: int, world: int) -> MicroBatch:
        """Return a rank's share of a batch; see `share`."""
        return share(batch, rank=rank, world=world, group=self.group, least=min(2, self.rows))

    def least(self, lengths_RF: Lengths | None) -> int:
        """Return the least limit that a pass needs: the rows, or the tokens, of one group.

        The tokens are those of a group of the longest example.
        """
        if not self.tokens or lengths_RF is None:
            return self.group
        return max(self.packed, int(lengths_RF.max(axis=0, initial=0).sum()) * self.group)

    def check(self, lengths_RF: Lengths | None) -> None:
        """Refuse examples that cannot be cut by tokens.

        Raises:
            ConfigError: rows have no tokens, or one example, or a group of the longest, exceeds the limit of a pass.
        """
        if not self.tokens:
            return
        if lengths_RF is None:
            raise ConfigError("student.training.micro_tokens: these examples have no tokens; use micro_batch alone")
        longest = self.least(lengths_RF)
        if longest > self.tokens:
            raise ConfigError(
                f"student.training.micro_tokens is {self.tokens}, but the longest example"
                f"{f's of a group of {self.group}' if self.group > 1 else ''} may take {longest}: raise it, or lower "
                "student.model.max_length"
            )


def share_of(rows: int, world: int, group: int = 1) -> int:
    """Return the rows of each rank's share of a batch.

    Every rank gets equally many whole groups, with padding if needed.
    """
    return math.ceil(math.ceil(rows / group) / world) * group


def share(batch: Index, *, rank: int, world: int, group: int = 1, least: int = 1) -> MicroBatch:
    """Return this rank's contiguous share of a batch.

    A batch that the ranks cannot share evenly, or of which a rank's share would be fewer than ``least`` rows, is padded
    with its own first rows, marked as not real: collectives need equal numbers of passes, and losses give such rows
    weight 0. Blocks of ``group`` rows, counted from the first row of the batch, stay together. A batch of one row stays
    as it is.
    """
    size = max(share_of(len(batch), world, group), least if len(batch) > 1 else 1)
    filled = np.resize(batch, size * world)
    own = slice(rank * size, (rank + 1) * size)
    return MicroBatch(rows=filled[own], real=(np.arange(size * world) < len(batch))[own])


def micro_batches(
    batch: Index, *, rank: int, world: int, budget: Budget, lengths_BF: Lengths | None = None
) -> list[MicroBatch]:
    """Return this rank's share of a batch, in micro-batches.

    Every rank has the same number of micro-batches, and each rank computes this number without communication.

    Args:
        batch: ``[B]`` rows of the whole global batch.
        rank: this rank.
        world: number of ranks.
        budget: the limits of each micro-batch.
        lengths_BF: lengths of these rows; only required if the budget limits tokens.
    """
    own = budget.share(batch, rank=rank, world=world)
    if budget.tokens:
        assert lengths_BF is not None
        slots = np.arange(len(batch), dtype=np.int64)
        cuts = [
            cut_by_tokens(lengths_BF[budget.share(slots, rank=other, world=world).rows], budget)
            for other in range(world)
        ]
        places = evened(cuts[rank], max(map(len, cuts)), budget.group)
    else:
        places = cut_by_rows(len(own.rows), budget.rows)
    return [MicroBatch(rows=own.rows[at], real=own.real[at]) for at in places]


def cut_by_rows(size: int, rows: int) -> list[Index]:
    """Cut a share of ``size`` rows, in order, into micro-batches of at most ``rows``.

    No pass has a lone row, whose batch norm has no variance, unless passes or shares of one row are configured: it gets
    a row of the pass before it, or joins that pass where it has two.
    """
    starts = list(range(0, size, rows))
    if rows > 1 and size > 1 and size % rows == 1:
        starts[-1:] = [] if rows == 2 else [starts[-1] - 1]
    return [np.arange(start, stop) for start, stop in zip(starts, [*starts[1:], size], strict=True)]


def cut_by_tokens(lengths_SF: Lengths, budget: Budget) -> list[Index]:
    """Cut a share of S rows into micro-batches within the budget, the longest rows first.

    The result has places in the share.

    Rows of similar length are together, so there is little padding. A pass that does not fit into memory fails at the
    first step, and not at a later step where the longest rows happen to be together.
    """
    if budget.packed:
        return _cut_packed(lengths_SF.sum(axis=1, dtype=np.int64), budget)
    blocks = np.arange(len(lengths_SF), dtype=np.int64).reshape(-1, budget.group)
    widest_GF = lengths_SF[blocks].max(axis=1)
    order = np.argsort(-widest_GF.sum(axis=1), kind="stable")
    if lengths_SF.shape[1] == 1:  # the first block is the widest, so the others need no comparison
        return _cut_sorted(blocks[order], widest_GF[order, 0], budget)
    cuts: list[Index] = []
    start, widest = 0, np.zeros(lengths_SF.shape[1], dtype=np.int64)
    for at, block in enumerate(order):
        grown, rows = np.maximum(widest, widest_GF[block]), (at + 1 - start) * budget.group
        if at > start and (rows * int(grown.sum()) > budget.tokens or rows > budget.rows):
            cuts.append(blocks[order[start:at]].reshape(-1))
            start, grown = at, widest_GF[block].astype(np.int64)
        widest = grown
    return [*cuts, blocks[order[start:]].reshape(-1)]


def _cut_sorted(blocks: Index, widest: Lengths, budget: Budget) -> list[Index]:
    cuts, start = list[Index](), 0
    while start < len(blocks):
        rows = min(budget.rows, budget.tokens // max(int(widest[start]), 1))
        stop = start + max(rows // budget.group, 1)
        cuts.append(blocks[start:stop].reshape(-1))
        start = stop
    return cuts


def evened(cuts: Sequence[Index], passes: int, group: int = 1) -> list[Index]:
    """Split micro-batches until there are ``passes``, as another rank needs.

    The micro-batch with the most rows is halved first.
    """
    found = list(cuts)
    while len(found) < passes:
        at = max(range(len(found)), key=lambda number: len(found[number]))
        half = len(found[at]) // group // 2 * group
        found[at : at + 1] = [found[at][:half], found[at][half:]]
    return found


def _cut_packed(lengths_S: Index, budget: Budget) -> list[Index]:
    """Cut packed documents into passes of whole sequences within the budget.

    A pass has as many sequences as the budget allows, and at least one.

    Packing the documents of some of these sequences again gives the same sequences, because the sequence of a document
    does not depend on the other documents.
    """
    cuts: list[Index] = []
    current: list[Index] = []
    for sequence in pack(lengths_S, budget.packed):
        longest = max(budget.packed, int(lengths_S[(current or [sequence])[0]].sum()))  # overlong documents come first
        rows = sum(map(len, current)) + len(sequence)
        if current and ((len(current) + 1) * longest > budget.tokens or rows > budget.rows):
            cuts.append(np.concatenate(current))
            current = []
        current.append(sequence)
    return [*cuts, np.concatenate(current)]
