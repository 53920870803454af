"""Signals as flat Arrow tables between the stages of a labelling job.

Everything stands in columns, one value a row, and nothing in the schema's metadata, so that a table survives
whatever slicing and concatenation an executor does. Rejected rows travel in the same table with a reason.

    row_id fixed_size_binary(16)   unit_id string   reason string (null where labelled)
    halved int32 (where a batch had to be halved: rows of the smallest)
    family string   classes int32   temperatures large_list<double> [T]
    position, entries large_list<int32> [P]   ids large_list<int32>, logp large_list<float> [E]
    log_tail large_list<float> [P·T]   entropy large_list<float> [P]
    where entries were drawn: draws int32, exponent double   count large_list<int32> [E]
    log_normaliser large_list<float> [P]
    hidden_<layer> large_list<float> [N·D]   width_<layer> int32 (D)
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ray_distill.errors import LabelError
from ray_distill.labels.format.codecs.base import Offsets, row_totals, running
from ray_distill.labels.model import rowids
from ray_distill.labels.model.manifest import StoreManifest
from ray_distill.labels.model.signal import Distributions, Draws, Family, Hidden, Signal
from ray_distill.labels.model.validity import Rejects

_HIDDEN = "hidden_"


def signal_to_table(
    row_ids: pa.Array, unit_id: str, signal: Signal, rejected: Rejects | tuple[()] = (), halved: int = 0
) -> pa.Table:
    """One row a labelled row, then one a rejected row (with empty lists and its reason).

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
    }
    if signal.distributions is not None:
        columns |= _distribution_columns(signal.distributions, extra)
    for layer, hidden in sorted(signal.hidden.items()):
        width = hidden.values.shape[1]
        columns[f"{_HIDDEN}{layer}"] = _lists(hidden.values.reshape(-1), hidden.offsets * width, extra)
        columns[f"width_{layer}"] = _repeat(width, count + extra)
    if halved:
        columns["halved"] = _repeat(halved, count + extra)
    return pa.table(columns)


def _distribution_columns(distributions: Distributions, extra: int) -> dict[str, pa.Array]:
    rows, count = distributions.row_offsets, distributions.rows + extra
    entries = row_totals(rows, distributions.entry_offsets)
    temperatures = np.tile(np.asarray(distributions.temperatures, dtype=np.float64), count)
    width, draws = len(distributions.temperatures), distributions.draws
    drawn = (
        {}
        if draws is None
        else {
            "draws": _repeat(draws.number, count),
            "exponent": pa.array(np.full(count, draws.exponent)),
            "count": _lists(draws.count.astype(np.int32), entries, extra),
            "log_normaliser": _lists(draws.log_normaliser.astype(np.float32), rows, extra),
        }
    )
    return {
        **drawn,
        "family": pa.array([distributions.family] * count, pa.string()),
        "classes": _repeat(distributions.classes, count),
        "temperatures": _lists(temperatures, np.arange(count + 1, dtype=np.int64) * width, 0),
        "position": _lists(distributions.position.astype(np.int32), rows, extra),
        "entries": _lists(np.diff(distributions.entry_offsets).astype(np.int32), rows, extra),
        "ids": _lists(distributions.ids.astype(np.int32), entries, extra),
        "logp": _lists(distributions.logp.astype(np.float32), entries, extra),
        "log_tail": _lists(distributions.log_tail.astype(np.float32).reshape(-1), rows * width, extra),
        "entropy": _lists(distributions.entropy.astype(np.float32), rows, extra),
    }


def _lists(values: npt.NDArray[Any], offsets: Offsets, extra: int) -> pa.LargeListArray:
    """A list a row, and ``extra`` empty ones."""
    ends = np.concatenate([offsets, np.full(extra, offsets[-1], dtype=np.int64)])
    return pa.LargeListArray.from_arrays(pa.array(ends, pa.int64()), pa.array(np.ascontiguousarray(values)))


def _repeat(value: int, count: int) -> pa.Array:
    return pa.array(np.full(count, value, dtype=np.int32))


