"""Actors that do not fit the machine are refused before the teacher fits a head or is checked."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ray_distill.config import Resources
from ray_distill.errors import ClusterError
from ray_distill.runtime.labelling import pipeline
from ray_distill.runtime.stages import label


def test_actors_that_do_not_fit_are_refused_before_the_teacher_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two actors of two cores, and one core to read beside them."""
    asked: list[Sequence[Mapping[str, float]]] = []

    def refuse(bundles: Sequence[Mapping[str, float]], what: str) -> None:
        asked.append(bundles)
        raise ClusterError(f"{what} needs more")

    monkeypatch.setattr(pipeline, "require_bundles", refuse)
    monkeypatch.setattr(label, "open_for", lambda task, snapshot: None)
    monkeypatch.setattr(label, "teacher_facts", lambda *given: pytest.fail("the teacher ran"))
    labels = SimpleNamespace(resources=Resources(cpus=2, actors=(2, 4)))
    session: Any = SimpleNamespace(config=SimpleNamespace(task="t", store_url=str(tmp_path / "labels"), labels=labels))
    nothing: Any = None
    with pytest.raises(ClusterError, match="labelling .teacher actors, and reading beside. needs more"):
        label.fill_store(session, nothing, nothing, check=nothing)
    assert asked == [[{"CPU": 2, "GPU": 0}, {"CPU": 2, "GPU": 0}, {"CPU": 1}]]
