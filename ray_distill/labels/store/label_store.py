"""The label store: open it, list missing units, commit attempts, pin it as a reference."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ray_distill.artifacts import LabelSetRef, SnapshotRef
from ray_distill.errors import CorruptStore, LabelError
from ray_distill.fingerprint import fingerprint, fingerprint_bytes
from ray_distill.labels.format import parquet_shards
from ray_distill.labels.format.codecs import find_codec
from ray_distill.labels.model import rowids
from ray_distill.labels.model.manifest import StoreManifest
from ray_distill.labels.model.rowids import RowIds, SnapshotRows
from ray_distill.labels.model.signal import DISTRIBUTIONS
from ray_distill.labels.model.work_units import Coverage, Receipt, WorkUnit, unit_id, unit_of
from ray_distill.storage import files
from ray_distill.storage.receipts import open_committed, part_file, quarantine_file
from ray_distill.storage.unit_store import MANIFEST_NAME, UnitStore, create_manifest, read_manifest

#: Lock of a local store: shared by its labellers, held alone by who deletes attempts that the log does not name.
STORE_LOCK = "lock"

#: Row ids of committed units that an open store keeps: 64 MB at most, however large the store.
CACHED_ROWS = 1 << 22


@dataclass(frozen=True, kw_only=True)
class Range:
    """A fixed range of a snapshot shard and the rows in it.

    ``unit_id`` is the id if all of them are labelled.
    """

    shard: str
    start: int
    ids: RowIds
    unit_id: str


@dataclass(frozen=True, kw_only=True)
class UnitRows:
    """Row ids of a committed unit, each ascending."""

    labelled: RowIds
    rejected: RowIds


class LabelStore(UnitStore[StoreManifest, Receipt]):
    """An open store of labels."""

    def __init__(self, url: str, manifest: StoreManifest) -> None:
        super().__init__(url, manifest, Receipt)
        self._rows: dict[str, UnitRows] = {}
        self._cached = 0

    def pending(self, snapshot: SnapshotRows) -> list[WorkUnit]:
        """Yield the units of a snapshot that are still to label; see `coverage`."""
        return list(self.coverage(snapshot).units)

    def coverage(self, snapshot: SnapshotRows) -> Coverage:
        """Compare a snapshot with the store: by unit first, then by row with everything committed.

        Only rows that are in no committed unit are left to label, whichever snapshot they came with; rejected
        rows count as done. Units are read one after the other, so memory goes with the snapshot, not the store.
        """
        self.log.refresh()
        ledger, parts = self.ledger, list(ranges(snapshot, self.manifest))
        places = ledger.find([part.unit_id for part in parts])
        same = places[places >= 0]
        open_parts = [part for part, place in zip(parts, places, strict=True) if place < 0]
        finished = self._finished(open_parts, ledger.receipts(without=same))
        split = [self._split(part, finished) for part in open_parts]
        return Coverage(
            units=tuple(unit for unit, _, _ in split if unit is not None),
            rows_total=sum(len(part.ids) for part in parts),
            rows_reused=int(ledger.counts("rows")[same].sum()) + sum(reused for _, reused, _ in split),
            rows_quarantined=int(ledger.counts("rejected")[same].sum()) + sum(bad for _, _, bad in split),
        )

    def _finished(self, parts: Iterable[Range], units: Iterator[Receipt]) -> UnitRows:
        """Return which rows of the ranges the units have labelled and rejected."""
        ids = np.sort(np.concatenate([rowids.empty(), *(part.ids for part in parts)]))
        labelled, rejected = np.zeros(len(ids), dtype=bool), np.zeros(len(ids), dtype=bool)
        while not labelled.all() and (unit := next(units, None)) is not None:
            rows = self.unit_rows(unit)
            for mark, found in ((labelled, rows.labelled), (rejected, rows.rejected)):
                at = rowids.find(found, ids)
                mark[at[at >= 0]] = True
        return UnitRows(labelled=ids[labelled], rejected=ids[rejected])

    def _split(self, part: Range, finished: UnitRows) -> tuple[WorkUnit | None, int, int]:
        """Return the unit of a range's new rows, and how many are labelled and rejected.

        The unit is None if there are no new rows.
        """
        reused = rowids.is_in(part.ids, finished.labelled)
        bad = rowids.is_in(part.ids, finished.rejected) & ~reused
        new, mark = ~(reused | bad), self.manifest.fingerprint
        return (
            unit_of(part.ids, new, shard=part.shard, start=part.start, manifest=mark),
            int(reused.sum()),
            int(bad.sum()),
        )

    def unit_rows(self, unit: Receipt) -> UnitRows:
        """Read the row ids of a committed unit; reads only that column.

        Raises:
            CorruptStore: a file is unreadable, or has another number of rows than its log entry.
        """
        known = self._rows.get(unit.unit)
        if known is not None:
            return known
        labelled = self._ids(part_file(DISTRIBUTIONS, unit.unit, unit.attempt), unit.rows)
        name = quarantine_file(unit.unit, unit.attempt)
        rejected = self._ids(name, unit.rejected) if unit.quarantine else rowids.empty()
        rows, count = UnitRows(labelled=labelled, rejected=rejected), len(labelled) + len(rejected)
        if self._cached + count <= CACHED_ROWS:
            self._rows[unit.unit] = rows
            self._cached += count
        return rows

    def _ids(self, name: str, expected: int) -> RowIds:
        url = files.join(self.url, name)
        with open_committed(url) as source:
            ids = parquet_shards.read_row_ids(source, url)
        if len(ids) != expected:
            raise CorruptStore(f"{url}: found {len(ids)} rows, the log promised {expected}; restore the file")
        return ids

    def ref(self, snapshot: SnapshotRows) -> LabelSetRef:
        """Pin the labels of a snapshot as the log stands now.

        Labels of other snapshots that the store has, now or later, do not change the fingerprint.
        """
        self.log.refresh()
        length, ids = self.log.length, snapshot_row_ids(snapshot)
        return LabelSetRef(
            store=self.url,
            fingerprint=label_fingerprint(self, snapshot.ref, shares_of(self, length, ids)),
            snapshot=snapshot.ref,
            log_length=length,
            log_digest=self.log.prefix_digest(length),
        )


def snapshot_row_ids(snapshot: SnapshotRows) -> RowIds:
    """Return the row ids of a whole snapshot, in its order."""
    parts = [snapshot.read_shard(shard, columns=["row_id"]).column("row_id") for shard in snapshot.shards]
    return np.concatenate([rowids.empty(), *map(rowids.to_numpy, parts)])


@dataclass(frozen=True, kw_only=True)
class Share:
    """The rows that one unit contributes to a label set."""

    unit: Receipt
    ids: RowIds
    """Row ids of the whole unit, in the order of its shard."""
    keep: npt.NDArray[np.int64]
    """Which of them are this set's, ascending."""


