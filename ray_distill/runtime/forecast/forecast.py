"""Forecast the cost of a campaign from a few labelled rows and a few timed steps.

Labelling is measured here, the other stages by `campaign_forecast`. There are two measurements on the cluster: a probe
of the teacher alone (`probe`), and a rehearsal, in which the pipeline of `label` fills a scratch store beside the
campaign's with the probe's rows, which includes starting, reading and writing. The scratch store is always deleted. The
snapshot stays, and so do a fitted head and the calibration of the new store, which `label` and the next `plan` use.
"""

import time
import uuid
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ray_distill.artifacts import SnapshotRef
from ray_distill.config import Campaign, TrainingConfig
from ray_distill.evaluation.measures.cost import SECONDS_AN_HOUR, StageCost, stage_cost
from ray_distill.labels.model.manifest import StoreManifest
from ray_distill.labels.sizing.forecast import TIME_ERROR, Breakeven, break_even, forecast_bytes, forecast_seconds
from ray_distill.labels.sizing.options import recommend
from ray_distill.labels.store.label_store import LabelStore, create_or_open
from ray_distill.runtime import campaign
from ray_distill.runtime.core import console
from ray_distill.runtime.core.at_work import SCRATCH, working
from ray_distill.runtime.core.class_names import with_teacher_names
from ray_distill.runtime.core.session import absolute, last_result
from ray_distill.runtime.forecast.campaign_forecast import Labelled, forecast_campaign
from ray_distill.runtime.forecast.labelled_test_rows import what_test_rows_establish
from ray_distill.runtime.forecast.plan_report import PlanReport
from ray_distill.runtime.forecast.probe import Piece, Probed, ProbeRequest, probe
from ray_distill.runtime.forecast.rehearsal import Rehearsed, rehearse
from ray_distill.runtime.labelling.bounded_task import run_teacher_task, teacher_facts
from ray_distill.runtime.labelling.calibrate_store import CALIBRATION_ROWS
from ray_distill.runtime.labelling.identify_teacher import make_manifest
from ray_distill.runtime.model_checks.decide import decided
from ray_distill.runtime.stages.kept_results import keep_calibration, kept_calibration
from ray_distill.runtime.stages.label import head_of
from ray_distill.runtime.stages.preflight import names_student, preflight
from ray_distill.runtime.stages.snapshot import freeze, open_for
from ray_distill.runtime.sweep.preset import with_preset
from ray_distill.runtime.sweep.resolve_trials import checked_trials
from ray_distill.snapshots.labelled_rows import labelled_rows
from ray_distill.snapshots.reader import Snapshot
from ray_distill.storage import files
from ray_distill.students.data.answer_format import learn_facet
from ray_distill.students.objective.loss_settings import temperatures_of
from ray_distill.students.objective.validate_losses import MIN_RETAINED_MASS, too_little_mass
from ray_distill.tasks.catalogue import get_task

#: Pieces of the snapshot that are probed; each is a unit of the rehearsal.
PIECES = 8
#: Maximum number of times that the probe's rows are answered: once to time the teacher, three times to compare forms.
PASSES = 4


def plan(config: Campaign) -> PlanReport:
    """Probe the teacher, time training and evaluation, and forecast bytes, time and money.

    Nothing is recorded; the snapshot stays, and what `label` would compute again (`kept_results`).

    Raises:
        ConfigError: `run` would refuse the campaign.
        TeacherRefused, ModelError: the teacher cannot be used.
        StoreMismatch: the store was made for another teacher or signal.
        LabelError: none of the probed rows can be labelled.
        ClusterError: the actors do not fit the cluster, or a part of the probe failed.
    """
    config = with_preset(decided(config))
    if config.sweep is not None:
        checked_trials(config)
    preflight(config, student=names_student(config))
    with working(config):
        config = with_teacher_names(absolute(config))
        snapshot = _frozen(config)
        scratch = files.join(config.output_url, f"{SCRATCH}{uuid.uuid4().hex}")
        try:
            return _plan(config, snapshot, scratch)
        finally:
            files.delete(scratch)


def _frozen(config: Campaign) -> SnapshotRef:
    """Return the campaign's snapshot if its sources are unchanged, else a new snapshot.

    A new snapshot is not stored as the stage's result: `snapshot` finds it in place and records it.
    """
    known = last_result(config.output_url, "snapshot")
    if known is not None and known["key"] == campaign.snapshot_key(config):
        ref = SnapshotRef.from_dict(known["result"])
        if files.exists(files.join(ref.url, "snapshot.json")):
            return ref
    return freeze(config)


@dataclass(frozen=True, kw_only=True)
class _Work:
    """The rows to label; each piece is a whole unit."""

    pieces: tuple[Piece, ...]
    reused: int
    total: int
    new: bool
    """Whether there is no store yet."""

    @property
    def rows(self) -> int:
        """Return the number of rows to label."""
        return sum(len(piece.rows) for piece in self.pieces)


