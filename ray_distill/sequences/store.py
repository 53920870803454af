"""Store the texts of one generator as an append-only log of units and their files.

    <url>/generator.json                      the generator: teacher and decoding settings
    <url>/log/<n>.json                        record n names units, attempts, sizes, digests
    <url>/written/<unit>/<attempt>.parquet    see `attempts`

Readers trust the log only. One store serves all snapshots: a prompt is identified by its row id, so it is written once,
even if several snapshots contain it.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ray_distill.errors import AlreadyExists, ConfigError, CorruptStore, LabelError, StorageError
from ray_distill.fingerprint import sha256
from ray_distill.labels.model import rowids
from ray_distill.labels.model.rowids import RowIds
from ray_distill.labels.model.work_units import WorkUnit, unit_id
from ray_distill.sequences import attempts
from ray_distill.sequences.generator import GENERATOR_NAME, Generator
from ray_distill.sequences.units import WriteReceipt, entries
from ray_distill.snapshots.reader import Snapshot
from ray_distill.storage import files
from ray_distill.storage.log import CommitLog, Record


@dataclass(frozen=True, kw_only=True)
class Missing:
    """The work units of a snapshot that are not written yet, and counts of its prompts."""

    units: tuple[WorkUnit, ...]
    prompts: int
    """Number of prompts of the snapshot."""
    written: int
    """Number of prompts with sequences or with a reason why there are none."""
    rejected: int
    """Number of written prompts that have a reason instead of sequences."""

    @property
    def left(self) -> int:
        """Number of prompts that are not written yet."""
        return self.prompts - self.written


class SequenceStore:
    """An open store, with its log in the state of the last call that refreshed it."""

    def __init__(self, url: str, generator: Generator) -> None:
        self.url = files.absolute(url)
        self.generator = generator
        self.log = CommitLog(self.url)
        self._receipts: dict[str, WriteReceipt] = {}
        self._read = 0

    def receipts(self) -> Mapping[str, WriteReceipt]:
        """Return the committed attempt of each unit, in commit order.

        The first record that names a unit wins.

        Raises:
            CorruptStore: a record is malformed.
        """
        for record in self.log.records[self._read :]:
            for receipt in entries(record, self._read):
                self._receipts.setdefault(receipt.unit, receipt)
            self._read += 1
        return self._receipts

    def missing(self, snapshot: Snapshot, splits: Sequence[str], unit_rows: int) -> Missing:
        """Compare the prompts of a snapshot with all committed prompts, row by row."""
        self.log.refresh()
        committed, rejected = self._committed()
        units, prompts, written, bad = [], 0, 0, 0
        for shard, start, ids in _ranges(snapshot, splits, unit_rows):
            known = rowids.is_in(ids, committed)
            prompts, written = prompts + len(ids), written + int(known.sum())
            bad += int(rowids.is_in(ids, rejected).sum())
            if not known.all():
                rows = tuple(int(row) for row in np.flatnonzero(~known) + start)
                units.append(
                    WorkUnit(
                        unit_id=unit_id(ids[~known], self.generator.fingerprint),
                        shard=shard,
                        start=start,
                        stop=start + len(ids),
                        rows=rows,
                    )
                )
        return Missing(units=tuple(units), prompts=prompts, written=written, rejected=bad)

    def _committed(self) -> tuple[RowIds, RowIds]:
        """Return the sorted ids of all committed prompts, and of those without a sequence."""
        committed, rejected = [rowids.empty()], [rowids.empty()]
        for receipt in self.receipts().values():
            url = files.join(self.url, receipt.name)
            with files.open_input(url) as source:
                table = attempts.read_ids(source, url)
            committed.append(rowids.to_numpy(table["row_id"]))
            rejected.append(rowids.to_numpy(attempts.unanswered(table)["row_id"]))
        return np.unique(np.concatenate(committed)), np.unique(np.concatenate(rejected))

    def commit(self, receipts: Iterable[WriteReceipt]) -> list[str]:
        """Append one record of all units that have no committed attempt yet; return their ids.

        Raises:
            LabelError: a receipt belongs to another generator.
            CorruptStore: a file is missing, or its size differs from its receipt.
        """
        offered: dict[str, WriteReceipt] = {}
        for receipt in receipts:
            self._check(receipt)
            offered.setdefault(receipt.unit, receipt)
        record = self.log.append(lambda _: self._record(offered))
        return [] if record is None else [entry["unit"] for entry in record["units"]]

    def _record(self, offered: Mapping[str, WriteReceipt]) -> Record | None:
        known = self.receipts()
        fresh = [receipt.to_dict() for unit, receipt in offered.items() if unit not in known]
        return {"version": 1, "units": fresh} if fresh else None

    def _check(self, receipt: WriteReceipt) -> None:
        if receipt.generator != self.generator.fingerprint:
            raise LabelError(
                f"{self.url}: the receipt of unit {receipt.unit} belongs to the generator {receipt.generator}, "
                f"the store to {self.generator.fingerprint}; write with the store's generator"
            )
        url = files.join(self.url, receipt.name)
        size = files.sizes([url])[0]
        if size != receipt.size:
            raise CorruptStore(f"{url}: found {size} bytes, expected {receipt.size}; write the unit again")

    def read(self, ids: RowIds) -> pa.Table:
        """Read the sequences of these prompts (`attempts.SCHEMA`), sorted by prompt and candidate.

        The digest of every file is verified.

        Raises:
            LabelError: some of the prompts are not written yet.
            CorruptStore: a file's bytes differ from the committed ones.
        """
        self.log.refresh()
        requested, parts = np.sort(ids), []
        left = np.ones(len(requested), bool)
        for table in self._tables():
            # Two writers that divide prompts into different units may both write one: the first committed one counts.
            at = rowids.find(rowids.to_numpy(table["row_id"]), requested)
            fresh = (at >= 0) & left[at]
            parts.append(table.filter(pa.array(fresh)))
            left[at[fresh]] = False
        if left.any():
            raise LabelError(
                f"{self.url}: {int(left.sum())} of {len(requested)} prompts are not written yet; "
                "run `ray-distill write`"
            )
        return attempts.ordered(parts)

    def _tables(self) -> Iterator[pa.Table]:
        for receipt in self.receipts().values():
            url = files.join(self.url, receipt.name)
            data = files.read_bytes(url)
            if sha256(data) != receipt.digest:
                raise CorruptStore(
                    f"{url}: found the digest {sha256(data)}, expected {receipt.digest} from the log; restore the file"
                )
            yield attempts.decode(data, url)


def create_or_open(url: str, generator: Generator) -> SequenceStore:
    """Create a store, or open the existing one of the same generator; many may do so at once.

    Raises:
        CorruptStore: the existing store has another generator, or its description is damaged.
    """
    place = files.join(url, GENERATOR_NAME)
    if not files.exists(place):
        with suppress(AlreadyExists):  # another writer was first: its generator is compared below
            files.create_exclusive(place, files.json_bytes(generator.to_dict()))
    try:
        found = Generator.from_dict(files.read_json(place)).fingerprint
    except (ConfigError, TypeError) as error:
        raise CorruptStore(f"{place}: it does not describe a generator ({error}); restore it") from error
    except StorageError as error:
        if isinstance(error.__cause__, ValueError):
            raise CorruptStore(f"{place}: it is damaged ({error.__cause__}); restore it") from error
        raise
    if found != generator.fingerprint:
        raise CorruptStore(
            f"{place}: found the generator {found}, expected {generator.fingerprint}; restore it, or "
            "move the folder away"
        )
    return SequenceStore(url, generator)


def prompt_ids(snapshot: Snapshot, splits: Sequence[str]) -> RowIds:
    """Return the row ids of all prompts."""
    return np.concatenate([rowids.empty(), *(ids for _, _, ids in _ranges(snapshot, splits, 1 << 20))])


def _ranges(snapshot: Snapshot, splits: Sequence[str], unit_rows: int) -> Iterator[tuple[str, int, RowIds]]:
    """Yield shard, first row and ids of the fixed ranges of prompts, in order."""
    for shard in snapshot.shards:
        if shard.split in splits:
            ids = rowids.to_numpy(snapshot.read_shard(shard, columns=["row_id"])["row_id"])
            for start in range(0, len(ids), unit_rows):
                yield shard.name, start, ids[start : start + unit_rows]


def count_reasons(table: pa.Table) -> dict[str, int]:
    """Count the prompts without a sequence by reason."""
    counted = pc.value_counts(attempts.unanswered(table)["reason"])
    return {item["values"].as_py(): item["counts"].as_py() for item in counted}
