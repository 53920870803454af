"""The probe of `ray-distill plan`: one task on a node of the teacher's that asks it about a few rows, and times it.

Only plain values and small arrays leave the task.
"""

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from ray_distill.artifacts import SnapshotRef
from ray_distill.config import Campaign
from ray_distill.errors import LabelError
from ray_distill.labels.format import parquet_shards
from ray_distill.labels.format.fitted_arrays import Fits, read_fits
from ray_distill.labels.format.hidden_states import encode_hidden
from ray_distill.labels.model import rowids
from ray_distill.labels.model.manifest import StoreManifest
from ray_distill.labels.model.signal import Distributions, Signal
from ray_distill.labels.sizing import options
from ray_distill.labels.sizing.forecast import Batch, Sizes, forecast_bytes, measure_sizes
from ray_distill.models.io.load import load_processor
from ray_distill.runtime.forecast.storage_options import Forms, compare
from ray_distill.runtime.labelling.batching import answer_all, ask_of, by_length
from ray_distill.runtime.labelling.calibrate_store import LOOK_ROWS, Found, fit_store, look
from ray_distill.runtime.labelling.identify_teacher import TeacherFacts
from ray_distill.snapshots.reader import open_snapshot
from ray_distill.tasks.base import Encoded
from ray_distill.tasks.catalogue import get_label_task
from ray_distill.teachers.base import Ask, Teacher
from ray_distill.teachers.engines import open_teacher

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Piece:
    """Rows of one snapshot shard that are probed together; ``start:stop`` is the range of their unit."""

    shard: str
    start: int
    stop: int
    rows: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Probed:
    """What the probe found; times in seconds."""

    rows: int
    """That were answered; the teacher was timed on these."""
    rejected: int
    positions: int
    found: Found
    """What a new store would find: fits, rows a unit. Of an existing store its own."""
    units: tuple[int, ...]
    """Rows of the units to come."""
    sizes: Sizes
    batches: tuple[Batch, ...]
    lengths: npt.NDArray[np.int64]
    """``[rows]``, of the encoded rows."""
    repeat: float
    load_seconds: float
    encode_seconds: float
    """Reading and encoding, a row."""
    write_seconds: float
    """Encoding shards, a row."""
    read_seconds: float
    """Decoding a label shard, a row."""
    fit_seconds: float
    """Of the look at the calibration split that a new store needs, without loading the teacher."""
    busy: float
    """Load a core in the minutes before the probe, at least 1."""
    forms: Forms
    ranks: dict[int, dict[float, int]]
    """Components that keep a share of the variance, by layer."""
    widths: dict[int, int]
    """Of the hidden states, by layer."""


def probe(
    config: Campaign,
    snapshot: SnapshotRef,
    facts: TeacherFacts,
    manifest: StoreManifest,
    store_url: str | None,
    pieces: Sequence[Piece],
    units: Sequence[int] | None,
) -> Probed:
    """Ask the teacher about the rows of some pieces; runs where the teacher can.

    Args:
        config: the campaign.
        snapshot: what is to be labelled.
        facts: the teacher's.
        manifest: of the store that is planned, or of the one that is there.
        store_url: the store that is there, for its fits; None = the fits are made here.
        pieces: which rows.
        units: rows of the units to come; None = of a new store's, which follow from the fits.

    Raises:
        LabelError: the teacher can answer none of the rows.
    """
    busy = max(*os.getloadavg()[:2], os.cpu_count() or 1) / (os.cpu_count() or 1)
    torch.set_num_threads(manifest.threads)  # as the actors do
    load_seconds, teacher = _timed(
        lambda: open_teacher(config.labels.teacher, task=config.task, head_url=facts.head_url)
    )
    encode_seconds, encoded = _timed(lambda: _encode(config, snapshot, pieces))
    asked = _ask(teacher, encoded, ask_of(manifest), manifest.batch, config)
    fit_seconds, found = _found(config, snapshot, facts, manifest, store_url, asked, load_seconds)
    manifest = replace(manifest, range_rows=found.range_rows)
    opened = open_snapshot(snapshot)
    units = unit_rows([shard.rows for shard in opened.shards], manifest.rows_a_unit) if units is None else units
    sizes = measure_sizes(asked.ids, asked.signal, manifest, found.fits, units)
    write_seconds, data = _timed(lambda: _write(asked, manifest, found.fits))
    read_seconds, _ = _timed(lambda: parquet_shards.decode_labels(data, manifest, found.fits, "the probe"))
    rows = len(asked.ids)
    positions = len(distributions_of(asked.signal).position)
    forms = compare(
        config, facts, teacher, asked.encoded, units, kept=rows / (rows + asked.rejected), positions=positions / rows
    )
    forms = _with_own_bytes(forms, sizes, units, asked)
    return Probed(
        rows=rows,
        rejected=asked.rejected,
        positions=positions,
        found=found,
        units=tuple(units),
        sizes=sizes,
        batches=asked.batches,
        lengths=lengths(asked.encoded),
        repeat=asked.repeat,
        load_seconds=load_seconds,
        encode_seconds=encode_seconds / (encoded.rows + len(encoded.rejected)),
        write_seconds=write_seconds / rows,
        read_seconds=read_seconds / rows,
        fit_seconds=fit_seconds,
        busy=busy,
        forms=forms,
        ranks={layer: options.ranks(hidden.values) for layer, hidden in asked.signal.hidden.items()},
        widths={layer: hidden.values.shape[1] for layer, hidden in asked.signal.hidden.items()},
    )


