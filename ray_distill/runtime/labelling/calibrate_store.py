"""Calibrate a new store before its first unit: fits, cost of the stored form, rows a unit.

All results come from the teacher's answer to some rows of the calibration split. The store keeps the results, and later
runs adopt them.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ray_distill.artifacts import SnapshotRef
from ray_distill.config import Campaign
from ray_distill.labels.format import parquet_shards
from ray_distill.labels.format.codecs import find_codec
from ray_distill.labels.format.codecs.measure import added_error
from ray_distill.labels.format.fitted_arrays import Fits
from ray_distill.labels.format.hidden_states import basis_name, encode_hidden, fit_basis, mean_name, relative_error
from ray_distill.labels.model import rowids
from ray_distill.labels.model.distributions import Distributions
from ray_distill.labels.model.manifest import StoreManifest
from ray_distill.labels.model.part_specs import VectorsSpec
from ray_distill.labels.model.signal import Signal
from ray_distill.models.io.load import load_processor
from ray_distill.runtime.labelling.batching import answer_all, request_of
from ray_distill.snapshots.reader import Snapshot, open_snapshot
from ray_distill.tasks.catalogue import get_task
from ray_distill.teachers.engines import open_stored_teacher

#: Maximum rows of the calibration split that are read.
CALIBRATION_ROWS = 512


@dataclass(frozen=True, kw_only=True)
class Found:
    """Results of the calibration of a store."""

    fits: Fits
    measured: Mapping[str, Any]
    range_rows: int


def calibrate(config: Campaign, snapshot: SnapshotRef, manifest: StoreManifest) -> Found:
    """Fit a store to the teacher's answer to some calibration rows.

    Runs in the teacher's environment.
    """
    teacher = open_stored_teacher(config.labels.teacher, manifest.teacher, task=config.task)
    task = get_task(config.task)
    rows = _some_rows(open_snapshot(snapshot), task.inputs.column)
    encoded = task.inputs.encode(rows, load_processor(config.labels.teacher, task=config.task))
    row_ids, signal, _ = answer_all(teacher, encoded, request_of(manifest), manifest.batch)
    return fit_store(manifest, row_ids, signal)


def _some_rows(opened: Snapshot, column: str) -> pa.Table:
    """Return the first calibration rows by id, or train rows if the calibration split is empty.

    Ids are hashes, so the first ids are a random sample.
    """
    rows = opened.read("calibration", columns=["row_id", column])
    rows = rows if rows.num_rows else opened.read("train", columns=["row_id", column])
    return rows.take(pc.sort_indices(rows["row_id"].combine_chunks())[:CALIBRATION_ROWS])


def fit_store(manifest: StoreManifest, row_ids: pa.Array, signal: Signal) -> Found:
    """Fit and measure a store's form on a teacher's answer; pure.

    Raises:
        LabelError: there are too few rows for the configured PCA rank.
    """
    order = np.argsort(rowids.to_numpy(row_ids), kind="stable").astype(np.int64)
    ids, signal = rowids.to_numpy(row_ids)[order], signal.take(order)
    distributions, spec = signal.distributions, manifest.distributions
    fits: dict[str, Any] = dict(find_codec(spec.codec).fit(distributions, spec))
    kept: dict[int, float] = {}
    for layer, own in manifest.hidden.items():
        if own.projected:
            fits[mean_name(layer)], fits[basis_name(layer)], kept[layer] = fit_basis(
                signal.hidden[layer].values, rank=own.rank, variance=own.variance
            )
    if not len(ids):
        return Found(fits=fits, measured={}, range_rows=0)
    measured = {
        "rows": len(ids),
        "labels": added_error(distributions, spec, fits),
        "hidden": {
            str(layer): _hidden_error(hidden.values, manifest.hidden[layer], fits, kept.get(layer))
            for layer, hidden in signal.hidden.items()
        },
    }
    return Found(
        fits=fits,
        measured=measured,
        range_rows=_rows_a_unit(manifest, ids, signal, distributions=distributions, fits=fits),
    )


def _hidden_error(values: Any, spec: VectorsSpec, fits: Fits, kept: float | None) -> dict[str, float | int]:
    found: dict[str, float | int] = {"relative_squared_error": relative_error(values, spec, fits)}
    if kept is not None:
        found |= {"rank": fits[basis_name(spec.layer)].shape[1], "variance_kept": kept}
    return found


def _rows_a_unit(
    manifest: StoreManifest, ids: rowids.RowIds, signal: Signal, *, distributions: Distributions, fits: Fits
) -> int:
    """Return how many rows fit ``unit_bytes``, by these rows' bytes; 0 = at least ``unit_rows``."""
    size = len(parquet_shards.encode_labels(ids, distributions, manifest.distributions, fits)) + sum(
        len(encode_hidden(ids, hidden, manifest.hidden[layer], fits)) for layer, hidden in signal.hidden.items()
    )
    rows = max(1, manifest.unit_bytes * len(ids) // size)
    return 0 if not manifest.unit_bytes or rows >= manifest.unit_rows else rows


def with_found(manifest: StoreManifest, found: Found, digests: Mapping[str, str]) -> StoreManifest:
    """Return the manifest of a store with these results, its fits stored under these digests."""
    return manifest.with_changes(fits=dict(digests), measured=found.measured, range_rows=found.range_rows)
