"""Protocols of a family's facets, ``tasks/answers/<family>/<facet>.py``, for the stages."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ray_distill.artifacts import Estimate
from ray_distill.config import Campaign, SignalConfig, StudentModel, TeacherConfig
from ray_distill.labels.model.distributions import Distributions, Family
from ray_distill.labels.model.part_specs import AnswerSpace
from ray_distill.labels.model.ragged import RaggedArray
from ray_distill.tasks.encoded import Encoded
from ray_distill.tasks.inputs.modality import Corruption

if TYPE_CHECKING:
    from torch import Tensor, nn

    from ray_distill.evaluation.measures.intervals import Resampling
    from ray_distill.evaluation.predict.panel import Extras, Panel, Timed
    from ray_distill.models.heads.logistic import LinearHead
    from ray_distill.models.students.kind import StudentKind
    from ray_distill.snapshots.reader import Snapshot
    from ray_distill.tasks.task import Task
    from ray_distill.teachers.base import LabelRequest
    from ray_distill.teachers.reduce import Places

#: Fits a head on embeddings ``[R, D]``; see `ModelFacet.head_fit`.
HeadFit = Callable[["Tensor"], "LinearHead"]


class ModelFacet(Protocol):
    """Models: their classes, the reduction of their logits, and the building of students."""

    FAMILY: Family
    """Kind of the distributions: one softmax over all classes, or one sigmoid a class."""
    HEADLESS: str
    """Advice at the end of the message that a checkpoint has no weights of its head; may be empty."""

    def space(self, model_config: Any) -> AnswerSpace:
        """Return the classes of a checkpoint, from its transformers config."""

    def space_of(self, module: nn.Module, names: tuple[str, ...], url: str) -> AnswerSpace:
        """Return the classes of a model that the function ``url`` returned with these names.

        Raises:
            ModelError: they do not follow from names and module.
        """

    def describe(self, space: AnswerSpace) -> str:
        """Return the classes as a phrase behind "a model", such as ``with 10 classes``."""

    def check_model(self, task: Task, *, model: TeacherConfig, space: AnswerSpace | None, model_config: Any) -> None:
        """Refuse a model that answers otherwise than this family does.

        Args:
            task: of the campaign.
            model: settings of the model.
            space: the classes it answers with; None if a head is to be fitted.
            model_config: its transformers config; None for a function's model and one with a fitted head.

        Raises:
            ModelError: its logits have another meaning; the message names the task that suits them.
            ConfigError: a setting does not go with the family.
        """

    def check_classes(self, space: AnswerSpace, snapshot: Sequence[str], url: str) -> None:
        """Refuse a teacher whose classes are not those of the snapshot.

        Raises:
            TeacherRefused: names the classes that only one side has.
        """

    def logits_shape(self, width: int) -> tuple[int | None, ...]:
        """Return the shape of one example's logits; None stands for any length."""

    def separate(self, module: nn.Module) -> tuple[nn.Module, nn.Linear] | None:
        """Return body and head, where positions may be chosen before the head is applied; else None."""

    def reduce(
        self, logits_NV: Tensor, request: LabelRequest, row_ids: pa.Array | None = None, places: Places | None = None
    ) -> Distributions:
        """Reduce logits on their device to what is stored; arguments and errors as `reduce_logits`."""

    def stored_form(self, signal: SignalConfig, given: Sequence[str]) -> SignalConfig:
        """Return the stored form of distributions where ``labels.signal.estimator`` is left open.

        Args:
            signal: the settings.
            given: estimators that the teacher's engine has of the family.
        """

    def limit_entries(self, k: int, space: AnswerSpace, url: str) -> int:
        """Return the number of classes to store of each position where ``labels.signal.k`` is ``k``.

        Raises:
            ConfigError: there are fewer classes, and the family does not lower k.
        """

    def head_fit(self, truth: npt.NDArray[Any], classes: Sequence[str], *, seed: int) -> HeadFit:
        """Return the fit of a linear head on these labels, as `StoreFacet.truth` has them.

        Raises:
            ModelError: the labels do not suffice; nothing has been computed yet.
            ConfigError: models of the family have no head to fit.
        """

    def student(
        self,
        config: StudentModel,
        *,
        task: Task,
        classes: tuple[str, ...],
        width: int | None,
        teacher: TeacherConfig,
        seed: int,
    ) -> StudentKind:
        """Return the family's part of building a student; see `models.students.build`.

        Args:
            config: source of the student's weights.
            task: of the campaign.
            classes: names of the classes, in the order of the student's logits; empty if they have none.
            width: number of classes without names, if it is known.
            teacher: the model whose labels the student learns from.
            seed: of what is drawn.

        Raises:
            ConfigError: settings that do not go with the family.
        """


