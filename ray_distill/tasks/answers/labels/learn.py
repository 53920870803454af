"""Train students of multi-label models: independent yes or no by class, once a row.

A row is one position, whose truth is a set of classes in a column of the snapshot.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from torch import Tensor

from ray_distill.config import TrainingConfig
from ray_distill.labels.model.distributions import Distributions
from ray_distill.labels.model.manifest import StoreManifest
from ray_distill.labels.model.ragged import RaggedArray, running
from ray_distill.losses import catalogue
from ray_distill.losses.base import LossBatch, StudentOutput, label_weight, require_targets, teacher_weight
from ray_distill.losses.binary import (
    BinaryHard,
    BinarySoft,
    BinaryTeacherHard,
    cross_entropies,
    require_log_odds,
    stored_logits,
)
from ray_distill.models.core.model import Model
from ray_distill.students.calibration.collect import run_rows
from ray_distill.students.data.examples import PositionExamples, known_positions
from ray_distill.students.data.row_format import RowFormat
from ray_distill.students.loop.validation import MIN_LABELLED, Objective, Score, Validator, row_validator
from ray_distill.students.order.cursor import Index
from ray_distill.tasks.answers.labels.evaluation.confidence import LabelConfidence
from ray_distill.tasks.answers.labels.sets import UNKNOWN
from ray_distill.tasks.answers.labels.store import sets_of
from ray_distill.tasks.answers.labels.thresholds import fit_thresholds
from ray_distill.tasks.encoded import Encoded
from ray_distill.tasks.task import Task

Sets = npt.NDArray[np.bool_]

#: A student answers once a row: there are no logits to spare.
FUSED: Final = False
CONFIDENCE: Final = LabelConfidence()
LOSSES: Final = {**catalogue.LOSSES, "soft": BinarySoft, "hard": BinaryHard, "teacher_hard": BinaryTeacherHard}
OBJECTIVES: Final = {
    "validation_nll": Objective(metric="nll", labelled=True),
    "validation_macro_f1": Objective(metric="macro_f1", labelled=True),
    "validation_kl": Objective(metric="kl_from_teacher"),
    "validation_agreement": Objective(metric="agreement"),
}


@dataclass(frozen=True, kw_only=True)
class LabelFormat(RowFormat):
    """Rows of a set of classes each."""

    def truth(self, table: pa.Table, encoded: Encoded) -> RaggedArray:
        """Return the ``label`` of each row as 1 and 0 by class of the student.

        A row without one has -1 by class. A class that the snapshot does not have applies to none of its rows.

        Raises:
            ConfigError: the snapshot has a class that the student does not have.
        """
        to_student, shape = self.snapshot_to_student(), (encoded.rows, len(self.student_classes))
        if "label" not in table.column_names:
            return replace(self.positions(encoded), values=np.full(shape, UNKNOWN, np.int8))
        truth = sets_of(encoded, table, len(self.snapshot_classes))
        values = np.zeros(shape, np.int8)
        values[:, to_student] = truth.values
        values[~known_positions(truth)] = UNKNOWN
        return replace(truth, values=values)

    def sampling_classes(self, examples: PositionExamples) -> RaggedArray:
        """Return the true set of each row, else that of the teacher's decisions at ½.

        Rows with an empty set are one more class; a row of unknown set has none.
        """
        known, sets = known_positions(examples.truth), examples.truth.values > 0
        if examples.distributions is not None:
            taught = np.flatnonzero(~known & examples.distil)
            sets[taught] = log_odds_matrix(examples.distributions.take(examples.stored[taught])) >= 0
            known[taught] = True
        member = np.concatenate([sets, ~sets.any(axis=1, keepdims=True)], axis=1) & known[:, None]
        return RaggedArray(values=np.nonzero(member)[1], offsets=running(member.sum(axis=1)))


def answer_format(
    *, task: Task, model: Model, manifest: StoreManifest, snapshot_classes: tuple[str, ...], training: TrainingConfig
) -> LabelFormat:
    """Return the format of a source's rows; see `LearnFacet`."""
    return LabelFormat.of(task=task, model=model, manifest=manifest, snapshot_classes=snapshot_classes)


def validator(validation: PositionExamples) -> Validator:
    """Return the validator by which arms are compared: `row_validator`."""
    return row_validator(validation, truth=ByTruth(), teacher=ByTeacher())


def measured(labelled: int) -> tuple[str, ...]:
    """Return the metrics of true labels if there are enough of them, else those of the teacher."""
    if labelled >= MIN_LABELLED:
        return ("validation_nll", "validation_macro_f1")
    return ("validation_kl", "validation_agreement")


