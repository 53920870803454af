"""Record nothing, and register models in memory, for campaigns without tracking."""

import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ray_distill.errors import PromotionError
from ray_distill.tracking.base import Dataset


@dataclass(frozen=True)
class NullRun:
    """A run that records nothing."""

    run_id: str

    def params(self, values: Mapping[str, Any]) -> None:
        """Record nothing."""

    def tags(self, values: Mapping[str, str]) -> None:
        """Record nothing."""

    def metrics(self, values: Mapping[str, float], step: int = 0) -> None:
        """Record nothing."""

    def artifact(self, path: Path, folder: str = "") -> None:
        """Record nothing."""

    def dataset(self, dataset: Dataset) -> None:
        """Record nothing."""

    def model(self, path: Path, *, name: str, task: str, example: Any, metrics: Mapping[str, float]) -> str | None:
        """Record nothing; return the URL of the local folder."""
        return path.absolute().as_uri()


class NullTracker:
    """A tracker that records nothing; its runs have only ids."""

    uri = "none"

    @contextmanager
    def run(
        self, name: str, *, parent: str | None = None, run_id: str | None = None, tags: Mapping[str, str] | None = None
    ) -> Iterator[NullRun]:
        """Open a run that records nothing."""
        yield NullRun(run_id or uuid.uuid4().hex)

    def flush(self) -> int:
        """Return 0, because no record ever waits."""
        return 0

    def review_url(self, run_id: str | None = None) -> str:
        """Return ``none``, because there is no page to open."""
        return self.uri


@dataclass
class InMemoryRegistry:
    """A registry in memory, which ends with the process; for tests and campaigns without MLflow."""

    _versions: dict[str, list[tuple[str, dict[str, str]]]] = field(default_factory=dict)
    _aliases: dict[tuple[str, str], str] = field(default_factory=dict)

    def register(self, model_uri: str, *, name: str, tags: Mapping[str, str]) -> str:
        """Register a model; the same URI again gives the same version."""
        versions = self._versions.setdefault(name, [])
        known = next((index for index, (uri, _) in enumerate(versions) if uri == model_uri), len(versions))
        if known == len(versions):
            versions.append((model_uri, {}))
        versions[known][1].update(tags)
        return str(known + 1)

    def alias(self, name: str, alias: str) -> str | None:
        """Return the version that the alias points at, or None."""
        return self._aliases.get((name, alias))

    def set_alias(self, name: str, alias: str, version: str) -> None:
        """Point the alias at a version; PromotionError if there is no such version."""
        self.tags(name, version)
        self._aliases[name, alias] = version

    def find(self, name: str, tag: str, value: str) -> str | None:
        """Return the newest version that has this tag, or None."""
        versions = enumerate(self._versions.get(name, []), 1)
        return next((str(number) for number, (_, tags) in reversed(list(versions)) if tags.get(tag) == value), None)

    def tags(self, name: str, version: str) -> Mapping[str, str]:
        """Return a version's tags; PromotionError if there is no such version."""
        versions = self._versions.get(name, [])
        if not version.isdigit() or not 1 <= int(version) <= len(versions):
            raise PromotionError(f"model {name!r} has {len(versions)} version(s), not {version!r}")
        return dict(versions[int(version) - 1][1])
