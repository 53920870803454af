"""The teacher before it labels: fit its head if it has none, identify it, and measure it against its floor.

Both functions run as one task on a node with the teacher's resources; only plain values leave it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ray_distill.artifacts import Estimate, SnapshotRef, StudentRef
from ray_distill.config import Campaign, CheckConfig
from ray_distill.errors import TeacherRefused
from ray_distill.evaluation.predict import predict_all, predictor
from ray_distill.evaluation.predictions import join_predictions
from ray_distill.labels.codecs.measure import compact_options
from ray_distill.labels.manifest import StoreManifest
from ray_distill.models.head import fit_head
from ray_distill.models.load import load_model, load_processor
from ray_distill.snapshots.reader import open_snapshot
from ray_distill.storage import files
from ray_distill.tasks.catalogue import TASKS
from ray_distill.teachers.ask import resolve_layers
from ray_distill.teachers.transformers_teacher import open_teacher


@dataclass(frozen=True, kw_only=True)
class TeacherFacts:
    """What a store must know of its teacher."""

    fingerprint: str
    classes: tuple[str, ...]
    layers: tuple[int, ...]
    """The configured hidden layers, counted from 0."""
    head_url: str | None
    describe: Mapping[str, Any]
    vocabulary: int = 0
    """Width of a language model's logits, which has no class names; else 0."""
    tokens: str | None = None
    """Fingerprint of a language model's tokens, which its students must share; None for other tasks."""


@dataclass(frozen=True, kw_only=True)
class TeacherCheck:
    """The teacher on the calibration split, beside what is easy to beat."""

    teacher: Mapping[str, Estimate]
    majority_accuracy: float
    """Of always answering the commonest class of the train split; NaN where no row there is labelled."""
    champion: Mapping[str, Estimate] = field(default_factory=dict)


def prepare_teacher(config: Campaign, snapshot: SnapshotRef, head_url: str | None) -> TeacherFacts:
    """Open the teacher and say what it is; its head is fitted once, when the store has none yet (``head_url`` None).

    Raises:
        TeacherRefused: its classes are not the snapshot's, or it has not the layers that are asked for.
        ModelError: it cannot be loaded, or a class has no labelled row to fit the head on.
    """
    if config.labels.teacher.head is not None and head_url is None:
        head_url = _fit(config, snapshot)
    teacher = open_teacher(config.labels.teacher, task=config.task, head_url=head_url)
    if not teacher.vocabulary:
        _same_classes(teacher.classes, open_snapshot(snapshot).classes, config.labels.teacher.model)
    hidden = config.labels.hidden.layers
    return TeacherFacts(
        fingerprint=teacher.fingerprint, classes=teacher.classes, vocabulary=teacher.vocabulary, head_url=head_url,
        tokens=getattr(teacher.model.processor, "tokens_fingerprint", None),
        layers=resolve_layers(hidden, len(teacher.model.widths)) if hidden else (), describe=teacher.model.describe)


def _fit(config: Campaign, snapshot: SnapshotRef) -> str:
    """Fit the head on the train split's labelled rows; they are then no rows the teacher may teach."""
    task, teacher, opened = TASKS[config.task], config.labels.teacher, open_snapshot(snapshot)
    rows = opened.read("train", columns=["row_id", task.input_column, "label"])
    rows = rows.filter(pc.is_valid(rows["label"]))
    encoded = task.encode(rows, load_processor(teacher, task=config.task))
    labels = rows["label"].take(pc.index_in(encoded.row_ids, value_set=rows["row_id"].combine_chunks()))
    return fit_head(
        teacher, encoded, np.asarray(labels), classes=opened.classes, collate=task.collate, seed=config.seed,
        url=files.join(config.output_url, "heads"), batch=config.labels.resources.batch)


def _same_classes(teacher: tuple[str, ...], snapshot: tuple[str, ...], name: str) -> None:
    ours, theirs = sorted(set(snapshot) - set(teacher)), sorted(set(teacher) - set(snapshot))
    if ours or theirs:
        raise TeacherRefused(
            f"the teacher {name} and the snapshot have different classes: only the teacher has {theirs[:5]}, only the "
            f"snapshot has {ours[:5]}; name them alike in snapshot.classes, or in the teacher's id2label")


