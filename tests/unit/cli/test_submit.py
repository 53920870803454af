"""What is checked and staged before anything is sent to a cluster."""

import json
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ray_distill.cli import submit as module
from ray_distill.cli.submit import check_address, entrypoint_of, find_token, submit
from ray_distill.errors import ClusterError, ConfigError

CONFIG = """
campaign: tiny
task: text_classification
output: /shared/out
snapshot: {source: /shared/rows.jsonl}
labels: {teacher: {model: "module:teacher"}}
"""


@pytest.fixture(autouse=True)
def _no_ray_variables(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_AUTH_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A folder with one job and a config."""
    (tmp_path / "jobs" / "__pycache__").mkdir(parents=True)
    (tmp_path / "jobs" / "__pycache__" / "label.pyc").write_bytes(b"x")
    (tmp_path / "jobs" / "label.py").write_text("")
    (tmp_path / "jobs" / ".secret").write_text("do not send")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "rows.jsonl").write_text("{}")
    (tmp_path / "campaign.yaml").write_text(CONFIG)
    return tmp_path


def test_every_argument_of_the_entrypoint_is_quoted() -> None:
    """Overrides and JSON reach the job as they were given, whatever a shell would make of them."""
    command = entrypoint_of("label", "my config.yaml", ("a.b=$HOME",), ("--snapshot", '{"url": "x"}'))
    assert command == "python jobs/label.py --config 'my config.yaml' --set 'a.b=$HOME' --snapshot '{\"url\": \"x\"}'"


def test_only_the_jobs_and_the_config_are_staged(project: Path) -> None:
    """Data, caches and hidden files stay at home."""
    with module._staged("label", project / "campaign.yaml", project) as folder:
        assert sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()) == [
            "campaign.yaml",
            "jobs/label.py",
        ]
    assert not folder.exists()


@pytest.mark.parametrize(
    ("settings", "refused"),
    [
        ({"output": "s3://bucket/out"}, True),
        ({"output": "s3://bucket/out", "tracking.uri": "http://mlflow:5000"}, False),
        ({"output": "s3://bucket/out", "tracking.enabled": "false"}, False),
        ({"output": "/shared/out"}, False),
    ],
)
def test_runs_are_not_recorded_in_a_folder_that_ends_with_the_job(
    project: Path, settings: dict[str, str], refused: bool
) -> None:
    """A remote output needs a tracking server; the refusal comes before the cluster is asked for anything."""
    sets = tuple(f"{name}={value}" for name, value in settings.items())
    told = "tracking.uri is not set and the output s3://bucket/out is remote" if refused else "must be the cluster's"
    with pytest.raises(ConfigError if refused else ClusterError, match=told):
        submit(
            job="label", config_path=project / "campaign.yaml", address="nowhere", working_dir=project, overrides=sets
        )


def test_an_unknown_job_names_the_known_ones(project: Path) -> None:
    """The error says where it looked and what it found."""
    with (
        pytest.raises(ClusterError, match=r"no job 'labels' in .*jobs \(found: label\)"),
        module._staged("labels", project / "campaign.yaml", project),
    ):
        pass


def test_huge_folders_are_refused_with_their_largest_file(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that lies among the jobs is named, before anything is copied."""
    (project / "jobs" / "model.bin").write_bytes(b"0" * 2_000_000)
    monkeypatch.setattr(module, "MAX_STAGED_BYTES", 2**20)
    with (
        pytest.raises(ClusterError, match=r"contains 2 MiB, at most 1 MiB .*model\.bin"),
        module._staged("label", project / "campaign.yaml", project),
    ):
        pass


def test_a_wrong_config_never_reaches_the_cluster(project: Path) -> None:
    """The config is validated first: the address here does not even exist."""
    with pytest.raises(ConfigError, match="unit_rows"):
        submit(
            job="label",
            config_path=project / "campaign.yaml",
            address="http://127.0.0.1:9",
            overrides=("labels.unit_rows=none",),
            working_dir=project,
        )


def test_no_cluster_at_the_address_says_how_to_start_one(project: Path) -> None:
    """Port 9 of this machine refuses the connection."""
    with pytest.raises(ClusterError, match=r"no Ray cluster answers at http://127\.0\.0\.1:9 .*ray start --head"):
        submit(job="label", config_path=project / "campaign.yaml", address="http://127.0.0.1:9", working_dir=project)


@pytest.mark.parametrize("address", ["auto", "ray://head:10001", "head:8265"])
def test_only_a_dashboard_is_an_address(address: str) -> None:
    """The other forms of Ray address are refused with the right one."""
    with pytest.raises(ClusterError, match="http://HEAD:8265"):
        check_address(address, None)


def test_a_variable_that_would_win_over_the_address_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray silently prefers RAY_ADDRESS; a job must not land on another cluster than the one named."""
    monkeypatch.setenv("RAY_ADDRESS", "http://other:8265")
    with pytest.raises(ClusterError, match="RAY_ADDRESS=http://other:8265 would override"):
        check_address("http://mine:8265", None)


def test_the_token_is_found_where_ray_looks(tmp_path: Path) -> None:
    """The variable wins over the named file, the named file over the one at home."""
    named, home = tmp_path / "named", tmp_path / "home"
    named.write_text(" from-file\n")
    (home / ".ray").mkdir(parents=True)
    (home / ".ray" / "auth_token").write_text("from-home\n")
    everything = {"RAY_AUTH_TOKEN": "direct", "RAY_AUTH_TOKEN_PATH": str(named), "HOME": str(home)}
    assert find_token(everything) == "direct"
    assert find_token({**everything, "RAY_AUTH_TOKEN": ""}) == "from-file"
    assert find_token({"HOME": str(home)}) == "from-home"
    assert find_token({"HOME": str(tmp_path)}) is None
    assert find_token({**everything, "RAY_AUTH_MODE": "disabled"}) is None
    with pytest.raises(ClusterError, match=f"cannot read the cluster's token in {tmp_path}"):
        find_token({"RAY_AUTH_TOKEN_PATH": str(tmp_path)})


def test_the_staged_folder_is_the_only_working_dir(project: Path) -> None:
    """A runtime_env may add packages and variables, not another working dir; the package travels on request."""
    with pytest.raises(ClusterError, match="must not set working_dir"):
        module._runtime_env({"working_dir": "."}, project, ship_package=False)
    result = module._runtime_env({"env_vars": {"A": "1"}, "py_modules": ["mine"]}, project, ship_package=True)
    assert result["env_vars"] == {"A": "1"}
    assert result["working_dir"] == str(project)
    assert [Path(name).name for name in result["py_modules"]] == ["mine", "ray_distill"]


@pytest.mark.parametrize(
    ("record", "status", "says"),
    [
        (("SUCCEEDED", 0, ""), 0, ""),
        (("FAILED", 3, "Job entrypoint command failed"), 3, "error: j failed with exit code 3: the floor\n"),
        (("FAILED", -9, "killed"), 137, "error: j failed with exit code -9: the floor\n"),
        (("FAILED", None, "no such package\nmore"), 1, "error: j failed: no such package\n"),
        (("STOPPED", None, ""), 1, "error: j was stopped\n"),
    ],
)
def test_the_exit_status_and_the_reason_come_from_the_final_record(
    record: tuple[str, int | None, str], status: int, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Success is 0; a job that never started gives Ray's own reason; a signal is 128 and its number."""
    state, code, message = record
    info = SimpleNamespace(status=SimpleNamespace(value=state), driver_exit_code=code, message=message)
    assert module._report("j", info, "error: the floor") == status
    assert capsys.readouterr().err == says


class _Client:
    """A cluster that takes every job, writes one line and ends it."""

    def submit_job(self, **request: Any) -> str:
        """The job's name."""
        return "j"

    async def tail_job_logs(self, job_id: str) -> AsyncIterator[str]:
        """The log."""
        yield "error: the floor\n"

    def get_job_info(self, job_id: str) -> Any:
        """The final record."""
        return SimpleNamespace(status=SimpleNamespace(value="FAILED"), driver_exit_code=3, message="m")


@pytest.mark.parametrize(
    ("follow", "status", "end"),
    [
        (True, 3, {"job_id": "j", "status": "FAILED", "exit_code": 3}),
        (False, 0, {"job_id": "j", "status": "PENDING", "exit_code": None}),
    ],
)
def test_as_json_stdout_holds_one_object(
    project: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    follow: bool,
    status: int,
    end: dict[str, Any],
) -> None:
    """The log goes to stderr; a job that is not followed has no exit code yet."""
    monkeypatch.setattr(module, "check_address", lambda address, token: None)
    monkeypatch.setattr(module, "_client", lambda address, token: _Client())
    config = next(project.rglob("*.yaml"))
    job = next((project / "jobs").glob("*.py")).stem
    found = submit(job=job, config_path=config, address="http://x:1", working_dir=project, follow=follow, as_json=True)
    captured = capsys.readouterr()
    assert found == status
    assert json.loads(captured.out) == end
    assert len(captured.out.splitlines()) == 1
    assert ("error: the floor\n" in captured.err) is follow