def _plan(config: Campaign, snapshot: SnapshotRef, scratch: str) -> PlanReport:
    exists, opened = files.exists(files.join(config.store_url, "store.json")), open_for(config.task, snapshot)
    head_url = head_of(config.store_url) if exists else None
    began = time.monotonic()
    facts = teacher_facts(config, snapshot, head_url)
    started = time.monotonic() - began
    fitted = facts.head_url is not None and head_url is None
    manifest = make_manifest(config, facts)
    store = create_or_open(config.store_url, manifest) if exists else None
    manifest = manifest if store is None else store.manifest
    work = _work(opened, manifest, store)
    if not work.rows:
        every = _work(opened, manifest, None)
        pieces = choose_pieces(every.pieces, config.plan.rows, config.seed)
        labelled = Labelled(store_url=config.store_url, pieces=pieces, head_url=facts.head_url)
        return forecast_campaign(config, opened, _nothing_left(config, opened, work), labelled)
    pieces = choose_pieces(work.pieces, config.plan.rows, config.seed)
    console.report(
        f"plan: {work.rows:,} of {work.total:,} rows are to be labelled; probing {sum(len(p.rows) for p in pieces):,}"
    )
    request = ProbeRequest(
        config=config,
        snapshot=snapshot,
        facts=facts,
        manifest=manifest,
        store_url=None if store is None else store.url,
        pieces=pieces,
        units=None if store is None else [len(unit.rows) for unit in work.pieces],
        known=kept_calibration(config, snapshot, manifest) if store is None else None,
    )
    probed = run_teacher_task(
        probe,
        request,
        labels=config.labels,
        rows=CALIBRATION_ROWS + PASSES * config.plan.rows,
        what="probing the teacher",
    )
    if probed.calibrated:
        keep_calibration(config, snapshot, manifest, probed.found)
    rehearsed = rehearse(request, opened, probed, files.join(scratch, "labels"))
    # A head that this command fitted is not fitted again: `label` opens the teacher as the probe did.
    started = min(started, probed.load_seconds) if fitted else started
    report = _report(config, opened, work, _Measured(probed=probed, rehearsed=rehearsed, started=started))
    labelled = Labelled(store_url=files.join(scratch, "labels"), pieces=pieces, head_url=facts.head_url)
    return forecast_campaign(config, opened, report, labelled)


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
        return _Work(pieces=tuple(pieces), reused=0, total=total, new=True)
    coverage = store.coverage(opened)
    pieces = [Piece(shard=unit.shard, start=unit.start, stop=unit.stop, rows=unit.rows) for unit in coverage.units]
    reused = coverage.rows_reused + coverage.rows_quarantined
    return _Work(pieces=tuple(pieces), reused=reused, total=total, new=False)


