"""Stream training rows that do not fit into memory.

Units of the snapshot are read with their labels, in training order.

Rows are numbered as in memory, so batches, and therefore curves, are the same. One pass over the snapshot, which the
ranks share, finds the facts that are needed of every row before the first step: whether it is usable, whether it is
labelled, whether the teacher may teach it, and how often it came.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ray_distill.errors import ConfigError, DistillError, TrainingError
from ray_distill.labels.model import rowids
from ray_distill.labels.model.manifest import StoreManifest
from ray_distill.labels.model.ragged import RaggedArray
from ray_distill.labels.model.rowids import RowIds
from ray_distill.labels.model.signal import Signal, Vectors
from ray_distill.losses.base import LossBatch
from ray_distill.snapshots.manifest import Shard
from ray_distill.snapshots.reader import Snapshot
from ray_distill.students.data.concat import cheaply_joined, join_counts, join_sets, size_of, take_rows
from ray_distill.students.data.examples import PositionExamples, RowWeights
from ray_distill.students.data.unit_cache import UnitCache
from ray_distill.students.order.cursor import Index
from ray_distill.students.process_group import Ranks
from ray_distill.tasks.encoded import Batch

Labels = tuple[pa.Array, Signal]
Mask = npt.NDArray[np.bool_]

#: Most rows that are joined at a time: joining many at once makes batches of many units cheap; the limit bounds memory.
CHUNK_ROWS = 8192
#: Units that a statistic over all labels is estimated from.
SAMPLE_UNITS = 16


class LabelSource(Protocol):
    """Labels of a snapshot's rows: a `LabelSet`, or several as one."""

    @property
    def manifest(self) -> StoreManifest:
        """Description of the labels."""

    def labelled(self, requested: RowIds) -> RowIds:
        """Return the requested row ids that have labels; no labels are read."""

    def read_rows(self, requested: RowIds, layers: Sequence[int] = ()) -> Labels:
        """Return the ids and labels of the requested rows that have labels."""

    def read(self, layers: Sequence[int] = ()) -> Labels:
        """Return all labelled rows of the snapshot, each once, in the snapshot's order."""


class Build(Protocol):
    """Joins snapshot rows with labels: `build_examples` with all other arguments bound."""

    def __call__(self, table: pa.Table, *, labels: Labels, name: str, part: bool = False) -> PositionExamples:
        """Return a set of the usable rows, ascending by id; see `build_examples`."""


@dataclass(frozen=True, kw_only=True)
class Unit:
    """Rows of a snapshot that are read together: the range of one work unit.

    Any attempt may have labelled it.
    """

    source: int
    """Number of the source whose snapshot has the rows."""
    shard: Shard
    start: int
    stop: int


def units_of(snapshot: Snapshot, split: str, rows: int, *, number: int = 0) -> list[Unit]:
    """Return the units of a split, of ``rows`` rows each; ``number`` is their source's."""
    return [
        Unit(source=number, shard=shard, start=start, stop=min(start + rows, shard.rows))
        for shard in snapshot.shards
        if shard.split == split
        for start in range(0, shard.rows, rows)
    ]


@dataclass(frozen=True, kw_only=True)
class Source:
    """A snapshot with its labels, from which training rows are built."""

    snapshot: Snapshot
    labels: LabelSource
    layers: tuple[int, ...]
    """Teacher layers whose states are read."""
    columns: tuple[str, ...]
    build: Build

    def units(self, split: str, number: int = 0) -> list[Unit]:
        """Return the units of a split's shards; they depend only on the pinned snapshot and store.

        ``number`` is the number of this source.
        """
        return units_of(self.snapshot, split, self.labels.manifest.rows_a_unit, number=number)

    def load(self, unit: Unit) -> PositionExamples:
        """Return a unit's usable rows with their labels."""
        table = self.snapshot.read_range(unit.shard, unit.start, unit.stop, self.columns)
        labels = self.labels.read_rows(rowids.to_numpy(table["row_id"]), self.layers)
        return self.build(table, labels=labels, name="train", part=True)


@dataclass(frozen=True, kw_only=True)
class UnitFacts:
    """Facts about a unit's usable rows that do not need their labels."""

    labelled: Mask
    distil: Mask
    count: Index | None
    lengths: npt.NDArray[np.int32] | None
    """See `Examples`; None = not counted."""
    least: bytes
    """The least id of all rows of the unit."""
    greatest: bytes
    """The greatest id of all rows of the unit."""


@dataclass(frozen=True, kw_only=True)
class Facts:
    """Facts about every usable row that do not need its labels."""

    bounds: Index
    """``[U+1]`` number of the first row of each unit."""
    labelled: Mask
    distil: Mask
    count: Index | None = None
    lengths: npt.NDArray[np.int32] | None = None


