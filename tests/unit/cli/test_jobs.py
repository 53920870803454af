"""The job files, and the command line and last line that they share."""

import json
import runpy
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from ray_distill import cli
from ray_distill.artifacts import Artifact, LabelSetRef, SnapshotRef, StudentRef
from ray_distill.cli import commands, resolve_references
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


def _run(name: str, *arguments: str) -> int:
    """Run a job file as Ray does, with these arguments; return its exit status."""
    path = ROOT / "jobs" / f"{name}.py"
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as ended:
        patch.setattr(sys, "argv", [str(path), *arguments])
        runpy.run_path(str(path), run_name="__main__")
    assert isinstance(ended.value.code, int)
    return ended.value.code


def _snapshot_job(monkeypatch: pytest.MonkeyPatch, stage: Callable[[Campaign], object], *arguments: str) -> int:
    """Run ``jobs/snapshot.py`` with ``stage`` in place of the campaign's."""
    monkeypatch.setattr("ray_distill.runtime.campaign.snapshot", stage)
    return _run("snapshot", *arguments)


def test_there_is_a_job_a_stage_and_each_fits_on_a_page() -> None:
    """Each has at most 12 lines, and a docstring that names its last line."""
    assert [path.stem for path in JOBS] == NAMES
    for path in JOBS:
        text = path.read_text()
        assert len(text.splitlines()) <= 12
        assert "the last line" in text.split('"""')[1]


def test_the_result_is_all_of_stdout(
    config: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Overrides are applied; progress moves to stderr, so that the reference is the last and only line of stdout."""
    assert _snapshot_job(monkeypatch, _stage, "--config", config, "--set", "labels.signal.k=7") == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out) == {"kind": "Seen", "campaign": "tiny", "k": 7}
    assert captured.err == "progress\n"


def test_a_job_accepts_json_and_an_address_too(
    config: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Options that every job sets itself do no harm on its command line."""
    assert _snapshot_job(monkeypatch, _stage, "--config", config, "--json", "--address", "ray://elsewhere") == 0
    assert json.loads(capsys.readouterr().out)["campaign"] == "tiny"


def test_our_own_errors_are_one_line_and_status_1(
    config: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The reason is the last line, without a traceback; that of a defect is in a file."""

    def refuse(config: Campaign) -> Seen:
        raise TrainingError("no labels to train from: run the label job first")

    assert _snapshot_job(monkeypatch, refuse, "--config", config) == 1
    assert capsys.readouterr().err == "error: no labels to train from: run the label job first\n"
    monkeypatch.setattr("ray_distill.runtime.campaign.snapshot", lambda config: 1 / 0)
    monkeypatch.setattr("tempfile.tempdir", str(Path(config).parent))
    assert cli.main(["snapshot", "--config", config, "--json"]) == 1
    told = capsys.readouterr().err
    assert "ZeroDivisionError: division by zero" in told and "Traceback" not in told
    (kept,) = Path(config).parent.glob("ray-distill-traceback-*.txt")
    assert str(kept) in told and "Traceback" in kept.read_text()


def test_ctrl_c_ends_a_job_as_a_shell_expects(
    config: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Status 130, and what to do to go on."""

    def interrupted(config: Campaign) -> Seen:
        raise KeyboardInterrupt

    assert _snapshot_job(monkeypatch, interrupted, "--config", config) == 130
    assert "run the same command again to continue" in capsys.readouterr().err


def test_a_wrong_config_is_reported_before_ray_is_touched(
    config: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The field is named; Ray is not connected."""

    def connected(address: str) -> None:
        raise AssertionError("Ray was touched")

    monkeypatch.setattr("ray_distill.runtime.core.connection.connected", connected)
    assert _snapshot_job(monkeypatch, _stage, "--config", config, "--set", "labels.unit_rows=0") == 1
    assert "labels.unit_rows" in capsys.readouterr().err


def test_a_job_that_gets_a_reference_reads_it(
    config: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """``--snapshot`` of the label job reaches the stage as an artifact."""
    monkeypatch.setattr("ray_distill.runtime.campaign.label", lambda config, snapshot: snapshot)
    assert _run("label", "--config", config, "--snapshot", SNAPSHOT.to_json()) == 0
    assert SnapshotRef.from_json(capsys.readouterr().out) == SNAPSHOT


def test_a_reference_is_read_from_json_or_from_a_file(tmp_path: Path) -> None:
    """What one job printed, the next accepts, as text or as a file; another kind is refused."""
    (tmp_path / "reference.json").write_text(SNAPSHOT.to_json())
    assert resolve_references.read(SnapshotRef, SNAPSHOT.to_json()) == SNAPSHOT
    assert resolve_references.read(SnapshotRef, str(tmp_path / "reference.json")) == SNAPSHOT
    with pytest.raises(ConfigError, match="expected a LabelSetRef, found a SnapshotRef"):
        resolve_references.read(LabelSetRef, SNAPSHOT.to_json())


def test_students_go_through_the_last_line_and_back() -> None:
    """The training job's result is what the evaluation job reads."""
    students = {"student": STUDENT}
    assert resolve_references.read_students(commands.to_json(students)) == students
    with pytest.raises(ConfigError, match="as the training job printed it"):
        resolve_references.read_students('{"student": 3}')
    with pytest.raises(ConfigError, match="must be the JSON"):
        resolve_references.read_students("{not json")


@pytest.mark.parametrize("name", NAMES)
def test_each_job_file_explains_itself(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """`--help` shows its command's description and the config."""
    assert _run(name, "--help") == 0
    out = capsys.readouterr().out
    assert f"ray-distill {'run' if name == 'pipeline' else name}" in out
    assert "--config" in out
