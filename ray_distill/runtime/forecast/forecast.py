"""`ray-distill plan`: what labelling would take and give, found out on a few rows before it is paid for.

Two looks, both on the cluster: a probe of the teacher alone (`probing`), and a rehearsal, in which the very pipeline of
`label` fills a scratch store beside the campaign's with the probe's rows, for only that tells what starting, reading
and writing take. The scratch store is deleted whatever happens; nothing stays but the snapshot.
"""

import time
import uuid
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import ray

from ray_distill.artifacts import SnapshotRef
from ray_distill.config import Campaign
from ray_distill.evaluation.measures.cost import SECONDS_AN_HOUR, stage_cost
from ray_distill.labels.format.fitted_arrays import write_fits
from ray_distill.labels.model import rowids
from ray_distill.labels.model.manifest import StoreManifest
from ray_distill.labels.model.work_units import WorkUnit, unit_id
from ray_distill.labels.sizing.forecast import (
    Breakeven,
    Interval,
    Timing,
    break_even,
    fit_time,
    forecast_bytes,
    forecast_seconds,
    unit_seconds,
)
from ray_distill.labels.sizing.options import recommend
from ray_distill.labels.store.label_store import LabelStore, create_or_open
from ray_distill.runtime import campaign
from ray_distill.runtime.core.console import say
from ray_distill.runtime.core.session import absolute
from ray_distill.runtime.forecast.plan_report import PlanReport
from ray_distill.runtime.forecast.probe import Piece, Probed, probe
from ray_distill.runtime.labelling.bounded_task import ask_teacher, teacher_facts
from ray_distill.runtime.labelling.calibrate_store import LOOK_ROWS, with_found
from ray_distill.runtime.labelling.encode_write import LabelJob
from ray_distill.runtime.labelling.identify_teacher import TeacherFacts, make_manifest
from ray_distill.runtime.labelling.label_units import label_units
from ray_distill.runtime.stages.label import head_of
from ray_distill.runtime.stages.preflight import check
from ray_distill.runtime.stages.snapshot import freeze
from ray_distill.snapshots.reader import Snapshot, open_snapshot
from ray_distill.storage import files

#: Pieces of the snapshot that are probed: units of the rehearsal.
PIECES = 8
#: Times that the probe asks about its rows at most: twice to time the teacher, twice to compare forms.
PASSES = 4


def plan(config: Campaign) -> PlanReport:
    """Probe the teacher and forecast what `label` would take; nothing is recorded, and nothing stays but the snapshot.

    Raises:
        ConfigError: what `run` would refuse.
        TeacherRefused, ModelError: the teacher cannot be used.
        StoreMismatch: the store was made for another teacher or signal.
        LabelError: none of the probed rows can be labelled.
        ClusterError: the cluster cannot hold the actors, or a part of the probe failed.
    """
    check(config)
    config = absolute(config)
    snapshot = _frozen(config)
    scratch = files.join(config.output_url, f"plan-{uuid.uuid4().hex}")
    try:
        return _plan(config, snapshot, scratch)
    finally:
        files.delete(scratch)


def _frozen(config: Campaign) -> SnapshotRef:
    """The campaign's snapshot if it is that of the sources as they are now, else a fresh one.

    A fresh one is not remembered as the stage's result: `snapshot` finds it in place, and records it.
    """
    url = files.join(config.output_url, "state", "snapshot.json")
    known = files.read_json(url) if files.exists(url) else {}
    if known.get("key") == campaign.snapshot_key(config):
        ref = SnapshotRef.from_dict(known["result"])
        if files.exists(files.join(ref.url, "snapshot.json")):
            return ref
    return freeze(config)


@dataclass(frozen=True, kw_only=True)
class _Work:
    """What is to be labelled: pieces are whole units here."""

    pieces: tuple[Piece, ...]
    reused: int
    total: int

    @property
    def rows(self) -> int:
        """Rows to label."""
        return sum(len(piece.rows) for piece in self.pieces)


