"""Probe the teacher for `ray-distill plan`: label a few rows in one task and time them.

The task runs on a node with the teacher's resources; only plain values and small arrays leave the task.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
import pyarrow as pa
import torch

from ray_distill.artifacts import SnapshotRef
from ray_distill.config import Campaign
from ray_distill.errors import LabelError
from ray_distill.labels.format import parquet_shards
from ray_distill.labels.format.fitted_arrays import read_fits
from ray_distill.labels.model import rowids
from ray_distill.labels.model.manifest import StoreManifest
from ray_distill.labels.model.signal import Signal, concat_signals
from ray_distill.labels.sizing import options
from ray_distill.labels.sizing.forecast import Sizes, forecast_bytes, measure_sizes
from ray_distill.models.io.load import load_processor
from ray_distill.runtime.forecast.storage_options import Comparison, Forms, compare
from ray_distill.runtime.labelling.batching import answer_all, by_length, request_of
from ray_distill.runtime.labelling.calibrate_store import CALIBRATION_ROWS, Found, calibrate, fit_store
from ray_distill.runtime.labelling.identify_teacher import TeacherFacts
from ray_distill.snapshots.reader import open_snapshot
from ray_distill.tasks.catalogue import get_task
from ray_distill.tasks.encoded import Encoded
from ray_distill.teachers.base import Teacher
from ray_distill.teachers.engines import open_teacher

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Piece:
    """Rows of one snapshot shard that are probed together; their unit is ``start:stop``."""

    shard: str
    start: int
    stop: int
    rows: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Probed:
    """Measurements of the probe; times in seconds."""

    rows: int
    """Answered rows, on which the teacher was timed."""
    rejected: int
    positions: int
    found: Found
    """Fits and rows a unit of the planned store, or those of the existing store."""
    units: tuple[int, ...]
    """Rows of each unit to label."""
    sizes: Sizes
    teacher_seconds: float
    """Seconds of one teacher per row."""
    load_seconds: float
    read_seconds: float
    """Seconds to decode a label shard, per row."""
    fit_seconds: float
    """Seconds to fit a new store on the calibration split, without loading the teacher; 0 if the fit is kept."""
    calibrated: bool
    """Whether ``found`` is the calibration of a new store, which `label` would compute too."""
    forms: Forms
    ranks: dict[int, dict[float, int]]
    """Principal components that keep a share of the variance, by layer and share."""
    widths: dict[int, int]
    """Widths of the hidden states by layer."""


@dataclass(frozen=True, kw_only=True)
class ProbeRequest:
    """Inputs of the probe; picklable."""

    config: Campaign
    snapshot: SnapshotRef
    facts: TeacherFacts
    manifest: StoreManifest
    """Manifest of the planned store, or of the existing one."""
    store_url: str | None
    """The existing store, for its fits; None = the probe makes the fits."""
    known: Found | None = None
    """The calibration of a new store, if an earlier command kept it."""
    pieces: Sequence[Piece]
    units: Sequence[int] | None
    """Rows of each unit to label; None = those of a new store, which follow from the fits."""


def probe(request: ProbeRequest) -> Probed:
    """Let the teacher answer the rows of some pieces; runs in the teacher's environment.

    Raises:
        LabelError: the teacher can answer none of the rows.
    """
    config, manifest = request.config, request.manifest
    torch.set_num_threads(manifest.threads)  # as the actors do
    load_seconds, teacher = _timed(
        lambda: open_teacher(config.labels.teacher, task=config.task, head_url=request.facts.head_url)
    )
    answered = _answer(teacher, _encode(config, request.snapshot, request.pieces), manifest, config)
    fit_seconds, found, calibrated = _found(request, answered, load_seconds)
    manifest = manifest.with_changes(range_rows=found.range_rows)
    units = _units_to_come(request, manifest)
    sizes = measure_sizes(answered.ids, answered.signal, manifest=manifest, fits=found.fits, units=units)
    data = parquet_shards.encode_labels(answered.ids, answered.signal.distributions, manifest.distributions, found.fits)
    read_seconds, _ = _timed(
        lambda: parquet_shards.decode_labels(data, manifest.distributions, found.fits, "the probe")
    )
    rows = len(answered.ids)
    positions = len(answered.signal.distributions.position)
    comparison = Comparison(
        config=config,
        facts=request.facts,
        teacher=teacher,
        units=units,
        kept=rows / (rows + answered.rejected),
        positions=positions / rows,
    )
    return Probed(
        rows=rows,
        rejected=answered.rejected,
        positions=positions,
        found=found,
        units=tuple(units),
        sizes=sizes,
        teacher_seconds=answered.seconds,
        load_seconds=load_seconds,
        read_seconds=read_seconds / rows,
        fit_seconds=0.0 if calibrated else fit_seconds,
        calibrated=calibrated,
        forms=_with_own_bytes(compare(comparison, answered.encoded), sizes, units, answered),
        ranks={layer: options.ranks(hidden.values) for layer, hidden in answered.signal.hidden.items()},
        widths={layer: hidden.values.shape[1] for layer, hidden in answered.signal.hidden.items()},
    )


def _units_to_come(request: ProbeRequest, manifest: StoreManifest) -> Sequence[int]:
    if request.units is not None:
        return request.units
    return unit_rows([shard.rows for shard in open_snapshot(request.snapshot).shards], manifest.rows_a_unit)


def _with_own_bytes(forms: Forms, sizes: Sizes, units: Sequence[int], answered: "_Answered") -> Forms:
    """Replace the bytes of the configured form by those of the store's own fits and all rows.

    These are more accurate than the comparison's.
    """
    rows, configured = len(answered.ids), forms.options[0]
    total = forecast_bytes(sizes, units, rows / (rows + answered.rejected)).labels
    factor = total / max(configured.total_bytes, 1)
    own = replace(configured, total_bytes=total, bytes_a_position=configured.bytes_a_position * factor)
    return replace(forms, options=(own, *forms.options[1:]))


def unit_rows(shard_rows: Sequence[int], rows_a_unit: int) -> list[int]:
    """Return the rows of each unit of a snapshot without labels."""
    return [min(rows_a_unit, rows - start) for rows in shard_rows for start in range(0, rows, rows_a_unit)]


@dataclass(frozen=True, kw_only=True)
class _Answered:
    """Rows answered within the time limit, in the order of their ids."""

    encoded: Encoded
    """The rows in the teacher's order."""
    ids: rowids.RowIds
    signal: Signal
    rejected: int
    seconds: float
    """Seconds of the teacher per row."""


