"""Train students of language models.

A position is a token to predict, whose truth follows from the text.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pyarrow as pa
from torch import Tensor

from ray_distill.config import TrainingConfig
from ray_distill.errors import ConfigError, LabelError
from ray_distill.labels.model.distributions import Distributions
from ray_distill.labels.model.manifest import StoreManifest, TeacherIdentity
from ray_distill.labels.model.ragged import RaggedArray, gather_ranges
from ray_distill.labels.model.shared_classes import over_classes
from ray_distill.labels.model.signal import DISTRIBUTIONS, Signal
from ray_distill.losses import catalogue
from ray_distill.losses.base import LossBatch, StudentOutput
from ray_distill.losses.buckets import BucketLoss
from ray_distill.losses.cross_entropy import Hard
from ray_distill.losses.fused import HeadRequest, Part
from ray_distill.losses.soft import Soft
from ray_distill.models.core.head_extraction import keeps_documents_apart
from ray_distill.models.core.model import Model
from ray_distill.models.text.tokenizer_match import token_count
from ray_distill.students.data.answer_format import StateLayout
from ray_distill.students.data.examples import PositionExamples
from ray_distill.students.loop.validation import Objective, Score, Validator
from ray_distill.students.order.cursor import Index
from ray_distill.tasks.encoded import Batch, Encoded
from ray_distill.tasks.packing import collate_packed
from ray_distill.tasks.task import Task

#: Logits of all positions over a vocabulary do not fit into memory.
FUSED: Final = True
#: Models are sampled at temperatures of their users' own, from T = 1 as trained; see README.
CONFIDENCE: Final = None
LOSSES: Final = catalogue.LOSSES
OBJECTIVES: Final = {"validation_nll": Objective(metric="nll"), "validation_kl": Objective(metric="kl_from_teacher")}


@dataclass(frozen=True, kw_only=True)
class TokenFormat:
    """Documents answered at tokens, over a vocabulary; see `AnswerFormat`."""

    task: Task
    vocabulary: int
    """Number of classes of the student's head."""
    pool: str = "token"
    """How the labels' hidden states are pooled."""
    packed: int = 0
    """Tokens of a sequence that documents are packed into; 0 = one document a sequence, padded."""
    states: StateLayout = "position"
    truth_columns: tuple[str, ...] = ()

    def positions(self, encoded: Encoded) -> RaggedArray:
        """Return every token whose next one is to be predicted."""
        return self.task.answers.store.positions(encoded)

    def truth(self, table: pa.Table, encoded: Encoded) -> RaggedArray:
        """Return the true next tokens."""
        return self.task.answers.store.truth(encoded)

    def align(self, signal: Signal, stored: Index, encoded: Encoded, answered: RaggedArray) -> Signal:
        """Return the labels over the student's vocabulary; see `AnswerFormat`.

        Raises:
            ConfigError: they have other positions, states that are not one a token, or draws from a larger vocabulary.
        """
        if DISTRIBUTIONS in signal.parts:
            signal = _over_vocabulary(signal, self.vocabulary)
            _check_positions(signal.distributions, answered, stored, encoded)
        if signal.hidden and self.pool != "token":
            raise ConfigError(
                f"labels.hidden.pool is {self.pool}: a language model's states are matched token by token; label "
                "with pool: token, or leave the hidden loss out"
            )
        return signal

    def collate(self, encoded: Encoded, rows: Index) -> tuple[Batch, Index]:
        """Return the model inputs, and the flat place of each document's first token."""
        if self.packed:
            return collate_packed(encoded, rows, self.packed)
        inputs = self.task.inputs.collate(encoded, rows)
        return inputs, np.arange(len(rows), dtype=np.int64) * inputs[self.task.inputs.answering].shape[1]

    def sampling_classes(self, examples: PositionExamples) -> RaggedArray:
        """Refuse: a document has no class.

        Raises:
            ConfigError: always.
        """
        raise ConfigError("student.training.sampling.by: class is for classifiers; sample documents by entropy")


def answer_format(
    *, task: Task, model: Model, manifest: StoreManifest, snapshot_classes: tuple[str, ...], training: TrainingConfig
) -> TokenFormat:
    """Return the format of a source's documents; see `LearnFacet`."""
    check_tokens(manifest.teacher, model)
    check_vocabulary(manifest.teacher, manifest.space.size, model)
    if training.packed and not keeps_documents_apart(model.module):
        raise ConfigError(
            f"student.training.packed: {type(model.module).__name__} would let documents of one row see "
            "each other, so its losses would be of other texts than the labels: set it to 0"
        )
    return TokenFormat(task=task, vocabulary=model.vocabulary, pool=manifest.pool, packed=training.packed)


def validator(validation: PositionExamples) -> Validator:
    """Return the validator by which arms are compared: the NLL of the true tokens.

    The gate decides by it too.
    """
    losses = (Hard(),) if validation.distributions is None else (Hard(), Soft())
    rows = np.arange(validation.rows, dtype=np.int64)
    return Validator(data=validation, rows=rows, measure=ByTokens(losses=losses))


