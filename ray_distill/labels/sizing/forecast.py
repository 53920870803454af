"""Forecasts from a probe's measurements: bytes and seconds of a labelling run that has not happened; pure.

Bytes are real: shards of some sizes are encoded, and a unit's size is read off the line through them. Seconds are a
model: a batch takes ``base + slope · tokens`` (padded), a unit the sum of its batches, in batches of like length.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ray_distill.labels.format import parquet_shards
from ray_distill.labels.format.fitted_arrays import Fits
from ray_distill.labels.format.hidden_states import encode_hidden
from ray_distill.labels.model.manifest import StoreManifest
from ray_distill.labels.model.rowids import RowIds
from ray_distill.labels.model.signal import Signal

#: Shards encoded at each size, at most; their mean is taken.
PIECES = 4
#: Quantile of the standard normal for an interval of 90 %.
Z_90 = 1.645
#: Spread (standard deviation of the logarithm) of times between runs on one idle machine, at least. Assumed: one probe
#: cannot measure it. What is done once (processes that start, a model that loads) varies more than batch after batch.
SPREAD_ONCE, SPREAD_STEADY = 0.25, 0.15
#: What other load that a probe has met may add to that towards longer times, at most: it doubles. Assumed as well.
SPREAD_LOAD = 0.4
RESAMPLES = 200


@dataclass(frozen=True, kw_only=True)
class SizeLine:
    """Bytes of a shard by its rows, measured at some sizes; straight between them, and on beyond the last."""

    rows: tuple[int, ...]
    """Ascending."""
    sizes: tuple[float, ...]

    def at(self, rows: int) -> float:
        """Bytes of a shard of ``rows``; 0 of none."""
        last = len(self.rows) - 1
        if rows <= 0 or last < 0:
            return 0.0
        if last == 0:
            return self.sizes[0] * rows / self.rows[0]
        left = min(max(int(np.searchsorted(self.rows, rows)) - 1, 0), last - 1)
        right = left + 1
        if rows > self.rows[last]:  # from half of the largest on: a longer line is a steadier one
            left, right = min(int(np.searchsorted(self.rows, self.rows[last] / 2)), last - 1), last
        slope = (self.sizes[right] - self.sizes[left]) / (self.rows[right] - self.rows[left])
        return max(self.sizes[left] + slope * (rows - self.rows[left]), 0.0)


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Bytes by rows of a unit's files."""

    labels: SizeLine
    hidden: Mapping[int, SizeLine]
    """By layer."""