def _plan(config: Campaign, snapshot: SnapshotRef, scratch: str) -> PlanReport:
    exists, opened = files.exists(files.join(config.store_url, "store.json")), open_snapshot(snapshot)
    head_url = head_of(config.store_url) if exists else None
    began = time.monotonic()
    facts = teacher_facts(config.model_copy(update={"output": scratch}), snapshot, head_url)
    started = time.monotonic() - began
    manifest = make_manifest(config, facts)
    store = create_or_open(config.store_url, manifest) if exists else None
    manifest = manifest if store is None else store.manifest
    work = _work(opened, manifest, store)
    if not work.rows:
        return _nothing_left(config, opened, work)
    pieces = choose_pieces(work.pieces, config.plan.rows, config.seed)
    say(f"plan: {work.rows:,} of {work.total:,} rows are to be labelled; probing {sum(len(p.rows) for p in pieces):,}")
    probed = ask_teacher(
        probe,
        config,
        snapshot,
        facts,
        manifest,
        None if store is None else store.url,
        pieces,
        None if store is None else [len(unit.rows) for unit in work.pieces],
        labels=config.labels,
        rows=LOOK_ROWS + PASSES * config.plan.rows,
        what="probing the teacher",
    )
    rehearsed = _rehearse(config, opened, facts, manifest, probed, pieces, files.join(scratch, "labels"))
    timing = _timing(config, opened, probed, rehearsed, started, new=store is None)
    return _report(config, opened, work, probed, timing)


def _work(opened: Snapshot, manifest: StoreManifest, store: LabelStore | None) -> _Work:
    total = sum(shard.rows for shard in opened.shards)
    if store is None:
        ranges = [
            (shard.name, start, min(start + manifest.unit_rows, shard.rows))
            for shard in opened.shards
            for start in range(0, shard.rows, manifest.unit_rows)
        ]
        pieces = [
            Piece(shard=name, start=start, stop=stop, rows=tuple(range(start, stop))) for name, start, stop in ranges
        ]
        return _Work(pieces=tuple(pieces), reused=0, total=total)
    coverage = store.coverage(opened)
    pieces = [Piece(shard=unit.shard, start=unit.start, stop=unit.stop, rows=unit.rows) for unit in coverage.units]
    return _Work(pieces=tuple(pieces), total=total, reused=coverage.rows_reused + coverage.rows_quarantined)


