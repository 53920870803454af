"""Batches made ahead on a thread while the device computes."""

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Generic, Self, TypeVar

T = TypeVar("T")

#: Steps that are made ahead: one to be taken at once and one in the making. More would only hide single slow steps,
#: and each holds a whole step's labels in memory.
AHEAD = 2


class Feed(Generic[T]):
    """What a function makes of each step, in their order, made on one thread up to `AHEAD` steps before it is taken.

    The function must be one of the step alone: it draws nothing from generators that training seeds. Use it as a
    context, so that the thread ends with the loop, however that ends.
    """

    def __init__(self, make: Callable[[int], T], stop: int, *, ahead: int = AHEAD) -> None:
        self.waited = 0.0
        """Seconds that the last `take` waited: what the loop lost to data."""
        self._make, self._stop, self._ahead = make, stop, ahead
        self._change = threading.Condition()
        self._made: deque[tuple[T | None, BaseException | None]] = deque()
        self._next: int | None = None
        self._thread: threading.Thread | None = None
        self._closed = False

    def take(self, step: int) -> T:
        """What was made of a step below ``stop``; whatever making it raised is raised here.

        Steps are expected one after the other; another one begins anew there.
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
        """End the thread and wait for it; what was made ahead is dropped. `take` may begin anew."""
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