def table_to_signal(table: pa.Table) -> tuple[pa.FixedSizeBinaryArray, Signal]:
    """Row ids and signal of the labelled rows of a table, in order.

    Raises:
        LabelError: rows of different tasks or teachers were mixed.
    """
    table = table.filter(pa.compute.is_null(table.column("reason")))
    row_ids = rowids.to_arrow(rowids.to_numpy(table.column("row_id")))
    layers = sorted(int(name.removeprefix(_HIDDEN)) for name in table.column_names if name.startswith(_HIDDEN))
    distributions = _distributions(table) if "logp" in table.column_names else None
    return row_ids, Signal(distributions=distributions, hidden={layer: _hidden(table, layer) for layer in layers})


def table_to_rejected(table: pa.Table) -> Rejects:
    """``(row id, reason)`` of the rejected rows of a table, in order."""
    table = table.filter(pa.compute.is_valid(table.column("reason")))
    ids = table.column("row_id").to_pylist()
    return list(zip(ids, table.column("reason").to_pylist(), strict=True))


def table_to_halved(table: pa.Table) -> int:
    """`Receipt.halved` of the one unit in a table."""
    if "halved" not in table.column_names:
        return 0
    return int(pa.compute.min(table.column("halved")).as_py() or 0)


def _distributions(table: pa.Table) -> Distributions:
    position, rows = _flat(table, "position", np.int32)
    entries, _ = _flat(table, "entries", np.int32)
    log_tail, _ = _flat(table, "log_tail", np.float32)
    temperatures = tuple(_only(table, "temperatures", []))
    draws = (
        None
        if "draws" not in table.column_names
        else Draws(
            number=int(_only(table, "draws", 0)),
            exponent=float(_only(table, "exponent", 1.0)),
            count=_flat(table, "count", np.int32)[0],
            log_normaliser=_flat(table, "log_normaliser", np.float32)[0],
        )
    )
    return Distributions(
        draws=draws,
        family=cast(Family, _only(table, "family", "categorical")),
        classes=int(_only(table, "classes", 0)),
        temperatures=temperatures,
        row_offsets=rows,
        position=position,
        entry_offsets=running(entries),
        ids=_flat(table, "ids", np.int32)[0],
        logp=_flat(table, "logp", np.float32)[0],
        log_tail=log_tail.reshape(len(position), len(temperatures)),
        entropy=_flat(table, "entropy", np.float32)[0],
    )


