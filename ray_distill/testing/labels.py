"""A snapshot and a teacher in memory, and labelling without a cluster, for tests."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from ray_distill.artifacts import SnapshotRef
from ray_distill.fingerprint import fingerprint
from ray_distill.labels.model import rowids
from ray_distill.labels.model.distributions import Distributions, Family, bernoulli
from ray_distill.labels.model.manifest import StoreManifest, TeacherIdentity, parts_of
from ray_distill.labels.model.part_specs import AnswerSpace, DistributionsSpec, VectorsSpec
from ray_distill.labels.model.rowids import SnapshotRows
from ray_distill.labels.model.signal import Signal, Vectors, signal_of
from ray_distill.labels.model.validity import split_unusable
from ray_distill.labels.model.work_units import Receipt, WorkUnit
from ray_distill.labels.store.label_store import create_or_open
from ray_distill.labels.store.writer import write_attempt

#: ``(row ids, manifest) -> signal`` of those rows, in order.
FakeTeacher = Callable[[pa.Array, StoreManifest], Signal]


@dataclass(frozen=True, kw_only=True)
class FakeShard:
    """A shard with the rows of these numbers."""

    name: str
    numbers: tuple[int, ...]

    @property
    def rows(self) -> int:
        """Number of rows."""
        return len(self.numbers)


@dataclass(frozen=True, kw_only=True)
class FakeSnapshot:
    """A snapshot of numbered rows; row n has the same id in every snapshot."""

    shards: tuple[FakeShard, ...]

    @property
    def ref(self) -> SnapshotRef:
        """Its reference; the URL leads nowhere."""
        content = fingerprint([[shard.name, list(shard.numbers)] for shard in self.shards])
        return SnapshotRef(url="fake:snapshot", fingerprint=content)

    def read_shard(self, shard: FakeShard, columns: Sequence[str] | None = None) -> pa.Table:
        """Read the column ``row_id`` only."""
        return pa.table({"row_id": pa.array([row_id(number) for number in shard.numbers], rowids.ROW_ID)})


def fake_snapshot(numbers: Sequence[int], shard_rows: int = 8) -> FakeSnapshot:
    """Return a snapshot of the rows with these numbers, in shards of ``shard_rows``."""
    starts = range(0, len(numbers), shard_rows)
    return FakeSnapshot(
        shards=tuple(
            FakeShard(name=f"train-{n:05d}.parquet", numbers=tuple(numbers[start : start + shard_rows]))
            for n, start in enumerate(starts)
        )
    )


def row_id(number: int) -> bytes:
    """Return the id of the row with this number."""
    return bytes.fromhex(fingerprint(number))


def fake_manifest(
    *,
    estimator: str = "dense",
    classes: int = 5,
    k: int = 2,
    layers: tuple[int, ...] = (),
    hidden_dtype: str = "bfloat16",
    pool: str = "mean",
    unit_rows: int = 4,
    temperatures: tuple[float, ...] = (1.0, 2.0),
    teacher: str = "fake",
    family: Family = "categorical",
) -> StoreManifest:
    """Return a manifest for `fake_teacher`."""
    return StoreManifest(
        task="text_classification",
        teacher=TeacherIdentity(fingerprint=teacher, model="fake"),
        parts=parts_of(
            [
                DistributionsSpec(
                    family=family,
                    space=AnswerSpace(size=classes, names=tuple(f"class{i}" for i in range(classes))),
                    estimator=estimator,
                    k=k if estimator == "topk" else 0,
                    temperatures=temperatures,
                    codec=(estimator, 2),
                ),
                *(VectorsSpec(layer=layer, pool=pool, dtype=hidden_dtype) for layer in layers),
            ]
        ),
        unit_rows=unit_rows,
    )


def fake_teacher(row_ids: pa.Array, manifest: StoreManifest) -> Signal:
    """Label from the row ids: logits are their first bytes, hidden states their last four."""
    ids = np.frombuffer(b"".join(row_ids.to_pylist()), dtype=np.uint8).reshape(-1, rowids.ROW_ID_BYTES)
    seeds = ids[:, np.arange(manifest.space.size) % rowids.ROW_ID_BYTES].astype(np.float64)
    logits_RV = seeds / 64 + np.arange(manifest.space.size) * 0.01
    offsets = np.arange(len(ids) + 1, dtype=np.int64)
    hidden = {
        layer: Vectors(offsets=offsets, values=(ids[:, -4:] / 7 + layer).astype(np.float32))
        for layer in manifest.hidden
    }
    return signal_of(distributions=reduce_logits(logits_RV, manifest.distributions), hidden=hidden)


def reduce_logits(logits_RV: np.ndarray, spec: DistributionsSpec) -> Distributions:
    """Reduce logits ``[R, V]``, one position a row, to the stored form in float64; slow."""
    rows, classes = logits_RV.shape
    if spec.family == "bernoulli":
        one_a_row = np.arange(rows + 1, dtype=np.int64)
        return bernoulli(logits_RV.astype(np.float32), row_offsets=one_a_row, temperatures=spec.temperatures)
    keep = spec.k if spec.estimator == "topk" else classes
    logp_RV = _log_softmax(logits_RV)
    ids_RK = np.sort(np.argsort(-logp_RV, axis=1, kind="stable")[:, :keep], axis=1)
    outside_RV = np.ones((rows, classes), dtype=bool)
    np.put_along_axis(outside_RV, ids_RK, False, axis=1)
    tails = [_log_mass(_log_softmax(logits_RV / t), outside_RV) for t in spec.temperatures]
    with np.errstate(invalid="ignore"):
        entropy = -np.nansum(np.exp(logp_RV) * logp_RV, axis=1) + 0 * logp_RV.sum(axis=1)
    return Distributions(
        family=spec.family,
        classes=classes,
        temperatures=spec.temperatures,
        row_offsets=np.arange(rows + 1, dtype=np.int64),
        position=np.zeros(rows, dtype=np.int32),
        entry_offsets=np.arange(rows + 1, dtype=np.int64) * keep,
        ids=ids_RK.reshape(-1).astype(np.int32),
        logp=np.take_along_axis(logp_RV, ids_RK, axis=1).reshape(-1).astype(np.float32),
        log_tail=np.stack(tails, axis=1).astype(np.float32),
        entropy=entropy.astype(np.float32),
    )


def _log_softmax(logits_RV: np.ndarray) -> np.ndarray:
    shifted_RV = logits_RV - logits_RV.max(axis=1, keepdims=True)
    logp_RV: np.ndarray = shifted_RV - np.log(np.exp(shifted_RV).sum(axis=1, keepdims=True))
    return logp_RV


def _log_mass(logp_RV: np.ndarray, where_RV: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore"):
        log_mass_R: np.ndarray = np.log(np.where(where_RV, np.exp(logp_RV), 0).sum(axis=1))
    return log_mass_R


def label_all(
    store_url: str,
    manifest: StoreManifest,
    snapshot: SnapshotRows,
    teacher: FakeTeacher = fake_teacher,
    *,
    units_a_record: int = 2,
) -> list[str]:
    """Label pending units one by one in this process; return the units that were won."""
    store = create_or_open(store_url, manifest)
    shards = {shard.name: shard for shard in snapshot.shards}
    won, receipts = [], []
    for unit in store.pending(snapshot):
        row_ids = _rows_of(snapshot, shards[unit.shard], unit)
        row_ids, signal, rejected = split_unusable(row_ids, teacher(row_ids, manifest))
        receipts.append(write_attempt(store_url, manifest, unit, row_ids=row_ids, signal=signal, rejected=rejected))
        if len(receipts) >= units_a_record:
            won += store.commit(receipts)
            receipts = []
    return won + store.commit(receipts)


def _rows_of(snapshot: SnapshotRows, shard: object, unit: WorkUnit) -> pa.Array:
    ids = snapshot.read_shard(shard, columns=["row_id"]).column("row_id")
    return ids.take(pa.array(unit.rows)).combine_chunks()


def winners(records: Sequence[Mapping[str, Any]]) -> dict[str, Receipt]:
    """Return the committed attempt of each unit in order: the first record of a unit wins.

    A plain reference for the ledger, which does it at speed.
    """
    found: dict[str, Receipt] = {}
    for number, record in enumerate(records):
        for receipt in Receipt.in_record(record, number):
            found.setdefault(receipt.unit, receipt)
    return found
