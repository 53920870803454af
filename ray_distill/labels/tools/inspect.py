"""Show one row of a store: its unit, likeliest classes, mass of the rest, and layers."""

from typing import Any

import numpy as np

from ray_distill.artifacts import Document
from ray_distill.errors import LabelError
from ray_distill.labels.format import parquet_shards
from ray_distill.labels.model import rowids
from ray_distill.labels.model.distributions import Distributions
from ray_distill.labels.model.manifest import StoreManifest
from ray_distill.labels.model.work_units import Receipt
from ray_distill.labels.store.label_store import LabelStore, open_store
from ray_distill.labels.store.reader import read_hidden, read_labels
from ray_distill.storage import files
from ray_distill.storage.receipts import quarantine_file, read_verified

#: Classes that are shown of a position, and positions of a row.
SHOWN_CLASSES, SHOWN_POSITIONS = 10, 8


class RowReport(Document):
    """The labels of a row in a store."""

    row_id: str
    unit: str
    shard: str
    """Shard of the snapshot that it was labelled from."""
    reason: str | None = None
    """Why it is in quarantine; None if it is labelled."""
    positions: tuple[dict[str, Any], ...] = ()
    """Each with ``position``, ``entropy`` (nats, None if it is not known), ``classes`` (name and probability, likeliest
    first) and ``tail`` (mass that is not stored, by temperature)."""
    position_count: int = 0
    hidden: dict[str, dict[str, float]] | None = None
    """Layers by number: vectors, width, and their root mean square."""


def inspect_row(store_url: str, row: str) -> RowReport:
    """Find a row by its id, or by its first digits where these are unique, and read its labels.

    Raises:
        LabelError: no committed unit contains it, several ids begin so, or ``row`` is not hexadecimal.
        CorruptStore: its files are not what the log promised.
    """
    prefix = row.lower()
    if not prefix or len(prefix) > 2 * rowids.ROW_ID_BYTES or set(prefix) - set("0123456789abcdef"):
        raise LabelError(f"a row id has up to 32 hexadecimal digits, found {row[:80]!r}")
    store = open_store(store_url)
    store.log.refresh()
    found: dict[str, tuple[Receipt, bool]] = {}
    for unit in store.ledger.receipts():
        rows = store.unit_rows(unit)
        for ids, labelled in ((rows.labelled, True), (rows.rejected, False)):
            for name in rowids.hexadecimal(_beginning(ids, prefix)):
                found.setdefault(name, (unit, labelled))
    if len(found) != 1:
        what = "no committed unit contains" if not found else f"{len(found)} rows begin with"
        raise LabelError(f"{store_url}: {what} row {row}" + ("; give more digits" if found else "; is it labelled?"))
    name, (unit, labelled) = found.popitem()
    return _labelled(store, unit, name) if labelled else _rejected(store, unit, name)


def _beginning(ids: rowids.RowIds, prefix: str) -> rowids.RowIds:
    """Return the ids that begin with these digits; ids are ascending, so they are a range."""
    width = 2 * rowids.ROW_ID_BYTES
    low, high = (np.frombuffer(bytes.fromhex(prefix.ljust(width, fill)), dtype="S16") for fill in "0f")
    return ids[np.searchsorted(ids, low[0]) : np.searchsorted(ids, high[0], side="right")]


def _rejected(store: LabelStore, unit: Receipt, name: str) -> RowReport:
    location = files.join(store.url, quarantine_file(unit.unit, unit.attempt))
    assert unit.quarantine is not None
    ids, reasons = parquet_shards.decode_quarantine(read_verified(location, unit.quarantine), location)
    return RowReport(row_id=name, unit=unit.unit, shard=unit.shard, reason=reasons[rowids.hexadecimal(ids).index(name)])


def _labelled(store: LabelStore, unit: Receipt, name: str) -> RowReport:
    ids, distributions = read_labels(store.url, store.manifest, unit)
    at = rowids.hexadecimal(ids).index(name)
    one = distributions.take([at])
    hidden = {}
    for layer in store.manifest.hidden:
        values = read_hidden(store.url, store.manifest, unit, layer)[1].take([at]).values
        hidden[str(layer)] = {
            "vectors": float(len(values)),
            "width": float(values.shape[1]),
            "rms": float(np.sqrt(np.square(values, dtype=np.float64).mean())),
        }
    shown = range(min(len(one.position), SHOWN_POSITIONS))
    return RowReport(
        row_id=name,
        unit=unit.unit,
        shard=unit.shard,
        position_count=len(one.position),
        hidden=hidden,
        positions=tuple(_position(one, store.manifest, number) for number in shown),
    )


def _position(one: Distributions, manifest: StoreManifest, number: int) -> dict[str, Any]:
    start, stop = one.entry_offsets[number : number + 2]
    ids, p = one.ids[start:stop], np.exp(one.logp[start:stop].astype(np.float64))
    likeliest = np.argsort(-p, kind="stable")[:SHOWN_CLASSES]
    names = manifest.space.names
    entropy = float(one.entropy[number])
    return {
        "position": int(one.position[number]),
        "entropy": None if np.isnan(entropy) else entropy,
        "classes": [[names[ids[i]] if names else str(ids[i]), float(p[i])] for i in likeliest],
        "tail": {
            f"{temperature:g}": float(np.exp(np.float64(tail)))
            for temperature, tail in zip(one.temperatures, one.log_tail[number], strict=True)
        },
    }


def show_row(report: RowReport) -> str:
    """Return a report as lines for people."""
    lines = [f"row    {report.row_id}", f"unit   {report.unit}  ({report.shard})"]
    if report.reason is not None:
        return "\n".join([*lines, f"quarantined: {report.reason}"])
    for position in report.positions:
        tails = ", ".join(f"{mass:.2e} at T = {temperature}" for temperature, mass in position["tail"].items())
        entropy = "not known" if position["entropy"] is None else f"{position['entropy']:.3f} nats"
        lines.append(f"position {position['position']}: entropy {entropy}, not stored {tails}")
        lines += [f"  {p:8.4f}  {name}" for name, p in position["classes"]]
    if report.position_count > len(report.positions):
        lines.append(f"… and {report.position_count - len(report.positions)} more positions")
    for layer, facts in (report.hidden or {}).items():
        shape = f"{facts['vectors']:.0f} × {facts['width']:.0f}"
        lines.append(f"layer {layer}: {shape}, root mean square {facts['rms']:.3g}")
    return "\n".join(lines)