def choose_pieces(units: Sequence[Piece], rows: int, seed: int) -> list[Piece]:
    """Return a seeded sample of rows in `PIECES` pieces of similar size.

    The sample is spread evenly over the units by their rows; a small snapshot is sampled whole. Rows of a shard are in
    the order of their ids, which are hashes, so any subset of them is a random sample.
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
class _Measured:
    """Measurements for a forecast."""

    probed: Probed
    rehearsed: Rehearsed
    started: float
    """Seconds to open the teacher."""


def _seconds_once(config: Campaign, opened: Snapshot, measured: _Measured, *, new: bool) -> float:
    """Return the seconds of the steps done once; the check and the fits each load a teacher."""
    probed = measured.probed
    checked = probed.load_seconds + opened.manifest.splits["calibration"].rows * probed.teacher_seconds
    fitted = probed.load_seconds + probed.fit_seconds if new and not probed.calibrated else 0.0
    return measured.started + checked + fitted + measured.rehearsed.once


def _report(config: Campaign, opened: Snapshot, work: _Work, measured: _Measured) -> PlanReport:
    probed, rate = measured.probed, measured.rehearsed.rows_per_second
    kept = probed.rows / (probed.rows + probed.rejected)
    sizes = forecast_bytes(probed.sizes, probed.units, kept)
    positions = round(work.rows * kept * probed.positions / probed.rows)
    once = _seconds_once(config, opened, measured, new=work.new)
    cost = _cost(config, forecast_seconds(once=once, rows=work.rows, rows_per_second=rate))
    return _nothing_left(config, opened, work).with_changes(
        rows=work.rows,
        units=len(probed.units),
        positions=positions,
        probed_rows=probed.rows,
        probed_rejected=probed.rejected,
        bytes_labels=sizes.labels,
        bytes_hidden={str(layer): size for layer, size in sizes.hidden.items()},
        bytes_a_position=sizes.labels / max(positions, 1),
        seconds=cost.wall_seconds,
        seconds_once=once,
        core_hours=cost.core_hours,
        accelerator_hours=cost.accelerator_hours,
        money=cost.money,
        rows_per_second=rate,
        curve=probed.forms.curve,
        smallest_k=probed.forms.smallest_k,
        options=probed.forms.options,
        recommended=recommend(probed.forms.options, config.plan.target_nats),
        ranks={
            str(layer): {"width": probed.widths[layer], **{f"{share:g}": rank for share, rank in found.items()}}
            for layer, found in probed.ranks.items()
        },
        break_even=_break_even(config, opened, probed, cost),
        notes=(
            *_notes(config, probed, work),
            *_views_note(opened, work, cost.wall_seconds - once),
            what_test_rows_establish(config, opened),
        ),
    )


def _cost(config: Campaign, seconds: float) -> StageCost:
    """Price the seconds of the stage with all resources that `label` reserves."""
    resources = config.labels.resources
    return stage_cost(
        "label",
        seconds,
        cores=resources.cpus * resources.actors[1] + 1,
        accelerators=resources.gpus * resources.actors[1],
        bytes_written=0,
        prices=config.cost,
    )


def _break_even(config: Campaign, opened: Snapshot, probed: Probed, cost: StageCost) -> Breakeven:
    """Compare offline with online distillation.

    In one pass, every training row is answered by one teacher (online), or read and decoded (offline).
    """
    rows, resources, prices = opened.manifest.splits["train"].rows, config.labels.resources, config.cost
    hours = rows * probed.teacher_seconds / SECONDS_AN_HOUR
    read = rows * probed.read_seconds / SECONDS_AN_HOUR
    epochs = config.plan.epochs or _most_passes(config.student.training, rows)
    return break_even(
        passes=config.plan.students * epochs,
        label_money=cost.money,
        label_hours=cost.wall_seconds / SECONDS_AN_HOUR,
        read_money=read * prices.core_hour,
        read_hours=read,
        teacher_hours=hours,
        teacher_money=hours * (resources.cpus * prices.core_hour + resources.gpus * prices.accelerator_hour),
    )


def _most_passes(training: TrainingConfig, rows: int) -> float:
    """Return the passes over the training rows of a student, at most."""
    budget = training.open_budget
    return training.epochs or 0.0 if budget is None else budget.bounds(rows)[1]


def _notes(config: Campaign, probed: Probed, work: _Work) -> list[str]:
    notes, rows = [], config.labels.resources
    if probed.rejected:
        notes.append(f"{probed.rejected} of {probed.rejected + probed.rows} probed rows cannot be labelled")
    if rows.actors[0] != rows.actors[1]:
        notes.append(
            f"the time is forecast for {rows.actors[0]} actors; the price is that of {rows.actors[1]} actors, which "
            "`label` reserves"
        )
    if probed.rows + probed.rejected == work.rows:
        notes.append("the probe labelled every row")
    return [*notes, *little_mass(config, probed.forms.mass)]


def _views_note(opened: Snapshot, work: _Work, seconds: float) -> list[str]:
    """Return the share of the time to label rows that views take; ``seconds`` is that time."""
    counts = opened.manifest.view_counts
    if counts is None:
        return []
    views, rows = sum(counts["kept"].values()), work.rows
    if work.reused:
        return [f"{views:,} of {work.total:,} rows are views (snapshot.augment); {rows:,} rows have no labels yet"]
    share = seconds * views / rows
    return [f"{views:,} of {rows:,} rows to label are views (snapshot.augment), which take {share:,.0f} s"]


def little_mass(config: Campaign, mass: Mapping[str, float]) -> list[str]:
    """Return the refusals that training would end with after labelling.

    Args:
        config: the campaign.
        mass: share of the teacher's mass that stored classes have, by temperature; see `Forms.mass`.
    """
    kinds = learn_facet(get_task(config.task).answers).LOSSES
    used = temperatures_of(config.student.losses, config.labels.signal.temperatures, kinds)
    few = [t for t in used if mass.get(f"{t:g}", 1.0) < MIN_RETAINED_MASS]
    return [f"training will refuse these labels: {too_little_mass(t, mass[f'{t:g}'])}" for t in few]


def _nothing_left(config: Campaign, opened: Snapshot, work: _Work) -> PlanReport:
    return PlanReport(
        campaign=config.campaign,
        snapshot=opened.ref,
        store=config.store_url,
        splits={name: part.rows for name, part in opened.manifest.splits.items()},
        labelled={name: part.labelled for name, part in labelled_rows(opened.manifest).items()},
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
        seconds=0.0,
        seconds_once=0.0,
        time_error=TIME_ERROR,
        core_hours=0.0,
        accelerator_hours=0.0,
        money=0.0,
        currency=config.cost.currency,
        rows_per_second=0.0,
        target_nats=config.plan.target_nats,
        notes=("every row is labelled already: `label` has nothing to do",),
    )
