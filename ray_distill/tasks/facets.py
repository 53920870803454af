"""What each facet of a family must have: the contract between the stages and ``tasks/answers/<family>/<facet>.py``."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

import pyarrow as pa

from ray_distill.config import Campaign
from ray_distill.labels.model.signal import Signal
from ray_distill.tasks.encoded import Encoded, Ragged


class StoreFacet(Protocol):
    """Labelling: where a model answers, what is true there, and how stored labels reach the student's positions."""

    def positions(self, encoded: Encoded) -> Ragged:
        """Return where a model answers: places (int32) of each row, ascending."""

    def truth(self, encoded: Encoded, rows: pa.Table | None = None) -> Ragged:
        """Return the true class or token at each of `positions`, in their order; -1 where it is unknown.

        Args:
            encoded: the usable rows.
            rows: the snapshot rows that they were encoded from; required where the truth is a column.
        """

    def align(self, signal: Signal, encoded: Encoded) -> Signal:
        """Map the teacher's positions to the student's."""


class RefuseFacet(Protocol):
    """Configuration: settings that the family cannot serve."""

    def refuse(self, config: Campaign) -> list[str]:
        """List them, each as ``<config path>: <what is wrong>; <what to do>``."""


@dataclass(frozen=True, kw_only=True)
class Serving:
    """How requests are answered by a logged model, as plain data for tracking."""

    code: Path
    """File that is copied beside the checkpoint; it imports nothing of this package. Its ``load(folder, *, task,
    column)`` returns a function from requests and parameters to answers by column."""
    outputs: Mapping[str, Literal["string", "double", "doubles"]]
    """Columns of the answers; ``doubles`` is a list of numbers a row."""
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