def fit_decision(model: Model, validation: PositionExamples, training: TrainingConfig) -> Mapping[str, Any]:
    """Return the threshold of each class, by name: `fit_thresholds` on the validation split.

    The sets are the true ones if `MIN_LABELLED` rows have one, else the teacher's decisions at ½, as in `validator`.
    """
    labelled, taught = np.flatnonzero(validation.labelled), np.flatnonzero(validation.distil)
    if len(labelled) >= MIN_LABELLED:
        rows, sets = labelled, validation.truth.values[labelled] > 0
    else:
        assert validation.distributions is not None, "a split without either has no validator"
        rows, sets = taught, log_odds_matrix(validation.distributions.take(validation.stored[taught])) >= 0
    count = None if validation.count is None else validation.count[rows]
    found = fit_thresholds(student_log_odds(model, validation, rows, training), sets, count)
    return {"thresholds": dict(zip(model.classes, found.tolist(), strict=True))}


def student_log_odds(
    model: Model, data: PositionExamples, rows: Index, training: TrainingConfig
) -> npt.NDArray[np.float32]:
    """Return the model's log-odds ``[N, V]`` of some rows, computed on the device of training."""
    found = np.empty((len(rows), len(model.classes)), np.float32)
    for at, logits_BV, _ in run_rows(model, data, rows, training):
        found[at] = (logits_BV / model.temperature).float().numpy()
    return found


def log_odds_matrix(found: Distributions) -> npt.NDArray[np.float32]:
    """Return the log-odds ``[R, V]`` of rows with one position each, by class id."""
    assert found.log_odds is not None
    shape = (found.rows, found.classes)
    odds = np.empty(shape, np.float32)
    np.put_along_axis(odds, found.ids.reshape(shape).astype(np.int64), found.log_odds.reshape(shape), axis=1)
    return odds


@dataclass(frozen=True, kw_only=True)
class ByTruth:
    """NLL a class and macro-F1 on true sets; see `Measure`.

    A class is decided at ½, because thresholds are fitted after training; a class that is neither true nor decided in
    any row has no F1, as in evaluation.
    """

    def head_request(self, batch: LossBatch) -> None:
        """Return None: F1 needs logits."""

    def sums(self, output: StudentOutput, batch: LossBatch) -> tuple[Tensor, ...]:
        """Return the weighted sum of the loss and the weight, and two sums by class.

        These are the rows that are true and decided, and the true ones plus the decided ones.
        """
        logits_BV, weight_B = output.logits_BV.float(), label_weight(batch)
        true_BV, decided_BV = batch.labels_B > 0, logits_BV >= 0
        nll_B, weight_B1 = cross_entropies(logits_BV, true_BV), weight_B.unsqueeze(-1)
        seen_BV = true_BV.to(weight_B.dtype) + decided_BV.to(weight_B.dtype)
        return (
            (nll_B * weight_B).sum(),
            weight_B.sum(),
            ((true_BV & decided_BV) * weight_B1).sum(0),
            (seen_BV * weight_B1).sum(0),
        )

    def finish(self, sums: Sequence[float]) -> Score:
        """Return the mean NLL, and macro-F1 beside it."""
        loss, weight, *by_class = sums
        hits_V, seen_V = np.array(by_class).reshape(2, -1)
        f1_V = 2 * hits_V[seen_V > 0] / seen_V[seen_V > 0]
        nll, macro_f1 = loss / weight, float(f1_V.mean()) if len(f1_V) else 0.0
        return Score(value=nll, metrics={"validation_nll": nll, "validation_macro_f1": macro_f1})


@dataclass(frozen=True, kw_only=True)
class ByTeacher:
    """KL a class from the teacher, and the share of rows with its set; see `Measure`.

    Both are decided at ½.
    """

    def head_request(self, batch: LossBatch) -> None:
        """Return None: sets need logits."""

    def sums(self, output: StudentOutput, batch: LossBatch) -> tuple[Tensor, ...]:
        """Return the weighted sums of the divergence and of equal sets, and the weight."""
        targets, weight_B = require_targets(batch, "soft"), teacher_weight(batch)
        decided_BV = stored_logits(output.logits_BV, targets) >= 0
        same_B = (decided_BV == (require_log_odds(targets, "soft") >= 0)).all(-1)
        kl_B = BinarySoft().divergences(output.logits_BV, targets)
        return (kl_B * weight_B).sum(), (same_B * weight_B).sum(), weight_B.sum()

    def finish(self, sums: Sequence[float]) -> Score:
        """Return the mean KL, and the share of equal sets beside it."""
        kl, same, weight = sums
        return Score(value=kl / weight, metrics={"validation_kl": kl / weight, "validation_agreement": same / weight})
