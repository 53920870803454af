"""Label a sample of a store's rows again with the live teacher, and compare.

See `ray_distill.labels.tools.live_agreement`.
"""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ray_distill.artifacts import SnapshotRef
from ray_distill.config import Campaign
from ray_distill.errors import LabelError
from ray_distill.labels.format.fitted_arrays import read_fits
from ray_distill.labels.model import rowids
from ray_distill.labels.model.manifest import StoreManifest
from ray_distill.labels.model.rowids import RowIds
from ray_distill.labels.model.signal import Signal, concat_signals, signal_of
from ray_distill.labels.model.work_units import Receipt
from ray_distill.labels.store.label_store import LabelStore, open_store
from ray_distill.labels.store.reader import read_hidden, read_labels
from ray_distill.labels.tools.live_agreement import Agreement, Answer, as_stored, compare
from ray_distill.models.io.load import load_processor
from ray_distill.runtime.labelling.batching import answer_all, request_of
from ray_distill.runtime.labelling.bounded_task import run_teacher_task
from ray_distill.snapshots.reader import Snapshot, open_snapshot
from ray_distill.storage.committed_units import Ledger
from ray_distill.tasks.catalogue import get_task
from ray_distill.teachers.engines import open_stored_teacher

#: Maximum units of a sample: each is read whole.
SAMPLED_UNITS = 16


def audit_live(config: Campaign, store_url: str, snapshot: SnapshotRef, sample: int) -> Agreement:
    """Label a seeded sample of stored rows again, twice, and compare.

    Args:
        config: names the teacher and its resources.
        store_url: the label store.
        snapshot: contains the rows' inputs.
        sample: maximum number of rows.

    Raises:
        ChangedModel: another teacher filled the store.
        LabelError: the store has no row of the snapshot.
    """
    store = open_store(store_url)
    by_shard = _row_ids(open_snapshot(snapshot))
    stored = _sample(store, by_shard, sample, config.seed)
    shards = [name for name, ids in by_shard.items() if rowids.is_in(ids, stored.ids).any()]
    # Once in batches, and once row by row, which is one batch a row.
    rows = (1 + config.labels.resources.batch) * len(stored.ids)
    live, again = run_teacher_task(
        answer_twice,
        config,
        snapshot,
        store.manifest,
        ids=stored.ids,
        shards=shards,
        labels=config.labels,
        rows=rows,
        what="labelling a sample again",
    )
    fits = read_fits(store.url, store.manifest.fits)
    return compare(stored, as_stored(live, store.manifest, fits), as_stored(again, store.manifest, fits))


def _row_ids(snapshot: Snapshot) -> dict[str, RowIds]:
    """Return the row ids of a snapshot by shard."""
    return {shard.name: rowids.to_numpy(snapshot.read_shard(shard, ["row_id"])["row_id"]) for shard in snapshot.shards}


def _sample(store: LabelStore, by_shard: Mapping[str, RowIds], rows: int, seed: int) -> Answer:
    """Return stored rows of a snapshot, spread over some units; the seed selects rows and units."""
    store.log.refresh()
    known_ids, rng = np.sort(np.concatenate([rowids.empty(), *by_shard.values()])), np.random.default_rng(seed)
    share = -(-rows // max(min(SAMPLED_UNITS, len(store.ledger)), 1))
    parts: list[Answer] = []
    left = rows
    for unit in _shuffled(store.ledger, rng):
        at = np.flatnonzero(rowids.is_in(store.unit_rows(unit).labelled, known_ids))
        chosen = np.sort(rng.permutation(at)[: min(share, left)])
        parts += [_stored(store, unit, chosen)] if len(chosen) else []
        left -= len(chosen)
        if not left:
            break
    if not parts:
        raise LabelError(
            f"{store.url} has no labelled row of the snapshot: name a snapshot that it was filled from with --snapshot"
        )
    return _ascending(np.concatenate([part.ids for part in parts]), concat_signals([part.signal for part in parts]))


def _shuffled(ledger: Ledger[Receipt], rng: np.random.Generator) -> Iterator[Receipt]:
    """Yield committed units in a random order; only a few at a time are in memory."""
    places = rng.permutation(len(ledger))
    for start in range(0, len(places), SAMPLED_UNITS):
        some = places[start : start + SAMPLED_UNITS]
        receipts = list(ledger.receipts(without=np.setdiff1d(np.arange(len(places)), some)))
        yield from (receipts[at] for at in rng.permutation(len(receipts)))


def _stored(store: LabelStore, unit: Receipt, rows: npt.NDArray[np.int64]) -> Answer:
    ids, distributions = read_labels(store.url, store.manifest, unit)
    hidden = {
        layer: read_hidden(store.url, store.manifest, unit, layer)[1].take(rows) for layer in store.manifest.hidden
    }
    return Answer(ids=ids[rows], signal=signal_of(distributions=distributions.take(rows), hidden=hidden))


def _ascending(ids: RowIds, signal: Signal) -> Answer:
    order = np.argsort(ids, kind="stable").astype(np.int64)
    return Answer(ids=ids[order], signal=signal.take(order))


def answer_twice(
    config: Campaign, snapshot: SnapshotRef, manifest: StoreManifest, *, ids: RowIds, shards: Sequence[str]
) -> tuple[Answer, Answer]:
    """Return the teacher's answers for some rows in batches of the store's size, and row by row.

    Runs in the teacher's environment.

    Args:
        config: names the teacher.
        snapshot: contains the rows.
        manifest: manifest of the store with the rows' labels.
        ids: ids of the rows, ascending.
        shards: names of the snapshot's shards that contain the rows.

    Raises:
        ChangedModel: the teacher is not the store's.
    """
    import torch

    torch.set_num_threads(manifest.threads)
    teacher = open_stored_teacher(config.labels.teacher, manifest.teacher, task=config.task)
    task = get_task(config.task)
    opened = open_snapshot(snapshot)
    table = pa.concat_tables([opened.read_shard(opened.shard(name), ["row_id", task.inputs.column]) for name in shards])
    rows = table.filter(pa.array(rowids.is_in(rowids.to_numpy(table["row_id"]), ids)))
    encoded = task.inputs.encode(rows, load_processor(config.labels.teacher, task=config.task))
    found = []
    for batch in (manifest.batch, 1):
        row_ids, signal, _ = answer_all(teacher, encoded, request_of(manifest), batch)
        found.append(_ascending(rowids.to_numpy(row_ids), signal))
    return found[0], found[1]
