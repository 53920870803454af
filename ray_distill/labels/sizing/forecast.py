"""Forecast the bytes and seconds of a labelling run, and its break-even, from a probe; pure.

Shards of some sizes are really encoded, and a unit's bytes are interpolated between them. Seconds are the rows divided
by the throughput of a rehearsal, beside what is done once.
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
#: Relative error that a forecast of time may have: other load, other machines, more actors, larger units.
TIME_ERROR = 0.5


@dataclass(frozen=True, kw_only=True)
class SizeLine:
    """Bytes of a shard by its rows, measured at some sizes.

    The line is straight between them, and extended beyond the last.
    """

    rows: tuple[int, ...]
    """Ascending."""
    sizes: tuple[float, ...]

    def at(self, rows: int) -> float:
        """Return the bytes of a shard of ``rows``; 0 of none."""
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
    """One line a layer."""


def measure_sizes(
    ids: RowIds, signal: Signal, *, manifest: StoreManifest, fits: Fits, units: Sequence[int], seed: int = 0
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
    row_counts = {count, count // 2, count // 4, count // 8, *(rows for rows in _common(units) if rows < count)} - {0}
    order = np.random.default_rng(seed).permutation(count).astype(np.int64)
    parts = {rows: _chunks(order, rows, ids) for rows in sorted(row_counts)}
    every, spec = signal.distributions, manifest.distributions
    layers = {
        layer: _line(
            parts,
            lambda at, layer=layer, hidden=hidden: encode_hidden(  # type: ignore[misc]
                ids[at], hidden.take(at), manifest.hidden[layer], fits
            ),
        )
        for layer, hidden in sorted(signal.hidden.items())
    }
    return Sizes(
        labels=_line(parts, lambda at: parquet_shards.encode_labels(ids[at], every.take(at), spec, fits)), hidden=layers
    )


def _common(units: Sequence[int], most: int = 4) -> list[int]:
    """Return the commonest sizes of units."""
    sizes, counts = np.unique(np.asarray(units, dtype=np.int64), return_counts=True)
    return [int(rows) for rows in sizes[np.argsort(-counts, kind="stable")][:most]]


def _chunks(order: npt.NDArray[np.int64], rows: int, ids: RowIds) -> list[npt.NDArray[np.int64]]:
    """Return disjoint pieces of so many rows, each in the order of its ids as a shard is."""
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
    """Bytes a layer."""

    @property
    def total(self) -> int:
        """All of them."""
        return self.labels + sum(self.hidden.values())


def forecast_bytes(sizes: Sizes, units: Sequence[int], kept: float = 1.0) -> Bytes:
    """Forecast the bytes of the files of units with these rows.

    A share ``kept`` of the rows can be labelled.
    """
    rows, counts = np.unique(np.rint(np.asarray(units, dtype=np.float64) * kept).astype(np.int64), return_counts=True)

    def over(line: SizeLine) -> int:
        return round(sum(line.at(int(size)) * int(count) for size, count in zip(rows, counts, strict=True)))

    return Bytes(labels=over(sizes.labels), hidden={layer: over(line) for layer, line in sizes.hidden.items()})


def forecast_seconds(*, once: float, rows: int, rows_per_second: float) -> float:
    """Return the seconds of a labelling run; correct within ± `TIME_ERROR`.

    Args:
        once: seconds before the first unit and after the last one.
        rows: rows to label.
        rows_per_second: throughput of the rehearsed pipeline between its first and its last unit.
    """
    return once + (rows / rows_per_second if rows else 0.0)


@dataclass(frozen=True, kw_only=True)
class Breakeven:
    """Cost of offline labels against that of the teacher beside every student's step.

    Costs are money and hours of reserved hardware.
    """

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
        """Return whether it does for the planned passes."""
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
    """Compare both costs; without prices, hours decide.

    ``read_*`` and ``teacher_*`` are of one pass over the training rows.
    """
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
