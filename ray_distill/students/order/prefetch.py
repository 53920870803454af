"""Prefetch batches on a thread while the device computes."""

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Generic, Self, TypeVar

T = TypeVar("T")

#: Number of prefetched steps: one that is ready and one that is being made. More would only hide single slow steps, and
#: each keeps a whole step's labels in memory.
AHEAD = 2


class Feed(Generic[T]):
    """Results of a function of the step, in order, made on one thread up to `AHEAD` steps ahead.

    The result must depend on the step alone: the function does not use random generators that training seeds. Use the
    feed as a context manager, so that the thread ends with the loop even after an error.
    """

    def __init__(self, make: Callable[[int], T], stop: int, *, ahead: int = AHEAD) -> None:
        self.waited = 0.0
        """Seconds that the last `take` waited for data."""
        self._make, self._stop, self._ahead = make, stop, ahead
        self._change = threading.Condition()
        self._made: deque[tuple[T | None, BaseException | None]] = deque()
        self._next: int | None = None
        self._thread: threading.Thread | None = None
        self._closed = False

    def take(self, step: int) -> T:
        """Return the result of a step below ``stop``; an error while making it is raised here.

        Steps are expected one after the other; after any other step, prefetching starts again at that step.
        """
        start = time.perf_counter()
        if step != self._next:
            self._begin(step)
        with self._change:
            self._change.wait_for(lambda: self._made)
            value, error = self._made.popleft()
            self._change.notify_all()
        self.waited, self._next = time.perf_counter() - start, step + 1
        if error is not None:
            self.close()
            raise error
        return value  # type: ignore[return-value]

    def close(self) -> None:
        """End the thread, wait for it, and drop prefetched results; `take` may start again."""
        with self._change:
            self._closed = True
            self._change.notify_all()
        if self._thread is not None:
            self._thread.join()
        self._made.clear()
        self._thread = self._next = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _begin(self, step: int) -> None:
        assert step < self._stop, (step, self._stop)
        self.close()
        self._closed = False
        self._thread = threading.Thread(target=self._run, args=(step,), name="batches ahead", daemon=True)
        self._thread.start()

    def _run(self, first: int) -> None:
        for step in range(first, self._stop):
            with self._change:
                self._change.wait_for(lambda: self._closed or len(self._made) < self._ahead)
                if self._closed:
                    return
            value, error = self._try(step)
            with self._change:
                self._made.append((value, error))
                self._change.notify_all()
            if error is not None:
                return

    def _try(self, step: int) -> tuple[T | None, BaseException | None]:
        try:
            return self._make(step), None
        except BaseException as error:  # noqa: BLE001 - it is raised in the loop, by `take`
            return None, error
