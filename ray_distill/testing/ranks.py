"""Run ranks as threads of one process, without process groups."""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor

from ray_distill.students.process_group import Ranks

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class _Room:
    """Rendezvous of the ranks."""

    barrier: threading.Barrier
    box: list[Any]


@dataclass(frozen=True, kw_only=True)
class ThreadRanks(Ranks):
    """One of several ranks; see `run_threads`."""

    room: _Room = field(repr=False)

    def total(self, values: Sequence[float | Tensor], device: torch.device) -> list[float]:
        """See `Ranks`."""
        gathered = self.gather([float(value) for value in values])
        return [sum(column) for column in zip(*gathered, strict=True)]

    def share(self, value: Any) -> Any:
        """See `Ranks`."""
        return self.gather(value)[0]

    def gather(self, value: Any) -> list[Any]:
        """See `Ranks`."""
        self.room.box[self.rank] = value
        self.room.barrier.wait()
        found = list(self.room.box)
        self.room.barrier.wait()  # nobody writes before all have read
        return found

    def barrier(self) -> None:
        """See `Ranks`."""
        self.room.barrier.wait()


def run_threads(work: Callable[[Ranks], T], world: int) -> list[T]:
    """Run work on ``world`` ranks; if one raises, the others stop at the next rendezvous.

    Raises:
        Exception: what the first of the ranks raised that was not merely left alone.
    """
    room = _Room(barrier=threading.Barrier(world), box=[None] * world)

    def run(rank: int) -> T:
        try:
            return work(ThreadRanks(rank=rank, world=world, room=room))
        except BaseException:
            room.barrier.abort()
            raise

    with ThreadPoolExecutor(world) as pool:
        outcomes = [pool.submit(run, rank) for rank in range(world)]
    errors = [error for outcome in outcomes if (error := outcome.exception()) is not None]
    for error in sorted(errors, key=lambda error: isinstance(error, threading.BrokenBarrierError)):
        raise error
    return [outcome.result() for outcome in outcomes]
