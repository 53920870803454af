"""Wrap the collectives of the training loop: sum, broadcast, gather and barrier.

In a single process without a group, each collective returns the process's own values, so the same code runs without a
group.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, distributed


@dataclass(frozen=True, kw_only=True)
class Ranks:
    """This process in its group; every method is collective and must be called on every rank."""

    rank: int
    world: int

    @property
    def first(self) -> bool:
        """Whether this is the rank that writes the files shared by all ranks."""
        return self.rank == 0

    def total(self, values: Sequence[float | Tensor], device: torch.device) -> list[float]:
        """Return the element-wise sum over the ranks, in float64."""
        each = [torch.as_tensor(value, dtype=torch.float64).detach().to(device) for value in values]
        if not each:
            return []
        summed = torch.stack(each)
        if self.world > 1:
            distributed.all_reduce(summed)
        return [float(value) for value in summed.cpu()]

    def share(self, value: Any) -> Any:
        """Return the first rank's value on every rank."""
        if self.world == 1:
            return value
        box = [value]
        distributed.broadcast_object_list(box, src=0)
        return box[0]

    def gather(self, value: Any) -> list[Any]:
        """Return every rank's value, by rank, on every rank."""
        if self.world == 1:
            return [value]
        box: list[Any] = [None] * self.world
        distributed.all_gather_object(box, value)
        return box

    def barrier(self) -> None:
        """Wait until every rank has called this method."""
        if self.world > 1:
            distributed.barrier()


def current_ranks() -> Ranks:
    """Return this process in the initialised group, or as a group of one."""
    if distributed.is_available() and distributed.is_initialized():
        return Ranks(rank=distributed.get_rank(), world=distributed.get_world_size())
    return Ranks(rank=0, world=1)
