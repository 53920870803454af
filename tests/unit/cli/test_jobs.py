"""The job files, and the command line and last line that they share."""

import argparse
import json
import runpy
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from ray_distill.artifacts import Artifact, LabelSetRef, SnapshotRef, StudentRef
from ray_distill.cli import job_entrypoint
from ray_distill.config import Campaign
from ray_distill.errors import ConfigError, TrainingError

ROOT = Path(__file__).parents[3]
JOBS = sorted((ROOT / "jobs").glob("*.py"))
NAMES = ["evaluate", "label", "pipeline", "promote", "relabel", "snapshot", "sweep", "train", "write"]
CONFIG = """
campaign: tiny
task: text_classification
snapshot: {source: rows.jsonl}
labels: {teacher: {model: "module:teacher"}}
"""
SNAPSHOT = SnapshotRef(url="s3://b/snapshot", fingerprint="ab")
STUDENT = StudentRef(
    url="s3://b/student",
    fingerprint="cd",
    arm="student",
    labels=LabelSetRef(store="s3://b/labels", fingerprint="ef", snapshot=SNAPSHOT, log_length=1, log_digest="01"),
)


@dataclass(frozen=True, kw_only=True)
class Seen(Artifact):
    """What a stage of these tests saw of its config."""

    campaign: str
    k: int


@pytest.fixture
def config(tmp_path: Path) -> str:
    """A valid campaign on disk."""
    path = tmp_path / "campaign.yaml"
    path.write_text(CONFIG)
    return str(path)


@pytest.fixture(autouse=True)
def _already_attached(monkeypatch: pytest.MonkeyPatch) -> None:
    """Unit tests never start Ray: the job finds itself attached, as inside `ray-distill run`."""
    monkeypatch.setattr("ray.is_initialized", lambda: True)


def _stage(config: Campaign) -> Seen:
    sys.stdout.write("progress\n")
    return Seen(campaign=config.campaign, k=config.labels.signal.k)


def _options(config: str, *more: str) -> argparse.Namespace:
    return job_entrypoint.parse("A job.", argv=["--config", config, *more])


def test_there_is_a_job_a_stage_and_each_fits_on_a_page() -> None:
    """Each has at most 50 lines, and a docstring that names its last line."""
    assert [path.stem for path in JOBS] == NAMES
    for path in JOBS:
        text = path.read_text()
        assert len(text.splitlines()) <= 50
        assert "the last line" in text.split('"""')[1]


def test_the_result_is_the_last_line(config: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Progress comes first, overrides are applied, the reference comes last."""
    assert job_entrypoint.run(_options(config, "--set", "labels.signal.k=7"), _stage) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0] == "progress"
    assert json.loads(out[-1]) == {"kind": "Seen", "campaign": "tiny", "k": 7}


def test_with_json_nothing_else_is_on_stdout(config: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Progress moves to stderr."""
    assert job_entrypoint.run(_options(config, "--json"), _stage) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["campaign"] == "tiny"
    assert captured.err == "progress\n"


def test_our_own_errors_are_one_line_and_status_1(config: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The reason is the last line, without a traceback; a defect keeps its traceback."""

    def refuse(config: Campaign) -> Seen:
        raise TrainingError("no labels to train from: run the label job first")

    assert job_entrypoint.run(_options(config), refuse) == 1
    assert capsys.readouterr().err == "error: no labels to train from: run the label job first\n"
    with pytest.raises(ZeroDivisionError):
        job_entrypoint.run(_options(config), lambda config: 1 / 0)


def test_ctrl_c_ends_a_job_as_a_shell_expects(config: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Status 130, and what to do to go on."""

    def interrupted(config: Campaign) -> Seen:
        raise KeyboardInterrupt

    assert job_entrypoint.run(_options(config), interrupted) == 130
    assert "goes on where it was" in capsys.readouterr().err


def test_a_wrong_config_is_reported_before_ray_is_touched(config: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The field is named."""
    assert job_entrypoint.run(_options(config, "--set", "labels.unit_rows=0"), _stage) == 1
    assert "labels.unit_rows" in capsys.readouterr().err


def test_a_reference_is_read_from_json_or_from_a_file(tmp_path: Path) -> None:
    """What one job printed, the next accepts, as text or as a file; another kind is refused."""
    (tmp_path / "reference.json").write_text(SNAPSHOT.to_json())
    assert job_entrypoint.read(SnapshotRef, SNAPSHOT.to_json()) == SNAPSHOT
    assert job_entrypoint.read(SnapshotRef, str(tmp_path / "reference.json")) == SNAPSHOT
    with pytest.raises(ConfigError, match="expected a LabelSetRef, found a SnapshotRef"):
        job_entrypoint.read(LabelSetRef, SNAPSHOT.to_json())


def test_students_go_through_the_last_line_and_back() -> None:
    """The training job's result is what the evaluation job reads."""
    students = {"student": STUDENT}
    assert job_entrypoint.read_students(job_entrypoint.to_json(students)) == students
    with pytest.raises(ConfigError, match="as the training job printed it"):
        job_entrypoint.read_students('{"student": 3}')
    with pytest.raises(ConfigError, match="must be the JSON"):
        job_entrypoint.read_students("{not json")


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_each_job_file_explains_itself(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`--help` shows the docstring and the config."""
    path = ROOT / "jobs" / f"{name}.py"
    monkeypatch.setattr(sys, "argv", [str(path), "--help"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(path), run_name="__main__")
    assert ended.value.code == 0
    out = capsys.readouterr().out
    assert "Ray job:" in out
    assert "--config" in out
