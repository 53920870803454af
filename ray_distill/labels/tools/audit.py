"""Check a whole store against its own log: digests, rows, mass, coverage, orphans."""

import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

import numpy as np

from ray_distill.artifacts import Document, SnapshotRef
from ray_distill.errors import CorruptStore
from ray_distill.labels.format import parquet_shards
from ray_distill.labels.model import rowids
from ray_distill.labels.model.distributions import Distributions
from ray_distill.labels.model.manifest import StoreManifest
from ray_distill.labels.model.rowids import RowIds, SnapshotRows
from ray_distill.labels.model.signal import DISTRIBUTIONS, HIDDEN, hidden_part, signal_of
from ray_distill.labels.model.validity import unusable
from ray_distill.labels.model.work_units import Receipt, unit_id
from ray_distill.labels.store.label_store import STORE_LOCK, LabelStore, UnitRows, open_store, snapshot_row_ids
from ray_distill.labels.store.reader import read_hidden, read_labels
from ray_distill.snapshots.reader import open_snapshot
from ray_distill.storage import files
from ray_distill.storage.committed_units import Ledger
from ray_distill.storage.files import FileInfo
from ray_distill.storage.local import is_unfinished
from ray_distill.storage.locks import at_work
from ray_distill.storage.log import DIGEST_BYTES, CommitLog, Record, check_checkpoint, covered, damaged_checkpoint
from ray_distill.storage.receipts import part_file, quarantine_file, read_verified

T = TypeVar("T")

#: Orphans younger than this may belong to a labeller that has not committed yet.
ORPHAN_AGE_SECONDS = 3600.0

#: Most orphans that are deleted without a further word: a crash leaves the attempts of a few workers.
CLEANED = 100

#: Most names of a kind in the JSON report.
NAMED = 100


class AuditReport(Document):
    """The findings of an audit; names are relative to the store, corrupt ones have a reason."""

    store: str
    units: int
    """Committed units."""
    rows: int
    """Distinct labelled rows in readable units; with a snapshot, its own."""
    quarantined: int
    """Distinct rejected rows in readable units; with a snapshot, its own."""
    duplicates: tuple[str, ...] = ()
    """Units that more than one log entry names."""
    missing: tuple[str, ...] = ()
    """Files that the log promises, and rows of the snapshot without labels, which are not there."""
    orphans: tuple[str, ...] = ()
    """Files that the log does not name: left by crashes and lost races, harmless."""
    corrupt: tuple[str, ...] = ()
    cleaned: tuple[str, ...] = ()
    """Orphans that were deleted."""
    too_many: int = 0
    """Orphans that were to be deleted and are more than was allowed, so that none was."""

    @property
    def ok(self) -> bool:
        """Return whether the store can be trained from: orphans do no harm, anything else does."""
        return not (self.duplicates or self.missing or self.corrupt)

    def to_dict(self) -> dict[str, Any]:
        """Return counts, and under ``details`` up to 100 names of each kind, as plain JSON values."""
        named = {
            "duplicates": self.duplicates,
            "missing": self.missing,
            "orphans": self.orphans,
            "corrupt": self.corrupt,
            "cleaned": self.cleaned,
        }
        return {
            "ok": self.ok,
            "store": self.store,
            "units": self.units,
            "rows": self.rows,
            "quarantined": self.quarantined,
            **{key: len(names) for key, names in named.items()},
            "too_many": self.too_many,
            "details": {key: list(names[:NAMED]) for key, names in named.items()},
        }


@dataclass
class _Findings:
    """The findings so far."""

    corrupt: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    rows: list[UnitRows] = field(default_factory=list)


def audit(
    store_url: str,
    snapshot: SnapshotRows | SnapshotRef | str | None = None,
    clean: bool = False,
    older_than: float = ORPHAN_AGE_SECONDS,
    *,
    most: float = CLEANED,
) -> AuditReport:
    """Read and check every committed byte of a store.

    Args:
        store_url: the label store.
        snapshot: also check that each of its rows is labelled or rejected (in a unit that can be read).
        clean: delete orphans.
        older_than: only orphans last written longer ago than this, in seconds.
        most: delete none where there would be more.

    Raises:
        LabelError: there is no store, or a later release wrote it. Damage is reported, not raised.
        StorageError: the file system fails.
        InUse: ``clean``, and a labeller is at work on the store.
    """
    with at_work(store_url, STORE_LOCK, "ray-distill audit --clean") if clean else nullcontext():
        return _audit(store_url, snapshot, clean=clean, older_than=older_than, most=most)