def scan(sources: Sequence[Source], units: Sequence[Unit], ranks: Ranks, *, lengths: bool = False) -> Facts:
    """Read all rows once, each shard on one rank, and return the same facts on every rank.

    The digest of each shard is verified.

    Args:
        sources: the sources of the rows.
        units: all units, in order.
        ranks: the process group, which shares the work.
        lengths: whether the rows' tokens are counted, which takes 4 or 8 bytes a row.

    Raises:
        SnapshotError: a shard is damaged. An error of one rank is raised on all ranks, so that none waits for it.
        TrainingError: rows are not ordered by their ids, or no row is usable.
    """
    found: dict[int, UnitFacts] | DistillError
    try:
        found = _share_of_scan(sources, units, ranks, lengths)
    except DistillError as error:
        found = error
    every: dict[int, UnitFacts] = {}
    for part in ranks.gather(found):
        if isinstance(part, DistillError):
            raise part
        every |= part
    ordered = [every[number] for number in range(len(units))]
    for number, (before, after) in enumerate(zip(ordered, ordered[1:], strict=False)):
        source = units[number].source
        if before.greatest >= after.least and units[number + 1].source == source:
            raise TrainingError(
                f"{sources[source].snapshot.ref.url}: the rows are not ordered by their ids, so they cannot be "
                "read in parts; delete its folder and take it again, or set student.training.stream to never"
            )
    bounds = np.append(0, np.cumsum([len(unit.labelled) for unit in ordered])).astype(np.int64)
    if not bounds[-1]:
        raise TrainingError(
            "the train split has no usable row; give it a larger share in snapshot.splits, or mend the source"
        )
    counted = [unit.lengths for unit in ordered if unit.lengths is not None]
    return Facts(
        bounds=bounds,
        labelled=np.concatenate([unit.labelled for unit in ordered]),
        distil=np.concatenate([unit.distil for unit in ordered]),
        count=join_counts([(unit.count, len(unit.labelled)) for unit in ordered]),
        lengths=np.concatenate(counted) if counted else None,
    )


def _share_of_scan(
    sources: Sequence[Source], units: Sequence[Unit], ranks: Ranks, lengths: bool
) -> dict[int, UnitFacts]:
    shards = list(dict.fromkeys((unit.source, unit.shard.name) for unit in units))
    mine = set(shards[ranks.rank :: ranks.world])
    found: dict[int, UnitFacts] = {}
    whole: tuple[tuple[int, str], pa.Table] | None = None
    for number, unit in enumerate(units):
        shard, source = (unit.source, unit.shard.name), sources[unit.source]
        if shard in mine:
            if whole is None or whole[0] != shard:
                whole = shard, source.snapshot.read_shard(unit.shard, source.columns)
            rows = whole[1].slice(unit.start, unit.stop - unit.start)
            found[number] = _facts_of(source, rows, lengths)
    return found


def _facts_of(source: Source, table: pa.Table, lengths: bool) -> UnitFacts:
    ids = np.sort(rowids.to_numpy(table["row_id"]))
    known = rowids.to_arrow(source.labels.labelled(ids))
    part = source.build(table, labels=(known, Signal()), name="train", part=True)
    return UnitFacts(
        labelled=part.labelled,
        distil=part.distil,
        count=part.count,
        lengths=part.lengths if lengths else None,
        least=ids[0].ljust(16, b"\0"),
        greatest=ids[-1].ljust(16, b"\0"),
    )


