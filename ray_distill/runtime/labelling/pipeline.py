"""Run work units through Ray Data: yield receipts, isolate failed units, commit in groups.

The module is the same for labelling and writing, which define their work on a unit (`Work`). Workers return receipts;
the driver alone commits them.
"""

import contextlib
import gc
import json
import logging
import time
import traceback
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import ray
import ray.data

from ray_distill.config import Resources
from ray_distill.config.labels import FailuresConfig
from ray_distill.labels.model.work_units import WorkUnit
from ray_distill.runtime.core import console
from ray_distill.runtime.core.connection import explain, require_bundles
from ray_distill.runtime.labelling.death_counter import Deaths, counted_deaths
from ray_distill.runtime.labelling.isolate_failures import FailedUnit

#: Units in one Ray Data execution; each is a block, and too many blocks burden the scheduler.
WINDOW = 2000
#: Receipts committed with one log record, and seconds after which fewer are committed: the maximum loss of a killed
#: driver.
COMMIT_UNITS, COMMIT_SECONDS = 64, 30.0


class Done(Protocol):
    """Receipt of a finished unit."""

    @property
    def rows(self) -> int:
        """Return the number of rows that the teacher could answer."""


R = TypeVar("R", bound=Done)


@dataclass(frozen=True, kw_only=True)
class Work(Generic[R]):
    """Work to do on units."""

    name: str
    """Name of the command: ``label``."""
    doing: str
    """Name of the activity in messages: ``labelling``."""
    resources: Resources
    failures: FailuresConfig
    pipeline: Callable[[Sequence[WorkUnit], Deaths], Any]
    """``(units, deaths) -> Dataset`` with one row per unit: ``unit``, and ``receipt`` (JSON) or ``failed``."""
    read: Callable[[Mapping[str, Any]], R]
    """Parse a receipt from its JSON."""
    isolate: Callable[[Sequence[FailedUnit], WorkUnit | None], Iterator[R]]
    """Yield receipts of units that failed, given a unit that did not fail; see `isolate_failures.isolate`."""
    commit: Callable[[Sequence[R]], object]


@dataclass(kw_only=True)
class Seen:
    """Results of a run about its teacher."""

    good: WorkUnit | None = None
    """A unit that the teacher answered."""
    isolated: int = 0
    """Units that failed, and that the teacher then answered in isolation."""


def require_actors(resources: Resources, doing: str) -> None:
    """Require room for the least number of teacher actors, and for reading beside them.

    Actors must not reserve every CPU, else the tasks that read and write beside them would wait for ever.

    Args:
        resources: of the actors.
        doing: what they do, for the message.

    Raises:
        ClusterError: there is no room.
    """
    actor = {"CPU": resources.cpus, "GPU": resources.gpus}
    require_bundles([actor] * resources.actors[0] + [{"CPU": 1}], f"{doing} (teacher actors, and reading beside)")


@contextlib.contextmanager
def work_through(work: Work[R], units: Sequence[WorkUnit], seen: Seen) -> Iterator[Iterator[R]]:
    """Yield an iterator of receipts; at exit, commit all receipts that the block got.

    They are committed however the block ends.

    Raises:
        LabelError: the teacher fails on every row.
        ClusterError: the actors do not fit the cluster, or a stage failed.
    """
    require_actors(work.resources, work.doing)
    # An execution that failed on its first block keeps its actors until its cycles are collected (Ray 2.60); the next
    # execution would wait for their resources for ever.
    gc.collect()
    # Closed at once, however the block ends: finished units are committed while the store is reachable, and an
    # execution that a traceback keeps alive ends before Ray does.
    with (
        counted_deaths(work.failures.attempts) as deaths,
        contextlib.closing(_windows(work, units, deaths, seen)) as receipts,
        contextlib.closing(_committing(work, receipts)) as committed,
    ):
        yield committed


def dataset_of(rows: Sequence[Mapping[str, Any]]) -> Any:
    """Return a dataset with one block per row, which Ray never splits, whatever its size."""
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    context.target_max_block_size = None
    return ray.data.from_items(list(rows), override_num_blocks=len(rows))


def teacher_pool(resources: Resources) -> dict[str, Any]:
    """Return the options of the stage with the teachers."""
    least, most = resources.actors
    return {
        "num_cpus": resources.cpus,
        "num_gpus": resources.gpus or None,
        "compute": ray.data.ActorPoolStrategy(min_size=least, max_size=most),
    }


def _windows(work: Work[R], units: Sequence[WorkUnit], deaths: Deaths, seen: Seen) -> Generator[R, None, None]:
    for start in range(0, len(units), WINDOW):
        yield from _receipts(work, units[start : start + WINDOW], deaths, seen)


def _committing(work: Work[R], receipts: Iterator[R]) -> Generator[R, None, None]:
    """Pass receipts on; commit them in groups, and the rest when the run ends, however it ends."""
    waiting: list[R] = []
    last = time.monotonic()
    try:
        for receipt in receipts:
            waiting.append(receipt)
            if len(waiting) >= COMMIT_UNITS or time.monotonic() - last >= COMMIT_SECONDS:
                work.commit(waiting)
                waiting, last = [], time.monotonic()
            yield receipt
    finally:
        if waiting:
            work.commit(waiting)


def _receipts(work: Work[R], units: Sequence[WorkUnit], deaths: Deaths, seen: Seen) -> Iterator[R]:
    """Work on some units and yield their receipts; failed units are answered in isolation."""
    left = {unit.unit_id: unit for unit in units}
    while left:
        failed: list[FailedUnit] = []
        with contextlib.closing(_pipelined(work, list(left.values()), deaths)) as results:
            for name, receipt, reason in results:
                unit = left.pop(name)
                if receipt is None:
                    failed.append(FailedUnit(unit=unit, reason=reason))
                else:
                    seen.good = unit if receipt.rows else seen.good
                    yield receipt
                if len(failed) >= work.failures.attempts and seen.good is None:
                    break  # only failures so far: first check whether the teacher is at fault
        if not failed:
            return
        console.report(
            f"{work.name}: the teacher failed on {len(failed):,} units, the first because {failed[0].reason}; "
            f"{work.doing} them in isolation",
            failed_units=len(failed),
        )
        for receipt in work.isolate(failed, seen.good):
            seen.isolated += 1
            yield receipt
        deaths.trust()


def _pipelined(
    work: Work[R], units: Sequence[WorkUnit], deaths: Deaths
) -> Generator[tuple[str, R | None, str], None, None]:
    """Run one Ray Data execution; yield each unit's id, and its receipt or the reason for none."""
    batches = iter(
        work.pipeline(units, deaths).iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0)
    )
    try:
        # Closed at once: an abandoned execution would continue and keep the teacher's resources.
        with contextlib.closing(batches):
            for batch in batches:
                for row in batch.to_pylist():
                    receipt = None if row["receipt"] is None else work.read(json.loads(row["receipt"]))
                    yield row["unit"], receipt, row["failed"] or ""
    except BaseException as error:
        # The frames of a traceback keep Ray's iterators alive after Ray's shutdown: an iterator that is finalized so
        # late starts a new Ray to shut its execution down.
        traceback.clear_frames(error.__traceback__)
        if isinstance(error, ray.exceptions.RayError):
            raise deaths.error() or explain(error, work.doing) from error
        raise