def measure_sizes(
    ids: RowIds, signal: Signal, manifest: StoreManifest, fits: Fits, units: Sequence[int], seed: int = 0
) -> Sizes:
    """Encode shards of several sizes from a sample's answers.

    Args:
        ids: ``[R]`` row ids of the sample.
        signal: their answers, in the same order.
        manifest: of the store that is planned.
        fits: its fits.
        units: rows of the units that are to come; sizes among them that the sample can fill are measured exactly.
        seed: of which rows share a shard.
    """
    count = len(ids)
    wanted = {count, count // 2, count // 4, count // 8, *(rows for rows in _common(units) if rows < count)} - {0}
    order = np.random.default_rng(seed).permutation(count).astype(np.int64)
    parts = {rows: _chunks(order, rows, ids) for rows in sorted(wanted)}
    assert signal.distributions is not None
    every = signal.distributions
    layers = {
        layer: _line(
            parts,
            lambda at, layer=layer, hidden=hidden: encode_hidden(  # type: ignore[misc]
                ids[at], hidden.take(at), layer, manifest, fits
            ),
        )
        for layer, hidden in sorted(signal.hidden.items())
    }
    return Sizes(
        labels=_line(parts, lambda at: parquet_shards.encode_labels(ids[at], every.take(at), manifest, fits)),
        hidden=layers,
    )


def _common(units: Sequence[int], most: int = 4) -> list[int]:
    """The commonest sizes of units."""
    sizes, counts = np.unique(np.asarray(units, dtype=np.int64), return_counts=True)
    return [int(rows) for rows in sizes[np.argsort(-counts, kind="stable")][:most]]


def _chunks(order: npt.NDArray[np.int64], rows: int, ids: RowIds) -> list[npt.NDArray[np.int64]]:
    """Disjoint pieces of so many rows, each in the order of its ids as a shard is."""
    pieces = [order[start : start + rows] for start in range(0, len(order) - rows + 1, rows)][:PIECES]
    return [piece[np.argsort(ids[piece], kind="stable")] for piece in pieces]


def _line(
    parts: Mapping[int, list[npt.NDArray[np.int64]]], encode: Callable[[npt.NDArray[np.int64]], bytes]
) -> SizeLine:
    means = {rows: float(np.mean([len(encode(piece)) for piece in pieces])) for rows, pieces in parts.items()}
    return SizeLine(rows=tuple(means), sizes=tuple(means.values()))


@dataclass(frozen=True, kw_only=True)
class Bytes:
    """Bytes of a run."""

    labels: int
    hidden: Mapping[int, int]
    """By layer."""

    @property
    def total(self) -> int:
        """All of them."""
        return self.labels + sum(self.hidden.values())


def forecast_bytes(sizes: Sizes, units: Sequence[int], kept: float = 1.0) -> Bytes:
    """Bytes of the files of units with these rows, a share ``kept`` of which can be labelled."""
    rows, counts = np.unique(np.rint(np.asarray(units, dtype=np.float64) * kept).astype(np.int64), return_counts=True)

    def over(line: SizeLine) -> int:
        return round(sum(line.at(int(size)) * int(count) for size, count in zip(rows, counts, strict=True)))

    return Bytes(labels=over(sizes.labels), hidden={layer: over(line) for layer, line in sizes.hidden.items()})


@dataclass(frozen=True, kw_only=True)
class Batch:
    """A teacher's batch that was timed."""

    rows: int
    length: int
    """Of its longest row: what all are padded to."""
    seconds: float


@dataclass(frozen=True, kw_only=True)
class BatchTime:
    """Seconds of a batch: ``base + slope · rows · length``."""

    base: float
    slope: float

    def of(self, tokens: npt.NDArray[np.float64]) -> float:
        """Seconds of batches with so many padded tokens each."""
        return float(self.base * len(tokens) + self.slope * tokens.sum())


def fit_time(batches: Sequence[Batch]) -> BatchTime:
    """Least squares with neither part negative."""
    tokens = np.array([batch.rows * batch.length for batch in batches], dtype=np.float64)
    seconds = np.array([batch.seconds for batch in batches], dtype=np.float64)
    if not len(batches):
        return BatchTime(base=0.0, slope=0.0)
    if np.ptp(tokens) > 0:
        slope, base = np.polyfit(tokens, seconds, 1)
        if slope >= 0 and base >= 0:
            return BatchTime(base=float(base), slope=float(slope))
        if slope < 0:
            return BatchTime(base=float(seconds.mean()), slope=0.0)
    return BatchTime(base=0.0, slope=float(seconds.sum() / max(tokens.sum(), 1.0)))


def unit_seconds(
    model: BatchTime, lengths: npt.NDArray[np.int64], rows: int, batch: int, random: np.random.Generator
) -> float:
    """Seconds of the teacher for a unit: rows drawn from a sample's lengths, sorted, in batches, each padded."""
    if rows <= 0 or not len(lengths):
        return 0.0
    drawn = np.sort(random.choice(lengths, rows))
    starts = np.arange(0, rows, batch)
    stops = np.minimum(starts + batch, rows)
    return model.of((stops - starts) * drawn[stops - 1].astype(np.float64))


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A forecast and its 90 % interval."""

    value: float
    low: float
    high: float

    def scaled(self, factor: float) -> "Interval":
        """The same in another unit."""
        return Interval(value=self.value * factor, low=self.low * factor, high=self.high * factor)


@dataclass(frozen=True, kw_only=True)
class Timing:
    """What a probe measured of time; seconds."""

    batches: Sequence[Batch]
    lengths: npt.NDArray[np.int64]
    """Of the sample's rows."""
    repeat: float
    """How much longer or shorter the same batches took the second time: the larger sum over the smaller."""
    beside: float
    """Of reading, encoding and writing, a row: CPU tasks that run beside the teacher."""
    cores: float
    """CPUs that they and the teachers share."""
    once: float
    """Of what is done once before the first unit comes out: processes, teacher, check, fits, first block."""
    arrivals: Sequence[tuple[int, float]]
    """Units of the rehearsal as they came, ``(rows, seconds since the one before)``, without the first."""
    busy: float
    """Load a core on the teacher's node in the minutes before the probe, at least 1: work of others that may end."""
    batch: int
    actors: tuple[int, int]
    """Least (the rehearsal had these) and most."""


def forecast_seconds(timing: Timing, units: Sequence[int], seed: int = 0) -> Interval:
    """Seconds of a labelling run from its start to its last commit, with a 90 % interval.

    ``once + Σ over units``, a unit's pace being the rehearsal's for its small units plus the modelled work of the rows
    that a real unit has more. The work of a unit is the teacher's, or all CPUs' share where these are the bottleneck.

    The interval is a log-normal one. Its spread joins: batches resampled (bootstrap), the arrivals' spread, how the
    same batches differ when they are run again, and `SPREAD_ONCE`, `SPREAD_STEADY` as the least between two runs. All
    parts err together (the conservative choice: it is one machine). Other load may end, or at most double: towards the
    lower end half of ``log busy`` is joined to the spread, which gives a run that competed with b processes a core
    about a factor of b, and towards the upper end no more than `SPREAD_LOAD`. An autoscaler shows in the lower end
    alone, where the run has its most actors from the start. Not covered: load that comes to an idle machine, slower
    machines that join later, preemption, storage that throttles.
    """
    random = np.random.default_rng(seed)
    once, steady = timing.once, _steady(timing, fit_time(timing.batches), units, random)
    draws = []
    for _ in range(RESAMPLES):
        picked = [timing.batches[at] for at in random.integers(len(timing.batches), size=len(timing.batches))]
        arrivals = (
            [timing.arrivals[at] for at in random.integers(len(timing.arrivals), size=len(timing.arrivals))]
            if timing.arrivals
            else []
        )
        draws.append(_steady(timing, fit_time(picked), units, random, arrivals))
    sampled = float(np.std(np.log(np.maximum(draws, 1e-9)))) if steady > 0 else 0.0
    # Two totals that differ by a factor f have a standard deviation of log f / √2.
    steadily = np.hypot(sampled, max(SPREAD_STEADY, np.log(max(timing.repeat, 1.0)) / np.sqrt(2)))
    load = 0.5 * np.log(max(timing.busy, 1.0))

    def end(direction: int, load: float, actors: float) -> float:
        first, then = np.hypot(SPREAD_ONCE, load), np.hypot(steadily, load)
        return float(once * np.exp(direction * Z_90 * first) + steady * actors * np.exp(direction * Z_90 * then))

    return Interval(
        value=once + steady,
        low=end(-1, load, timing.actors[0] / timing.actors[1]),
        high=end(1, min(load, SPREAD_LOAD), 1.0),
    )


def _steady(
    timing: Timing,
    model: BatchTime,
    units: Sequence[int],
    random: np.random.Generator,
    arrivals: Sequence[tuple[int, float]] | None = None,
) -> float:
    """Seconds of all units once the pipeline runs."""
    seen = timing.arrivals if arrivals is None else arrivals
    rehearsed = np.array([rows for rows, _ in seen], dtype=np.int64)
    # What Ray takes for a block beyond the modelled work; nothing is saved where the work alone explains the pace.
    gap = float(np.mean([seconds for _, seconds in seen])) if len(seen) else 0.0
    block = max(gap - _mean_work(timing, model, rehearsed, random), 0.0) if len(seen) else 0.0
    sizes = np.asarray(units, dtype=np.int64)
    return len(sizes) * (block + _mean_work(timing, model, sizes, random))


def _mean_work(timing: Timing, model: BatchTime, units: npt.NDArray[np.int64], random: np.random.Generator) -> float:
    """Mean seconds a unit at the bottleneck, over at most 32 of the units."""
    if not len(units):
        return 0.0
    some = units if len(units) <= 32 else random.choice(units, 32, replace=False)
    teacher = np.array([unit_seconds(model, timing.lengths, int(rows), timing.batch, random) for rows in some])
    beside = some * timing.beside
    work = np.maximum(teacher / timing.actors[0], (teacher + beside) / max(timing.cores, 1.0))
    return float(work.mean() * units.mean() / some.mean())


@dataclass(frozen=True, kw_only=True)
class Breakeven:
    """Offline labels against the teacher beside every student's step; money and hours of reserved hardware."""

    passes: float
    """Planned passes over the training rows: students × epochs."""
    offline_money: float
    """Labelling once, and reading the labels in every pass."""
    online_money: float
    """The teacher's forward in every pass."""
    offline_hours: float
    online_hours: float
    passes_to_pay: float | None
    """Passes from which on offline is cheaper; None where it never is."""

    @property
    def offline_pays(self) -> bool:
        """Whether it does for the planned passes."""
        return self.offline_money <= self.online_money if self.online_money else self.offline_hours <= self.online_hours


def break_even(
    *,
    passes: float,
    label_money: float,
    label_hours: float,
    read_money: float,
    read_hours: float,
    teacher_money: float,
    teacher_hours: float,
) -> Breakeven:
    """Compare; ``read_*`` and ``teacher_*`` are of one pass over the training rows. Without prices, hours decide."""
    priced = teacher_money > 0
    once, saved = (label_money, teacher_money - read_money) if priced else (label_hours, teacher_hours - read_hours)
    return Breakeven(
        passes=passes,
        offline_money=label_money + passes * read_money,
        online_money=passes * teacher_money,
        offline_hours=label_hours + passes * read_hours,
        online_hours=passes * teacher_hours,
        passes_to_pay=once / saved if saved > 0 else None,
    )
