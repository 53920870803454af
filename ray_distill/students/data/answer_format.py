"""Define the interface between examples and the ``learn`` module of a family of answers."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, Protocol, cast

import pyarrow as pa

from ray_distill.config import TrainingConfig
from ray_distill.labels.model.manifest import StoreManifest
from ray_distill.labels.model.ragged import RaggedArray
from ray_distill.labels.model.signal import Signal
from ray_distill.losses.base import Loss
from ray_distill.models.core.model import Model
from ray_distill.students.order.cursor import Index
from ray_distill.tasks.answers.family import Answers
from ray_distill.tasks.encoded import Batch, Encoded
from ray_distill.tasks.task import Task

if TYPE_CHECKING:
    from ray_distill.students.calibration.fit import Confidence
    from ray_distill.students.data.examples import PositionExamples
    from ray_distill.students.loop.validation import Objective, Validator

#: How teacher states enter a batch: one vector a row ``[B, D]``; all of a row, padded, with a mask ``[B, L, D]``; or
#: those at the answered positions ``[N, D]``.
StateLayout = Literal["row", "sequence", "position"]


class AnswerFormat(Protocol):
    """Answered positions, truth, collation and matching labels of a family of answers."""

    @property
    def task(self) -> Task:
        """The task, which encodes rows."""

    @property
    def truth_columns(self) -> tuple[str, ...]:
        """Snapshot columns that contain the truth; empty if the truth follows from the input."""

    @property
    def states(self) -> StateLayout:
        """The layout of teacher states in a batch."""

    def positions(self, encoded: Encoded) -> RaggedArray:
        """Return the answered positions of each row, int32, ascending."""

    def truth(self, table: pa.Table, encoded: Encoded) -> RaggedArray:
        """Return the truth at each of `positions`, integers in the same order; -1 = unknown.

        It is a class of the student ``[P]``; or ``[P, V]``, 1 where a class of the student applies and 0 where it does
        not, with -1 in the whole line if that is unknown.

        Args:
            table: the snapshot rows, in any order.
            encoded: the usable rows of the table.
        """

    def align(self, signal: Signal, stored: Index, encoded: Encoded, answered: RaggedArray) -> Signal:
        """Return the labels over the student's classes; the rows of the signal are unchanged.

        Args:
            signal: the labels, whose parts may be missing.
            stored: ``[R]`` row of the signal that belongs to each encoded row; -1 = none.
            encoded: the usable rows.
            answered: `positions` of the usable rows.

        Raises:
            ConfigError: student and labels differ in their classes, positions or hidden states.
        """

    def collate(self, encoded: Encoded, rows: Index) -> tuple[Batch, Index | None]:
        """Return the model inputs of some rows, and the flat index of each row's first token.

        The indices are None if the model gives one answer a row.
        """

    def sampling_classes(self, examples: "PositionExamples") -> RaggedArray:
        """Return the classes of each row, by which rows are sampled.

        A row whose classes are unknown has none.

        Raises:
            ConfigError: rows of this family have no class.
        """


class LearnFacet(Protocol):
    """The module ``learn`` of a family of answers."""

    #: The losses of the family, by the names that configurations and arms use.
    LOSSES: Mapping[str, type[Loss]]
    #: Whether the student's head is fused with its losses, so that the logits of all positions are never in memory.
    FUSED: bool
    #: How logits become probabilities, to which a temperature is fitted; None: the family's are left as trained.
    CONFIDENCE: "Confidence | None"
    #: The metrics of `validator`'s scores by which trials may be compared.
    OBJECTIVES: Mapping[str, "Objective"]

    def answer_format(
        self,
        *,
        task: Task,
        model: Model,
        manifest: StoreManifest,
        snapshot_classes: tuple[str, ...],
        training: TrainingConfig,
    ) -> AnswerFormat:
        """Return the format of a source's rows.

        Args:
            task: the campaign's task.
            model: the student.
            manifest: the manifest of the source's labels.
            snapshot_classes: class names whose indices the source's snapshot stores.
            training: the training settings.

        Raises:
            ConfigError: the student cannot learn from these labels.
        """

    def validator(self, validation: "PositionExamples") -> "Validator":
        """Return the rule by which every arm is measured on the validation split.

        Raises:
            TrainingError: the split has neither enough true labels nor any teacher labels.
        """

    def measured(self, labelled: int) -> Sequence[str]:
        """Return the `OBJECTIVES` that are measured on a split, the default first.

        Args:
            labelled: number of the split's rows with true labels.
        """

    def fit_decision(self, model: Model, validation: "PositionExamples", training: TrainingConfig) -> Mapping[str, Any]:
        """Return what turns the model's probabilities into answers, as plain JSON: `Model.decision`.

        It is empty if the family fits nothing. It is called on one rank, for each arm, before it is exported.

        Args:
            model: the trained model, with the weights that are exported, on any device.
            validation: the validation split.
            training: the training settings, which have the sizes of forward passes and the device.
        """


def learn_facet(answers: Answers) -> LearnFacet:
    """Import the ``learn`` module of a family of answers."""
    return cast(LearnFacet, answers.facet("learn"))