def _hidden(table: pa.Table, layer: int) -> Hidden:
    values, offsets = _flat(table, f"{_HIDDEN}{layer}", np.float32)
    width = int(_only(table, f"width_{layer}", 0))
    return Hidden(offsets=offsets // max(width, 1), values=values.reshape(-1, width) if width else _no_vectors(0))


def _flat(table: pa.Table, name: str, dtype: npt.DTypeLike) -> tuple[npt.NDArray[Any], Offsets]:
    column = table.column(name)
    if not len(column):
        return np.empty(0, dtype=dtype), np.zeros(1, dtype=np.int64)
    array = pa.concat_arrays(column.chunks)
    offsets = np.asarray(array.offsets, dtype=np.int64)
    values = np.asarray(array.values)[offsets[0] : offsets[-1]]
    return values.astype(dtype, copy=False), offsets - offsets[0]


def _only(table: pa.Table, name: str, default: Any) -> Any:
    """The one value that all rows of a column share."""
    column = table.column(name)
    if not len(column):
        return default
    if pa.types.is_large_list(column.type):
        values, offsets = _flat(table, name, np.float64)
        rows = {tuple(values[start:stop]) for start, stop in zip(offsets[:-1], offsets[1:], strict=True)}
    else:
        rows = set(column.unique().to_pylist())
    if len(rows) > 1:
        raise LabelError(f"column {name}: the rows of one table must agree, found {sorted(rows)}")
    return rows.pop()


def concat_signals(signals: Sequence[Signal]) -> Signal:
    """The rows of several signals, one after the other; those without rows are left out.

    Raises:
        LabelError: they have different parts, classes or temperatures.
    """
    full = [signal for signal in signals if _rows(signal)] or list(signals[:1])
    if not full:
        return Signal()
    if len(full) == 1:
        return full[0]
    if len({(signal.distributions is None, tuple(sorted(signal.hidden))) for signal in full}) > 1:
        raise LabelError("signals with different parts cannot be joined; all must have the same layers")
    distributions = [signal.distributions for signal in full if signal.distributions is not None]
    return Signal(
        distributions=_concat_distributions(distributions) if distributions else None,
        hidden={layer: _concat_hidden([signal.hidden[layer] for signal in full]) for layer in full[0].hidden},
    )


def _rows(signal: Signal) -> int:
    parts = [signal.distributions, *signal.hidden.values()]
    return next((part.rows for part in parts if part is not None), 0)


def require_same_kind(parts: Sequence[Distributions]) -> None:
    """Refuse to make one of distributions that are over different classes, or of different temperatures or draws.

    Raises:
        LabelError: tells the kinds.
    """
    kinds = {(part.family, part.classes, part.temperatures, _kind(part.draws)) for part in parts}
    if len(kinds) > 1:
        raise LabelError(f"distributions of different kinds cannot be joined: {sorted(map(str, kinds))}")


def _concat_distributions(parts: Sequence[Distributions]) -> Distributions:
    require_same_kind(parts)
    first = parts[0]
    return Distributions(
        family=first.family,
        classes=first.classes,
        temperatures=first.temperatures,
        row_offsets=_join_offsets([part.row_offsets for part in parts]),
        position=np.concatenate([part.position for part in parts]),
        entry_offsets=_join_offsets([part.entry_offsets for part in parts]),
        ids=np.concatenate([part.ids for part in parts]),
        logp=np.concatenate([part.logp for part in parts]),
        log_tail=np.concatenate([part.log_tail for part in parts]),
        entropy=np.concatenate([part.entropy for part in parts]),
        draws=_concat_draws([part.draws for part in parts if part.draws is not None]),
    )


def _kind(draws: Draws | None) -> tuple[int, float] | None:
    return None if draws is None else (draws.number, draws.exponent)


def _concat_draws(parts: Sequence[Draws]) -> Draws | None:
    if not parts:
        return None
    return replace(
        parts[0],
        count=np.concatenate([part.count for part in parts]),
        log_normaliser=np.concatenate([part.log_normaliser for part in parts]),
    )


def _concat_hidden(parts: Sequence[Hidden]) -> Hidden:
    filled = [part.values for part in parts if len(part.values)]
    if len({values.shape[1] for values in filled}) > 1:
        raise LabelError(f"hidden states of different widths cannot be joined: {[v.shape[1] for v in filled]}")
    return Hidden(
        offsets=_join_offsets([part.offsets for part in parts]),
        values=np.concatenate(filled) if filled else parts[0].values,
    )


def _join_offsets(parts: Sequence[Offsets]) -> Offsets:
    return running(np.concatenate([np.diff(offsets) for offsets in parts]))


def empty_signal(manifest: StoreManifest) -> Signal:
    """A signal of no rows, as a store with this manifest holds it."""
    start = np.zeros(1, dtype=np.int64)
    draws = (
        None
        if not manifest.draws
        else Draws(
            number=manifest.draws,
            exponent=manifest.exponent,
            count=np.empty(0, dtype=np.int32),
            log_normaliser=np.empty(0, dtype=np.float32),
        )
    )
    distributions = Distributions(
        draws=draws,
        family=manifest.family,
        classes=manifest.class_count,
        temperatures=manifest.temperatures,
        row_offsets=start,
        position=np.empty(0, dtype=np.int32),
        entry_offsets=start,
        ids=np.empty(0, dtype=np.int32),
        logp=np.empty(0, dtype=np.float32),
        log_tail=np.empty((0, len(manifest.temperatures)), dtype=np.float32),
        entropy=np.empty(0, dtype=np.float32),
    )
    return Signal(
        distributions=distributions,
        hidden={layer: Hidden(offsets=start, values=_no_vectors(0)) for layer in manifest.hidden_layers},
    )


def _no_vectors(width: int) -> npt.NDArray[np.float32]:
    return np.empty((0, width), dtype=np.float32)
