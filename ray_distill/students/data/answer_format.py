"""How the rows of a family of answers are answered: the interface between examples and a family's ``learn`` module."""

from typing import TYPE_CHECKING, Literal, Protocol, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ray_distill.config import TrainingConfig
from ray_distill.labels.model.manifest import StoreManifest
from ray_distill.labels.model.signal import Signal
from ray_distill.models.core.model import Model
from ray_distill.students.order.cursor import Index
from ray_distill.tasks.answers.family import Answers
from ray_distill.tasks.encoded import Batch, Encoded, Ragged
from ray_distill.tasks.task import Task

if TYPE_CHECKING:
    from ray_distill.students.data.examples import PositionExamples
    from ray_distill.students.loop.validation import Validator

#: How teacher states enter a batch: one vector a row ``[B, D]``; all of a row, padded, with a mask ``[B, L, D]``; or
#: those at the answered positions ``[N, D]``.
StateLayout = Literal["row", "sequence", "position"]


class AnswerFormat(Protocol):
    """Where rows are answered, what is true there, how their inputs collate, and which labels fit."""

    @property
    def task(self) -> Task:
        """Encodes rows."""

    @property
    def truth_columns(self) -> tuple[str, ...]:
        """Snapshot columns that hold the truth; none where it follows from the input."""

    @property
    def states(self) -> StateLayout:
        """How teacher states enter a batch."""

    def positions(self, encoded: Encoded) -> Ragged:
        """Return the answered positions of each row, int32, ascending."""

    def truth(self, table: pa.Table, encoded: Encoded) -> Ragged:
        """Return the true class at each of `positions`, integers in their order; -1 where it is unknown.

        Args:
            table: the snapshot rows, in any order.
            encoded: those of them that are usable.
        """

    def align(self, signal: Signal, stored: Index, encoded: Encoded, answered: Ragged) -> Signal:
        """Return the labels over the student's classes; the rows stay.

        Args:
            signal: the labels, whose parts may be missing.
            stored: ``[R]`` row of the signal that belongs to each encoded row; -1 = none.
            encoded: the usable rows.
            answered: `positions` of them.

        Raises:
            ConfigError: student and labels do not fit: other classes, positions, or hidden states.
        """

    def collate(self, encoded: Encoded, rows: Index) -> tuple[Batch, Index | None]:
        """Return the model inputs of some rows, and the flat place of each row's first token among them.

        The place is None where the model answers once a row.
        """

    def sampling_classes(self, examples: "PositionExamples") -> npt.NDArray[np.float64]:
        """Return ``[R]`` classes that rows are sampled by, NaN where there is none.

        Raises:
            ConfigError: rows of this family have no class.
        """


class LearnFacet(Protocol):
    """The module ``learn`` of a family of answers."""

    #: Whether the student's head and its losses are one, so that no logits of all positions are held.
    FUSED: bool

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
            task: of the campaign.
            model: the student.
            manifest: of the source's labels.
            snapshot_classes: class names in which the source's snapshot counts.
            training: the settings.

        Raises:
            ConfigError: the student cannot learn from these labels.
        """

    def validator(self, validation: "PositionExamples") -> "Validator":
        """Return the rule by which every arm is measured on the validation split.

        Raises:
            TrainingError: the split has neither enough true labels nor any of the teacher.
        """


def learn_facet(answers: Answers) -> LearnFacet:
    """Import the ``learn`` module of a family of answers."""
    return cast(LearnFacet, answers.facet("learn"))
