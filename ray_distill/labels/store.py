"""The label store: open it, ask what is missing, commit what was made, pin it as a reference."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ray_distill.artifacts import LabelSetRef, SnapshotRef
from ray_distill.errors import AlreadyExists, CorruptStore, LabelError, StorageError
from ray_distill.fingerprint import fingerprint
from ray_distill.labels import rowids, shards
from ray_distill.labels.codecs import find_codec
from ray_distill.labels.manifest import StoreManifest
from ray_distill.labels.rowids import RowIds, SnapshotRows
from ray_distill.labels.units import Receipt, WorkUnit, labels_name, quarantine_name, unit_id, winners
from ray_distill.storage import files
from ray_distill.storage.log import CommitLog, Record

MANIFEST_NAME = "store.json"


@dataclass(frozen=True, kw_only=True)
class Coverage:
    """How much of a snapshot a store holds, and the units that are missing."""

    units: tuple[WorkUnit, ...]
    rows_total: int
    rows_reused: int
    """Rows already labelled, for this snapshot or another."""
    rows_quarantined: int
    """Rows that could not be labelled; they are not tried again."""

    @property
    def rows_to_label(self) -> int:
        """Rows in ``units``."""
        return sum(len(unit.rows) for unit in self.units)


@dataclass(frozen=True, kw_only=True)
class Range:
    """A fixed range of a snapshot shard and the rows in it; ``unit_id`` is the id if all of them are labelled."""

    shard: str
    start: int
    ids: RowIds
    unit_id: str


@dataclass(frozen=True, kw_only=True)
class UnitRows:
    """Row ids of a committed unit, each ascending."""

    labelled: RowIds
    rejected: RowIds


class LabelStore:
    """An open store: its manifest, and its log as of the last call that needed it."""

    def __init__(self, url: str, manifest: StoreManifest) -> None:
        self.url = files.absolute(url)  # references and receipts travel to processes with other working directories
        self.manifest = manifest
        self.log = CommitLog(self.url)
        self._rows: dict[str, UnitRows] = {}

    def pending(self, snapshot: SnapshotRows) -> list[WorkUnit]:
        """The units of a snapshot that are still to label; see `coverage`."""
        return list(self.coverage(snapshot).units)

    def coverage(self, snapshot: SnapshotRows) -> Coverage:
        """Compare a snapshot with the store: by unit first, then by row with everything committed.

        Only rows that no committed unit holds are left to label, whichever snapshot they came with; rejected
        rows count as held.
        """
        self.log.refresh()
        committed = winners(self.log.records)
        parts = list(ranges(snapshot, self.manifest))
        same = {part.unit_id for part in parts if part.unit_id in committed}
        open_parts = [part for part in parts if part.unit_id not in same]
        others = [committed[name] for name in committed if name not in same] if open_parts else []
        labelled, rejected = self._held(others)
        split = [self._split(part, labelled, rejected) for part in open_parts]
        return Coverage(
            units=tuple(unit for unit, _, _ in split if unit is not None),
            rows_total=sum(len(part.ids) for part in parts),
            rows_reused=sum(committed[name].rows for name in same) + sum(reused for _, reused, _ in split),
            rows_quarantined=sum(committed[name].rejected for name in same) + sum(bad for _, _, bad in split))

    def _split(self, part: Range, labelled: RowIds, rejected: RowIds) -> tuple[WorkUnit | None, int, int]:
        """The unit of a range's new rows (None if there are none), and how many are labelled and rejected."""
        reused = rowids.is_in(part.ids, labelled)
        bad = rowids.is_in(part.ids, rejected) & ~reused
        return self._unit(part, ~(reused | bad)), int(reused.sum()), int(bad.sum())

    def _unit(self, part: Range, new: npt.NDArray[np.bool_]) -> WorkUnit | None:
        if not new.any():
            return None
        rows = np.flatnonzero(new) + part.start
        return WorkUnit(
            unit_id=unit_id(part.ids[new], self.manifest.fingerprint), shard=part.shard, start=part.start,
            stop=part.start + len(part.ids), rows=tuple(int(row) for row in rows))

    def _held(self, units: Sequence[Receipt]) -> tuple[RowIds, RowIds]:
        found = [self.unit_rows(unit) for unit in units]
        labelled = np.concatenate([rowids.empty(), *(rows.labelled for rows in found)])
        rejected = np.concatenate([rowids.empty(), *(rows.rejected for rows in found)])
        return np.sort(labelled), np.sort(rejected)

    def unit_rows(self, unit: Receipt) -> UnitRows:
        """Row ids of a committed unit; reads only that column, and only once.

        Raises:
            CorruptStore: a file is unreadable, or holds another number of rows than the log says.
        """
        if unit.unit not in self._rows:
            labelled = self._ids(labels_name(unit.unit, unit.attempt), unit.rows)
            name = quarantine_name(unit.unit, unit.attempt)
            rejected = self._ids(name, unit.rejected) if unit.quarantine else rowids.empty()
            self._rows[unit.unit] = UnitRows(labelled=labelled, rejected=rejected)
        return self._rows[unit.unit]

    def _ids(self, name: str, expected: int) -> RowIds:
        url = files.join(self.url, name)
        with files.open_input(url) as source:
            ids = shards.read_row_ids(source, url)
        if len(ids) != expected:
            raise CorruptStore(f"{url}: found {len(ids)} rows, the log promised {expected}; restore the file")
        return ids

    def commit(self, receipts: Iterable[Receipt]) -> list[str]:
        """Append one record that names all units not yet won by another attempt.

        Returns:
            Ids of the units that these receipts won, in order; the files of the others are orphans.

        Raises:
            LabelError: a receipt is for another store's manifest.
            CorruptStore: a file is missing or has another size than its receipt says.
        """
        offered: dict[str, Receipt] = {}
        for receipt in receipts:
            self._check(receipt)
            offered.setdefault(receipt.unit, receipt)
        record = self.log.append(lambda records: _record(records, offered))
        return [] if record is None else [entry["unit"] for entry in record["units"]]

    def _check(self, receipt: Receipt) -> None:
        if receipt.manifest != self.manifest.fingerprint:
            raise LabelError(
                f"{self.url}: the receipt of unit {receipt.unit} is for manifest {receipt.manifest}, the store has "
                f"{self.manifest.fingerprint}; label with this store's manifest")
        promised = receipt.files()
        urls = [files.join(self.url, name) for name in promised]
        for url, size, item in zip(urls, files.sizes(urls), promised.values(), strict=True):
            if size != item.size:
                raise CorruptStore(f"{url}: found {size} bytes, its receipt says {item.size}; label the unit again")

    def ref(self, snapshot: SnapshotRef) -> LabelSetRef:
        """Pin the labels of a snapshot as the log stands now."""
        self.log.refresh()
        return make_ref(self, snapshot, len(self.log.records))


