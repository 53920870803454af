"""Keep the committed units of a store in columns, and their checkpoint.

A million units need megabytes, not gigabytes.

The first record that names a unit wins, so the winners among the first n records are a prefix of all winners:
one ledger serves every reference, however old.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Generic, Self, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ray_distill.errors import CorruptStore
from ray_distill.fingerprint import canonical_json
from ray_distill.storage.log import Record, damaged_checkpoint
from ray_distill.storage.receipts import FileReceipt, UnitReceipt

#: Ids of units, ``[U]`` of dtype S16; those of attempts have as many bytes.
UnitIds = npt.NDArray[np.bytes_]

ID_BYTES = 16

#: Version of the checkpoint's form.
VERSION = b"1"

#: Units that are kept as they came before they are merged into the sorted columns.
RECENT = 65_536

#: Receipts that exist at a time while a ledger is iterated over.
BATCH = 1024

R = TypeVar("R", bound=UnitReceipt)

_FILE = [pa.field("size", pa.int64()), pa.field("digest", pa.binary(32))]
_COLUMNS = {
    "unit": pa.binary(ID_BYTES),
    "attempt": pa.binary(ID_BYTES),
    "reasons": pa.string(),
    "parts": pa.list_(pa.field("element", pa.struct([pa.field("part", pa.string()), *_FILE]))),
    "quarantine": pa.struct(_FILE),
}


def schema_of(receipt: type[UnitReceipt]) -> pa.Schema:
    """Return the columns of a ledger: the number of the record, then a column a field."""
    fields = receipt.model_fields.items()
    plain = {name: pa.int64() if field.annotation is int else pa.string() for name, field in fields}
    return pa.schema([("record", pa.int64()), *(plain | _COLUMNS).items()])


class Ledger(Generic[R]):
    """The winning attempt of each unit, in the order of commitment.

    Args:
        receipt: class of the attempts' receipts.
        table: the units of a checkpoint.
        length: the records that it covers.
    """

    def __init__(self, receipt: type[R], table: pa.Table | None = None, length: int = 0) -> None:
        self.receipt = receipt
        self.schema = schema_of(receipt)
        self.length = length
        """Records that were taken in."""
        self._table = self.schema.empty_table() if table is None else table
        self._sorted: tuple[UnitIds, npt.NDArray[np.int64]] | None = None
        self._recent: set[bytes] = set()
        self._tables: list[pa.Table] = []

    def __len__(self) -> int:
        """Number of units."""
        return len(self._table) + len(self._recent)

    def __contains__(self, unit: str) -> bool:
        """Return whether a unit is committed."""
        name = _hex(unit, 16, unit)
        return name in self._recent or self._find(np.array([name], dtype="S16"))[0] >= 0

    def __getitem__(self, unit: str) -> R:
        """Return the winning attempt; KeyError if there is none."""
        at = int(self.find([unit])[0])
        if at < 0:
            raise KeyError(unit)
        return self._receipt(self._table.slice(at, 1).to_pylist()[0])

    def add(self, records: Sequence[Record]) -> None:
        """Take in the records that follow the first `length`.

        Raises:
            CorruptStore: a record or an entry is malformed; those before it were taken in.
        """
        for record in records:
            fresh: dict[str, R] = {}
            for receipt in self.receipt.in_record(record, self.length):
                fresh.setdefault(receipt.unit, receipt)
            rows = [_row(receipt, self.length) for receipt in fresh.values() if receipt.unit not in self]
            self._tables.append(_table(rows, self.schema))
            self._recent.update(row["unit"] for row in rows)
            self.length += 1
            if len(self._recent) > RECENT:
                self._merge()

    def _merge(self) -> None:
        if self._recent:
            self._table = pa.concat_tables([self._table, *self._tables]).combine_chunks()
            self._recent, self._tables, self._sorted = set(), [], None

    def find(self, units: Sequence[str]) -> npt.NDArray[np.int64]:
        """Return the place of each unit in the order of commitment; -1 if it is not committed."""
        self._merge()
        return self._find(np.array([bytes.fromhex(unit) for unit in units], dtype="S16"))

    def _find(self, units: UnitIds) -> npt.NDArray[np.int64]:
        if self._sorted is None:
            ids = _unit_ids(self._table)
            order = np.argsort(ids, kind="stable").astype(np.int64)
            self._sorted = ids[order], order
        ascending, order = self._sorted
        if not len(order):
            return np.full(len(units), -1, dtype=np.int64)
        at = np.minimum(np.searchsorted(ascending, units), len(order) - 1)
        return np.where(ascending[at] == units, order[at], -1)

    def receipts(self, length: int | None = None, without: npt.NDArray[np.int64] | None = None) -> Iterator[R]:
        """Yield winning attempts, a batch at a time.

        Args:
            length: only of the first ``length`` records.
            without: places (see `find`) that are left out.
        """
        table = self._prefix(length)
        included = np.ones(len(table), dtype=bool)
        included[[] if without is None else without] = False
        places = np.flatnonzero(included)
        for at in range(0, len(places), BATCH):
            yield from map(self._receipt, table.take(places[at : at + BATCH]).to_pylist())

    def counts(self, name: str, length: int | None = None) -> npt.NDArray[np.int64]:
        """Return ``[U]``: one of the receipts' numbers, or ``record``, of each unit."""
        values: npt.NDArray[np.int64] = self._prefix(length).column(name).to_numpy()
        return values

    def bytes_written(self, length: int | None = None) -> int:
        """Return the size of all files of the units."""
        table = self._prefix(length)
        files = [table.column("quarantine"), pc.list_flatten(table.column("parts"))]
        return sum(pc.sum(pc.struct_field(item, "size")).as_py() or 0 for item in files)

    def _receipt(self, row: Mapping[str, Any]) -> R:
        values = {name: item for name, item in row.items() if name != "record"}
        try:
            reasons = json.loads(row["reasons"] or "{}")
        except ValueError as error:
            raise CorruptStore(
                f"unit {row['unit'].hex()}: its reasons in the log's checkpoint are not JSON ({error}); delete the "
                "checkpoint, the records contain the same data"
            ) from error
        return self.receipt(
            **values
            | {
                "unit": row["unit"].hex(),
                "attempt": row["attempt"].hex(),
                "reasons": reasons,
                "parts": {item["part"]: _file(item) for item in row["parts"]},
                "quarantine": None if row["quarantine"] is None else _file(row["quarantine"]),
            }
        )

    def _prefix(self, length: int | None) -> pa.Table:
        self._merge()
        if length is None or length >= self.length:
            return self._table
        return self._table.slice(0, int(np.searchsorted(self._table.column("record").to_numpy(), length)))

    def equals(self, other: "Ledger[R]", length: int) -> bool:
        """Return whether this is the ledger of the other's first ``length`` records."""
        return self.length == length and bool(self._prefix(None).equals(other._prefix(length)))

    def to_bytes(self, chain: bytes, length: int | None = None) -> bytes:
        """Return the checkpoint of the first ``length`` records: equal records give equal bytes.

        Args:
            chain: digest of every prefix, of no record first, 32 bytes each.
            length: all if None.
        """
        table = self._prefix(length).combine_chunks()
        sink = pa.BufferOutputStream()
        with pq.ParquetWriter(
            sink,
            table.schema,
            compression="zstd",
            compression_level=1,
            use_dictionary=[item.name for item in self.schema if pa.types.is_string(item.type)],
            write_statistics=False,
            store_schema=False,
            version="2.6",
            data_page_version="1.0",
        ) as writer:
            writer.write_table(table, row_group_size=max(len(table), 1))
            writer.add_key_value_metadata({"version": VERSION.decode(), "chain": chain.hex()})
        return bytes(sink.getvalue())

    @classmethod
    def from_bytes(cls, receipt: type[R], url: str, data: bytes) -> tuple[Self, bytes]:
        """Return a checkpoint's ledger and chain.

        Raises:
            CorruptStore: it is none that this release can read; it may be deleted.
        """
        try:
            table = pq.read_table(pa.BufferReader(data))
            facts = pq.read_metadata(pa.BufferReader(data)).metadata or {}
            if facts.get(b"version") != VERSION:
                raise damaged_checkpoint(url, f"its version is {facts.get(b'version')!r}, this release reads 1")
            chain = bytes.fromhex(facts[b"chain"].decode())
            table = table.replace_schema_metadata(None).cast(schema_of(receipt)).combine_chunks()
            table.validate(full=True)  # else a text that is not UTF-8 fails when a unit is read
        except (pa.ArrowException, OSError, ValueError, KeyError) as error:
            raise damaged_checkpoint(url, repr(error)) from error
        return cls(receipt, table, len(chain) // 32 - 1), chain


def _unit_ids(table: pa.Table) -> UnitIds:
    chunks = [chunk for chunk in table.column("unit").chunks if len(chunk)]
    return np.concatenate([np.empty(0, dtype="S16"), *map(_view, chunks)])


def _view(array: pa.FixedSizeBinaryArray) -> UnitIds:
    return np.frombuffer(array.buffers()[1], dtype="S16", count=len(array), offset=array.offset * ID_BYTES)


def _table(rows: Iterable[Mapping[str, Any]], schema: pa.Schema) -> pa.Table:
    try:
        return pa.Table.from_pylist(list(rows), schema)
    except (pa.ArrowException, ValueError, TypeError, OverflowError) as error:
        raise CorruptStore(f"an entry in the log has a value of the wrong kind ({error}); restore it") from error


def _row(receipt: UnitReceipt, record: int) -> dict[str, Any]:
    """Return a receipt as a row of its `schema_of`."""
    unit = receipt.unit
    try:
        reasons = canonical_json(dict(receipt.reasons)).decode() if receipt.reasons else ""
    except (ValueError, TypeError) as error:
        raise CorruptStore(f"unit {unit}: the reasons in its log entry are unusable ({error})") from error
    parts = [{"part": part, **_stored(item, unit)} for part, item in sorted(receipt.parts.items())]
    return {
        **dict(receipt),
        "record": record,
        "unit": _hex(unit, ID_BYTES, unit),
        "attempt": _hex(receipt.attempt, ID_BYTES, unit),
        "reasons": reasons,
        "parts": parts,
        "quarantine": None if receipt.quarantine is None else _stored(receipt.quarantine, unit),
    }


def _stored(item: FileReceipt, unit: str) -> dict[str, Any]:
    if not item.digest.startswith("sha256:"):
        raise CorruptStore(f"unit {unit}: expected a SHA-256 in its log entry, found {item.digest[:80]!r}")
    return {"size": item.size, "digest": _hex(item.digest.removeprefix("sha256:"), 32, unit)}


def _hex(text: str, size: int, unit: str) -> bytes:
    """Return the bytes of ``2 size`` lower-case hexadecimal digits."""
    try:
        value = bytes.fromhex(text)
    except ValueError:
        value = b""
    if len(value) != size or value.hex() != text:
        raise CorruptStore(f"unit {unit}: expected {2 * size} hexadecimal digits in its log entry, found {text[:80]!r}")
    return value


def _file(value: Mapping[str, Any]) -> FileReceipt:
    return FileReceipt(size=value["size"], digest="sha256:" + value["digest"].hex())
