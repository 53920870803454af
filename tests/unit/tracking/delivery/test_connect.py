"""The default database is created once, whole, by whichever process is first."""

import fcntl
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ray_distill.tracking.delivery.connect import mlflow_settings, new_client, sqlite_file, upload_timeout

COMMAND = """
import pathlib, sys
from ray_distill.config import TrackingConfig
from ray_distill.tracking.open import open_tracker
from ray_distill.tracking.place import place_of
from ray_distill.tracking.delivery.connect import import_mlflow
name, = sys.argv[1:]
place = place_of(TrackingConfig(), campaign="first", output_url="out", environment={})
tracker, registry = open_tracker(place, spool=pathlib.Path("spool"))
import_mlflow()
print("ready", flush=True)
sys.stdin.readline()
with tracker.run(name) as run, tracker.run(f"{name} train", parent=run.run_id) as train:
    run.params({"who": name})
    train.metrics({"loss": 1.0})
    pathlib.Path(f"{name}.html").write_text(name)
    run.artifact(pathlib.Path(f"{name}.html"))
assert registry.alias("m", "champion") is None
print("waiting", tracker.flush())
"""


@pytest.mark.crash
@pytest.mark.parametrize("killed", [False, True])
def test_commands_that_use_the_default_database_first_and_at_once_lose_nothing(tmp_path: Path, killed: bool) -> None:
    """Both have all their records, whether a third was killed while it created the database or not."""
    from mlflow import MlflowClient

    def start(name: str) -> "subprocess.Popen[str]":
        command = [sys.executable, "-c", COMMAND, name]
        return subprocess.Popen(command, cwd=tmp_path, stdin=-1, stdout=-1, stderr=-1, text=True)

    processes = [start(name) for name in ("one", "two")]
    for process in processes:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
    if killed:
        first = start("killed")
        assert first.stdin is not None
        first.stdin.write("\n")
        first.stdin.flush()
        while not list(tmp_path.glob("out/mlflow.db.new-*")):
            assert first.poll() is None
        first.kill()
        first.wait()
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    for process in processes:
        out, err = process.communicate(timeout=180)
        assert (out, err) == ("waiting 0\n", "")
    client = MlflowClient(tracking_uri=f"sqlite:///{tmp_path}/out/mlflow.db")
    found = {run.info.run_name: run for run in client.search_runs(["1"])}
    assert {name for name in found if "killed" not in name} == {"one", "one train", "two", "two train"}
    assert "RUNNING" not in {run.info.status for run in found.values()}
    for name in ("one", "two"):
        assert found[name].data.params == {"who": name} and found[f"{name} train"].data.metrics == {"loss": 1.0}
        assert [item.path for item in client.list_artifacts(found[name].info.run_id)] == [f"{name}.html"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["mlartifacts", "mlflow.db", "mlflow.db.lock"]
    assert not (tmp_path / "spool").exists()


def test_a_database_that_exists_is_opened_as_it_is(db: str, tmp_path: Path) -> None:
    """What a killed process left beside it does not matter, and its lock is gone with it."""
    (tmp_path / "mlflow.db.new-1").write_bytes(b"half")
    assert new_client(db).search_experiments(max_results=1)
    with (tmp_path / "mlflow.db.lock").open("ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)


@pytest.mark.parametrize(
    ("uri", "path"),
    [
        ("sqlite:////a/b.db", "/a/b.db"),
        ("sqlite:////a/b.db?timeout=5", "/a/b.db"),
        ("sqlite:///:memory:", None),
        ("postgresql://a/b", None),
        ("http://a", None),
    ],
)
def test_the_file_of_a_uri(uri: str, path: str | None) -> None:
    """Only a database in a file has one."""
    assert sqlite_file(uri) == (None if path is None else Path(path))


def test_settings_last_until_the_last_block_and_spare_the_users(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run within a run keeps them; uploads take longer; a variable of the user has precedence."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "7")
    monkeypatch.delenv("MLFLOW_HTTP_REQUEST_TIMEOUT", raising=False)
    with mlflow_settings():
        with mlflow_settings():
            pass
        with upload_timeout():
            assert os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "120"
        assert os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "10"
        assert os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] == "7"
    assert "MLFLOW_HTTP_REQUEST_TIMEOUT" not in os.environ
    assert os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] == "7"