def _with_own_bytes(forms: Forms, sizes: Sizes, units: Sequence[int], asked: "_Asked") -> Forms:
    """The configured form by the store's own fits and all rows, which are better than the comparison's."""
    rows, configured = len(asked.ids), forms.options[0]
    total = forecast_bytes(sizes, units, rows / (rows + asked.rejected)).labels
    factor = total / max(configured.total_bytes, 1)
    own = replace(configured, total_bytes=total, bytes_a_position=configured.bytes_a_position * factor)
    return replace(forms, options=(own, *forms.options[1:]))


def unit_rows(shard_rows: Sequence[int], rows_a_unit: int) -> list[int]:
    """Rows of the units of a snapshot of which nothing is labelled yet."""
    return [min(rows_a_unit, rows - start) for rows in shard_rows for start in range(0, rows, rows_a_unit)]


@dataclass(frozen=True, kw_only=True)
class _Asked:
    """The rows that were answered in the time there was, in the order of their ids."""

    encoded: Encoded
    """In the teacher's order."""
    ids: rowids.RowIds
    signal: Signal
    rejected: int
    batches: tuple[Batch, ...]
    repeat: float


def _encode(config: Campaign, snapshot: SnapshotRef, pieces: Sequence[Piece]) -> Encoded:
    """Read and encode all pieces.

    Raises:
        LabelError: none of the rows can be.
    """
    opened, task = open_snapshot(snapshot), get_label_task(config.task)
    tables = [
        opened.read_shard(opened.shard(piece.shard), columns=["row_id", task.input_column]).take(
            pa.array(piece.rows, pa.int64())
        )
        for piece in pieces
    ]
    encoded = task.encode(pa.concat_tables(tables), load_processor(config.labels.teacher, task=config.task))
    if not encoded.rows:
        raise LabelError(
            f"none of the {len(encoded.rejected)} probed rows can be encoded for the teacher, the first: "
            f"{encoded.rejected[0].reason}; correct snapshot.columns or the source"
        )
    return encoded


def _ask(teacher: Teacher, encoded: Encoded, ask: Ask, batch: int, config: Campaign) -> _Asked:
    """Time the teacher batch by batch, in a random order until half the time is over; then all of these once more."""
    order = by_length(encoded)
    parts = [order[start : start + batch] for start in range(0, len(order), batch)]
    teacher.answer(encoded.take(parts[0]), ask)  # the first answer of a process takes longer than all others
    random, end = np.random.default_rng(config.seed), time.perf_counter() + config.plan.seconds / 2
    batches, done = [], []
    for at in random.permutation(len(parts)):
        part = encoded.take(parts[at])
        seconds, _ = _timed(lambda part=part: teacher.answer(part, ask))  # type: ignore[misc]
        batches.append(Batch(rows=part.rows, length=int(lengths(part).max()), seconds=seconds))
        done.append(at)
        if time.perf_counter() > end:
            break
    some = encoded.take(np.concatenate([parts[at] for at in sorted(done)]))
    again, (row_ids, signal, unusable) = _timed(lambda: answer_all(teacher, some, ask, batch))
    if not len(row_ids):
        raise LabelError(
            f"the teacher's answer to all {some.rows} probed rows is unusable, the first: "
            f"{unusable[0][1]}; correct the teacher"
        )
    once, ids = sum(item.seconds for item in batches), rowids.to_numpy(row_ids)
    by_id = np.argsort(ids, kind="stable").astype(np.int64)
    skipped = round(len(encoded.rejected) * some.rows / encoded.rows)
    return _Asked(
        encoded=some,
        ids=ids[by_id],
        signal=signal.take(by_id),
        rejected=len(unusable) + skipped,
        batches=tuple(batches),
        repeat=max(once, again) / max(min(once, again), 1e-9),
    )


def _found(
    config: Campaign,
    snapshot: SnapshotRef,
    facts: TeacherFacts,
    manifest: StoreManifest,
    store_url: str | None,
    asked: _Asked,
    load_seconds: float,
) -> tuple[float, Found]:
    """What a store finds out before its first unit, and the seconds of it without the teacher's start.

    Where the calibration rows would take more time than there is, the probed rows stand for them.
    """
    if store_url is not None:
        return 0.0, Found(
            fits=read_fits(store_url, manifest.fits), measured=manifest.measured, range_rows=manifest.range_rows
        )
    splits = open_snapshot(snapshot).manifest.splits
    rows = min(splits["calibration"].rows or splits["train"].rows, LOOK_ROWS)
    teacher = sum(item.seconds for item in asked.batches) / sum(item.rows for item in asked.batches) * rows
    if teacher <= config.plan.seconds / 2:
        seconds, found = _timed(lambda: look(config, snapshot, facts.head_url, manifest))
        return max(seconds - load_seconds, 0.0), found
    seconds, found = _timed(lambda: fit_store(manifest, rowids.to_arrow(asked.ids), asked.signal))
    return seconds + teacher, found


def _write(asked: _Asked, manifest: StoreManifest, fits: Fits) -> bytes:
    """The shards of all rows as one unit; the labels' bytes."""
    for layer, hidden in asked.signal.hidden.items():
        encode_hidden(asked.ids, hidden, layer, manifest, fits)
    return parquet_shards.encode_labels(asked.ids, distributions_of(asked.signal), manifest, fits)


def lengths(encoded: Encoded) -> npt.NDArray[np.int64]:
    """``[R]``: length of each row's longest feature, at least 1."""
    found = np.ones(encoded.rows, dtype=np.int64)
    for feature in encoded.features.values():
        found = np.maximum(found, np.diff(feature.offsets))
    return found


def distributions_of(signal: Signal) -> Distributions:
    """The distributions; every answer to a store has them."""
    assert signal.distributions is not None
    return signal.distributions


def _timed(work: Callable[[], T]) -> tuple[float, T]:
    """Seconds and result."""
    start = time.perf_counter()
    result = work()
    return time.perf_counter() - start, result