def _record(records: Sequence[Record], offered: Mapping[str, Receipt]) -> Record | None:
    won = winners(records)
    fresh = [receipt.to_dict() for unit, receipt in offered.items() if unit not in won]
    return {"version": 1, "units": fresh} if fresh else None


def make_ref(store: LabelStore, snapshot: SnapshotRef, length: int) -> LabelSetRef:
    """The reference to a snapshot's labels in the first ``length`` records of a store's log."""
    digest = store.log.prefix_digest(length)
    content = {"manifest": store.manifest.fingerprint, "log": digest, "snapshot": snapshot.fingerprint}
    return LabelSetRef(
        store=store.url, fingerprint=fingerprint(content), snapshot=snapshot, log_length=length, log_digest=digest)


def ranges(snapshot: SnapshotRows, manifest: StoreManifest) -> Iterator[Range]:
    """The fixed ranges of ``rows_a_unit`` rows into which a snapshot's shards fall, in order."""
    for shard in snapshot.shards:
        ids = rowids.to_numpy(snapshot.read_shard(shard, columns=["row_id"]).column("row_id"))
        for start in range(0, len(ids), manifest.rows_a_unit):
            part = ids[start : start + manifest.rows_a_unit]
            yield Range(shard=shard.name, start=start, ids=part, unit_id=unit_id(part, manifest.fingerprint))


def open_store(url: str) -> LabelStore:
    """Open an existing store.

    Raises:
        LabelError: there is none, or it is of a later version, or of a codec this release does not know.
        CorruptStore: its manifest was changed.
    """
    location = files.join(url, MANIFEST_NAME)
    if not files.exists(location):
        raise LabelError(f"{url}: there is no label store here ({MANIFEST_NAME} is missing); label a snapshot first")
    try:
        value = files.read_json(location)
    except StorageError as error:
        if isinstance(error.__cause__, ValueError):
            raise CorruptStore(f"{location}: the manifest is not JSON ({error.__cause__}); restore it") from error
        raise
    return LabelStore(url, _manifest(location, value))


def _manifest(location: str, value: Any) -> StoreManifest:
    if not isinstance(value, dict) or not isinstance(value.get("manifest"), dict):
        raise CorruptStore(f"{location}: expected a label store's manifest, found something else; restore it")
    manifest = StoreManifest.from_dict(value["manifest"])
    if value.get("fingerprint") != manifest.fingerprint:
        raise CorruptStore(
            f"{location}: its content has fingerprint {manifest.fingerprint}, it says {value.get('fingerprint')}: "
            "it was changed after its creation; restore it")
    find_codec(manifest.codec)
    return manifest


def create_or_open(url: str, manifest: StoreManifest) -> LabelStore:
    """Create a store, or open the one that is there if it is the same; many may call this at once.

    Raises:
        StoreMismatch: it was made for something else: each differing field with both sides.
    """
    find_codec(manifest.codec)
    location = files.join(url, MANIFEST_NAME)
    if not files.exists(location):
        value = {"fingerprint": manifest.fingerprint, "manifest": manifest.to_dict()}
        with suppress(AlreadyExists):  # another labeller was first: what it wrote is compared below
            files.create_exclusive(location, files.json_bytes(value))
    store = open_store(url)
    store.manifest.require(manifest, url)
    return store
