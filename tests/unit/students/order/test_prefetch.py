"""Batches made ahead on a thread: their order, their bound, their errors, and that the thread ends."""

import threading

import pytest

from ray_distill.errors import TrainingError
from ray_distill.students.order.prefetch import Feed


def threads() -> int:
    """Threads of feeds that are alive."""
    return sum(thread.name == "batches ahead" for thread in threading.enumerate())


def test_steps_come_in_order_and_no_more_than_asked_for_are_made_ahead() -> None:
    """While the loop is busy the next steps are made, up to the bound; none beyond the last."""
    made: list[int] = []
    third = threading.Event()

    def make(step: int) -> int:
        made.append(step)
        if step == 5:
            third.set()
        return step * 10

    with Feed(make, 9, ahead=2) as feed:
        assert feed.take(3) == 30
        assert third.wait(10) and made == [3, 4, 5]
        assert [feed.take(step) for step in range(4, 9)] == [40, 50, 60, 70, 80]
    assert made == [3, 4, 5, 6, 7, 8] and threads() == 0


def test_what_making_raises_is_raised_in_the_loop_at_its_step() -> None:
    """Steps before it are given out; then the error itself comes, and the thread has ended."""

    def make(step: int) -> int:
        if step == 2:
            raise TrainingError("a shard is missing")
        return step

    with Feed(make, 9) as feed:
        assert [feed.take(0), feed.take(1)] == [0, 1]
        with pytest.raises(TrainingError, match="a shard is missing"):
            feed.take(2)
        assert threads() == 0


def test_the_thread_ends_with_the_loop_even_if_its_queue_is_full() -> None:
    """An error in the loop, or a stop, leaves no thread behind."""
    with pytest.raises(KeyboardInterrupt), Feed(lambda step: step, 10**9) as feed:
        feed.take(0)
        raise KeyboardInterrupt
    assert threads() == 0


def test_another_step_begins_anew_and_waiting_is_measured() -> None:
    """A loop that goes back gets what it asks for; seconds waited are those of the last take."""
    gate = threading.Event()

    def make(step: int) -> int:
        if step == 7:
            threading.Timer(0.05, gate.set).start()
            gate.wait()
        return step

    with Feed(make, 100) as feed:
        assert [feed.take(4), feed.take(2), feed.take(3)] == [4, 2, 3]
        assert feed.take(7) == 7
        assert feed.waited >= 0.04