def _audit(
    store_url: str, snapshot: SnapshotRows | SnapshotRef | str | None, *, clean: bool, older_than: float, most: float
) -> AuditReport:
    # Files first, log second: what is committed in between is then no orphan.
    present = _attempt_files(store_url)
    try:
        store = open_store(store_url)
        log = CommitLog(store.url)  # the records themselves: a checkpoint is checked against them
        log.refresh()
    except CorruptStore as error:
        return AuditReport(store=store_url, units=0, rows=0, quarantined=0, corrupt=(str(error),))
    found = _Findings()
    receipts = _receipts(log.records, found)
    if not found.corrupt:
        _check_checkpoints(log, found)
        _check_length(log, present, found, older_than)
    # A log that cannot be read in full does not distinguish an orphan from a unit.
    orphans = [] if found.corrupt else _orphans(present, receipts)
    old = _old(orphans, older_than) if clean else []
    cleaned = _delete(old) if len(old) <= most else ()
    committed = {receipt.unit: receipt for receipt in reversed(receipts)}
    for receipt in sorted(committed.values(), key=lambda receipt: receipt.unit):
        _check_unit(store, receipt, found)
    rows, quarantined = _count_rows(found, snapshot)
    return AuditReport(
        store=store_url,
        units=len(committed),
        rows=rows,
        quarantined=quarantined,
        duplicates=_named_twice(receipts),
        missing=tuple(found.missing),
        orphans=tuple(item.name for item in orphans),
        corrupt=tuple(found.corrupt),
        cleaned=cleaned,
        too_many=0 if len(old) <= most else len(old),
    )


def _attempt_files(url: str) -> list[FileInfo]:
    """List all files below the store's folders of attempts, and remnants of interrupted writes.

    Remnants may lie anywhere in the store.
    """
    return [
        item
        for item in files.list_files(url, unfinished=True)
        if _of_attempts(item.name.split("/", 1)[0]) or is_unfinished(item.name.rsplit("/", 1)[-1])
    ]


def _of_attempts(folder: str) -> bool:
    """Return whether a folder of the store is for attempts: of a part, or of rejected rows."""
    return folder in (DISTRIBUTIONS, "quarantine") or folder.startswith(HIDDEN)


def _receipts(records: Sequence[Record], found: _Findings) -> list[Receipt]:
    receipts: list[Receipt] = []
    for number, record in enumerate(records):
        try:
            receipts += Receipt.in_record(record, number)
        except CorruptStore as error:
            found.corrupt.append(f"log/{number:012d}.json: {error}")
    return receipts


def _check_checkpoints(log: CommitLog, found: _Findings) -> None:
    """Require a checkpoint to be what the records before it make."""
    urls = log.checkpoints()
    if not urls:
        return
    try:
        ledger = Ledger(Receipt)
        ledger.add(log.records)
    except CorruptStore as error:
        found.corrupt.append(str(error))
        return
    for url in urls:
        if (wrong := _checkpoint_error(log, ledger, url)) is not None:
            found.corrupt.append(wrong)


def _check_length(log: CommitLog, present: Sequence[FileInfo], found: _Findings, older_than: float) -> None:
    """Require the records that pins and old attempts are evidence of."""
    try:
        log.check_pins()
    except CorruptStore as error:
        found.corrupt.append(str(error))
        return
    attempts = [item for item in present if not is_unfinished(item.name.rsplit("/", 1)[-1])]
    if log.length or not attempts or not _old(attempts[:NAMED], older_than):
        return
    found.corrupt.append(
        f"log: it has no record, but {len(attempts)} files of attempts are here, {attempts[0].name} among them: "
        "restore the log; if no command ever committed a unit, label again"
    )


def _checkpoint_error(log: CommitLog, ledger: Ledger[Receipt], url: str) -> str | None:
    number = covered(url)
    if number > log.length:
        return f"{url}: a checkpoint of {number} records, the log has {log.length}; restore the records"
    try:
        data = files.read_bytes(url)
        check_checkpoint(url, data)
        stored, chain = Ledger.from_bytes(Receipt, url, data)
    except CorruptStore as error:
        return str(error)
    same = chain == log.chain[: (number + 1) * DIGEST_BYTES] and stored.equals(ledger, number)
    return None if same else str(damaged_checkpoint(url, "it is not what the records before it make"))


def _named_twice(receipts: Sequence[Receipt]) -> tuple[str, ...]:
    counts = Counter(receipt.unit for receipt in receipts)
    return tuple(sorted(unit for unit, count in counts.items() if count > 1))


