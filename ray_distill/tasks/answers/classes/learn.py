"""Train students of one class for each row.

A row is one position, whose truth is a column of the snapshot.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import pyarrow as pa
from torch import Tensor
from torch.nn import functional

from ray_distill.config import TrainingConfig
from ray_distill.labels.model.manifest import StoreManifest
from ray_distill.labels.model.ragged import RaggedArray, running
from ray_distill.losses import catalogue
from ray_distill.losses.base import LossBatch, SparseTargets, StudentOutput
from ray_distill.losses.soft import forward_kl
from ray_distill.models.core.model import Model
from ray_distill.students.data.examples import PositionExamples
from ray_distill.students.data.row_format import RowFormat
from ray_distill.students.data.sparse_targets import padded
from ray_distill.students.loop.validation import MIN_LABELLED, Objective, Score, Validator, row_validator
from ray_distill.tasks.answers.classes.evaluation.confidence import ClassConfidence
from ray_distill.tasks.encoded import Encoded
from ray_distill.tasks.task import Task

#: A student answers once a row: there are no logits to spare.
FUSED: Final = False
CONFIDENCE: Final = ClassConfidence()
LOSSES: Final = catalogue.LOSSES
OBJECTIVES: Final = {
    "validation_nll": Objective(metric="nll", labelled=True),
    "validation_accuracy": Objective(metric="accuracy", labelled=True),
    "validation_kl": Objective(metric="kl_from_teacher"),
    "validation_agreement": Objective(metric="agreement"),
}


@dataclass(frozen=True, kw_only=True)
class ClassFormat(RowFormat):
    """Rows of one class each."""

    def truth(self, table: pa.Table, encoded: Encoded) -> RaggedArray:
        """Return the ``label`` of each row as a class of the student.

        Raises:
            ConfigError: the snapshot has a class that the student does not have.
        """
        to_student = self.snapshot_to_student()
        if "label" not in table.column_names:
            return replace(self.positions(encoded), values=np.full(encoded.rows, -1, dtype=np.int32))
        truth = self.task.answers.store.truth(encoded, table)
        known = truth.values >= 0
        found = np.full(encoded.rows, -1, dtype=np.int32)
        found[known] = to_student[truth.values[known]]
        return replace(truth, values=found)

    def sampling_classes(self, examples: PositionExamples) -> RaggedArray:
        """Return the true class of each row, else the teacher's first choice of those stored.

        A row without either has none.
        """
        found = examples.truth.values.astype(np.int64)
        if examples.distributions is not None:
            rows = np.flatnonzero((found < 0) & examples.distil)
            ids, logp, *_ = padded(examples.distributions.take(examples.stored[rows]))
            found[rows] = ids[np.arange(len(rows)), logp.argmax(axis=1)]
        return RaggedArray(values=found[found >= 0], offsets=running(found >= 0))


def answer_format(
    *, task: Task, model: Model, manifest: StoreManifest, snapshot_classes: tuple[str, ...], training: TrainingConfig
) -> ClassFormat:
    """Return the format of a source's rows; see `LearnFacet`."""
    return ClassFormat.of(task=task, model=model, manifest=manifest, snapshot_classes=snapshot_classes)


def validator(validation: PositionExamples) -> Validator:
    """Return the validator by which arms are compared: `row_validator`."""
    return row_validator(validation, truth=ByTruth(), teacher=ByTeacher())


def measured(labelled: int) -> tuple[str, ...]:
    """Return the metrics of true labels if there are enough of them, else those of the teacher."""
    if labelled >= MIN_LABELLED:
        return ("validation_nll", "validation_accuracy")
    return ("validation_kl", "validation_agreement")


def fit_decision(model: Model, validation: PositionExamples, training: TrainingConfig) -> Mapping[str, Any]:
    """Return nothing: the answer is the most probable class."""
    return {}


@dataclass(frozen=True, kw_only=True)
class ByTruth:
    """NLL and accuracy on true labels; see `Measure`."""

    def head_request(self, batch: LossBatch) -> None:
        """Return None: accuracy needs logits."""

    def sums(self, output: StudentOutput, batch: LossBatch) -> tuple[Tensor, ...]:
        """Return the weighted sums of the loss and of correct answers, and the weight."""
        logits_BV, target_B = output.logits_BV.float(), batch.labels_B.clamp(min=0)
        return _sums(logits_BV, functional.cross_entropy(logits_BV, target_B, reduction="none"), target_B, batch)

    def finish(self, sums: Sequence[float]) -> Score:
        """Return the mean NLL, and the accuracy beside it."""
        return _score(sums, "validation_nll", "validation_accuracy")


@dataclass(frozen=True, kw_only=True)
class ByTeacher:
    """KL from the teacher and agreement with it; see `Measure`."""

    def head_request(self, batch: LossBatch) -> None:
        """Return None: agreement needs logits."""

    def sums(self, output: StudentOutput, batch: LossBatch) -> tuple[Tensor, ...]:
        """Return the weighted sums of the divergence and of equal answers, and the weight."""
        assert batch.targets is not None
        logits_BV = output.logits_BV.float()
        return _sums(logits_BV, forward_kl(logits_BV, batch.targets), _first_choice(batch.targets), batch)

    def finish(self, sums: Sequence[float]) -> Score:
        """Return the mean KL, and the agreement beside it."""
        return _score(sums, "validation_kl", "validation_agreement")


def _sums(logits_BV: Tensor, loss_B: Tensor, target_B: Tensor, batch: LossBatch) -> tuple[Tensor, Tensor, Tensor]:
    weight_B = batch.example_weight_B
    correct_B = (logits_BV.argmax(-1) == target_B).to(weight_B.dtype)
    return (loss_B * weight_B).sum(), (correct_B * weight_B).sum(), weight_B.sum()


def _score(sums: Sequence[float], loss_name: str, share_name: str) -> Score:
    loss, correct, weight = sums
    return Score(value=loss / weight, metrics={loss_name: loss / weight, share_name: correct / weight})


def _first_choice(targets: SparseTargets) -> Tensor:
    best: Tensor = targets.logp_NK.argmax(-1, keepdim=True)
    return targets.ids_NK.gather(-1, best).squeeze(-1)