def choose_pieces(units: Sequence[Piece], rows: int, seed: int) -> list[Piece]:
    """A seeded sample of rows in `PIECES` pieces of like size, spread evenly over the units by their rows.

    Rows of a shard stand by their id, a hash: any of them are as good as others. All rows where there are no more.
    """
    total = sum(len(unit.rows) for unit in units)
    rows, random = min(rows, total), np.random.default_rng(seed)
    size = -(-rows // min(PIECES, rows))
    ends = np.cumsum([len(unit.rows) for unit in units])
    places = (np.arange(-(-rows // size)) + random.random()) / -(-rows // size) * total
    found: list[Piece] = []
    for at, count in sorted(Counter(np.searchsorted(ends, places, side="right").tolist()).items()):
        unit = units[at]
        picked = random.permutation(len(unit.rows))[: count * size]
        for start in range(0, len(picked), size):
            chosen = sorted(unit.rows[place] for place in picked[start : start + size].tolist())
            found.append(Piece(shard=unit.shard, start=unit.start, stop=unit.stop, rows=tuple(chosen)))
    return found


@dataclass(frozen=True, kw_only=True)
class _Rehearsed:
    """Seconds until the first unit came, then between units, and what the end took."""

    first: float
    arrivals: tuple[tuple[int, float], ...]
    end: float


def _rehearse(
    config: Campaign,
    opened: Snapshot,
    facts: TeacherFacts,
    manifest: StoreManifest,
    probed: Probed,
    pieces: Sequence[Piece],
    url: str,
) -> _Rehearsed:
    """Label the pieces into a scratch store, as `label` would, and note when each is done."""
    scratch = create_or_open(url, with_found(manifest, probed.found, write_fits(url, probed.found.fits)))
    units = [_unit(opened, piece, scratch.manifest) for piece in pieces]
    job = LabelJob(
        task=config.task,
        snapshot=opened.ref,
        teacher=config.labels.teacher,
        head_url=facts.head_url,
        store_url=scratch.url,
        manifest=scratch.manifest,
        resources=config.labels.resources,
        failures=config.labels.failures,
    )
    seen: list[tuple[int, float]] = []
    start = time.monotonic()
    label_units(
        job,
        scratch,
        units,
        max_rejected=sum(len(unit.rows) for unit in units),
        progress=lambda rows: seen.append((rows, time.monotonic() - start)),
    )
    total = time.monotonic() - start
    between = [(after[0], after[1] - before[1]) for before, after in zip(seen[:-1], seen[1:], strict=True)]
    return _Rehearsed(first=seen[0][1], arrivals=tuple(between), end=total - seen[-1][1])


def _unit(opened: Snapshot, piece: Piece, manifest: StoreManifest) -> WorkUnit:
    ids = rowids.to_numpy(opened.read_shard(opened.shard(piece.shard), columns=["row_id"]).column("row_id"))
    return WorkUnit(
        unit_id=unit_id(ids[list(piece.rows)], manifest.fingerprint),
        shard=piece.shard,
        start=piece.start,
        stop=piece.stop,
        rows=piece.rows,
    )


def _timing(
    config: Campaign, opened: Snapshot, probed: Probed, rehearsed: _Rehearsed, started: float, *, new: bool
) -> Timing:
    """What the forecast of time needs; the check and the fits are done once, by a teacher that is loaded for each."""
    splits, resources = opened.manifest.splits, config.labels.resources
    per_row = _teacher_row_seconds(config, probed) + probed.encode_seconds
    checked = probed.load_seconds + splits["calibration"].rows * per_row
    fitted = probed.load_seconds + probed.fit_seconds if new else 0.0
    # The first unit's own work is counted with the others; the rest of the wait for it is what is done once.
    gaps = [seconds for _, seconds in rehearsed.arrivals]
    first = rehearsed.first - (float(np.mean(gaps)) if gaps else 0.0)
    return Timing(
        batches=probed.batches,
        lengths=probed.lengths,
        repeat=probed.repeat,
        busy=probed.busy,
        beside=probed.encode_seconds + probed.write_seconds,
        cores=float(ray.cluster_resources().get("CPU", 1)),
        once=started + checked + fitted + max(first, 0.0) + rehearsed.end,
        arrivals=rehearsed.arrivals,
        batch=resources.batch,
        actors=resources.actors,
    )


def _teacher_row_seconds(config: Campaign, probed: Probed) -> float:
    """Seconds a row of one teacher, in batches of like length."""
    rows = max(probed.units)
    return (
        unit_seconds(
            fit_time(probed.batches),
            probed.lengths,
            rows,
            config.labels.resources.batch,
            np.random.default_rng(config.seed),
        )
        / rows
    )


def _report(config: Campaign, opened: Snapshot, work: _Work, probed: Probed, timing: Timing) -> PlanReport:
    kept = probed.rows / (probed.rows + probed.rejected)
    sizes = forecast_bytes(probed.sizes, probed.units, kept)
    seconds = forecast_seconds(timing, probed.units, config.seed)
    positions = round(work.rows * kept * probed.positions / probed.rows)
    resources, per_row = config.labels.resources, _teacher_row_seconds(config, probed)
    cores, accelerators = resources.cpus * resources.actors[1] + 1, resources.gpus * resources.actors[1]
    hour = stage_cost(
        "label", SECONDS_AN_HOUR, cores=cores, accelerators=accelerators, bytes_written=0, prices=config.cost
    )
    hours = seconds.scaled(1 / SECONDS_AN_HOUR)
    return PlanReport(
        campaign=config.campaign,
        snapshot=opened.ref,
        store=config.store_url,
        splits={name: part.rows for name, part in opened.manifest.splits.items()},
        rows_total=work.total,
        rows_reused=work.reused,
        rows=work.rows,
        units=len(probed.units),
        positions=positions,
        probed_rows=probed.rows,
        probed_rejected=probed.rejected,
        bytes_labels=sizes.labels,
        bytes_hidden={str(layer): size for layer, size in sizes.hidden.items()},
        bytes_a_position=sizes.labels / max(positions, 1),
        seconds=seconds,
        seconds_once=timing.once,
        core_hours=hours.scaled(cores),
        accelerator_hours=hours.scaled(accelerators),
        money=hours.scaled(hour.money),
        currency=config.cost.currency,
        rows_per_second=resources.actors[0] / per_row if per_row else 0.0,
        target_nats=config.plan.target_nats,
        curve=probed.forms.curve,
        smallest_k=probed.forms.smallest_k,
        options=probed.forms.options,
        recommended=recommend(probed.forms.options, config.plan.target_nats),
        ranks={
            str(layer): {"width": probed.widths[layer], **{f"{share:g}": rank for share, rank in found.items()}}
            for layer, found in probed.ranks.items()
        },
        break_even=_break_even(config, opened, probed, hours.value, hour.money, per_row),
        notes=tuple(_notes(config, probed, work)),
    )


def _break_even(
    config: Campaign, opened: Snapshot, probed: Probed, label_hours: float, price: float, per_row: float
) -> Breakeven:
    """Offline against online: in one pass every training row goes through one teacher, or is read and decoded."""
    rows, resources, prices = opened.manifest.splits["train"].rows, config.labels.resources, config.cost
    hours = rows * per_row / SECONDS_AN_HOUR
    read = rows * probed.read_seconds / SECONDS_AN_HOUR
    epochs = config.plan.epochs or config.student.training.epochs
    return break_even(
        passes=config.plan.students * epochs,
        label_money=label_hours * price,
        label_hours=label_hours,
        read_money=read * prices.core_hour,
        read_hours=read,
        teacher_hours=hours,
        teacher_money=hours * (resources.cpus * prices.core_hour + resources.gpus * prices.accelerator_hour),
    )


def _notes(config: Campaign, probed: Probed, work: _Work) -> list[str]:
    notes, rows = [], config.labels.resources
    if probed.busy > 1.2:
        notes.append(
            f"the teacher's node was busy before the probe ({probed.busy:.1f} processes a core): the "
            "interval of time is wider for it"
        )
    if probed.rejected:
        notes.append(f"{probed.rejected} of {probed.rejected + probed.rows} probed rows cannot be labelled")
    if rows.actors[0] != rows.actors[1]:
        notes.append(
            f"the time is forecast for {rows.actors[0]} actors, its lower end for {rows.actors[1]}; the "
            f"price is that of {rows.actors[1]}, as `label` reserves them"
        )
    if probed.rows + probed.rejected == work.rows:
        notes.append("the probe has seen every row")
    return notes


def _nothing_left(config: Campaign, opened: Snapshot, work: _Work) -> PlanReport:
    none = Interval(value=0.0, low=0.0, high=0.0)
    return PlanReport(
        campaign=config.campaign,
        snapshot=opened.ref,
        store=config.store_url,
        splits={name: part.rows for name, part in opened.manifest.splits.items()},
        rows_total=work.total,
        rows_reused=work.reused,
        rows=0,
        units=0,
        positions=0,
        probed_rows=0,
        probed_rejected=0,
        bytes_labels=0,
        bytes_hidden={},
        bytes_a_position=0.0,
        seconds=none,
        seconds_once=0.0,
        core_hours=none,
        accelerator_hours=none,
        money=none,
        currency=config.cost.currency,
        rows_per_second=0.0,
        target_nats=config.plan.target_nats,
        notes=("every row is labelled already: `label` has nothing to do",),
    )
