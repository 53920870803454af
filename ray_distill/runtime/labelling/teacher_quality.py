"""The teacher's floor: measured on the calibration split before anything is labelled, beside what is easy to beat.

`check_teacher` runs as one task on a node with the teacher's resources; only plain values leave it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ray_distill.artifacts import Estimate, SnapshotRef, StudentRef
from ray_distill.config import Campaign, CheckConfig
from ray_distill.errors import TeacherRefused
from ray_distill.evaluation.measures.classification import Ints, measure_classification
from ray_distill.evaluation.measures.language_model import measure_language
from ray_distill.evaluation.measures.predictions import join_predictions
from ray_distill.evaluation.predict.classification import predict_all, predictor
from ray_distill.evaluation.predict.language_model import predict_documents
from ray_distill.models.core.model import Model
from ray_distill.models.io.load import load_model
from ray_distill.snapshots.reader import Snapshot, open_snapshot
from ray_distill.tasks.catalogue import get_task
from ray_distill.tasks.task import Task

#: Train documents in which a language model's commonest token is looked for.
COUNTED_DOCUMENTS = 1000


@dataclass(frozen=True, kw_only=True)
class TeacherCheck:
    """The teacher on the calibration split, beside what is easy to beat."""

    teacher: Mapping[str, Estimate]
    majority_accuracy: float
    """Of always answering the commonest class (or next token) of the train split; NaN where none there is known."""
    champion: Mapping[str, Estimate] = field(default_factory=dict)


def check_teacher(
    config: Campaign, snapshot: SnapshotRef, head_url: str | None, champion: StudentRef | None
) -> TeacherCheck:
    """Measure the teacher, and the champion if there is one, on the calibration split."""
    opened = open_snapshot(snapshot)
    teacher = load_model(config.labels.teacher, task=config.task, head_url=head_url)
    present = None if champion is None else load_model(champion.url, task=config.task)
    measure = _measure_language if get_task(config.task).answers.per_token else _measure_classifier
    majority = _token_majority if get_task(config.task).answers.per_token else _class_majority
    return TeacherCheck(
        teacher=measure(config, teacher, opened),
        majority_accuracy=majority(config, teacher, opened),
        champion={} if present is None else measure(config, present, opened),
    )


def _measure_classifier(config: Campaign, model: Model, opened: Snapshot) -> dict[str, Estimate]:
    task, settings = get_task(config.task), config.evaluation
    rows = opened.read("calibration", columns=["row_id", task.inputs.column, "label", "count"])
    one = predictor(model, task, opened.classes, batch=config.labels.resources.batch)
    answers = predict_all({"model": one}, rows)["model"]
    kept = rows.filter(pc.is_in(rows["row_id"], value_set=answers["row_id"].combine_chunks()))
    return measure_classification(
        join_predictions(kept, answers), seed=config.seed, bootstrap=settings.bootstrap, bins=settings.bins
    )


def _class_majority(config: Campaign, model: Model, opened: Snapshot) -> float:
    """Accuracy on the calibration split of always answering the commonest class of the train split, by count."""
    known, rows = (_labelled(opened.read(split, columns=["label", "count"])) for split in ("train", "calibration"))
    if not known.num_rows or not rows.num_rows:
        return float("nan")
    commonest = int(np.bincount(np.asarray(known["label"]), weights=np.asarray(known["count"])).argmax())
    return float(np.average(np.asarray(rows["label"]) == commonest, weights=np.asarray(rows["count"])))


def _labelled(rows: pa.Table) -> pa.Table:
    return rows.filter(pc.is_valid(rows["label"]))


def _measure_language(config: Campaign, model: Model, opened: Snapshot) -> dict[str, Estimate]:
    task, settings = get_task(config.task), config.evaluation
    rows = opened.read("calibration", columns=["row_id", task.inputs.column, "count"])
    found = predict_documents(
        {"model": model}, rows, task=task, batch=config.labels.resources.batch, bins=settings.bins, teacher=None
    )["model"]
    return measure_language(found, seed=config.seed, bootstrap=settings.bootstrap, bins=settings.bins)


def _token_majority(config: Campaign, model: Model, opened: Snapshot) -> float:
    """As `_class_majority`, of the tokens that are to be predicted."""
    task = get_task(config.task)
    known = _answers(
        task, model, opened.read("train", columns=["row_id", task.inputs.column]).slice(0, COUNTED_DOCUMENTS)
    )
    rows = _answers(task, model, opened.read("calibration", columns=["row_id", task.inputs.column]))
    if not len(known) or not len(rows):
        return float("nan")
    return float((rows == np.bincount(known).argmax()).mean())


def _answers(task: Task, model: Model, rows: pa.Table) -> Ints:
    """The true tokens of some documents, in one row."""
    encoded = task.inputs.encode(rows, model.processor)
    if not encoded.rows:
        return np.zeros(0, np.int64)
    return np.asarray(task.answers.store.truth(encoded).values, np.int64)


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
            wrong.append(
                f"accuracy {accuracy.value:.4f} is {floor.min_accuracy - accuracy.value:.4f} below the floor "
                f"min_accuracy {floor.min_accuracy:g}"
            )
        if floor.max_ece is not None and not ece.value <= floor.max_ece:
            wrong.append(f"ece {ece.value:.4f} is {ece.value - floor.max_ece:.4f} above max_ece {floor.max_ece:g}")
        known = not np.isnan(check.majority_accuracy)
        if floor.beat_majority and known and not accuracy.value > check.majority_accuracy:
            wrong.append(
                f"accuracy {accuracy.value:.4f} does not exceed the {check.majority_accuracy:.4f} of always "
                "answering the commonest class"
            )
    if wrong:
        raise TeacherRefused(
            f"the teacher {name} is below its floor on the calibration split: {'; '.join(wrong)}. "
            "Nothing was labelled; take a better teacher, or change labels.check"
        )
