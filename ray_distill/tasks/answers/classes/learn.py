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
from ray_distill.errors import ConfigError, TrainingError
from ray_distill.labels.model.distributions import Distributions
from ray_distill.labels.model.manifest import StoreManifest
from ray_distill.labels.model.ragged import RaggedArray, running
from ray_distill.labels.model.signal import DISTRIBUTIONS, Signal
from ray_distill.losses import catalogue
from ray_distill.losses.base import LossBatch, SparseTargets, StudentOutput
from ray_distill.losses.soft import forward_kl
from ray_distill.models.core.model import Model
from ray_distill.students.data.answer_format import StateLayout
from ray_distill.students.data.examples import PositionExamples
from ray_distill.students.data.sparse_targets import padded
from ray_distill.students.loop.validation import MIN_LABELLED, Objective, Score, Validator
from ray_distill.students.order.cursor import Index
from ray_distill.tasks.encoded import Batch, Encoded, Ragged
from ray_distill.tasks.task import Task

#: A student answers once a row: there are no logits to spare.
FUSED: Final = False
LOSSES: Final = catalogue.LOSSES
OBJECTIVES: Final = {
    "validation_nll": Objective(metric="nll", labelled=True),
    "validation_accuracy": Objective(metric="accuracy", labelled=True),
    "validation_kl": Objective(metric="kl_from_teacher"),
    "validation_agreement": Objective(metric="agreement"),
}


@dataclass(frozen=True, kw_only=True)
class ClassFormat:
    """Rows with one answer each; see `AnswerFormat`. Classes are matched by name."""

    task: Task
    student_classes: tuple[str, ...]
    """In the order of the student's logits."""
    store_classes: tuple[str, ...]
    """In which the labels count."""
    snapshot_classes: tuple[str, ...]
    """In which the snapshot's ``label`` counts."""
    states: StateLayout = "row"
    truth_columns: tuple[str, ...] = ("label",)

    def positions(self, encoded: Encoded) -> Ragged:
        """Return position 0 of each row."""
        return self.task.answers.store.positions(encoded)

    def truth(self, table: pa.Table, encoded: Encoded) -> Ragged:
        """Return the ``label`` of each row as a class of the student.

        Raises:
            ConfigError: the snapshot has a class that the student does not have.
        """
        to_student = remap(self.snapshot_classes, self.student_classes, "the snapshot")
        if "label" not in table.column_names:
            return replace(self.positions(encoded), values=np.full(encoded.rows, -1, dtype=np.int32))
        truth = self.task.answers.store.truth(encoded, table)
        known = truth.values >= 0
        found = np.full(encoded.rows, -1, dtype=np.int32)
        found[known] = to_student[truth.values[known]]
        return replace(truth, values=found)

    def align(self, signal: Signal, stored: Index, encoded: Encoded, answered: Ragged) -> Signal:
        """Return the labels over the student's classes; see `AnswerFormat`.

        Raises:
            ConfigError: the labels have other classes, or states of other tokens.
            TrainingError: the labels have several positions a row.
        """
        if self.states == "sequence":
            _check_tokens(signal, stored, encoded)
        if DISTRIBUTIONS not in signal.parts:
            return signal
        return signal.with_parts({DISTRIBUTIONS: self._over_students(signal.distributions)})

    def collate(self, encoded: Encoded, rows: Index) -> tuple[Batch, None]:
        """Return the model inputs; the model answers once a row."""
        return self.task.inputs.collate(encoded, rows), None

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

    def _over_students(self, found: Distributions) -> Distributions:
        if set(self.store_classes) != set(self.student_classes):
            raise ConfigError(
                f"the label store has the classes {_names(self.store_classes)}, the student "
                f"{_names(self.student_classes)}: a distribution can only be taught over the same classes; use a "
                "student with the store's class names"
            )
        if not np.array_equal(found.row_offsets, np.arange(found.rows + 1)):
            raise TrainingError("the labels have several positions a row: classification needs exactly one")
        if self.store_classes == self.student_classes:
            return found
        to_student = remap(self.store_classes, self.student_classes, "the label store")
        return replace(found, ids=to_student[found.ids].astype(np.int32))


def answer_format(
    *, task: Task, model: Model, manifest: StoreManifest, snapshot_classes: tuple[str, ...], training: TrainingConfig
) -> ClassFormat:
    """Return the format of a source's rows; see `LearnFacet`."""
    return ClassFormat(
        task=task,
        student_classes=model.classes,
        store_classes=manifest.space.names,
        snapshot_classes=snapshot_classes,
        states="sequence" if manifest.pool == "token" else "row",
    )


def validator(validation: PositionExamples) -> Validator:
    """Return the validator by which arms are compared.

    It reads true labels where `MIN_LABELLED` rows have one, else the teacher.

    Raises:
        TrainingError: neither is there.
    """
    labelled, taught = np.flatnonzero(validation.labelled), np.flatnonzero(validation.distil)
    if len(labelled) >= MIN_LABELLED:
        return Validator(data=validation, rows=labelled, measure=ByTruth())
    if validation.distributions is None or len(taught) == 0:
        raise TrainingError(
            f"the validation split has {len(labelled)} labelled rows (at least {MIN_LABELLED} are needed) and no "
            "teacher labels, so students cannot be compared; label it, or give it more labelled rows"
        )
    return Validator(data=validation, rows=taught, measure=ByTeacher())


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


def remap(source: Sequence[str], target: Sequence[str], side: str) -> Index:
    """Return for each class of ``source`` its index in ``target``, by name.

    Raises:
        ConfigError: a class of ``source`` is not in ``target``; both sides are named.
    """
    index = {name: i for i, name in enumerate(target)}
    missing = [name for name in source if name not in index]
    if missing:
        raise ConfigError(
            f"{side} has classes the student does not: {_names(missing)}; the student has {_names(target)}. "
            "Classes are matched by name: use a student with the same class names"
        )
    return np.array([index[name] for name in source], dtype=np.int64)


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


def _check_tokens(signal: Signal, stored: Index, encoded: Encoded) -> None:
    """Refuse states one a token where the student cuts a text into another number of tokens."""
    tokens = encoded.features.get("input_ids")
    if tokens is None:
        return
    have = np.flatnonzero(stored >= 0)
    student_tokens = np.diff(tokens.offsets)[have]
    for layer, hidden in signal.hidden.items():
        teacher_states = np.diff(hidden.offsets)[stored[have]]
        wrong = np.flatnonzero((teacher_states > 0) & (teacher_states != student_tokens))
        if len(wrong):
            raise ConfigError(
                f"labels.hidden.pool is token, but row {encoded.row_ids[int(have[wrong[0]])].as_py().hex()} has "
                f"{teacher_states[wrong[0]]} states in teacher layer {layer} and {student_tokens[wrong[0]]} tokens "
                f"in the student ({len(wrong)} such rows): the tokenizers differ; store pooled states "
                "(mean, cls or last)"
            )


def _names(names: Sequence[str]) -> str:
    shown = ", ".join(repr(name) for name in names[:8])
    return shown + (f" and {len(names) - 8} more" if len(names) > 8 else "")
