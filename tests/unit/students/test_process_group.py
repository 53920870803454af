"""The gloo launcher: answers by rank, failures with their traceback, nothing left running."""

import os
import signal
import time
from typing import Any

import pytest
import torch
from torch import distributed

from ray_distill.errors import ClusterError
from ray_distill.students.process_group import current_ranks
from ray_distill.testing.gloo import run_gloo


def collectives(number: int) -> tuple[int, list[float], str, list[int]]:
    """Every collective of `Ranks` once."""
    ranks = current_ranks()
    ranks.barrier()
    total = ranks.total([ranks.rank + 1, torch.tensor(number)], torch.device("cpu"))
    return ranks.rank, total, ranks.share(f"from {ranks.rank}"), ranks.gather(ranks.rank)


def fail_on_the_second() -> None:
    """Rank 1 fails while rank 0 waits for it."""
    if distributed.get_rank() == 1:
        raise ValueError("no more paper")
    distributed.barrier()


def die() -> None:
    """End like a process that the kernel killed."""
    os.kill(os.getpid(), signal.SIGKILL)


def sleep_long() -> None:
    """Outlast any test."""
    time.sleep(600)


class Unreadable:
    """An argument that ends the process which unpickles it, as a module that cannot be imported there does."""

    def __reduce__(self) -> Any:
        return os._exit, (3,)


def test_answers_come_by_rank() -> None:
    """Both ranks take part in every collective and see the same."""
    assert run_gloo(collectives, 2, 10) == [(rank, [3.0, 20.0], "from 0", [0, 1]) for rank in (0, 1)]


def test_a_failure_brings_its_traceback() -> None:
    """The first rank that fails ends the run; its own traceback is in the message."""
    with pytest.raises(ClusterError, match=r"(?s)rank 1 of 2 failed:.*fail_on_the_second.*ValueError: no more paper"):
        run_gloo(fail_on_the_second, 2)


def test_a_dead_rank_and_a_slow_one_are_named() -> None:
    """A signal and an exit status are told by number, the wait ends there; and it ends when time is up."""
    with pytest.raises(ClusterError, match="rank 0 of 1 ended with exit status 3 and without an answer"):
        run_gloo(len, 1, Unreadable())
    with pytest.raises(ClusterError, match="rank 0 of 1 died of signal 9"):
        run_gloo(die, 1)
    with pytest.raises(ClusterError, match=r"ranks \[0\] of 1 did not end in time"):
        run_gloo(sleep_long, 1, timeout=1)
