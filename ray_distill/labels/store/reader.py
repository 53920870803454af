"""Read the labels of one snapshot, pinned by a reference.

Labels are verified, and each row is read once, always in the same order.
"""

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ray_distill.artifacts import LabelSetRef
from ray_distill.errors import CorruptStore, LabelError, StoreMismatch
from ray_distill.labels.format import parquet_shards
from ray_distill.labels.format.arrow_tables import empty_signal
from ray_distill.labels.format.fitted_arrays import read_fits
from ray_distill.labels.format.hidden_states import decode_hidden
from ray_distill.labels.model import rowids
from ray_distill.labels.model.distributions import Distributions
from ray_distill.labels.model.manifest import StoreManifest
from ray_distill.labels.model.rowids import RowIds, SnapshotRows
from ray_distill.labels.model.signal import DISTRIBUTIONS, Signal, Vectors, concat_signals, hidden_part, signal_of
from ray_distill.labels.model.work_units import Receipt
from ray_distill.labels.store.label_store import (
    LabelStore,
    Share,
    Shares,
    label_fingerprint,
    open_store,
    shares_of,
    snapshot_row_ids,
)
from ray_distill.snapshots.reader import open_snapshot
from ray_distill.storage import files
from ray_distill.storage.receipts import part_file, read_verified

#: Units that are read and decoded at a time.
READERS = 4


