"""A family's part of the review page, from its facet ``page``: words, figures and tables."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, cast

import pyarrow as pa
from matplotlib.figure import Figure

from ray_distill.artifacts import EvalReport
from ray_distill.evaluation.report.tables import Table
from ray_distill.tasks.catalogue import get_task

LOSS_CAPTION = "Training loss by step. Arms minimise different losses: compare shapes, not heights."


@dataclass(frozen=True, kw_only=True)
class Tile:
    """One of the first figures of a page."""

    metric: str
    heading: str
    below: str = ""
    """Metric of the student that stands below; default: the same metric of the teacher."""


@dataclass(frozen=True, kw_only=True)
class Wording:
    """The words of a page about models of one family."""

    compared: tuple[str, ...]
    """The metrics of the table of differences."""
    elsewhere: tuple[str, ...] = ()
    """Metrics that `Page.sections` shows, so that the quality table does not."""
    axis: str
    """Name of the headline metric on an axis."""
    explained: str = ""
    """A note for readers of the quality table."""
    pair: tuple[str, ...]
    """The figures of the section on mistakes."""
    mistakes: str
    """Heading of the section on mistakes."""
    speed: str
    """How latency and throughput were measured."""
    rows: str
    """Heading of the number of rows in a slice."""
    slices: str
    """Explanation of the table of slices."""
    captions: Mapping[str, str]
    """Keyed by figure."""
    tiles: tuple[tuple[Tile, ...], ...]
    """The first tiles; of each group, the first tile whose metric was measured is shown."""
    rate: Tile | None = None
    """The tile of speed, where its metric was measured; default: the examples a second."""


@dataclass(frozen=True, kw_only=True)
class Section:
    """A heading, a sentence and a table."""

    heading: str
    explained: str
    table: Table


class Page(Protocol):
    """The facet ``page`` of a family of answers."""

    WORDING: Wording
    """The family's words."""

    def figures(
        self, report: EvalReport, *, predictions: Mapping[str, pa.Table], names: Sequence[str], bins: int
    ) -> dict[str, Figure]:
        """Return the figures of quality beside the headline's, by the names of `Wording.captions`.

        Args:
            report: the report, in which the student's headline metric was measured.
            predictions: by arm, as `judge` received them; the student's at least.
            names: names of what models choose among, where the task has some.
            bins: bins of confidence.
        """

    def sections(
        self, report: EvalReport, *, predictions: Mapping[str, pa.Table], names: Sequence[str], bins: int
    ) -> Sequence[Section]:
        """Return the family's own tables; empty where nothing was measured for them.

        Arguments are those of `figures`, but no metric need have been measured.
        """


def page_of(report: EvalReport) -> Page:
    """Import the page of the report's task."""
    return cast(Page, get_task(report.task).answers.facet("page"))


def calibration_caption(what: str) -> str:
    """Return the caption of a reliability diagram of ``what``."""
    return (
        f"{what} against confidence; on the dashed line a model is calibrated. Below: how often the student is how "
        "confident."
    )
