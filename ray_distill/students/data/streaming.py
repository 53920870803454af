"""Training rows that do not fit into memory: units of the snapshot, with their labels, read as the order comes to them.

Rows are numbered as in memory, so batches, and with them curves, are the same. What must be known of every row before
the first step (is it usable, is it labelled, may the teacher teach it) is found in one pass that the ranks share.
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
from ray_distill.labels.model.rowids import RowIds
from ray_distill.labels.model.signal import Signal, Vectors
from ray_distill.losses.base import LossBatch
from ray_distill.snapshots.manifest import Shard
from ray_distill.snapshots.reader import Snapshot
from ray_distill.students.data.concat import cheaply_joined, join_sets, size_of, take_rows
from ray_distill.students.data.examples import PositionExamples
from ray_distill.students.data.unit_cache import UnitCache
from ray_distill.students.order.cursor import Index
from ray_distill.students.process_group import Ranks
from ray_distill.tasks.encoded import Batch

Labels = tuple[pa.Array, Signal]
Mask = npt.NDArray[np.bool_]

#: Rows that are put together at a time, at most: it makes a batch of many units cheap, and bounds what that takes.
CHUNK_ROWS = 8192
#: Units that a statistic over all labels is estimated from.
SAMPLE_UNITS = 16


class LabelSource(Protocol):
    """Labels of a snapshot's rows: a `LabelSet`, or several as one."""

    @property
    def manifest(self) -> StoreManifest:
        """What they are."""

    def labelled(self, wanted: RowIds) -> RowIds:
        """Those of some row ids that have labels; nothing is read."""

    def read_rows(self, wanted: RowIds, layers: Sequence[int] = ()) -> Labels:
        """Ids and labels of those of some rows that have them."""

    def read(self, layers: Sequence[int] = ()) -> Labels:
        """All labelled rows of the snapshot, each once, in the snapshot's order."""


class Build(Protocol):
    """Joins snapshot rows with labels: `build_examples` with all else given."""

    def __call__(self, table: pa.Table, *, labels: Labels, name: str, part: bool = False) -> PositionExamples:
        """Return a set of the usable rows, ascending by id; see `build_examples`."""


@dataclass(frozen=True, kw_only=True)
class Unit:
    """Rows of a snapshot that are read together: the range of one work unit, whoever labelled it."""

    source: int
    """Number of the source whose snapshot it is of."""
    shard: Shard
    start: int
    stop: int


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where training rows come from."""

    snapshot: Snapshot
    labels: LabelSource
    layers: tuple[int, ...]
    """Teacher layers whose states are read."""
    columns: tuple[str, ...]
    build: Build

    def units(self, split: str, number: int = 0) -> list[Unit]:
        """The ranges into which the shards of a split fall: of the pinned snapshot and store, and of nothing else.

        ``number`` is this source's.
        """
        rows = self.labels.manifest.rows_a_unit
        return [
            Unit(source=number, shard=shard, start=start, stop=min(start + rows, shard.rows))
            for shard in self.snapshot.shards
            if shard.split == split
            for start in range(0, shard.rows, rows)
        ]

    def load(self, unit: Unit) -> PositionExamples:
        """A unit's usable rows with their labels."""
        table = self.snapshot.read_range(unit.shard, unit.start, unit.stop, self.columns)
        labels = self.labels.read_rows(rowids.to_numpy(table["row_id"]), self.layers)
        return self.build(table, labels=labels, name="train", part=True)


@dataclass(frozen=True, kw_only=True)
class UnitFacts:
    """What is known of a unit's usable rows without their labels."""

    labelled: Mask
    distil: Mask
    lengths: npt.NDArray[np.int32] | None
    """See `Examples`; None where nobody asked."""
    least: bytes
    """Of the ids of all its rows."""
    greatest: bytes


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What is known of every usable row without its labels."""

    bounds: Index
    """``[U+1]`` number of the first row of each unit."""
    labelled: Mask
    distil: Mask
    lengths: npt.NDArray[np.int32] | None = None


def scan(sources: Sequence[Source], units: Sequence[Unit], ranks: Ranks, *, lengths: bool = False) -> Facts:
    """Go through all rows once, each shard on one rank, its digest checked; the same facts on every rank.

    Args:
        sources: of the rows.
        units: into which they fall.
        ranks: that share the work.
        lengths: whether the rows' tokens are counted, which takes 4 bytes a row, or 8.

    Raises:
        SnapshotError: a shard is damaged. What one rank finds is raised on all, so that none waits for it.
        TrainingError: rows are not ordered by their ids, or none is usable.
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
                f"{sources[source].snapshot.ref.url}: its rows are not ordered by their ids, so they cannot be "
                "read in parts; take the snapshot again, or set student.training.stream to never"
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
        lengths=part.lengths if lengths else None,
        least=ids[0].ljust(16, b"\0"),
        greatest=ids[-1].ljust(16, b"\0"),
    )


