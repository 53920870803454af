"""Label the probed rows as `label` would, into a scratch store, and time the receipts."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

from ray_distill.labels.format.fitted_arrays import write_fits
from ray_distill.labels.model import rowids
from ray_distill.labels.model.manifest import StoreManifest
from ray_distill.labels.model.work_units import WorkUnit, unit_id
from ray_distill.labels.store.label_store import create_or_open
from ray_distill.runtime.forecast.probe import Piece, Probed, ProbeRequest
from ray_distill.runtime.labelling.calibrate_store import with_found
from ray_distill.runtime.labelling.encode_write import LabelJob
from ray_distill.runtime.labelling.label_units import label_units
from ray_distill.snapshots.reader import Snapshot


@dataclass(frozen=True, kw_only=True)
class Rehearsed:
    """The rehearsal's time: seconds of the steps done once, and throughput of the others."""

    once: float
    rows_per_second: float


def rehearse(request: ProbeRequest, opened: Snapshot, probed: Probed, url: str) -> Rehearsed:
    """Label the pieces into a scratch store, as `label` would, and time the receipts."""
    labels = request.config.labels
    scratch = create_or_open(url, with_found(request.manifest, probed.found, write_fits(url, probed.found.fits)))
    units = [_unit(opened, piece, scratch.manifest) for piece in request.pieces]
    job = LabelJob(
        task=request.config.task,
        snapshot=opened.ref,
        teacher=labels.teacher,
        store_url=scratch.url,
        manifest=scratch.manifest,
        resources=labels.resources,
        failures=labels.failures,
    )
    arrivals: list[tuple[int, float]] = []
    start = time.monotonic()
    label_units(
        job,
        scratch,
        units,
        max_rejected=sum(len(unit.rows) for unit in units),
        progress=lambda rows: arrivals.append((rows, time.monotonic() - start)),
    )
    alone = labels.resources.actors[0] / max(probed.teacher_seconds, 1e-9)
    return paced(arrivals, time.monotonic() - start, most=alone)


def paced(arrivals: Sequence[tuple[int, float]], total: float, *, most: float) -> Rehearsed:
    """Split a rehearsal of ``total`` seconds into its throughput and the steps done once.

    Args:
        arrivals: units in the order of their receipts: rows, and seconds since the start.
        total: seconds to the end.
        most: rows a second of the teachers alone, which bounds the throughput: units may arrive together, and a single
            unit has no rate.
    """
    rows, seconds = sum(count for count, _ in arrivals[1:]), arrivals[-1][1] - arrivals[0][1]
    rate = min(rows / seconds, most) if seconds > 0 else most
    return Rehearsed(once=max(total - seconds - arrivals[0][0] / rate, 0.0), rows_per_second=rate)


def _unit(opened: Snapshot, piece: Piece, manifest: StoreManifest) -> WorkUnit:
    ids = rowids.to_numpy(opened.read_shard(opened.shard(piece.shard), columns=["row_id"]).column("row_id"))
    return WorkUnit(
        unit_id=unit_id(ids[list(piece.rows)], manifest.fingerprint),
        shard=piece.shard,
        start=piece.start,
        stop=piece.stop,
        rows=piece.rows,
    )