class StreamedSet:
    """`Examples` whose units are read on demand, on threads, within a budget of bytes."""

    def __init__(
        self, sources: Sequence[Source], units: Sequence[Unit], facts: Facts, *, row_bytes: float, budget: float
    ) -> None:
        self.labelled, self.distil, self.lengths = facts.labelled, facts.distil, facts.lengths
        self.count = facts.count
        self.rows = len(facts.labelled)
        self.drawn = any(source.labels.manifest.distributions.draws > 0 for source in sources)
        self._sources, self._units, self._bounds = sources, units, facts.bounds
        self._chunk = int(np.clip(budget / 8 / max(row_bytes, 1.0), 1, CHUNK_ROWS))
        self._cache: UnitCache[PositionExamples] = UnitCache(self._load, size_of, int(budget * 3 / 4))
        self._current: tuple[Index, PositionExamples] | None = None
        self._until = 0
        self._widths: dict[int, int] | None = None

    @property
    def loads(self) -> int:
        """Number of units read so far by this process."""
        return self._cache.loads

    @property
    def widths(self) -> dict[int, int]:
        """Width of a teacher state by stored layer."""
        if self._widths is None:
            taught = np.flatnonzero(self.distil)[:1]
            self._widths = self._joined(taught)[1].widths if len(taught) else {}
        return self._widths

    def retained_mass(self, temperature: float, rows: Index) -> float:
        """Return the mean mass of the stored classes over the rows in a few units, evenly spread."""
        units = np.unique(self._unit_of(rows))
        some = units[np.linspace(0, len(units) - 1, min(len(units), SAMPLE_UNITS)).astype(np.int64)]
        _, joined = self._joined(rows[np.isin(self._unit_of(rows), some)])
        return joined.retained_mass(temperature, np.arange(joined.rows, dtype=np.int64))

    def ids_of(self, rows: Index) -> list[str]:
        """Return the ids of rows in the snapshot, as hexadecimal text."""
        if len(rows) == 0:
            return []
        numbers, joined = self._joined(rows)
        return joined.ids_of(np.searchsorted(numbers, rows).astype(np.int64))

    def states(self, rows: Index) -> Mapping[int, Vectors]:
        """Return the teacher states of labelled rows, by stored layer; each row once, ascending."""
        _, joined = self._joined(rows)
        return joined.states(np.arange(joined.rows, dtype=np.int64))

    def sampling_classes(self) -> RaggedArray:
        """Refuse sampling by class, which needs the labels of all rows at once.

        Raises:
            ConfigError: always.
        """
        raise ConfigError(
            "student.training.sampling.by: class is for classifiers whose rows are in memory "
            "(stream: never, or a larger memory_gb)"
        )

    def entropies(self) -> npt.NDArray[np.float64]:
        """Refuse sampling by entropy, which needs the labels of all rows at once.

        Raises:
            ConfigError: always.
        """
        raise ConfigError(
            "student.training.sampling.by: entropy needs rows in memory: set stream to never, or raise memory_gb"
        )

    def prepare(self, step: int, rows_of: Callable[[int], Index], stop: int) -> None:
        """Join the rows of this step and some later steps, and prefetch the following units."""
        now = rows_of(step)
        if step < self._until and self._has(now):
            return
        span = max(1, self._chunk // max(len(now), 1))
        self._until = step + span  # whole units may have rows of later steps, but the steps after are to be prefetched
        rows = np.concatenate([now, *(rows_of(at) for at in range(step + 1, min(step + span, stop)))])
        self._join(rows)
        later = [rows_of(at) for at in range(min(step + span, stop), min(step + 2 * span, stop))]
        if later:
            units = np.unique(self._unit_of(np.concatenate(later)))
            self._cache.prefetch(units.tolist(), keep=np.unique(self._unit_of(rows)).tolist())

    def batch(self, rows: Index, weight_B: RowWeights | None = None) -> tuple[Batch, LossBatch]:
        """See `Examples`."""
        if not self._has(rows):
            self._join(rows)
        assert self._current is not None
        return self._current[1].batch(np.searchsorted(self._current[0], rows).astype(np.int64), weight_B)

    def close(self) -> None:
        """End the threads and drop the units in memory."""
        self._cache.close()
        self._current = None

    def _has(self, rows: Index) -> bool:
        if self._current is None:
            return False
        numbers = self._current[0]
        return bool((numbers[np.minimum(np.searchsorted(numbers, rows), len(numbers) - 1)] == rows).all())

    def _join(self, rows: Index) -> None:
        self._current = None  # frees its memory before the next is made
        self._cache.unpin()
        self._current = self._joined(rows, whole=True)

    def _joined(self, rows: Index, *, whole: bool = False) -> tuple[Index, PositionExamples]:
        """Return these rows, ascending and each once, and a set that contains them.

        If ``whole`` is True, units are included whole and without a copy, with all their rows, as far as the budget
        allows: the distributions of large rows are then copied only once, when a batch is made.
        """
        rows = np.unique(rows)
        unit = self._unit_of(rows)
        found = {}
        for number, data in self._cache.each(np.unique(unit).tolist()):
            first, own = self._bounds[number], rows[unit == number]
            if whole and cheaply_joined(data) and self._cache.pin(number):
                found[number] = np.arange(first, first + data.rows), data
            else:
                found[number] = own, take_rows(data, own - first)
        parts = [found[number] for number in sorted(found)]
        return np.concatenate([own for own, _ in parts]), join_sets([data for _, data in parts])

    def _unit_of(self, rows: Index) -> Index:
        return np.searchsorted(self._bounds, rows, side="right").astype(np.int64) - 1

    def _load(self, number: int) -> PositionExamples:
        unit, expected = self._units[number], int(self._bounds[number + 1] - self._bounds[number])
        found = self._sources[unit.source].load(unit)
        if found.rows != expected:
            raise TrainingError(
                f"{unit.shard.name}: {found.rows} of the rows {unit.start} to {unit.stop} are usable, "
                f"{expected} were usable when training began: the snapshot has changed; restore it"
            )
        return found
