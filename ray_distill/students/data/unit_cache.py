"""Cache decoded units of a data set, loaded on threads, within a budget of bytes."""

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

from ray_distill.labels.store.reader import READERS

T = TypeVar("T")

#: Share of the budget that pinned units may take: the rest is for prefetched units.
PINNED = 0.75


class UnitCache(Generic[T]):
    """A cache of units by number, for one calling thread.

    The least recently used unit is evicted first.

    The budget limits the units that are kept between two requests. While a request is served, up to as many units as
    there are threads are in memory beside them.
    """

    def __init__(self, load: Callable[[int], T], size: Callable[[T], int], budget: int) -> None:
        self.loads = 0
        """Number of units loaded so far."""
        self._load, self._size, self.budget = load, size, budget
        self._pool = ThreadPoolExecutor(READERS, thread_name_prefix="units ahead")
        self._units: OrderedDict[int, tuple[T, int]] = OrderedDict()
        self._coming: dict[int, Future[T]] = {}
        self._pinned: set[int] = set()
        self._bytes = 0

    def each(self, units: Sequence[int]) -> Iterator[tuple[int, T]]:
        """Yield each of these units once.

        Cached units come first, so that none of them is evicted for a missing one. An error while loading a unit is
        raised here.
        """
        here = [unit for unit in units if unit in self._units]
        missing = [unit for unit in units if unit not in self._units]
        for unit in here:
            self._units.move_to_end(unit)
            yield unit, self._units[unit][0]
        for at, unit in enumerate(missing):
            for near in missing[at : at + READERS]:
                self._submit(near)
            yield unit, self._receive(unit)
            self._shrink(())

    def prefetch(self, units: Sequence[int], keep: Sequence[int]) -> None:
        """Begin to load the units needed next, as far as the budget allows.

        Units in ``keep`` are not evicted for them.
        """
        needed = {*units, *keep}
        for unit in [unit for unit, coming in self._coming.items() if coming.done() and coming.exception() is None]:
            self._receive(unit)
        self._shrink(needed, spare=self._mean())
        for unit in units:
            if unit in self._units or unit in self._coming:
                continue
            if self._bytes + (len(self._coming) + 1) * self._mean() > self.budget:
                return
            self._submit(unit)

    def pin(self, unit: int) -> bool:
        """Pin a unit that `each` has just yielded, until `unpin`.

        The result is False, and the unit is not pinned, if too little of the budget would be left.
        """
        pinned = sum(self._units[other][1] for other in self._pinned - {unit})
        if pinned + self._units[unit][1] > self.budget * PINNED:
            return False
        self._pinned.add(unit)
        return True

    def unpin(self) -> None:
        """Unpin all units; the caller no longer uses any of them."""
        self._pinned.clear()

    def close(self) -> None:
        """Cancel pending prefetches, wait for the units that are being loaded, and drop all units."""
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._coming.clear()
        self._units.clear()
        self._pinned.clear()
        self._bytes = 0

    def _mean(self) -> float:
        return self._bytes / max(len(self._units), 1)

    def _submit(self, unit: int) -> None:
        if unit not in self._units and unit not in self._coming:
            self._coming[unit] = self._pool.submit(self._load, unit)

    def _receive(self, unit: int) -> T:
        value = self._coming.pop(unit).result()
        self.loads += 1
        size = self._size(value)
        self._units[unit] = value, size
        self._bytes += size
        return value

    def _shrink(self, needed: set[int] | tuple[()], spare: float = 0) -> None:
        """Evict units until the cache and ``spare`` bytes fit the budget.

        Needed and pinned units are never evicted.
        """
        for unit in [unit for unit in self._units if unit not in needed and unit not in self._pinned]:
            if self._bytes + spare <= self.budget:
                return
            self._bytes -= self._units.pop(unit)[1]
