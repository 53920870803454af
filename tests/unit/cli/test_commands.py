"""The command line without a cluster: what is refused, what is only said, and what is not even imported."""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from ray_distill import cli
from ray_distill.artifacts import SnapshotRef
from ray_distill.cli import resolve_references
from ray_distill.config import load_config

CLASSES = ["a", "b"]
STUDENT = {"from": "module", "model": "ray_distill.testing.models:tiny_text_model"}
COMMANDS = ["run", "snapshot", "write", "label", "train", "evaluate", "promote", "relabel"]


def _write(folder: Path, **sections: Any) -> str:
    (folder / "rows.jsonl").write_text('{"text": "one", "label": "a"}\n')
    value = {
        "campaign": "c",
        "task": "text_classification",
        "output": str(folder / "out"),
        "snapshot": {"source": str(folder / "rows.jsonl"), "columns": {"label": "label"}},
        "labels": {
            "teacher": {"model": "ray_distill.testing.models:tiny_text_model", "arguments": {"classes": CLASSES}}
        },
        **sections,
    }
    value["student"] = {"model": STUDENT, **value.get("student", {})}
    (folder / "c.yaml").write_text(yaml.safe_dump(value))
    return str(folder / "c.yaml")


def _fails(capsys: pytest.CaptureFixture[str], *command: str) -> str:
    assert cli.main(command) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert "Traceback" not in captured.err
    return captured.err


def test_help_imports_nothing_heavy() -> None:
    """The help of every command is answered by the standard library alone."""
    others = ("sweep", "quickstart", "audit", "inspect", "export", "submit", "doctor")
    commands = [[], *([name] for name in (*COMMANDS, *others))]
    code = (
        "import sys\nfrom ray_distill import cli\n"
        f"for command in {commands!r}:\n"
        "    try:\n        cli.main([*command, '--help'])\n    except SystemExit as end:\n        assert not end.code\n"
        "heavy = {'ray', 'torch', 'mlflow', 'numpy', 'pyarrow', 'transformers', 'pydantic', 'yaml', 'fsspec'}\n"
        "print(sorted(heavy & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
    for name in COMMANDS:
        assert name in done.stdout


def test_all_wrong_fields_are_told_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each line names the field, what was found and what is allowed; nothing is created."""
    config = _write(tmp_path, seed="x", student={"training": {"workers": 0, "zero_stage": 7}, "typo": 1})
    told = _fails(capsys, "run", config, "--set", "labels.unit_rows=-1")
    assert "5 wrong field(s)" in told
    for field, found in (
        ("seed", "'x'"),
        ("student.training.workers", "0"),
        ("student.training.zero_stage", "7"),
        ("labels.unit_rows", "-1"),
    ):
        line = next(line for line in told.splitlines() if line.strip().startswith(f"{field}:"))
        assert f"found {found}" in line
    assert "student.typo: unknown field" in told
    assert not (tmp_path / "out").exists()


def test_hidden_matching_of_stored_layers_passes_the_check(tmp_path: Path) -> None:
    """A config whose losses ask for what its labels hold is not refused."""
    teacher = {"model": "ray_distill.testing.models:tiny_text_model", "arguments": {"classes": CLASSES}}
    config = _write(
        tmp_path,
        student={"losses": {"soft": {}, "hidden": {"layers": "last"}}},
        labels={"teacher": teacher, "hidden": {"layers": [-1]}},
    )
    assert cli.main(["run", config, "--dry-run"]) == 0


def test_what_would_fail_after_the_teacher_is_paid_for_fails_before(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """An undeclared temperature, hidden states nobody stores, an unknown loss and corruption, a missing teacher."""
    config = _write(
        tmp_path,
        student={"losses": {"soft": {"temperature": 8}, "hidden": {}, "magic": {}}},
        evaluation={"corruptions": ["typos", "earthquake"]},
        labels={"teacher": {"model": "/nowhere/teacher"}},
    )
    told = _fails(capsys, "run", config, "--dry-run")
    assert "5 wrong field(s)" in told
    for part in ("student.losses.soft", "student.losses.hidden", "'magic'", "'earthquake'", "/nowhere/teacher"):
        assert part in told
    assert "'typos'" not in told


@pytest.mark.parametrize(
    ("estimator", "refused"), [("dense", False), ("topk", False), ("sampled", True), ("hybrid", True)]
)
def test_a_divergence_that_draws_would_bias_is_refused_before_the_teacher_is_paid_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], estimator: str, refused: bool
) -> None:
    """Reverse KL is no linear function of the teacher's probabilities; the message says so."""
    teacher = {"model": "ray_distill.testing.models:tiny_text_model", "arguments": {"classes": CLASSES}}
    config = _write(
        tmp_path,
        student={"losses": {"soft": {"divergence": "reverse_kl"}}},
        labels={"teacher": teacher, "signal": {"estimator": estimator}},
    )
    if refused:
        told = _fails(capsys, "run", config, "--dry-run")
        assert "student.losses.soft: the divergence 'reverse_kl' cannot be used with sampled or hybrid labels" in told
    else:
        assert cli.main(["run", config, "--dry-run"]) == 0


@pytest.mark.parametrize(
    ("command", "says"),
    [
        (["run", "nowhere.yaml"], "nowhere.yaml"),
        (["audit", "nowhere"], "there is no label store here"),
        (["inspect", "nowhere", "--row", "00"], "there is no label store here"),
        (["inspect", "nowhere", "--row", "xyz"], "32 hexadecimal digits"),
        (["export", "nowhere", "there"], "there is no label store here"),
        (["run", "c.yaml", "--set", "seed"], "--set needs name=value"),
        (["run", "c.yaml", "--set", "seed.x.y=1"], "seed is not a section"),
        (["submit", "c.yaml", "--runtime-env", "{"], "--runtime-env must be JSON"),
        (["submit", "c.yaml", "--runtime-env", "[1]"], "--runtime-env must be a JSON object"),
        (["audit", ".", "--snapshot", "{"], "a SnapshotRef must be JSON"),
        (["audit", ".", "--snapshot", "rows.jsonl"], "SnapshotRef"),
        (["submit", "c.yaml", "--metadata", "x"], "--metadata needs name=value"),
    ],
)
def test_a_wrong_command_line_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: list[str], says: str
) -> None:
    """It names what is wrong and ends with status 1."""
    monkeypatch.chdir(tmp_path)
    _write(tmp_path, seed=1)
    told = _fails(capsys, *command)
    assert says in told
    assert len(told.splitlines()) == 1


