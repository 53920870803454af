"""A store of work units: what all of them agree with, and a log of the attempts that won.

    <url>/store.json                        the manifest, created exclusively
    <url>/log/<n>.json                      record n names units, attempts, rows, sizes, digests
    <url>/<part>/<unit>/<attempt>.parquet   the files of one part of one attempt
    <url>/quarantine/<unit>/…               rows that could not be answered, with the reason
    <url>/pins/<n>-<digest>.json            the log had these n records; a shorter log, or another, has lost some

Workers write attempts under unique names and return receipts; the driver commits many of them in one record. The first
record that names a unit wins. Readers trust the log only.
"""

from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Any, Generic, Protocol, TypeVar

from ray_distill.errors import AlreadyExists, CorruptStore, DamagedFile, DistillError, LabelError, StorageError
from ray_distill.storage import files
from ray_distill.storage.committed_units import Ledger
from ray_distill.storage.log import DIGEST_BYTES, CommitLog, Record, covered
from ray_distill.storage.portable import located, portable
from ray_distill.storage.receipts import UnitReceipt
from ray_distill.storage.sealed import sealed, unsealed

MANIFEST_NAME = "store.json"

#: Records after the newest checkpoint of the log at which a commit writes the next one.
COMPACT_EVERY = 1000


class Manifest(Protocol):
    """The settings that all units of a store agree with."""

    @property
    def fingerprint(self) -> str:
        """Fingerprint of all settings that decide the bytes of a unit."""

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as JSON values."""


M = TypeVar("M", bound=Manifest)
R = TypeVar("R", bound=UnitReceipt)


class UnitStore(Generic[M, R]):
    """An open store: its manifest, and its log as of the last call that needed it.

    Args:
        url: the store.
        manifest: its manifest.
        receipt: class of its receipts.
    """

    def __init__(self, url: str, manifest: M, receipt: type[R]) -> None:
        self.url = files.absolute(url)  # references and receipts travel to processes with other working directories
        self.manifest = manifest
        self.log = CommitLog(self.url, self._restore)
        self._receipt = receipt
        self._ledger = Ledger(receipt)

    def _restore(self, url: str, data: bytes) -> bytes:
        ledger, chain = Ledger.from_bytes(self._receipt, url, data)
        if len(chain) == (covered(url) + 1) * DIGEST_BYTES:  # any other the log refuses
            self._ledger = ledger
        return chain

    @property
    def ledger(self) -> Ledger[R]:
        """The committed units in the part of the log that has been read.

        Raises:
            CorruptStore: a record or an entry is malformed.
        """
        try:
            self._ledger.add(self.log.records[self._ledger.length - self.log.first :])
        except CorruptStore as error:
            raise CorruptStore(f"{files.join(self.url, 'log')}: {error}; restore the record") from error
        if len(self.log.records) > COMPACT_EVERY:
            self.log.drop_records()  # the ledger has them, in a tenth of the memory
        return self._ledger

    def commit(self, receipts: Iterable[R]) -> list[str]:
        """Append one record that names all units not yet won by another attempt.

        Returns:
            Ids of the units that these receipts won, in order; the files of the others are orphans.

        Raises:
            LabelError: a receipt is for another store's manifest.
            CorruptStore: a file is missing or has another size than in its receipt.
        """
        offered: dict[str, R] = {}
        for receipt in receipts:
            self._check(receipt)
            offered.setdefault(receipt.unit, receipt)
        record = self.log.append(lambda _: self._record(offered))
        if self.log.length - self.log.checkpoint > COMPACT_EVERY:
            self.compact()
        return [] if record is None else [entry["unit"] for entry in record["units"]]

    def _record(self, offered: Mapping[str, R]) -> Record | None:
        ledger = self.ledger
        fresh = [receipt.to_dict() for unit, receipt in offered.items() if unit not in ledger]
        return {"version": 1, "units": fresh} if fresh else None

    def compact(self) -> str | None:
        """Write a checkpoint of the log as it has been read, beside its records, which stay.

        Returns:
            Its URL; None where one already stands for as many records.
        """
        ledger = self.ledger
        if self.log.length <= self.log.checkpoint:
            return None
        return self.log.write_checkpoint(ledger.to_bytes(self.log.chain))

    def _check(self, receipt: R) -> None:
        if receipt.manifest != self.manifest.fingerprint:
            raise LabelError(
                f"{self.url}: the receipt of unit {receipt.unit} is for manifest {receipt.manifest}, the store has "
                f"{self.manifest.fingerprint}; make the unit with this store's manifest"
            )
        promised = receipt.files()
        urls = [files.join(self.url, name) for name in promised]
        for url, size, item in zip(urls, files.sizes(urls), promised.values(), strict=True):
            if size != item.size:
                raise CorruptStore(f"{url}: found {size} bytes, its receipt has {item.size}; make the unit again")


def create_manifest(url: str, manifest: Manifest) -> None:
    """Write a store's manifest unless it has one; many may call this at once."""
    location = files.join(url, MANIFEST_NAME)
    if not files.exists(location):
        value = sealed({"fingerprint": manifest.fingerprint, "manifest": portable(manifest.to_dict(), url)})
        with suppress(AlreadyExists):  # another writer was first: the caller compares what it wrote
            files.create_exclusive(location, files.json_bytes(value))


class ManifestDocument(Manifest, Protocol):
    """A manifest that is rebuilt from JSON values."""

    @classmethod
    def from_dict(cls, value: Any, where: str = "") -> Any:
        """Rebuild a manifest; ``where`` is for errors."""


D = TypeVar("D", bound=ManifestDocument)


def read_manifest(url: str, kind: type[D]) -> D:
    """Return the manifest of an existing store.

    Raises:
        LabelError: it is of another version.
        CorruptStore: it was changed after its creation, or is not a manifest.
    """
    location = files.join(url, MANIFEST_NAME)
    try:
        value = files.read_json(location)
    except StorageError as error:
        if isinstance(error.__cause__, ValueError):
            raise CorruptStore(f"{location}: the manifest is not JSON ({error.__cause__}); restore it") from error
        raise
    if not isinstance(value, dict) or not isinstance(value.get("manifest"), dict):
        raise CorruptStore(f"{location}: expected a store's manifest, found something else; restore it")
    try:
        manifest: D = kind.from_dict(located(value["manifest"], url), location)
    except DistillError as error:
        where = "" if location in str(error) else f"{location}: "
        raise type(error)(f"{where}{error}; restore the file, or use the version that wrote it") from error
    if value.get("fingerprint") != manifest.fingerprint:
        raise CorruptStore(
            f"{location}: its content has fingerprint {manifest.fingerprint}, it states {value.get('fingerprint')}: "
            "it was changed after its creation; restore it"
        )
    try:
        unsealed(value, location, "restore it")
    except DamagedFile as error:
        raise CorruptStore(str(error)) from error
    return manifest