def make_manifest(config: Campaign, facts: TeacherFacts) -> StoreManifest:
    """What the campaign's store must be: `StoreManifest` of this teacher and these settings."""
    labels, hidden, signal = config.labels, config.labels.hidden, config.labels.signal
    teacher, drawn = labels.teacher, signal.estimator in ("sampled", "hybrid")
    lossless = signal.encoding == "lossless"
    plain = lossless and not drawn  # the plain codecs hold every digit of what is not drawn, and any tool reads them
    counted = signal.estimator == "sampled" and signal.exponent == 1
    return StoreManifest(
        task=config.task, classes=facts.classes, vocabulary=facts.vocabulary, estimator=labels.signal.estimator,
        teacher={"fingerprint": facts.fingerprint, "model": teacher.model, "revision": teacher.revision,
                 "dtype": teacher.dtype, "head": facts.head_url, **({"tokens": facts.tokens} if facts.tokens else {})},
        k=min(signal.k, len(facts.classes) or facts.vocabulary) if signal.estimator in ("topk", "hybrid") else 0,
        draws=signal.draws if drawn else 0, exponent=signal.exponent if drawn else 1.0,
        seed=config.seed if drawn else 0,
        temperatures=signal.temperatures, hidden_layers=facts.layers, pool=hidden.pool, hidden_dtype=hidden.dtype,
        hidden_rank=(hidden.rank or 0) if facts.layers else 0,
        hidden_variance=(hidden.variance or 0.0) if facts.layers else 0.0,
        codec=(signal.estimator, 1) if plain else ("compact", 2),
        options={} if plain else compact_options(signal.temperatures, lossless, drawn=counted),
        unit_rows=labels.unit_rows, unit_bytes=labels.unit_bytes,
        batch=labels.resources.batch, threads=max(1, int(labels.resources.cpus)))


def check_teacher(
    config: Campaign, snapshot: SnapshotRef, head_url: str | None, champion: StudentRef | None
) -> TeacherCheck:
    """Measure the teacher on the calibration split."""
    opened, task = open_snapshot(snapshot), TASKS[config.task]
    rows = opened.read("calibration", columns=["row_id", task.input_column, "label", "count"])
    measured = _measure(config, load_model(config.labels.teacher, task=config.task, head_url=head_url), rows, snapshot)
    compared: Mapping[str, Estimate] = {}
    if champion is not None:
        compared = _measure(config, load_model(champion.url, task=config.task), rows, snapshot)
    train = opened.read("train", columns=["label", "count"])
    return TeacherCheck(teacher=measured, majority_accuracy=_majority(train, rows), champion=compared)


def _measure(config: Campaign, model: Any, rows: pa.Table, snapshot: SnapshotRef) -> dict[str, Estimate]:
    task = TASKS[config.task]
    one = predictor(model, task, open_snapshot(snapshot).classes, batch=config.labels.resources.batch)
    answers = predict_all({"model": one}, rows)["model"]
    kept = rows.filter(pc.is_in(rows["row_id"], value_set=answers["row_id"].combine_chunks()))
    settings = config.evaluation
    return task.measure(
        join_predictions(kept, answers), seed=config.seed, bootstrap=settings.bootstrap, bins=settings.bins)


def _majority(train: pa.Table, rows: pa.Table) -> float:
    """Accuracy on ``rows`` of always answering the commonest class of ``train``, weighted by count."""
    known = train.filter(pc.is_valid(train["label"]))
    rows = rows.filter(pc.is_valid(rows["label"]))
    if not known.num_rows or not rows.num_rows:
        return float("nan")
    commonest = int(np.bincount(np.asarray(known["label"]), weights=np.asarray(known["count"])).argmax())
    return float(np.average(np.asarray(rows["label"]) == commonest, weights=np.asarray(rows["count"])))


def refuse_weak_teacher(check: TeacherCheck, floor: CheckConfig, name: str) -> None:
    """Stop before anything is spent on a teacher that is not worth copying; pure.

    Raises:
        TeacherRefused: says which floor is missed, and by how much.
    """
    accuracy, ece = check.teacher.get("accuracy"), check.teacher.get("ece")
    wrong = []
    if accuracy is None or ece is None:
        if floor.min_accuracy is not None or floor.max_ece is not None:
            wrong.append("no row of the calibration split has a true label, so the floor cannot be checked")
    else:
        if floor.min_accuracy is not None and not accuracy.value >= floor.min_accuracy:
            wrong.append(f"accuracy {accuracy.value:.4f} is {floor.min_accuracy - accuracy.value:.4f} below the floor "
                         f"min_accuracy {floor.min_accuracy:g}")
        if floor.max_ece is not None and not ece.value <= floor.max_ece:
            wrong.append(f"ece {ece.value:.4f} is {ece.value - floor.max_ece:.4f} above max_ece {floor.max_ece:g}")
        known = not np.isnan(check.majority_accuracy)
        if floor.beat_majority and known and not accuracy.value > check.majority_accuracy:
            wrong.append(f"accuracy {accuracy.value:.4f} does not exceed the {check.majority_accuracy:.4f} of always "
                         "answering the commonest class")
    if wrong:
        raise TeacherRefused(f"the teacher {name} is below its floor on the calibration split: {'; '.join(wrong)}. "
                             "Nothing was labelled; take a better teacher, or change labels.check")