class StoreFacet(Protocol):
    """Labelling: answered positions, and their truth."""

    def positions(self, encoded: Encoded) -> RaggedArray:
        """Return where a model answers: places (int32) of each row, ascending."""

    def truth(self, encoded: Encoded, rows: pa.Table | None = None) -> RaggedArray:
        """Return the true class or token at each of `positions`, in order; -1 if unknown.

        Args:
            encoded: the usable rows.
            rows: the snapshot rows that they were encoded from; required where the truth is a column.
        """

    def shares(
        self, distributions: Distributions, classes: npt.NDArray[np.int64] | None
    ) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64] | None]:
        """Return the probability of each class by row, ``[R, C]``, and the classes of the columns.

        Drift tests compare them.

        Args:
            distributions: stored ones.
            classes: the classes to compare, as an earlier call returned them; None to choose them.

        Returns:
            The classes are None where every class has a column.
        """


class RefuseFacet(Protocol):
    """Configuration: settings that the family cannot serve."""

    def refuse(self, config: Campaign) -> list[str]:
        """List them, each as ``<config path>: <what is wrong>; <what to do>``."""


#: Columns of served answers: a text, a number, or a list of either a row.
Kind = Literal["string", "double", "strings", "doubles"]


@dataclass(frozen=True, kw_only=True)
class Serving:
    """How requests are answered by a logged model, as plain data for tracking."""

    code: Path
    """File that is copied beside the checkpoint; it imports nothing of this package. Its ``load(folder, *, task,
    column)`` returns a function from requests and parameters to answers by column."""
    parts: Mapping[str, Path] = field(default_factory=dict)
    """Further files of this kind, which ``load`` receives as modules by these names."""
    outputs: Mapping[str, Kind]
    """Columns of the answers."""
    params: Mapping[str, int] = field(default_factory=dict)
    """Parameters of a request with their defaults."""
    requirements: Sequence[str]
    """Packages that a serving machine needs beside MLflow; pinned to what is installed where the model is logged."""


class ServeFacet(Protocol):
    """Tracking: what the model that is logged needs to be served."""

    SERVING: Serving
    """How requests are answered."""

    def example(self, config: Campaign) -> Sequence[str | bytes] | None:
        """Return example requests; None to take rows of the test split."""


class JudgeFacet(Protocol):
    """Evaluation: how models of a family answer, and what is measured of their answers.

    Tables of answers have one row an example: ``row_id``, ``count`` and columns of the family's own, sums where
    possible, so that parts of a split can be judged on their own and put together.
    """

    COLUMNS: tuple[str, ...]
    """Columns of the snapshot that `answer` reads, beside ``row_id``, the input and ``count``."""

    def default_corruptions(self, possible: Mapping[str, Corruption]) -> Mapping[str, Corruption]:
        """Return the corruptions that are tried where the configuration names none.

        Args:
            possible: those of the campaign's inputs, by name.
        """

    def answer(self, panel: Panel, rows: pa.Table, slices: Sequence[str] = ()) -> dict[str, pa.Table]:
        """Return by arm the table that `measure` reads, of the rows that all models accept.

        All tables have the same rows in the same order.

        Args:
            panel: the models.
            rows: snapshot rows with ``row_id``, the input, ``count`` and `COLUMNS`.
            slices: other columns of ``rows`` to carry over.
        """

    def answer_damaged(self, panel: Panel, rows: pa.Table) -> dict[str, pa.Table]:
        """Return by arm what `measure` reads, on corrupted rows."""

    def measure(self, answers: pa.Table, how: Resampling) -> dict[str, Estimate]:
        """Return the metrics of one model's answers by name.

        Metrics whose inputs are absent are left out.
        """

    def compare(self, student: pa.Table, other: pa.Table, how: Resampling) -> dict[str, Estimate]:
        """Return paired differences, student minus another model, of every metric both have.

        Both are measured on the same rows.
        """

    def remarks(self, answers: Mapping[str, pa.Table], names: Sequence[str]) -> list[str]:
        """Return findings of the family's own that a reviewer must see, in plain words.

        Args:
            answers: by arm, of the student and, where there is one, the teacher.
            names: of the classes; empty where there are none.
        """

    def confidence(self, answers: pa.Table) -> npt.NDArray[np.float64]:
        """Return a model's mean probability of its own answers, ``[N]`` by row, in 0 … 1.

        For a calibrated model it is the expected share of right answers.
        """

    def trivial(self, panel: Panel, opened: Snapshot) -> Mapping[str, float]:
        """Return what the commonest answer of the train split scores on the calibration split.

        Returns:
            By metric, of which more is better; empty where no truth is known.
        """

    def extras(self, panel: Panel, rows: pa.Table, config: Campaign) -> Extras:
        """Return the configured results beside answers.

        It is called first, so that a mistake costs no measurement.
        """

    def timed(self, panel: Panel, rows: pa.Table) -> Timed:
        """Return every model over the rows that all accept, encoded and ready to be timed."""
