"""Calls in a thread of their own: their order, their results, and callers that do not wait for the last one."""

import multiprocessing
import os
import threading

import pytest

from ray_distill.tracking.delivery.worker import Worker


def test_calls_run_in_order_and_give_results_or_errors() -> None:
    """A caller reads the result, or the exception, of its own call."""
    worker, seen = Worker("test"), []
    jobs = [worker.post(lambda number=number: seen.append(number) or number) for number in range(20)]
    failing = worker.post(lambda: 1 / 0)
    assert failing.finished(10) and [job.result() for job in jobs] == seen == list(range(20))
    with pytest.raises(ZeroDivisionError):
        failing.result()


def test_a_call_that_never_ends_stops_no_caller() -> None:
    """The caller goes on after its patience; the call ends whenever it can, and later ones follow."""
    worker, gate = Worker("test"), threading.Event()
    stuck, later = worker.post(gate.wait), worker.post(lambda: "done")
    assert not stuck.finished(0.01) and not later.finished(0.01)
    gate.set()
    assert later.finished(10) and later.result() == "done"


def test_an_idle_thread_ends_and_starts_again() -> None:
    """Nothing is left of a command that has ended; the next call starts a thread."""
    goes_on = iter([True, False, False])
    worker, before = Worker("idle-test", every=0.01, idle=lambda: next(goes_on)), threading.active_count()
    assert worker.post(lambda: 1).finished(10)
    (thread,) = [one for one in threading.enumerate() if one.name == "idle-test"]
    thread.join(10)
    assert not thread.is_alive() and threading.active_count() <= before + 1
    assert worker.post(lambda: 2).finished(10)


def test_a_forked_process_has_a_thread_of_its_own() -> None:
    """A thread does not survive a fork; the first call in the child starts one."""
    worker = Worker("test")
    assert worker.post(lambda: 1).finished(10)

    def work() -> None:
        os._exit(9 if worker.post(lambda: 2).finished(10) else 1)

    process = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    process.join()
    assert process.exitcode == 9
