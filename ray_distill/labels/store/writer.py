"""Make one attempt at a work unit: write its files, read them back, return the receipt."""

import uuid
from collections import Counter
from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from ray_distill.errors import LabelError
from ray_distill.labels.format import parquet_shards
from ray_distill.labels.format.arrow_tables import empty_signal
from ray_distill.labels.format.fitted_arrays import read_fits
from ray_distill.labels.format.hidden_states import encode_hidden
from ray_distill.labels.model import rowids
from ray_distill.labels.model.distributions import Distributions
from ray_distill.labels.model.manifest import StoreManifest
from ray_distill.labels.model.rowids import RowIds
from ray_distill.labels.model.signal import DISTRIBUTIONS, Signal, hidden_part
from ray_distill.labels.model.validity import Rejects, require_usable
from ray_distill.labels.model.work_units import Receipt, WorkUnit, unit_id
from ray_distill.storage.receipts import part_file, quarantine_file, write_verified


def write_attempt(
    store_url: str,
    manifest: StoreManifest,
    unit: WorkUnit,
    *,
    row_ids: pa.Array,
    signal: Signal,
    rejected: Sequence[tuple[bytes, str]],
    halved: int = 0,
) -> Receipt:
    """Store a teacher's answer for a whole unit under a fresh attempt name.

    Rows are stored in the order of their ids, so the bytes do not depend on the order in which they come.

    Args:
        store_url: the label store.
        manifest: its manifest.
        unit: the work unit.
        row_ids: ``fixed_size_binary(16)`` of the labelled rows.
        signal: the teacher's answer, aligned with ``row_ids``.
        rejected: ``(row id, reason)`` of the unit's other rows.
        halved: `Receipt.halved`.

    Raises:
        LabelError: rows are missing, foreign or doubled, or the signal differs from the manifest's.
        StorageError: a file could not be written, or reads back differently.
    """
    ids = rowids.to_numpy(row_ids)
    _require_whole(unit, manifest, ids, rejected)
    signal = signal if len(ids) else empty_signal(manifest)
    distributions = require_signal(manifest, signal, len(ids))
    order = np.argsort(ids, kind="stable").astype(np.int64)
    ids, signal, distributions = ids[order], signal.take(order), distributions.take(order)
    require_usable(ids, signal)
    return _write(
        store_url,
        manifest,
        unit,
        ids=ids,
        signal=signal,
        distributions=distributions,
        rejected=list(rejected),
        halved=halved,
    )


def _write(
    url: str,
    manifest: StoreManifest,
    unit: WorkUnit,
    *,
    ids: RowIds,
    signal: Signal,
    distributions: Distributions,
    rejected: Rejects,
    halved: int,
) -> Receipt:
    attempt, name, fits = uuid.uuid4().hex, unit.unit_id, read_fits(url, manifest.fits)
    parts = {
        hidden_part(layer): encode_hidden(ids, part, manifest.hidden[layer], fits)
        for layer, part in sorted(signal.hidden.items())
    }
    parts[DISTRIBUTIONS] = parquet_shards.encode_labels(ids, distributions, manifest.distributions, fits)
    quarantine = None
    if rejected:
        quarantine = write_verified(url, quarantine_file(name, attempt), parquet_shards.encode_quarantine(rejected))
    return Receipt(
        unit=name,
        attempt=attempt,
        manifest=manifest.fingerprint,
        shard=unit.shard,
        start=unit.start,
        stop=unit.stop,
        rows=len(ids),
        rejected=len(rejected),
        reasons=dict(sorted(Counter(reason for _, reason in rejected).items())),
        parts={part: write_verified(url, part_file(part, name, attempt), data) for part, data in parts.items()},
        quarantine=quarantine,
        halved=halved,
    )


def _require_whole(unit: WorkUnit, manifest: StoreManifest, ids: RowIds, rejected: Sequence[tuple[bytes, str]]) -> None:
    """Require the rows to hash to the unit's id."""
    found = np.concatenate([ids, rowids.from_bytes(row for row, _ in rejected)])
    where = f"unit {unit.unit_id} ({unit.shard}, rows {unit.start}:{unit.stop})"
    if len(found) != len(unit.rows):
        raise LabelError(
            f"{where}: {len(ids)} labelled and {len(rejected)} rejected rows, expected {len(unit.rows)} in all; every "
            "row needs one answer or one reason"
        )
    if len(np.unique(found)) != len(found):
        raise LabelError(f"{where}: {len(found) - len(np.unique(found))} rows came twice; each may be answered once")
    if unit_id(found, manifest.fingerprint) != unit.unit_id:
        raise LabelError(f"{where}: not the unit's rows, or not its manifest; label the rows of the unit alone")


def require_signal(manifest: StoreManifest, signal: Signal, rows: int) -> Distributions:
    """Return the signal's distributions; require the kind and size that the manifest declares.

    Raises:
        LabelError: names each difference.
    """
    distributions, spec = signal.distributions, manifest.distributions
    pairs = [
        ("rows", distributions.rows, rows),
        ("family", distributions.family, spec.family),
        ("classes", distributions.classes, spec.space.size),
        ("temperatures", distributions.temperatures, spec.temperatures),
        ("hidden layers", sorted(signal.hidden), list(manifest.hidden)),
        *((f"rows of hidden layer {layer}", hidden.rows, rows) for layer, hidden in signal.hidden.items()),
    ]
    wrong = [f"{what}: found {found}, expected {expected}" for what, found, expected in pairs if found != expected]
    if wrong:
        raise LabelError("the signal does not match the store's manifest: " + "; ".join(wrong))
    return distributions
