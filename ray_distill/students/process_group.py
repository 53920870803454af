"""What the training loop asks of the process group: sums, one rank's value on all, everyone's values, a wait.

In a single process without a group every answer is the process's own, so that the same code runs without one.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, distributed


@dataclass(frozen=True, kw_only=True)
class Ranks:
    """This process among the others; every method is collective and must be called on every rank."""

    rank: int
    world: int

    @property
    def first(self) -> bool:
        """Whether this is the one rank that writes what all share."""
        return self.rank == 0

    def total(self, values: Sequence[float | Tensor], device: torch.device) -> list[float]:
        """Element-wise sum over the ranks, in float64."""
        each = [torch.as_tensor(value, dtype=torch.float64).detach().to(device) for value in values]
        if not each:
            return []
        summed = torch.stack(each)
        if self.world > 1:
            distributed.all_reduce(summed)
        return [float(value) for value in summed.cpu()]

    def share(self, value: Any) -> Any:
        """The first rank's value, on every rank."""
        if self.world == 1:
            return value
        box = [value]
        distributed.broadcast_object_list(box, src=0)
        return box[0]

    def gather(self, value: Any) -> list[Any]:
        """Every rank's value, by rank, on every rank."""
        if self.world == 1:
            return [value]
        box: list[Any] = [None] * self.world
        distributed.all_gather_object(box, value)
        return box

    def barrier(self) -> None:
        """Wait until every rank is here."""
        if self.world > 1:
            distributed.barrier()


def current_ranks() -> Ranks:
    """This process in the initialised group, or alone."""
    if distributed.is_available() and distributed.is_initialized():
        return Ranks(rank=distributed.get_rank(), world=distributed.get_world_size())
    return Ranks(rank=0, world=1)
