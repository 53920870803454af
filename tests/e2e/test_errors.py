"""What goes wrong before anything is spent: one line that names it, exit status 1, nothing left behind."""

from pathlib import Path
from typing import Any

import pytest

from ray_distill import cli
from tests.labs import campaign as lab

pytestmark = [pytest.mark.e2e, pytest.mark.usefixtures("embedded_ray")]

TEACHER = {"model": "tests.labs.campaign:spelling_teacher"}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return lab.write_rows(tmp_path / "rows.jsonl", lab.texts(200, seed=3))


def _fails(command: list[str], capfd: pytest.CaptureFixture[str]) -> str:
    """The error of a command, which must be one paragraph without a traceback, and exit status 1."""
    assert cli.main(command) == 1
    captured = capfd.readouterr()
    assert "Traceback" not in captured.err + captured.out
    start = captured.err.index("error: ")
    return captured.err[start:].strip()


def _campaign(folder: Path, source: Path, teacher: dict[str, Any] | None = None, **changes: Any) -> str:
    changes.setdefault("student__model", {"from": "module", "model": "ray_distill.testing.models:tiny_text_model"})
    return str(lab.write_config(folder / "c.yaml", lab.config_of(folder, source, teacher or TEACHER, **changes)))


def test_a_weak_teacher_labels_nothing(tmp_path: Path, source: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A teacher below its floor is refused with both numbers, and no store comes into being."""
    config = _campaign(tmp_path, source, {**TEACHER, "arguments": {"backwards": True}})
    told = _fails(["run", config], capfd)
    assert "below the least accuracy of 0.7" in told
    assert len(told.splitlines()) == 1
    assert not (tmp_path / "out" / "labels").exists()
    assert not (tmp_path / "out" / "students").exists()


def test_a_teacher_of_other_classes_labels_nothing(
    tmp_path: Path, source: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The classes that only one side has are named."""
    rows = [(text, "metals" if label == "metal" else label) for text, label in lab.texts(200, seed=3)]
    config = _campaign(tmp_path, lab.write_rows(source, rows), snapshot__classes=["fruit", "metals", "river"])
    told = _fails(["run", config], capfd)
    assert "only the teacher has ['metal']" in told
    assert "only the snapshot has ['metals']" in told
    assert not (tmp_path / "out" / "labels").exists()


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"snapshot__source": "/nowhere/rows.jsonl"}, "/nowhere/rows.jsonl"),
        ({"labels__teacher": {"model": "/nowhere/teacher"}}, "/nowhere/teacher"),
        ({"labels__teacher": {"model": "no_such_module:teacher"}}, "no_such_module"),
    ],
)
def test_what_is_missing_is_named(
    tmp_path: Path, source: Path, capfd: pytest.CaptureFixture[str], changes: dict[str, Any], says: str
) -> None:
    """A source or a teacher that is not there is named; a wrong field stands on a line of its own."""
    told = _fails(["run", _campaign(tmp_path, source, **changes)], capfd)
    assert says in told
    assert len(told.splitlines()) <= 2
    assert not (tmp_path / "out" / "labels").exists()


def test_a_stage_without_its_input_says_which_comes_first(
    tmp_path: Path, source: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Each command that needs an earlier one names it."""
    config = _campaign(tmp_path, source)
    for command, first in (
        ("label", "snapshot"),
        ("train", "label"),
        ("evaluate", "train"),
        ("promote", "evaluate"),
        ("relabel", "label"),
    ):
        assert f"ray-distill {first}" in _fails([command, config], capfd)