@dataclass(frozen=True, kw_only=True)
class Shares:
    """The units that labelled a snapshot's rows."""

    units: Mapping[str, Share]
    """Units with at least one row of the snapshot, by id."""
    labelled: npt.NDArray[np.bool_]
    """Which of the snapshot's rows, ascending by id, are labelled."""
    rejected: npt.NDArray[np.bool_]
    """Which of them some unit could not answer."""


def shares_of(store: LabelStore, length: int, snapshot_ids: RowIds) -> Shares:
    """Assign each row of a snapshot to the first unit that labelled it.

    Only the first ``length`` records count.

    Raises:
        CorruptStore: a unit was labelled for another manifest than the store's.
    """
    ascending = np.sort(snapshot_ids)
    taken, rejected = np.zeros(len(ascending), dtype=bool), np.zeros(len(ascending), dtype=bool)
    shares = {}
    for unit in store.ledger.receipts(length):
        if unit.manifest != store.manifest.fingerprint:
            raise CorruptStore(
                f"{store.url}: unit {unit.unit} was labelled for manifest {unit.manifest}, the store has "
                f"{store.manifest.fingerprint}: store.json or the log is another store's; restore it"
            )
        rows = store.unit_rows(unit)
        at = rowids.find(rows.labelled, ascending)
        fresh = at >= 0
        fresh[fresh] = ~taken[at[fresh]]
        if fresh.any():
            taken[at[fresh]] = True
            shares[unit.unit] = Share(unit=unit, ids=rows.labelled, keep=np.flatnonzero(fresh))
        refused = rowids.find(rows.rejected, ascending)
        rejected[refused[refused >= 0]] = True
    return Shares(units=shares, labelled=taken, rejected=rejected)


def label_fingerprint(store: LabelStore, snapshot: SnapshotRef, shares: Shares) -> str:
    """Return the fingerprint of a snapshot's labels.

    It covers the store's manifest, the snapshot, and the files and rows of the units that labelled it. The store's log
    has no part in it, so that labels added for other snapshots leave it, and all results made from it, as they are.
    """
    units = b"".join(_share_digest(shares.units[unit]) for unit in sorted(shares.units))
    return fingerprint(
        {"manifest": store.manifest.fingerprint, "snapshot": snapshot.fingerprint, "units": fingerprint_bytes(units)}
    )


def _share_digest(share: Share) -> bytes:
    digests = {part: item.digest for part, item in share.unit.parts.items()}
    whole = len(share.keep) == len(share.ids)
    rows = "" if whole else fingerprint_bytes(share.keep.tobytes())
    return fingerprint({"unit": share.unit.unit, "parts": digests, "rows": rows}).encode()


def ranges(snapshot: SnapshotRows, manifest: StoreManifest) -> Iterator[Range]:
    """Return the fixed ranges of ``rows_a_unit`` rows of a snapshot's shards, in order."""
    mark = manifest.fingerprint
    for shard in snapshot.shards:
        ids = rowids.to_numpy(snapshot.read_shard(shard, columns=["row_id"]).column("row_id"))
        for start in range(0, len(ids), manifest.rows_a_unit):
            part = ids[start : start + manifest.rows_a_unit]
            yield Range(shard=shard.name, start=start, ids=part, unit_id=unit_id(part, mark))


def open_store(url: str) -> LabelStore:
    """Open an existing store.

    Raises:
        LabelError: there is none, or it is of a later version, or of a codec that this release does not have.
        CorruptStore: its manifest was changed.
    """
    if not files.exists(files.join(url, MANIFEST_NAME)):
        raise LabelError(f"{url}: there is no label store here ({MANIFEST_NAME} is missing); label a snapshot first")
    manifest = read_manifest(url, StoreManifest)
    find_codec(manifest.distributions.codec)
    return LabelStore(url, manifest)


def create_or_open(url: str, manifest: StoreManifest) -> LabelStore:
    """Create a store, or open an equal one that exists; many may call this at once.

    Raises:
        StoreMismatch: it was made for something else: each differing field with both sides.
    """
    find_codec(manifest.distributions.codec)
    create_manifest(url, manifest)
    store = open_store(url)
    store.manifest.require(manifest, url)
    return store
