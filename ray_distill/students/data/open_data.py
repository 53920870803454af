"""Open the training and validation rows of a student: in memory if they fit, else streamed."""

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import pyarrow as pa

from ray_distill.config import TrainingConfig
from ray_distill.labels.model import rowids
from ray_distill.labels.model.ragged import running
from ray_distill.students.data.concat import join_sets, size_of
from ray_distill.students.data.examples import Examples, PositionExamples
from ray_distill.students.data.streaming import Source, StreamedSet, Unit, scan
from ray_distill.students.order.cursor import Index
from ray_distill.students.process_group import Ranks

log = logging.getLogger(__name__)

#: Units of each source whose size in memory is measured, to estimate the size of all units.
_MEASURED = 3


@dataclass(frozen=True, kw_only=True)
class Opened:
    """Training rows, their units, and the validation split, which is always in memory."""

    train: Examples
    units: Index | None
    """``[U+1]`` number of the first row of each unit; None = all rows are one unit."""
    sources: Index
    """``[M+1]`` number of the first row of each source."""
    validation: PositionExamples
    calibration: Callable[[], Iterator[PositionExamples]]
    """Yields the calibration split of the first source, unit by unit; nothing is read before."""


def open_data(sources: Sequence[Source], training: TrainingConfig, ranks: Ranks) -> Opened:
    """Open the training rows of all sources and the first one's validation rows; collective.

    The rows of the sources are numbered one source after the other.

    The order of examples is a function of the units in both cases, so the curve does not depend on whether rows are in
    memory or streamed.

    Raises:
        TrainingError: no row is usable, or rows cannot be read in parts.
        ConfigError: labels and student do not match.
    """
    units = [unit for number, source in enumerate(sources) for unit in source.units("train", number)]
    measured = units and training.stream != "never"
    row_bytes = float(ranks.share(_row_bytes(sources, units) if measured and ranks.first else 0.0))
    rows, budget = _rows_of(units), training.memory_gb * 1e9
    copies = 1 if len(sources) == 1 else 2  # several are in memory apart and joined; large rows take less than that
    if not measured or (training.stream == "auto" and copies * rows * row_bytes <= budget):
        return _in_memory(sources, units)
    log.info(
        "%d rows need about %.1f GB of memory: they are streamed during training, within %.1f GB a worker",
        rows,
        rows * row_bytes / 1e9,
        training.memory_gb,
    )
    _warn_of_little(training, units, row_bytes, ranks)
    # Arrow's own allocator returns the pages of a dropped unit to the system, which clears them for the next unit: a
    # seventh of the loader's time. The process is a training worker and reads little else through Arrow.
    pa.set_memory_pool(pa.system_memory_pool())
    facts = scan(sources, units, ranks, lengths=training.micro_tokens > 0)
    table = sources[0].snapshot.read("validation", list(sources[0].columns))
    labels = sources[0].labels.read_rows(rowids.to_numpy(table["row_id"]), sources[0].layers)
    first = np.searchsorted([unit.source for unit in units], np.arange(len(sources) + 1))
    return Opened(
        train=StreamedSet(sources, units, facts, row_bytes=row_bytes, budget=budget),
        units=facts.bounds,
        sources=facts.bounds[first],
        validation=sources[0].build(table, labels=labels, name="validation"),
        calibration=partial(_calibration, sources[0]),
    )


def _in_memory(sources: Sequence[Source], units: list[Unit]) -> Opened:
    parts, bounds, validation = [], list[Index | None](), None
    for number, source in enumerate(sources):
        labels, columns = source.labels.read(layers=source.layers), list(source.columns)
        table = source.snapshot.read("train", columns)
        parts.append(source.build(table, labels=labels, name="train"))
        bounds.append(_bounds(table, [unit for unit in units if unit.source == number], parts[-1]))
        if validation is None:
            validation = source.build(source.snapshot.read("validation", columns), labels=labels, name="validation")
    assert validation is not None
    starts = running(np.array([part.rows for part in parts]))
    known = [start + own[:-1] for start, own in zip(starts, bounds, strict=False) if own is not None]
    return Opened(
        train=join_sets(parts),
        sources=starts,
        validation=validation,
        calibration=partial(_calibration, sources[0]),
        units=np.append(np.concatenate(known), starts[-1]) if len(known) == len(parts) else None,
    )


def _calibration(source: Source) -> Iterator[PositionExamples]:
    """Yield the units of the calibration split with their distributions, without hidden states."""
    plain = replace(source, layers=())
    yield from map(plain.load, plain.units("calibration"))


def _bounds(table: pa.Table, units: list[Unit], train: PositionExamples) -> Index | None:
    """Return the number of each unit's first usable row; None if ids do not ascend.

    `scan` returns the same numbers for streamed rows.
    """
    ids, usable = rowids.to_numpy(table["row_id"]), rowids.to_numpy(train.encoded.row_ids)
    if not (ids[:-1] < ids[1:]).all():
        return None
    starts = np.cumsum([unit.stop - unit.start for unit in units])[:-1]
    return np.concatenate([[0], np.searchsorted(usable, ids[starts]), [len(usable)]]).astype(np.int64)


def _row_bytes(sources: Sequence[Source], units: list[Unit]) -> float:
    """Return the mean bytes of a row in memory, with decoded labels.

    They are measured on a few units of each source.
    """
    total = 0.0
    for number, source in enumerate(sources):
        own = [unit for unit in units if unit.source == number]
        some = [own[at] for at in np.unique(np.linspace(0, len(own) - 1, _MEASURED).astype(np.int64))] if own else []
        sizes = sum(size_of(source.load(unit)) for unit in some)
        total += sizes / max(_rows_of(some), 1) * _rows_of(own)
    return total / max(_rows_of(units), 1)


def _rows_of(units: Sequence[Unit]) -> int:
    return sum(unit.stop - unit.start for unit in units)


def _warn_of_little(training: TrainingConfig, units: list[Unit], row_bytes: float, ranks: Ranks) -> None:
    """Warn if the units that are open at a time do not fit into the memory budget.

    Training is then correct, but reads units several times.
    """
    unit_bytes = row_bytes * _rows_of(units) / len(units)
    open_units = min(len(units), training.shuffle_units) / max(1, min(ranks.world, training.shuffle_units // 2))
    room = training.memory_gb * 1e9 * 3 / 4 / max(unit_bytes, 1.0)
    if open_units > room:
        log.warning(
            "a worker has about %d units of %.0f MB open at a time, and student.training.memory_gb %g has room "
            "for %d: units will be read several times an epoch; raise it, or lower shuffle_units",
            round(open_units),
            unit_bytes / 1e6,
            training.memory_gb,
            int(room),
        )
