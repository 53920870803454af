"""Run work units through Ray Data: yield receipts as they come, isolate failed units, commit all in groups.

The same for whatever a teacher does with a unit; labelling and writing define that (`Work`). Workers return receipts;
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
#: Receipts committed with one log record, and seconds after which fewer are: what a killed driver loses at most.
COMMIT_UNITS, COMMIT_SECONDS = 64, 30.0


class Done(Protocol):
    """A receipt."""

    @property
    def rows(self) -> int:
        """Rows that the teacher could answer."""


R = TypeVar("R", bound=Done)


@dataclass(frozen=True, kw_only=True)
class Work(Generic[R]):
    """What is done with units."""

    name: str
    """The command: ``label``."""
    doing: str
    """As a message has it: ``labelling``."""
    resources: Resources
    failures: FailuresConfig
    pipeline: Callable[[Sequence[WorkUnit], Deaths], Any]
    """``(units, deaths) -> Dataset`` of a row a unit: ``unit``, and ``receipt`` (JSON) or ``failed``."""
    read: Callable[[Mapping[str, Any]], R]
    """A receipt from its JSON."""
    isolate: Callable[[Sequence[FailedUnit], WorkUnit | None], Iterator[R]]
    """Receipts of units that the pipeline could not do, given one that it could; see `isolate_failures.isolate`."""
    commit: Callable[[Sequence[R]], object]


@dataclass(kw_only=True)
class Seen:
    """What a run has seen of its teacher."""

    good: WorkUnit | None = None
    """A unit that it answered."""
    isolated: int = 0
    """Units that failed, and that the teacher then answered by themselves."""


@contextlib.contextmanager
def work_through(work: Work[R], units: Sequence[WorkUnit], seen: Seen) -> Iterator[Iterator[R]]:
    """Receipts of all units as they come; whatever the block got is committed when it ends, however it ends.

    Raises:
        LabelError: the teacher fails whatever row it is asked.
        ClusterError: the cluster cannot hold the actors, or a stage failed.
    """
    # Actors must not hold every CPU, or the tasks that read and write beside them starve (they would wait for ever).
    actor = {"CPU": work.resources.cpus, "GPU": work.resources.gpus}
    require_bundles(
        [actor] * work.resources.actors[0] + [{"CPU": 1}], f"{work.doing} (teacher actors, and reading beside)"
    )
    # An execution that failed on its first block keeps its actors until its cycles are collected (Ray 2.60); this one
    # would wait for their place for ever.
    gc.collect()
    # Closed at once, however the block ends: what is finished is committed while the store can be reached.
    with (
        counted_deaths(work.failures.attempts) as deaths,
        contextlib.closing(_committing(work, _windows(work, units, deaths, seen))) as committed,
    ):
        yield committed


def dataset_of(rows: Sequence[Mapping[str, Any]]) -> Any:
    """A block a row, which stays one block however large its features are."""
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    context.target_max_block_size = None
    return ray.data.from_items(list(rows), override_num_blocks=len(rows))


def teacher_pool(resources: Resources) -> dict[str, Any]:
    """Options of the stage that holds the teachers."""
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
    """Pass receipts on; commit them in groups, and what is left when the run ends, however it ends."""
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
    """Do some units, those that the teacher fails on by themselves, and yield their receipts as they come."""
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
                    break  # nothing but failures so far: first find out whether it is the teacher
        if not failed:
            return
        console.report(
            f"{work.name}: the teacher failed on {len(failed):,} units, first because {failed[0].reason}; {work.doing} "
            "them by themselves",
            failed_units=len(failed),
        )
        for receipt in work.isolate(failed, seen.good):
            seen.isolated += 1
            yield receipt
        deaths.trust()


def _pipelined(
    work: Work[R], units: Sequence[WorkUnit], deaths: Deaths
) -> Generator[tuple[str, R | None, str], None, None]:
    """Run one Ray Data execution over some units; yield each unit's id, and its receipt or why it has none."""
    batches = iter(
        work.pipeline(units, deaths).iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0)
    )
    try:
        # Closed at once: an execution that is left midway would go on, and hold the teacher's place.
        with contextlib.closing(batches):
            for batch in batches:
                for row in batch.to_pylist():
                    receipt = None if row["receipt"] is None else work.read(json.loads(row["receipt"]))
                    yield row["unit"], receipt, row["failed"] or ""
    except BaseException as error:
        # Ray's iterators live on in the frames of a traceback, beyond Ray itself: one that is ended only then starts a
        # new Ray to shut its execution down.
        traceback.clear_frames(error.__traceback__)
        if isinstance(error, ray.exceptions.RayError):
            raise deaths.error() or explain(error, work.doing) from error
        raise