class StreamedSet:
    """`Examples` whose units are read when they are wanted, on threads, within a budget of bytes."""

    def __init__(
        self, sources: Sequence[Source], units: Sequence[Unit], facts: Facts, *, row_bytes: float, budget: float
    ) -> None:
        self.labelled, self.distil, self.lengths = facts.labelled, facts.distil, facts.lengths
        self.rows = len(facts.labelled)
        self.drawn = any(source.labels.manifest.draws > 0 for source in sources)
        self._sources, self._units, self._bounds = sources, units, facts.bounds
        self._chunk = int(np.clip(budget / 8 / max(row_bytes, 1.0), 1, CHUNK_ROWS))
        self._cache: UnitCache[PositionExamples] = UnitCache(self._load, size_of, int(budget * 3 / 4))
        self._held: tuple[Index, PositionExamples] | None = None
        self._until = 0
        self._widths: dict[int, int] | None = None

    @property
    def loads(self) -> int:
        """Units read so far, by this process."""
        return self._cache.loads

    @property
    def widths(self) -> dict[int, int]:
        """Numbers of a teacher state by stored layer."""
        if self._widths is None:
            taught = np.flatnonzero(self.distil)[:1]
            self._widths = self._joined(taught)[1].widths if len(taught) else {}
        return self._widths

    def retained_mass(self, temperature: float, rows: Index) -> float:
        """Mean mass of the stored classes over those of the rows that lie in a few units, evenly spread."""
        units = np.unique(self._unit_of(rows))
        some = units[np.linspace(0, len(units) - 1, min(len(units), SAMPLE_UNITS)).astype(np.int64)]
        _, joined = self._joined(rows[np.isin(self._unit_of(rows), some)])
        return joined.retained_mass(temperature, np.arange(joined.rows, dtype=np.int64))

    def ids_of(self, rows: Index) -> list[str]:
        """Ids of rows in the snapshot, as hexadecimal text."""
        if len(rows) == 0:
            return []
        held, joined = self._joined(rows)
        return joined.ids_of(np.searchsorted(held, rows).astype(np.int64))

    def states(self, rows: Index) -> Mapping[int, Vectors]:
        """Teacher states of rows the teacher has labelled, by stored layer; each row once, ascending."""
        _, joined = self._joined(rows)
        return joined.states(np.arange(joined.rows, dtype=np.int64))

    def sampling_classes(self) -> npt.NDArray[np.float64]:
        """Refuse: the labels of all rows are needed at once.

        Raises:
            ConfigError: always.
        """
        raise ConfigError(
            "student.training.sampling.by: class is for classifiers whose rows are in memory "
            "(stream: never, or a larger memory_gb)"
        )

    def entropies(self) -> npt.NDArray[np.float64]:
        """Refuse: the labels of all rows are needed at once.

        Raises:
            ConfigError: always.
        """
        raise ConfigError(
            "student.training.sampling.by: entropy needs rows in memory: set stream to never, or raise memory_gb"
        )

    def prepare(self, step: int, rows_of: Callable[[int], Index], stop: int) -> None:
        """Put the rows of this step and some after it together, and begin to read what comes after these."""
        now = rows_of(step)
        if step < self._until and self._holds(now):
            return
        span = max(1, self._chunk // max(len(now), 1))
        self._until = step + span  # whole units may hold rows of later steps, but those after them are to be asked for
        rows = np.concatenate([now, *(rows_of(at) for at in range(step + 1, min(step + span, stop)))])
        self._hold(rows)
        later = [rows_of(at) for at in range(min(step + span, stop), min(step + 2 * span, stop))]
        if later:
            units = np.unique(self._unit_of(np.concatenate(later)))
            self._cache.ask(units.tolist(), keep=np.unique(self._unit_of(rows)).tolist())

    def batch(self, rows: Index, real: Mask | None = None) -> tuple[Batch, LossBatch]:
        """See `Examples`."""
        if not self._holds(rows):
            self._hold(rows)
        assert self._held is not None
        return self._held[1].batch(np.searchsorted(self._held[0], rows).astype(np.int64), real)

    def close(self) -> None:
        """End the threads and forget what was read."""
        self._cache.close()
        self._held = None

    def _holds(self, rows: Index) -> bool:
        if self._held is None:
            return False
        held = self._held[0]
        return bool((held[np.minimum(np.searchsorted(held, rows), len(held) - 1)] == rows).all())

    def _hold(self, rows: Index) -> None:
        self._held = None  # not two at a time
        self._cache.take_back()
        self._held = self._joined(rows, whole=True)

    def _joined(self, rows: Index, *, whole: bool = False) -> tuple[Index, PositionExamples]:
        """These rows, ascending and each once, and a set of them.

        If units may be ``whole``, they are not copied, nor are other rows of theirs left out, as far as the budget for
        that goes: the distributions of large rows are then copied once, when a batch is made.
        """
        rows = np.unique(rows)
        unit = self._unit_of(rows)
        found = {}
        for number, data in self._cache.each(np.unique(unit).tolist()):
            first, own = self._bounds[number], rows[unit == number]
            if whole and cheaply_joined(data) and self._cache.lend(number):
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
                f"{expected} were when training began: the snapshot has changed; restore it"
            )
        return found