class LabelSet:
    """The labels of one snapshot; open it with `open_label_set`."""

    def __init__(self, ref: LabelSetRef, store: LabelStore, snapshot_ids: RowIds) -> None:
        self.ref = ref
        self.manifest: StoreManifest = store.manifest
        self._url = store.url
        self._shares = shares_of(store, ref.log_length, snapshot_ids)
        if label_fingerprint(store, ref.snapshot, self._shares) != ref.fingerprint:
            raise CorruptStore(
                f"{ref.store}: the snapshot's labels differ from what the reference pins; restore the store's manifest "
                "and log, or label again"
            )
        _require_covered(store, np.sort(snapshot_ids), self._shares)
        self._order = _snapshot_order(self._shares.units, snapshot_ids)
        self.units: tuple[Receipt, ...] = tuple(self._shares.units[name].unit for name in sorted(self._shares.units))
        """Units with at least one row of the snapshot, ordered by id, so whatever order they were committed in."""

    @property
    def rows(self) -> int:
        """Labelled rows of the snapshot."""
        return len(self._order)

    @cached_property
    def ids(self) -> RowIds:
        """Ids of the labelled rows, ascending; known without reading a label."""
        return np.sort(
            np.concatenate([rowids.empty(), *(share.ids[share.keep] for share in self._shares.units.values())])
        )

    def row_ids(self, unit: Receipt) -> pa.FixedSizeBinaryArray:
        """Return the row ids that `read_unit` returns for a unit, without reading it."""
        share = self._shares.units[unit.unit]
        return rowids.to_arrow(share.ids[share.keep])

    def read_unit(self, unit: Receipt, layers: Sequence[int] = ()) -> tuple[pa.FixedSizeBinaryArray, Signal]:
        """Read the snapshot's rows of one unit that are in no earlier unit, ordered by row id.

        Args:
            unit: one of ``units``.
            layers: hidden layers to read as well; other layers' files are not touched.

        Raises:
            CorruptStore: a file's bytes are not what the log promised; names the file.
            StoreMismatch: a layer is not in the store.
        """
        require_layers(self.manifest, layers)
        share = self._shares.units[unit.unit]
        ids, distributions = read_labels(self._url, self.manifest, unit)
        _require_same(files.join(self._url, part_file(DISTRIBUTIONS, unit.unit, unit.attempt)), ids, share.ids)
        hidden = {layer: self._hidden(unit, layer, ids) for layer in layers}
        signal = signal_of(distributions=distributions, hidden=hidden)
        whole = len(share.keep) == len(ids)
        return self.row_ids(unit), signal if whole else signal.take(share.keep)

    def labelled(self, requested: RowIds) -> RowIds:
        """Return those of some row ids that have labels; nothing is read."""
        found = np.zeros(len(requested), dtype=bool)
        for _, own, _ in self._holders(requested):
            found[own] = True
        return requested[found]

    def read_rows(self, requested: RowIds, layers: Sequence[int] = ()) -> tuple[pa.FixedSizeBinaryArray, Signal]:
        """Read ids and labels of some rows, unit by unit; rows without labels are left out.

        Only units that contain one of the rows are read.

        Args:
            requested: row ids of the snapshot; few units are read where the ids are close to each other.
            layers: as in `read_unit`, as are the errors.
        """
        ids, signals = [rowids.empty()], []
        for unit, own, at in self._holders(requested):
            ids.append(requested[own])
            found, signal = self.read_unit(unit, layers)
            whole = len(at) == len(found) and bool((np.diff(at) == 1).all())
            signals.append(signal if whole else signal.take(at))
        if signals:
            return rowids.to_arrow(np.concatenate(ids)), concat_signals(signals)
        return rowids.to_arrow(rowids.empty()), self._nothing(layers)

    def _nothing(self, layers: Sequence[int]) -> Signal:
        empty = empty_signal(self.manifest)
        return signal_of(distributions=empty.distributions, hidden={layer: empty.hidden[layer] for layer in layers})

    def _holders(self, requested: RowIds) -> Iterator[tuple[Receipt, npt.NDArray[np.int64], npt.NDArray[np.int64]]]:
        """Return units that contain requested rows, and the places of these rows.

        The places are those among the requested rows, and those among the rows that `read_unit` returns.
        """
        if not len(requested):
            return
        (least, greatest), ascending = self._ends, np.sort(requested)
        near = np.flatnonzero((least <= ascending[-1]) & (greatest >= ascending[0]))
        for unit in (self.units[at] for at in near):
            share = self._shares.units[unit.unit]
            at = rowids.find(requested, share.ids[share.keep])
            own = np.flatnonzero(at >= 0)
            if len(own):
                yield unit, own, at[own]

    @cached_property
    def _ends(self) -> tuple[RowIds, RowIds]:
        """Least and greatest row id of each unit's share."""
        shares = [self._shares.units[unit.unit] for unit in self.units]
        return (
            np.array([share.ids[share.keep[0]] for share in shares], dtype="S16"),
            np.array([share.ids[share.keep[-1]] for share in shares], dtype="S16"),
        )

    def _hidden(self, unit: Receipt, layer: int, ids: RowIds) -> Vectors:
        found, hidden = read_hidden(self._url, self.manifest, unit, layer)
        _require_same(files.join(self._url, part_file(hidden_part(layer), unit.unit, unit.attempt)), found, ids)
        return hidden

    def read(self, layers: Sequence[int] = ()) -> tuple[pa.FixedSizeBinaryArray, Signal]:
        """Read all labelled rows of the snapshot, each once, in its order; errors as `read_unit`."""
        with ThreadPoolExecutor(READERS, thread_name_prefix="labels") as pool:
            parts = list(pool.map(lambda unit: self.read_unit(unit, layers), self.units))
        return self.in_order(parts) if parts else (rowids.to_arrow(rowids.empty()), self._nothing(layers))

    def in_order(
        self, parts: Sequence[tuple[pa.FixedSizeBinaryArray, Signal]]
    ) -> tuple[pa.FixedSizeBinaryArray, Signal]:
        """Join the results of `read_unit` for each of ``units``, in the snapshot's order.

        A result may also be what was computed from one.
        """
        ids = np.concatenate([rowids.to_numpy(ids) for ids, _ in parts])
        signal = concat_signals([signal for _, signal in parts])
        return rowids.to_arrow(ids[self._order]), signal.take(self._order)


def _require_covered(store: LabelStore, ids: RowIds, shares: Shares) -> None:
    """Refuse a snapshot with rows that were neither labelled nor rejected.

    Raises:
        LabelError: the number of such rows, and the first.
    """
    covered = shares.labelled | shares.rejected
    missing = int((~covered).sum())
    if missing:
        first = rowids.hexadecimal(ids[~covered][:1])[0]
        raise LabelError(
            f"{store.url}: {missing} of the snapshot's {len(ids)} rows have no labels in the pinned part of the log, "
            f"first {first}; run label again and use the reference it prints"
        )


