"""Decoded units of a data set, loaded on threads and held within a budget of bytes."""

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

from ray_distill.labels.store.reader import READERS

T = TypeVar("T")

#: Share of the budget that may be lent: the rest is for units that come next.
LENT = 0.75


class UnitCache(Generic[T]):
    """Units by number. One thread asks; what was used longest ago goes first when the budget is full.

    The budget holds what is kept between two requests. While one is served, as many units as there are threads come
    on top of it.
    """

    def __init__(self, load: Callable[[int], T], size: Callable[[T], int], budget: int) -> None:
        self.loads = 0
        """Units that were loaded so far."""
        self._load, self._size, self.budget = load, size, budget
        self._pool = ThreadPoolExecutor(READERS, thread_name_prefix="units ahead")
        self._held: OrderedDict[int, tuple[T, int]] = OrderedDict()
        self._coming: dict[int, Future[T]] = {}
        self._lent: set[int] = set()
        self._bytes = 0

    def each(self, units: Sequence[int]) -> Iterator[tuple[int, T]]:
        """Every one of these units once: those that are here first, so that none is dropped for one that is not.

        Whatever loading one of them raised is raised here.
        """
        here = [unit for unit in units if unit in self._held]
        missing = [unit for unit in units if unit not in self._held]
        for unit in here:
            self._held.move_to_end(unit)
            yield unit, self._held[unit][0]
        for at, unit in enumerate(missing):
            for near in missing[at : at + READERS]:
                self._submit(near)
            yield unit, self._receive(unit)
            self._shrink(())

    def ask(self, units: Sequence[int], keep: Sequence[int]) -> None:
        """Begin to load units that will be wanted next, as far as the budget holds them beside those to ``keep``."""
        wanted = {*units, *keep}
        for unit in [unit for unit, coming in self._coming.items() if coming.done() and coming.exception() is None]:
            self._receive(unit)
        self._shrink(wanted, spare=self._mean())
        for unit in units:
            if unit in self._held or unit in self._coming:
                continue
            if self._bytes + (len(self._coming) + 1) * self._mean() > self.budget:
                return
            self._submit(unit)

    def lend(self, unit: int) -> bool:
        """Keep a unit that `each` has just given until `take_back`, unless little would be left for others."""
        lent = sum(self._held[other][1] for other in self._lent - {unit})
        if lent + self._held[unit][1] > self.budget * LENT:
            return False
        self._lent.add(unit)
        return True

    def take_back(self) -> None:
        """Nothing that was lent is used any more."""
        self._lent.clear()

    def close(self) -> None:
        """Drop what is wanted ahead, and wait for what is being loaded."""
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._coming.clear()
        self._held.clear()
        self._lent.clear()
        self._bytes = 0

    def _mean(self) -> float:
        return self._bytes / max(len(self._held), 1)

    def _submit(self, unit: int) -> None:
        if unit not in self._held and unit not in self._coming:
            self._coming[unit] = self._pool.submit(self._load, unit)

    def _receive(self, unit: int) -> T:
        value = self._coming.pop(unit).result()
        self.loads += 1
        size = self._size(value)
        self._held[unit] = value, size
        self._bytes += size
        return value

    def _shrink(self, wanted: set[int] | tuple[()], spare: float = 0) -> None:
        """Drop units until what is held, and a unit's ``spare``, are within the budget: never a wanted or lent one."""
        for unit in [unit for unit in self._held if unit not in wanted and unit not in self._lent]:
            if self._bytes + spare <= self.budget:
                return
            self._bytes -= self._held.pop(unit)[1]