def measured(labelled: int) -> tuple[str, ...]:
    """Return all of them, because the truth of every text is known."""
    return tuple(OBJECTIVES)


def fit_decision(model: Model, validation: PositionExamples, training: TrainingConfig) -> Mapping[str, Any]:
    """Return nothing: the answer is the most probable token."""
    return {}


@dataclass(frozen=True, kw_only=True)
class ByTokens:
    """Measure the NLL of true tokens, and the KL from the teacher on labelled splits.

    See `Measure`.
    """

    losses: tuple[BucketLoss, ...]

    def head_request(self, batch: LossBatch) -> HeadRequest:
        """Return the losses that a fused head is to give."""
        return HeadRequest(batch=batch, parts=tuple(Part(loss=loss, factor=1.0) for loss in self.losses))

    def sums(self, output: StudentOutput, batch: LossBatch) -> tuple[Tensor, ...]:
        """Return the weighted sum of each loss, then the weight of each."""
        sums = [loss(output, batch) for loss in self.losses] if output.fused is None else list(output.fused[1])
        return (*sums, *(loss.weight(batch) for loss in self.losses))

    def finish(self, sums: Sequence[float]) -> Score:
        """Return the mean NLL, and the mean KL beside it unless no position is labelled."""
        totals, weights = sums[: len(self.losses)], sums[len(self.losses) :]
        means = {
            name: total / weight
            for name, total, weight in zip(("validation_nll", "validation_kl"), totals, weights, strict=False)
            if weight
        }
        return Score(value=means["validation_nll"], metrics=means)


def check_tokens(teacher: TeacherIdentity, model: Model) -> None:
    """Refuse a student whose tokenizer is not the one the labels were taken with.

    Args:
        teacher: of the store's manifest; its ``tokens`` is the fingerprint of the teacher's tokenizer and template.
        model: the student.

    Raises:
        ConfigError: the tokens differ; the message names ways to proceed.
    """
    expected, found = teacher.tokens, getattr(model.processor, "tokens_fingerprint", None)
    if expected and found and expected != found:
        raise ConfigError(
            f"the student {model.url} has another tokenizer or chat template ({found[:19]}…) than the labels of "
            f"{teacher.model or 'the teacher'} ({expected[:19]}…), and distributions over other tokens teach it "
            "nothing. Start the student from the teacher's config or layers, save the teacher's tokenizer beside the "
            "student, or let the teacher write the texts and train on those with hard labels"
        )


def check_vocabulary(teacher: TeacherIdentity, classes: int, model: Model) -> None:
    """Refuse a vocabulary of another size, unless both are paddings of one tokenizer's.

    Args:
        teacher: of the store's manifest.
        classes: number of tokens that the labels are distributions over.
        model: the student.

    Raises:
        ConfigError: the tokenizers are not known to be the same, or one has more tokens than there are classes.
    """
    tokens, alike = token_count(model.processor), teacher.tokens is not None
    if classes == model.vocabulary or (alike and 0 < tokens <= min(classes, model.vocabulary)):
        return
    raise ConfigError(
        f"the labels are distributions over {classes} tokens, the student's head has {model.vocabulary} for the "
        f"{tokens} of its tokenizer: a student must have the teacher's tokenizer and as many classes; start it "
        "from the teacher's config or layers, or label with a teacher of the student's family"
    )


def _over_vocabulary(signal: Signal, vocabulary: int) -> Signal:
    """Return the labels over a vocabulary of the same tokens that is padded differently."""
    found = signal.distributions
    if found.classes == vocabulary:
        return signal
    try:
        return signal.with_parts({DISTRIBUTIONS: over_classes(found, vocabulary)})
    except LabelError as error:
        raise ConfigError(
            f"the labels are distributions over {found.classes} tokens, the student's vocabulary is {vocabulary}, and "
            f"{error}: save the student after resize_token_embeddings({found.classes}), or set labels.signal.estimator "
            "to topk or dense, and label again into a new store (labels.store)"
        ) from error


def _check_positions(found: Distributions, answered: RaggedArray, stored: Index, encoded: Encoded) -> None:
    """Refuse labels of other tokens than those at which the student answers."""
    have = np.flatnonzero(stored >= 0)
    student_offsets, student_at = gather_ranges(answered.offsets, have)
    teacher_offsets, teacher_at = gather_ranges(found.row_offsets, stored[have])
    wrong = np.flatnonzero(np.diff(student_offsets) != np.diff(teacher_offsets))
    if not len(wrong):
        apart = np.flatnonzero(answered.values[student_at] != found.position[teacher_at])
        wrong = np.searchsorted(student_offsets, apart[:1], side="right") - 1
    if not len(wrong):
        return
    row = int(have[wrong[0]])
    raise ConfigError(
        f"row {encoded.row_ids[row].as_py().hex()} was labelled at other tokens than the student has: tokenizer, "
        "template, roles or max_length have changed since; train with those of the labels, or label again into a new "
        "store (labels.store)"
    )
