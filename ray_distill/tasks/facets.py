"""Protocols of a family's facets, ``tasks/answers/<family>/<facet>.py``, for the stages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

import pyarrow as pa

from ray_distill.artifacts import Estimate
from ray_distill.config import Campaign
from ray_distill.tasks.encoded import Encoded, Ragged

if TYPE_CHECKING:
    from ray_distill.evaluation.measures.intervals import Resampling
    from ray_distill.evaluation.predict.panel import Extras, Panel, Timed
    from ray_distill.snapshots.reader import Snapshot


class StoreFacet(Protocol):
    """Labelling: answered positions, and their truth."""

    def positions(self, encoded: Encoded) -> Ragged:
        """Return where a model answers: places (int32) of each row, ascending."""

    def truth(self, encoded: Encoded, rows: pa.Table | None = None) -> Ragged:
        """Return the true class or token at each of `positions`, in order; -1 if unknown.

        Args:
            encoded: the usable rows.
            rows: the snapshot rows that they were encoded from; required where the truth is a column.
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
    DAMAGED_BY_DEFAULT: bool
    """Are all corruptions of the inputs tried where the configuration names none?"""

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
