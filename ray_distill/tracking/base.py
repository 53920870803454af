"""Recording of runs, and the model registry, as protocols; nobody outside this folder knows MLflow."""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """A dataset a run used; ``digest`` is our own fingerprint, never a hash of a sample."""

    name: str
    digest: str
    source: str
    context: str
    """``training``, ``evaluation``, ``labels``…"""
    profile: Mapping[str, Any]
    """Small facts: rows, classes, bytes."""


class Run(Protocol):
    """One run being recorded. Nothing here ever raises because a server is away."""

    @property
    def run_id(self) -> str:
        """Identifier that reopens this run."""

    def params(self, values: Mapping[str, Any]) -> None:
        """Record settings; nested mappings are flattened with dots."""

    def tags(self, values: Mapping[str, str]) -> None:
        """Record short facts that the runs table shows and sorts by; ``description`` is the run's Markdown page."""

    def metrics(self, values: Mapping[str, float], step: int = 0) -> None:
        """Record numbers; a unit stands in each name. NaN is recorded as absent, with a tag."""

    def artifact(self, path: Path, folder: str = "") -> None:
        """Upload a local file or folder."""

    def dataset(self, dataset: Dataset) -> None:
        """Record an input."""

    def model(self, path: Path, *, name: str, task: str, example: Any, metrics: Mapping[str, float]) -> str | None:
        """Log a transformers directory as a model with signature and example; return its model URI."""


class Tracker(Protocol):
    """Where runs are recorded."""

    @property
    def uri(self) -> str:
        """Where runs are recorded, as a person would open it."""

    def run(
        self, name: str, *, parent: str | None = None, run_id: str | None = None, tags: Mapping[str, str] | None = None
    ) -> AbstractContextManager[Run]:
        """Open (or, given ``run_id``, reopen) a run; its status follows how the block ends."""

    def review_url(self, run_id: str | None = None) -> str:
        """Address at which a person looks at a run, or at the table of all runs."""

    def flush(self) -> int:
        """Replay what was spooled while the server was away; return how many records are still waiting."""


class Registry(Protocol):
    """Registered models: versions and one alias that serving follows."""

    def register(self, model_uri: str, *, name: str, tags: Mapping[str, str]) -> str:
        """Register a logged model; return its version."""

    def alias(self, name: str, alias: str) -> str | None:
        """Version the alias points at, or None."""

    def set_alias(self, name: str, alias: str, version: str) -> None:
        """Point the alias at a version."""

    def tags(self, name: str, version: str) -> Mapping[str, str]:
        """A version's tags: among them ``student`` (its StudentRef as JSON) and ``report``."""
