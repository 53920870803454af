"""Define the protocols for recording runs and registering models.

Other folders use only these protocols and never import MLflow.
"""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """A dataset that a run used; ``digest`` is our own fingerprint, never a hash of a sample."""

    name: str
    digest: str
    source: str
    context: str
    """``training``, ``evaluation``, ``labels``…"""
    profile: Mapping[str, Any]
    """Small facts: rows, classes, bytes."""


class Run(Protocol):
    """A run that is being recorded. No method raises because a server is unavailable."""

    @property
    def run_id(self) -> str:
        """Identifier with which this run can be reopened."""

    def params(self, values: Mapping[str, Any]) -> None:
        """Record settings; keys of nested mappings are joined with dots."""

    def tags(self, values: Mapping[str, str]) -> None:
        """Record short facts, which the runs table shows and sorts by.

        The tag ``description`` is Markdown, shown on the run's page.
        """

    def metrics(self, values: Mapping[str, float], step: int = 0) -> None:
        """Record numbers; each name states its unit. NaN is recorded as a tag."""

    def artifact(self, path: Path, folder: str = "") -> None:
        """Upload a local file or folder."""

    def dataset(self, dataset: Dataset) -> None:
        """Record a dataset as an input of the run."""

    def model(self, path: Path, *, name: str, task: str, example: Any, metrics: Mapping[str, float]) -> str | None:
        """Log a transformers directory as a model with signature and example; return its model URI."""


class Tracker(Protocol):
    """A place that records runs."""

    @property
    def uri(self) -> str:
        """Address of the recorded runs, as a user would open it."""

    def run(
        self, name: str, *, parent: str | None = None, run_id: str | None = None, tags: Mapping[str, str] | None = None
    ) -> AbstractContextManager[Run]:
        """Open (or, given ``run_id``, reopen) a run; the end of the block decides its status."""

    def review_url(self, run_id: str | None = None) -> str:
        """Return the address of a run's page, or of the table of all runs."""

    def flush(self) -> int:
        """Replay the spooled records; return the number that still waits."""


class Registry(Protocol):
    """A model registry: versions of models, and an alias that serving follows."""

    def register(self, model_uri: str, *, name: str, tags: Mapping[str, str]) -> str:
        """Register a logged model; return its version."""

    def alias(self, name: str, alias: str) -> str | None:
        """Return the version that the alias points at, or None."""

    def set_alias(self, name: str, alias: str, version: str) -> None:
        """Point the alias at a version."""

    def find(self, name: str, tag: str, value: str) -> str | None:
        """Return the newest version that has this tag; None if there is none, or no such model."""

    def tags(self, name: str, version: str) -> Mapping[str, str]:
        """Return a version's tags, including ``student`` (its StudentRef as JSON) and ``report``."""