def _snapshot_order(shares: Mapping[str, Share], snapshot_ids: RowIds) -> npt.NDArray[np.int64]:
    """Return the place of each labelled row of the snapshot in the units' concatenated rows."""
    ids = np.concatenate([rowids.empty(), *(shares[name].ids[shares[name].keep] for name in sorted(shares))])
    by_id = np.argsort(ids, kind="stable").astype(np.int64)
    at = rowids.find(snapshot_ids, ids[by_id])
    return by_id[at[at >= 0]]


def _require_same(url: str, found: RowIds, expected: RowIds) -> None:
    if not np.array_equal(found, expected):
        raise CorruptStore(f"{url}: its row ids are not those of the unit; restore the file")


def open_label_set(ref: LabelSetRef, snapshot: SnapshotRows | None = None) -> LabelSet:
    """Open the labels that a reference pins; reads row ids, but no labels yet.

    Args:
        ref: what `LabelStore.ref` gave.
        snapshot: the reference's snapshot, if it is open already.

    Raises:
        CorruptStore: the store's manifest or log is not what the reference pins.
        StoreMismatch: another snapshot was given.
        LabelError: rows of the snapshot have no labels, or there is no store.
    """
    store = open_store(ref.store)
    store.log.refresh()
    digest = store.log.prefix_digest(ref.log_length)
    if digest != ref.log_digest:
        raise CorruptStore(
            f"{ref.store}: manifest or log differ from what the reference pins (log {digest}, expected "
            f"{ref.log_digest}); restore them, or label again"
        )
    snapshot = open_snapshot(ref.snapshot) if snapshot is None else snapshot
    if snapshot.ref.fingerprint != ref.snapshot.fingerprint:
        raise StoreMismatch(
            f"the labels are of snapshot {ref.snapshot.fingerprint}, found snapshot {snapshot.ref.fingerprint}; "
            "open the snapshot that the reference names"
        )
    return LabelSet(ref, store, snapshot_row_ids(snapshot))


def require_layers(manifest: StoreManifest, layers: Sequence[int]) -> None:
    """Refuse hidden layers that a store does not have.

    Raises:
        StoreMismatch: names the layers that are requested and those that are stored.
    """
    absent = sorted(set(layers) - set(manifest.hidden))
    if absent:
        raise StoreMismatch(
            f"hidden layers {absent} are requested, the store has {list(manifest.hidden)}; use those, or label "
            "with these layers in another store"
        )


def read_labels(url: str, manifest: StoreManifest, unit: Receipt) -> tuple[RowIds, Distributions]:
    """Return row ids and distributions of a whole unit, verified against its receipt.

    Raises:
        CorruptStore: names the file.
    """
    location, data = _read_part(url, unit, DISTRIBUTIONS)
    ids, distributions = parquet_shards.decode_labels(
        data, manifest.distributions, read_fits(url, manifest.fits), location
    )
    _require_rows(location, len(ids), distributions.rows, unit.rows)
    return ids, distributions


def read_hidden(url: str, manifest: StoreManifest, unit: Receipt, layer: int) -> tuple[RowIds, Vectors]:
    """Return row ids and hidden states of one layer of a whole unit; errors as `read_labels`."""
    location, data = _read_part(url, unit, hidden_part(layer))
    ids, hidden = decode_hidden(data, manifest.hidden[layer], read_fits(url, manifest.fits), location)
    _require_rows(location, len(ids), hidden.rows, unit.rows)
    return ids, hidden


def _read_part(url: str, unit: Receipt, part: str) -> tuple[str, bytes]:
    """Return the URL and the verified bytes of a unit's file of one part."""
    location = files.join(url, part_file(part, unit.unit, unit.attempt))
    if part not in unit.parts:
        raise CorruptStore(f"{location}: the log has no such file for unit {unit.unit}; restore the log")
    return location, read_verified(location, unit.parts[part])


def _require_rows(location: str, ids: int, rows: int, promised: int) -> None:
    if not ids == rows == promised:
        raise CorruptStore(
            f"{location}: found {ids} row ids and {rows} rows, the log promised {promised}; restore the file"
        )
