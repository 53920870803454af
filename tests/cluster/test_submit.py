"""Jobs sent to a real Ray head with the token on."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from ray_distill.artifacts import SnapshotRef
from ray_distill.cli.submit import submit
from ray_distill.errors import ClusterError
from ray_distill.snapshots.reader import open_snapshot
from tests.labs.ray_head import ROOT, ray_head

pytestmark = pytest.mark.cluster

CONFIG = """
campaign: tiny
task: text_classification
output: /nowhere/out
snapshot: {source: /nowhere/rows.jsonl}
labels: {teacher: {model: "module:teacher"}}
"""
SUCCEEDS = """
import sys
import ray

ray.init(address="auto", log_to_driver=False)
print("arguments", sys.argv[1:])
print('{"kind": "Done"}')
"""
FAILS = """
import sys

print("some progress")
sys.exit("error: the teacher is below its floor")
"""


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """A running head: its dashboard, its token, and the folder with the jobs to send."""

    address: str
    token: str
    working_dir: Path
    config: Path


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A head, and a folder with jobs to send to it."""
    folder = tmp_path_factory.mktemp("submit")
    (folder / "jobs").mkdir()
    (folder / "jobs" / "succeeds.py").write_text(SUCCEEDS)
    (folder / "jobs" / "fails.py").write_text(FAILS)
    (folder / "campaign.yaml").write_text(CONFIG)
    with ray_head(folder, cpus=1) as head:
        yield Cluster(address=head.address, token=head.token, working_dir=folder, config=folder / "campaign.yaml")


def _submit(cluster: Cluster, job: str, **changes: object) -> int:
    options: dict[str, object] = {
        "address": cluster.address,
        "token": cluster.token,
        "config_path": cluster.config,
        "working_dir": cluster.working_dir,
        **changes,
    }
    return submit(job=job, **options)  # type: ignore[arg-type]


def test_a_job_that_succeeds_returns_0_and_its_log_ends_with_the_reference(
    cluster: Cluster, capfd: pytest.CaptureFixture[str]
) -> None:
    """The log is copied to stdout, overrides arrive unharmed, and the exit status is 0."""
    assert _submit(cluster, "succeeds", overrides=("seed=3",), arguments=("--note", "a 'b' $c")) == 0
    out = capfd.readouterr().out
    assert "['--config', 'campaign.yaml', '--set', 'seed=3', '--note', \"a 'b' $c\"]" in out
    assert out.strip().splitlines()[-1] == '{"kind": "Done"}'


def test_a_job_that_fails_returns_its_exit_status_and_the_reason_last(
    cluster: Cluster, capfd: pytest.CaptureFixture[str]
) -> None:
    """A job that ends with status 1 gives 1, and the last line says why."""
    assert _submit(cluster, "fails") == 1
    captured = capfd.readouterr()
    assert "some progress" in captured.out
    last = captured.err.strip().splitlines()[-1]
    assert last.startswith("error: ")
    assert last.endswith("failed with exit code 1: the teacher is below its floor")


def test_without_following_it_returns_at_once_and_says_how_to_follow(
    cluster: Cluster, capfd: pytest.CaptureFixture[str]
) -> None:
    """Not following prints the two commands by which to follow and to stop the job."""
    assert _submit(cluster, "succeeds", follow=False) == 0
    captured = capfd.readouterr()
    assert f"ray job logs --follow --address {cluster.address}" in captured.err
    assert f"ray job stop --address {cluster.address}" in captured.err


def test_the_package_itself_travels_when_asked(cluster: Cluster, capfd: pytest.CaptureFixture[str]) -> None:
    """With ship_package, the job imports the submitter's ray_distill from Ray's own folder."""
    (cluster.working_dir / "jobs" / "where.py").write_text("import ray_distill\nprint(ray_distill.__file__)\n")
    assert _submit(cluster, "where", ship_package=True) == 0
    assert "/py_modules_files/" in capfd.readouterr().out


@pytest.mark.parametrize(("token", "says"), [("wrong-token", "refused the token"), ("", "requires a token")])
def test_a_wrong_or_missing_token_is_an_error_that_says_what_to_set(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch, token: str, says: str
) -> None:
    """A token that is not this cluster's, or none, is refused with the variable to set."""
    monkeypatch.setenv("HOME", str(cluster.working_dir))
    monkeypatch.setenv("RAY_AUTH_TOKEN", token)
    with pytest.raises(ClusterError, match=says) as error:
        _submit(cluster, "succeeds", token=None)
    assert "RAY_AUTH_TOKEN" in str(error.value)


def _real_config(folder: Path, source: str) -> Path:
    """A campaign over twenty rows, with everything it writes below ``folder``."""
    rows = "".join(json.dumps({"text": f"row {number}", "label": "ab"[number % 2]}) + "\n" for number in range(20))
    (folder / "rows.jsonl").write_text(rows)
    config = {
        "campaign": "real",
        "task": "text_classification",
        "output": str(folder / "out"),
        "snapshot": {
            "source": source,
            "columns": {"label": "label"},
            "classes": ["a", "b"],  # so that no job opens the teacher
            "splits": {"train": 0.4, "validation": 0.2, "calibration": 0.2, "test": 0.2},
        },
        "labels": {"teacher": {"model": "module:teacher"}},
        "tracking": {"enabled": False},
    }
    (folder / "real.yaml").write_text(json.dumps(config))
    return folder / "real.yaml"


def test_the_projects_own_jobs_run_there_and_end_with_their_reference(
    cluster: Cluster, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """jobs/snapshot.py, sent from this checkout, freezes a snapshot that this process can open."""
    config = _real_config(tmp_path, str(tmp_path / "rows.jsonl"))
    assert _submit(cluster, "snapshot", config_path=config, working_dir=ROOT) == 0
    snapshot = open_snapshot(SnapshotRef.from_json(capfd.readouterr().out.strip().splitlines()[-1]))
    assert sum(shard.rows for shard in snapshot.shards) == 20


def test_the_reason_of_the_projects_own_errors_comes_last(
    cluster: Cluster, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """A source that is not there: no traceback at the end, but what is wrong."""
    config = _real_config(tmp_path, str(tmp_path / "nothing.jsonl"))
    assert _submit(cluster, "snapshot", config_path=config, working_dir=ROOT) == 1
    last = capfd.readouterr().err.strip().splitlines()[-1]
    assert "failed with exit code 1: " in last
    assert "nothing.jsonl" in last


def test_plain_ray_job_submit_runs_the_same_job_files(cluster: Cluster) -> None:
    """Ray's own command line submits the same folder, and a failing job fails there too."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment = {**inherited, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": cluster.token}
    ray = str(Path(sys.executable).with_name("ray"))
    command = [ray, "job", "submit", "--address", cluster.address, "--working-dir", str(cluster.working_dir), "--"]
    result = subprocess.run(
        [*command, "python", "jobs/fails.py", "--config", "campaign.yaml"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode != 0
    assert "the teacher is below its floor" in result.stdout + result.stderr
