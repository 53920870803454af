"""Open a snapshot: rows by split or by shard, digests verified."""

from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from ray_distill.artifacts import SnapshotRef
from ray_distill.errors import SnapshotError, StorageError
from ray_distill.fingerprint import sha256
from ray_distill.snapshots.manifest import (
    MANIFEST_NAME,
    QUARANTINE_NAME,
    TAKE_AGAIN,
    Shard,
    SnapshotManifest,
    parse_manifest,
)
from ray_distill.snapshots.splits import SPLITS
from ray_distill.snapshots.summary import summarise
from ray_distill.storage.files import absolute, exists, join, open_input, read_bytes


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """A frozen snapshot: small and picklable; rows are read on demand.

    Columns: ``row_id`` fixed_size_binary(16); ``text`` string or ``image`` large_binary (encoded bytes);
    ``label`` int32, for sets of classes list<int32> (ascending, unique, empty where no class applies), null where
    unknown; ``count`` int64; and where configured ``group`` string, ``time`` timestamp (UTC), and one string column a
    slice.
    """

    ref: SnapshotRef
    manifest: SnapshotManifest

    @property
    def input_column(self) -> str:
        """``text`` or ``image``."""
        return self.manifest.input_column

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names; a label is an index into them."""
        return self.manifest.classes

    @property
    def shards(self) -> tuple[Shard, ...]:
        """All shards, by split, then by number."""
        return self.manifest.shards

    def shard(self, name: str) -> Shard:
        """Return the shard of that name.

        Raises:
            SnapshotError: there is none.
        """
        for shard in self.shards:
            if shard.name == name:
                return shard
        raise SnapshotError(f"{self.ref.url} has no shard {name!r}: the name is of another snapshot")

    def read_shard(self, shard: Shard, columns: Sequence[str] | None = None) -> pa.Table:
        """Read one shard, all columns or some, rows in the order of their ids.

        Raises:
            SnapshotError: its bytes are not those that were frozen, or it has no such column.
            StorageError: it cannot be read.
        """
        data = self.file_of(shard)
        self._check(columns)
        return pq.read_table(pa.BufferReader(data), columns=None if columns is None else list(columns))

    def read_range(self, shard: Shard, start: int, stop: int, columns: Sequence[str] | None = None) -> pa.Table:
        """Read rows ``start:stop`` of a shard; only their row groups are read.

        Unlike `read_shard` it cannot check the file's digest: read each shard whole once before trusting its parts.

        Raises:
            SnapshotError: the file is damaged, or it has no such column.
            StorageError: it cannot be read.
        """
        url = join(self.ref.url, shard.name)
        self._check(columns)
        try:
            with open_input(url) as source:
                return _rows_of(pq.ParquetFile(source), start, stop, columns)
        except (pa.ArrowException, OSError) as error:
            raise SnapshotError(f"{url}: rows {start} to {stop} cannot be read ({error}); {TAKE_AGAIN}") from error

    def read(self, split: str, columns: Sequence[str] | None = None) -> pa.Table:
        """Read a whole split; errors as `read_shard`."""
        if split not in SPLITS:
            raise SnapshotError(f"there is no split {split!r}: splits are {', '.join(SPLITS)}")
        return pa.concat_tables([self.read_shard(shard, columns) for shard in self.shards if shard.split == split])

    def file_of(self, shard: Shard) -> bytes:
        """Return the verified bytes of a shard's file; errors as `read_shard`."""
        return self._verified(shard.name, shard.digest)

    def quarantine_file(self) -> bytes:
        """Return the verified bytes of the file of unusable rows; errors as `read_shard`."""
        return self._verified(QUARANTINE_NAME, self.manifest.quarantine)

    def read_quarantine(self) -> pa.Table:
        """Return unusable rows: ``source``, ``row`` (from 1), ``reason``; never their content.

        Errors are those of `read_shard`.
        """
        return pq.read_table(pa.BufferReader(self.quarantine_file()))

    def summary(self) -> str:
        """Summarise the counts in a few lines for people."""
        return summarise(self.manifest)

    def _verified(self, name: str, digest: str) -> bytes:
        url = join(self.ref.url, name)
        try:
            data = read_bytes(url)
        except StorageError as error:
            if isinstance(error.__cause__, FileNotFoundError):
                raise SnapshotError(f"{url} is missing; {TAKE_AGAIN}") from error
            raise
        if sha256(data) != digest:
            raise SnapshotError(
                f"{url} is damaged: its digest is {sha256(data)}, the manifest has {digest}; {TAKE_AGAIN}"
            )
        return data

    def _check(self, columns: Sequence[str] | None) -> None:
        for name in columns or ():
            if name not in self.manifest.columns:
                raise SnapshotError(f"{self.ref.url} has no column {name!r}: it has {', '.join(self.manifest.columns)}")


def _rows_of(file: pq.ParquetFile, start: int, stop: int, columns: Sequence[str] | None) -> pa.Table:
    first, before = 0, 0
    groups: list[int] = []
    for group in range(file.num_row_groups):
        size = file.metadata.row_group(group).num_rows
        if before < stop and before + size > start:
            first = first if groups else before
            groups.append(group)
        before += size
    # Parts are read several at a time: threads for the columns of one only wait for each other.
    table = file.read_row_groups(groups, columns=None if columns is None else list(columns), use_threads=False)
    return table.slice(start - first, stop - start)


def open_snapshot(ref: SnapshotRef | str) -> Snapshot:
    """Open a snapshot by its reference, or by the URL of its folder.

    Raises:
        SnapshotError: there is none, its manifest is damaged, or it is not the one the reference names.
        StorageError: it cannot be read.
    """
    folder = absolute(ref if isinstance(ref, str) else ref.url)
    url = join(folder, MANIFEST_NAME)
    if not exists(url):
        raise SnapshotError(f"{folder} has no {MANIFEST_NAME}, so it is not a snapshot: check the URL, or take one")
    manifest = parse_manifest(read_bytes(url), url)
    if not isinstance(ref, str) and manifest.fingerprint != ref.fingerprint:
        raise SnapshotError(
            f"{url} has the fingerprint {manifest.fingerprint}, the reference has {ref.fingerprint}: another snapshot "
            f"was put there; {TAKE_AGAIN}"
        )
    return Snapshot(ref=SnapshotRef(url=join(folder), fingerprint=manifest.fingerprint), manifest=manifest)
