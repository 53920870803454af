"""Run calls in one thread of their own, so that a caller waits only for its patience."""

import queue
import threading
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Job(Generic[T]):
    """A call that runs, or waits for its turn."""

    def __init__(self, call: Callable[[], T]) -> None:
        self._call = call
        self._done = threading.Event()
        self._result: T
        self._error: BaseException | None = None

    def run(self) -> None:
        """Run the call; store its result or its exception."""
        try:
            self._result = self._call()
        except BaseException as error:  # noqa: BLE001 - raised again where the result is read
            self._error = error
        self._done.set()

    def finished(self, seconds: float = 0.0) -> bool:
        """Wait at most this long; return whether the call has ended."""
        return self._done.wait(seconds)

    def result(self) -> T:
        """Return the result of a call that has ended, or raise its exception."""
        if self._error is not None:
            raise self._error
        return self._result


class Worker:
    """One thread that runs calls in their order; it ends when it is idle, or with the process.

    A call that never ends blocks all later calls, and no caller.
    """

    def __init__(self, name: str, *, every: float = 10.0, idle: Callable[[], bool] = lambda: False) -> None:
        """Start nothing yet.

        Args:
            name: the thread's name.
            every: seconds without a call after which ``idle`` is called.
            idle: work for such moments; returns whether the thread goes on.
        """
        self._name, self._every, self._idle = name, every, idle
        self._jobs: queue.SimpleQueue[Job[object]] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def post(self, call: Callable[[], T]) -> Job[T]:
        """Append a call."""
        job = Job(call)
        with self._lock:
            self._jobs.put(job)  # type: ignore[arg-type]
            if self._thread is None or not self._thread.is_alive():  # in a forked process no thread is alive
                # A daemon: a call that never ends must not keep the process alive.
                self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
                self._thread.start()
        return job

    def _run(self) -> None:
        while True:
            try:
                self._jobs.get(timeout=self._every).run()
            except queue.Empty:
                if self._idle():
                    continue
                with self._lock:
                    if self._jobs.empty():
                        self._thread = None
                        return
