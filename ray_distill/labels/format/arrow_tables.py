"""Signals as flat Arrow tables between the stages of a labelling job.

Everything stands in columns, one value a row, and nothing in the schema's metadata, so that a table survives
whatever slicing and concatenation an executor does. Rejected rows travel in the same table with a reason.

    row_id fixed_size_binary(16)   unit_id string   reason string (null where labelled)
    halved int32 (where a batch had to be halved: rows of the smallest)
    of each part ``<part>.kind`` string and the columns of its `to_columns`, e.g. ``distributions.logp``
"""

import numpy as np
import pyarrow as pa

from ray_distill.labels.model import rowids
from ray_distill.labels.model.columns import constant
from ray_distill.labels.model.distributions import Distributions, Draws
from ray_distill.labels.model.manifest import StoreManifest
from ray_distill.labels.model.signal import Signal, Vectors, no_vectors, signal_columns, signal_from_columns, signal_of
from ray_distill.labels.model.validity import Rejects


def signal_to_table(
    row_ids: pa.Array, unit_id: str, signal: Signal, rejected: Rejects | tuple[()] = (), *, halved: int = 0
) -> pa.Table:
    """Return one row a labelled row, then one a rejected row (with empty lists and its reason).

    Args:
        row_ids: ``fixed_size_binary(16)``, aligned with the signal.
        unit_id: the work unit of all rows.
        signal: the teacher's answer.
        rejected: ``(row id, reason)`` of the unit's rows without an answer.
        halved: `Receipt.halved` of the unit.
    """
    count, extra = len(row_ids), len(rejected)
    ids = np.concatenate([rowids.to_numpy(row_ids), rowids.from_bytes(row for row, _ in rejected)])
    columns: dict[str, pa.Array] = {
        "row_id": rowids.to_arrow(ids),
        "unit_id": pa.array([unit_id] * (count + extra), pa.string()),
        "reason": pa.array([None] * count + [reason for _, reason in rejected], pa.string()),
        **signal_columns(signal, extra),
    }
    if halved:
        columns["halved"] = constant(halved, count + extra)
    return pa.table(columns)


def table_to_signal(table: pa.Table) -> tuple[pa.FixedSizeBinaryArray, Signal]:
    """Return row ids and signal of the labelled rows of a table, in order.

    Raises:
        LabelError: rows of different tasks or teachers were mixed.
    """
    table = table.filter(pa.compute.is_null(table.column("reason")))
    row_ids = rowids.to_arrow(rowids.to_numpy(table.column("row_id")))
    return row_ids, signal_from_columns(dict(zip(table.column_names, table.columns, strict=True)))


def table_to_rejected(table: pa.Table) -> Rejects:
    """Return ``(row id, reason)`` of the rejected rows of a table, in order."""
    table = table.filter(pa.compute.is_valid(table.column("reason")))
    ids = table.column("row_id").to_pylist()
    return list(zip(ids, table.column("reason").to_pylist(), strict=True))


def table_to_halved(table: pa.Table) -> int:
    """Return `Receipt.halved` of the one unit in a table."""
    if "halved" not in table.column_names:
        return 0
    return int(pa.compute.min(table.column("halved")).as_py() or 0)


def empty_signal(manifest: StoreManifest) -> Signal:
    """Return a signal without rows, in the form that a store with this manifest keeps."""
    start, spec = np.zeros(1, dtype=np.int64), manifest.distributions
    draws = (
        None
        if not spec.draws
        else Draws(
            number=spec.draws,
            exponent=spec.exponent,
            count=np.empty(0, dtype=np.int32),
            log_normaliser=np.empty(0, dtype=np.float32),
        )
    )
    distributions = Distributions(
        draws=draws,
        family=spec.family,
        classes=spec.space.size,
        temperatures=spec.temperatures,
        row_offsets=start,
        position=np.empty(0, dtype=np.int32),
        entry_offsets=start,
        ids=np.empty(0, dtype=np.int32),
        logp=np.empty(0, dtype=np.float32),
        log_tail=np.empty((0, len(spec.temperatures)), dtype=np.float32),
        entropy=np.empty(0, dtype=np.float32),
        log_odds=np.empty(0, dtype=np.float32) if spec.family == "bernoulli" else None,
    )
    return signal_of(distributions, {layer: Vectors(offsets=start, values=no_vectors()) for layer in manifest.hidden})