def _orphans(present: Sequence[FileInfo], receipts: Sequence[Receipt]) -> list[FileInfo]:
    known = {name for receipt in receipts for name in receipt.files()}
    return [item for item in present if item.name not in known]


def _old(orphans: Sequence[FileInfo], older_than: float) -> list[FileInfo]:
    return [item for item in orphans if time.time() - files.modified(item.url) > older_than]


def _delete(orphans: Sequence[FileInfo]) -> tuple[str, ...]:
    for item in orphans:
        files.delete(item.url)
    return tuple(item.name for item in orphans)


def _check_unit(store: LabelStore, receipt: Receipt, found: _Findings) -> None:
    """Check the bytes of each file of a unit, then that together they are the unit."""
    unit, attempt, url = receipt.unit, receipt.attempt, store.url
    if receipt.manifest != store.manifest.fingerprint or set(receipt.parts) != part_names(store.manifest):
        found.corrupt.append(f"unit {unit}: its log entry is for another manifest than store.json")
        return
    labels = _guard(
        found, url, part_file(DISTRIBUTIONS, unit, attempt), lambda: read_labels(url, store.manifest, receipt)
    )
    for layer in store.manifest.hidden:
        name = part_file(hidden_part(layer), unit, attempt)
        hidden = _guard(found, url, name, partial(read_hidden, url, store.manifest, receipt, layer))
        if labels is not None and hidden is not None and not np.array_equal(hidden[0], labels[0]):
            found.corrupt.append(f"{name}: its row ids are not those of the unit's labels")
        if hidden is not None and unusable(signal_of(hidden={layer: hidden[1]})):
            found.corrupt.append(f"{name}: hidden states are NaN or infinite")
    rejected = _rejected(store, receipt, found)
    if labels is not None and rejected is not None:
        _check_content(store, receipt, labels, rejected, found=found)


def part_names(manifest: StoreManifest) -> set[str]:
    """Return the names of the parts that each unit of a store has."""
    return set(manifest.parts)


def _rejected(store: LabelStore, receipt: Receipt, found: _Findings) -> RowIds | None:
    """Read the row ids of the rejected rows; None where they cannot be read."""
    promised, name = receipt.quarantine, quarantine_file(receipt.unit, receipt.attempt)
    if promised is None:
        return rowids.empty()
    location = files.join(store.url, name)
    read = _guard(
        found, store.url, name, lambda: parquet_shards.decode_quarantine(read_verified(location, promised), location)
    )
    return None if read is None else read[0]


def _check_content(
    store: LabelStore, receipt: Receipt, labels: tuple[RowIds, Distributions], rejected: RowIds, *, found: _Findings
) -> None:
    ids, distributions = labels
    name = part_file(DISTRIBUTIONS, receipt.unit, receipt.attempt)
    if unit_id(np.concatenate([ids, rejected]), store.manifest.fingerprint) != receipt.unit:
        found.corrupt.append(f"{name}: its rows are not those of the unit")
        return
    bad = unusable(signal_of(distributions=distributions))
    if bad:
        found.corrupt.append(f"{name}: {len(bad)} rows cannot be used: {min(bad.items())[1]}")
        return
    found.rows.append(UnitRows(labelled=ids, rejected=rejected))


def _guard(found: _Findings, url: str, name: str, read: Callable[[], T]) -> T | None:
    """Return what ``read`` returns, or None with the file noted as missing or corrupt."""
    try:
        return read()
    except CorruptStore as error:
        if files.exists(files.join(url, name)):
            found.corrupt.append(f"{name}: {str(error).removeprefix(files.join(url, name)).lstrip(': ')}")
        else:
            found.missing.append(name)
        return None


def _count_rows(found: _Findings, snapshot: SnapshotRows | SnapshotRef | str | None) -> tuple[int, int]:
    """Count distinct labelled and rejected rows.

    Rows of the snapshot without either are noted as missing.
    """
    labelled = np.unique(np.concatenate([rowids.empty(), *(rows.labelled for rows in found.rows)]))
    rejected = np.unique(np.concatenate([rowids.empty(), *(rows.rejected for rows in found.rows)]))
    rejected = rejected[~rowids.is_in(rejected, labelled)]
    if snapshot is None:
        return len(labelled), len(rejected)
    expected = snapshot_row_ids(open_snapshot(snapshot) if isinstance(snapshot, SnapshotRef | str) else snapshot)
    have, refused = rowids.is_in(expected, labelled), rowids.is_in(expected, rejected)
    found.missing += [f"row {name}" for name in rowids.hexadecimal(expected[~(have | refused)])]
    return int(have.sum()), int(refused.sum())
