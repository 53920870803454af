"""Time a few steps of training and evaluation, in one task each on the cluster."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import torch

from ray_distill.artifacts import SnapshotRef
from ray_distill.config import Campaign
from ray_distill.evaluation.measures.intervals import Resampling
from ray_distill.labels.model import rowids
from ray_distill.labels.model.signal import Signal, concat_signals, signal_of
from ray_distill.labels.store.label_store import LabelStore, open_store
from ray_distill.labels.store.reader import read_hidden, read_labels
from ray_distill.models.core.fingerprint import count_parameters
from ray_distill.models.core.model import Model
from ray_distill.models.io.load import load_model
from ray_distill.models.students.build import build_student
from ray_distill.runtime.forecast.probe import Piece
from ray_distill.runtime.forecast.stage_forecasts import TimedEvaluation, with_settled
from ray_distill.runtime.stages.judge import panel_of, time_models
from ray_distill.snapshots.reader import Snapshot, open_snapshot
from ray_distill.students.data.answer_format import learn_facet
from ray_distill.students.data.build_examples import build_examples
from ray_distill.students.data.open_sources import example_columns
from ray_distill.students.measure_start import count_some
from ray_distill.students.process_group import Ranks
from ray_distill.students.telemetry.step_timer import peak_memory
from ray_distill.students.time_steps import TimedTraining, time_arms
from ray_distill.tasks.catalogue import get_task

#: Rows that evaluation is timed on, and the parts in which they are timed.
EVALUATED_ROWS, PARTS = 256, 4
#: Train rows whose tokens are counted, where the student keeps the frequent ones.
COUNTED_ROWS = 20_000
#: Requests that are timed, of which all requests are extrapolated.
REQUESTS = 10


@dataclass(frozen=True, kw_only=True)
class TrainingTimes:
    """Times of training, and the student's size."""

    timed: TimedTraining
    opened_seconds: float
    """Seconds to make the student and to open the rows."""
    seconds: float
    """Seconds of the whole task, without the start of its process."""
    student_bytes: int
    parameters: int
    """Of the student, as it is trained."""


def time_training(
    config: Campaign, snapshot: SnapshotRef, store_url: str, pieces: Sequence[Piece], *, arms: Sequence[str]
) -> TrainingTimes:
    """Time the arms on the rows of some pieces, whose labels are in a store.

    Args:
        config: the campaign.
        snapshot: the snapshot with the rows.
        store_url: a store in which at least some of the rows are labelled.
        pieces: the rows.
        arms: names of the arms, ``student`` first.
    """
    start, opened, store = time.perf_counter(), open_snapshot(snapshot), open_store(store_url)
    store.log.refresh()
    task, manifest = get_task(config.task), store.manifest
    config = with_settled(config, opened.manifest)
    training = config.student.training
    torch.set_num_threads(max(1, int(training.cpus)))
    model = _student(config, manifest.space.names, opened)
    answers = learn_facet(task.answers).answer_format(
        task=task, model=model, manifest=manifest, snapshot_classes=opened.classes, training=training
    )
    columns = list(example_columns(task, answers, training))
    shards = [(opened.read_shard(opened.shard(piece.shard), columns), piece.rows) for piece in pieces]
    table = pa.concat_tables([shard.take(pa.array(rows, pa.int64())) for shard, rows in shards])
    data = build_examples(
        table, answers=answers, processor=model.processor, labels=_labels_of(store, table), name="train", part=True
    )
    seconds = time.perf_counter() - start
    timed = time_arms(config, arms, data, model=model, manifest=manifest, seconds=config.plan.seconds / 4)
    size = sum(tensor.numel() * tensor.element_size() for tensor in model.module.state_dict().values())
    return TrainingTimes(
        timed=timed,
        opened_seconds=seconds,
        seconds=time.perf_counter() - start,
        student_bytes=size,
        parameters=count_parameters(model.module),
    )


def _student(config: Campaign, classes: tuple[str, ...], snapshot: Snapshot) -> Model:
    return build_student(
        config.student.model,
        task=config.task,
        classes=classes,
        teacher=config.labels.teacher,
        seed=config.seed,
        measured=count_some(config, snapshot, rows=COUNTED_ROWS),
    )


def _labels_of(store: LabelStore, table: pa.Table) -> tuple[pa.Array, Signal]:
    """Return the ids and labels of the units that have any of these rows."""
    requested = np.sort(rowids.to_numpy(table["row_id"]))
    ids, signals = list[rowids.RowIds](), list[Signal]()
    for unit in store.ledger.receipts():
        if not rowids.is_in(store.unit_rows(unit).labelled, requested).any():
            continue
        found, distributions = read_labels(store.url, store.manifest, unit)
        hidden = {layer: read_hidden(store.url, store.manifest, unit, layer)[1] for layer in store.manifest.hidden}
        ids.append(found)
        signals.append(signal_of(distributions=distributions, hidden=hidden))
    return rowids.to_arrow(np.concatenate([rowids.empty(), *ids])), concat_signals(signals)


def time_evaluation(config: Campaign, snapshot: SnapshotRef, head_url: str | None) -> TimedEvaluation:
    """Time teacher and untrained student on rows of the validation split."""
    began, resources, opened = time.perf_counter(), config.labels.resources, open_snapshot(snapshot)
    torch.set_num_threads(max(1, int(resources.cpus)))
    start = time.perf_counter()
    models = {"teacher": load_model(config.labels.teacher, task=config.task, head_url=head_url)}
    loaded = {"teacher": time.perf_counter() - start}
    start = time.perf_counter()
    models["student"] = _student(config, models["teacher"].classes, opened)
    loaded["student"] = time.perf_counter() - start
    panel = panel_of(config, models, opened.classes)
    rows = opened.read("validation", columns=panel.columns).slice(0, EVALUATED_ROWS)
    judging, alone = panel.task.answers.judge, {name: replace(panel.only([name]), reference=None) for name in models}
    answers = judging.answer(panel, rows)
    size = -(-rows.num_rows // PARTS)
    parts = [rows.slice(at, size) for at in range(0, rows.num_rows, size)]
    times: dict[str, tuple[float, ...]] = {}
    for name, own in alone.items():
        times[name] = tuple(_seconds_a_row(lambda part, own=own: judging.answer(own, part), part) for part in parts)  # type: ignore[misc]
    measured = _seconds_a_row(lambda part: judging.measure(answers["student"], Resampling.of(config)), rows)
    few = config.model_copy(update={"evaluation": config.evaluation.model_copy(update={"latency_requests": REQUESTS})})
    start = time.perf_counter()
    time_models(few, models, judging.timed(panel, rows), dict.fromkeys(models, 0))
    requests = (time.perf_counter() - start) / REQUESTS
    device = next(models["teacher"].module.parameters()).device
    return TimedEvaluation(
        load_seconds=loaded,
        row_seconds=times,
        measure_seconds=measured,
        request_seconds=requests,
        memory_gib=max(peak_memory(Ranks(rank=0, world=1), device).values()),
        seconds=time.perf_counter() - began,
    )


def _seconds_a_row(work: Callable[[pa.Table], object], rows: pa.Table) -> float:
    start, count = time.perf_counter(), int(rows.num_rows)
    work(rows)
    return (time.perf_counter() - start) / max(count, 1)