def _encode(config: Campaign, snapshot: SnapshotRef, pieces: Sequence[Piece]) -> Encoded:
    """Read and encode all pieces.

    Raises:
        LabelError: none of the rows can be encoded.
    """
    opened, task = open_snapshot(snapshot), get_task(config.task)
    tables = [
        opened.read_shard(opened.shard(piece.shard), columns=["row_id", task.inputs.column]).take(
            pa.array(piece.rows, pa.int64())
        )
        for piece in pieces
    ]
    encoded = task.inputs.encode(pa.concat_tables(tables), load_processor(config.labels.teacher, task=config.task))
    if not encoded.rows:
        raise LabelError(
            f"none of the {len(encoded.rejected)} probed rows can be encoded for the teacher, the first: "
            f"{encoded.rejected[0].reason}; correct snapshot.columns or the source"
        )
    return encoded


def _answer(teacher: Teacher, encoded: Encoded, manifest: StoreManifest, config: Campaign) -> _Answered:
    """Time the teacher batch by batch, in a random order, until the time limit."""
    request, batch, order = request_of(manifest), manifest.batch, by_length(encoded)
    parts = [order[start : start + batch] for start in range(0, len(order), batch)]
    answer_all(
        teacher, encoded.take(parts[0]), request, batch
    )  # the first answer of a process takes longer than others
    random, start = np.random.default_rng(config.seed), time.perf_counter()
    done, answers = [], []
    for at in random.permutation(len(parts)):
        answers.append(answer_all(teacher, encoded.take(parts[at]), request, batch))
        done.append(at)
        seconds = time.perf_counter() - start
        if seconds > config.plan.seconds:
            break
    some = encoded.take(np.concatenate([parts[at] for at in done]))
    ids = np.concatenate([rowids.to_numpy(row_ids) for row_ids, _, _ in answers])
    unusable = [row for _, _, rows in answers for row in rows]
    if not len(ids):
        raise LabelError(
            f"the teacher's answer to all {some.rows} probed rows is unusable, the first: "
            f"{unusable[0][1]}; correct the teacher"
        )
    by_id = np.argsort(ids, kind="stable").astype(np.int64)
    skipped = round(len(encoded.rejected) * some.rows / encoded.rows)
    return _Answered(
        encoded=some,
        ids=ids[by_id],
        signal=concat_signals([signal for _, signal, _ in answers]).take(by_id),
        rejected=len(unusable) + skipped,
        seconds=seconds / some.rows,
    )


def _found(request: ProbeRequest, answered: _Answered, load_seconds: float) -> tuple[float, Found, bool]:
    """Return the seconds to fit a store, its `Found`, and whether `label` can use it.

    The seconds are without the teacher's start.

    If the calibration rows would take longer than half of ``plan.seconds``, the probed rows replace them.
    """
    config, manifest = request.config, request.manifest
    if request.store_url is not None:
        return (
            0.0,
            Found(
                fits=read_fits(request.store_url, manifest.fits),
                measured=manifest.measured,
                range_rows=manifest.range_rows,
            ),
            False,
        )
    if request.known is not None:
        return 0.0, request.known, True
    splits = open_snapshot(request.snapshot).manifest.splits
    teacher = answered.seconds * min(splits["calibration"].rows or splits["train"].rows, CALIBRATION_ROWS)
    if teacher <= config.plan.seconds / 2:
        seconds, found = _timed(lambda: calibrate(config, request.snapshot, manifest))
        return max(seconds - load_seconds, 0.0), found, True
    seconds, found = _timed(lambda: fit_store(manifest, rowids.to_arrow(answered.ids), answered.signal))
    return seconds + teacher, found, False


def _timed(work: Callable[[], T]) -> tuple[float, T]:
    """Return the seconds and the result of a call."""
    start = time.perf_counter()
    result = work()
    return time.perf_counter() - start, result