def test_an_error_that_nobody_expected_is_one_report_and_a_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It names command and cause and says what stays; the traceback is in a file; without room for one it says that."""

    def fail(config: object) -> None:
        raise ZeroDivisionError("by\nnothing" + "." * 400)

    monkeypatch.setattr("ray_distill.runtime.dry_run.plan", fail)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    config = _write(tmp_path)
    told = _fails(capsys, "run", config, "--dry-run")
    assert told.startswith(
        "error: `ray-distill run` ended with an error that it does not expect: ZeroDivisionError: by n"
    )
    assert "the same command goes on from there" in told and "." * 301 not in told
    (kept,) = tmp_path.glob("ray-distill-traceback-*.txt")
    assert str(kept) in told and 'raise ZeroDivisionError("by' in kept.read_text()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "gone"))
    assert "could not be written" in _fails(capsys, "run", config, "--dry-run")


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS, errno.ENOSPC, errno.ENAMETOOLONG])
def test_a_file_that_the_machine_refuses_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """Whichever library meets it: the file and the cause, and no report of a fault of this package."""

    def fail(config: object) -> None:
        raise OSError(number, os.strerror(number), "/data/x")

    monkeypatch.setattr("ray_distill.runtime.dry_run.plan", fail)
    told = _fails(capsys, "run", _write(tmp_path), "--dry-run")
    assert told.startswith("error: /data/x: cannot use it") and len(told.splitlines()) == 1
    assert not list(tmp_path.glob("ray-distill-traceback-*"))


def test_a_reader_that_stops_reading_is_no_error(tmp_path: Path) -> None:
    """As `ray-distill … | head -1` does: no word of a broken pipe."""
    config = _write(tmp_path)
    line = f"{sys.executable} -m ray_distill.cli run {config} --dry-run | true"
    ended = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=False)
    assert "Broken" not in ended.stderr and "error" not in ended.stderr


@pytest.mark.parametrize("command", COMMANDS)
def test_a_dry_run_says_what_it_would_do_and_changes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    """Five stages and where runs are recorded; no file but the two of the test is there afterwards."""
    config = _write(tmp_path)
    assert cli.main([command, config, "--dry-run"]) == 0
    lines = capsys.readouterr().out.splitlines()
    stages = ["snapshot", "label", "student", "train", "evaluate", "promote", "record"]
    assert [line.split()[0] for line in lines] == stages
    assert cli.main([command, config, "--dry-run", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["plan"] == lines
    assert sorted(path.name for path in tmp_path.iterdir()) == ["c.yaml", "rows.jsonl"]


def test_a_dry_run_of_the_quickstart_is_json_on_request(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The same lines either way."""
    command = ["quickstart", "--dry-run", "--output", str(tmp_path / "out")]
    assert cli.main(command) == 0
    lines = capsys.readouterr().out.splitlines()
    assert cli.main([*command, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"plan": lines}


def test_a_snapshot_to_audit_is_a_reference_its_file_or_a_folder(tmp_path: Path) -> None:
    """A folder's URL stays a URL."""
    reference = SnapshotRef(url=str(tmp_path), fingerprint="f")
    (tmp_path / "ref").write_text(reference.to_json())
    assert resolve_references.snapshot_to_audit(reference.to_json()) == reference
    assert resolve_references.snapshot_to_audit(str(tmp_path / "ref")) == reference
    assert resolve_references.snapshot_to_audit(str(tmp_path)) == str(tmp_path)
    assert resolve_references.snapshot_to_audit("s3://bucket/snapshot") == "s3://bucket/snapshot"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("labels.resources.actors", "[0, 1]"),
        ("labels.resources.actors", "[3, 2]"),
        ("evaluation.severities", "[]"),
        ("evaluation.severities", "[4]"),
        ("student.training.learning_rate", "[]"),
        ("student.training.learning_rate", "0"),
        ("student.training.learning_rate", "[0.1, -1]"),
        ("student.training.learning_rate", ".inf"),
    ],
)
def test_a_range_is_refused_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str], field: str, value: str) -> None:
    """What no run can use is a wrong field."""
    told = _fails(capsys, "run", _write(tmp_path), "--dry-run", "--set", f"{field}={value}")
    assert "1 wrong field(s)" in told
    assert field in told


def test_one_learning_rate_may_stand_alone(tmp_path: Path) -> None:
    """A number, or YAML's text for one, is a list of one."""
    config = load_config(_write(tmp_path), ("student.training.learning_rate=1e-3",))
    assert config.student.training.learning_rate == (1e-3,)


def test_a_dry_run_finds_a_source_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What can be checked is checked."""
    config = _write(tmp_path, snapshot={"source": str(tmp_path / "nowhere.jsonl")})
    assert "nowhere.jsonl" in _fails(capsys, "run", config, "--dry-run")
