"""Runs of killed commands do not stay RUNNING, and those of commands at work do."""

import multiprocessing
import os
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest

from ray_distill.tracking.client import ABANDONED
from ray_distill.tracking.mlflow_tracker import MlflowTracker


def _runs(uri: str) -> dict[str, Any]:
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=uri)
    found = client.search_runs([client.get_experiment_by_name("campaign").experiment_id])
    return {run.info.run_name: run for run in found}


def _command(work: Callable[[], None]) -> tuple[multiprocessing.Process, Connection]:
    """Start a command, which waits inside ``work`` until it gets a message, or is killed."""
    here, there = multiprocessing.Pipe()

    def run() -> None:
        work_at.append(there)
        work()
        os._exit(0)

    process = multiprocessing.get_context("fork").Process(target=run)
    process.start()
    assert here.recv() == "ready"
    return process, here


work_at: list[Connection] = []


def _wait() -> None:
    work_at[-1].send("ready")
    work_at[-1].recv()


def _train(uri: str, spool: Path, name: str) -> Callable[[], None]:
    def work() -> None:
        tracker = MlflowTracker(uri, "campaign", spool)
        with tracker.run(f"campaign {name}") as top, tracker.run(f"train {name}", parent=top.run_id) as run:
            run.metrics({"loss": 1.0})
            run.flush()
            _wait()

    return work


def test_the_next_command_closes_the_runs_of_a_killed_one(db: str, tmp_path: Path) -> None:
    """Its own and its stage's; those of another command at work stay open, and end as that one ends."""
    dead, _ = _command(_train(db, tmp_path / "spool", "dead"))
    living, living_end = _command(_train(db, tmp_path / "spool", "living"))
    dead.kill()
    dead.join()
    assert {run.info.status for run in _runs(db).values()} == {"RUNNING"}
    with MlflowTracker(db, "campaign", tmp_path / "spool").run("next"):
        pass
    found = {name: run.info.status for name, run in _runs(db).items()}
    assert found == {
        "campaign dead": "KILLED",
        "train dead": "KILLED",
        "campaign living": "RUNNING",
        "train living": "RUNNING",
        "next": "FINISHED",
    }
    ended = _runs(db)["train dead"]
    assert ended.data.tags["error"] == ABANDONED and ended.info.end_time >= ended.info.start_time
    living_end.send("go on")
    living.join()
    assert {_runs(db)[f"{name} living"].info.status for name in ("campaign", "train")} == {"FINISHED"}
    assert not (tmp_path / "spool").exists()


def test_a_run_that_the_next_command_reopens_is_not_closed(db: str, tmp_path: Path) -> None:
    """The campaign's own run goes on and ends well, without the error."""

    def work() -> None:
        with MlflowTracker(db, "campaign", tmp_path / "spool").run("campaign") as run:
            (tmp_path / "id").write_text(run.run_id)
            _wait()

    dead, _ = _command(work)
    dead.kill()
    dead.join()
    with MlflowTracker(db, "campaign", tmp_path / "spool").run("campaign", run_id=(tmp_path / "id").read_text()):
        assert _runs(db)["campaign"].info.status == "RUNNING"
    found = _runs(db)["campaign"]
    assert (found.info.status, found.data.tags.get("error")) == ("FINISHED", None)


def test_runs_that_began_and_were_left_without_a_server_are_closed_when_there_is_one(db: str, tmp_path: Path) -> None:
    """The run is created from the spool, and closed after its records."""

    def work() -> None:
        with MlflowTracker("http://127.0.0.1:9", "campaign", tmp_path / "spool").run("train") as run:
            run.params({"epochs": 3})
            _wait()

    dead, _ = _command(work)
    dead.kill()
    dead.join()
    with MlflowTracker("http://127.0.0.1:9", "campaign", tmp_path / "spool").run("offline"):
        pass
    assert MlflowTracker(db, "campaign", tmp_path / "spool").flush() == 0
    found = _runs(db)
    assert {name: run.info.status for name, run in found.items()} == {"train": "KILLED", "offline": "FINISHED"}
    assert found["train"].data.params == {"epochs": "3"}


@pytest.mark.parametrize("known", [True, False])
def test_a_run_whose_id_the_killed_command_never_learnt_is_found_by_name_and_time(
    db: str, tmp_path: Path, known: bool
) -> None:
    """A kill between the server's answer and the journal's next line leaves no RUNNING run either."""

    def work() -> None:
        tracker = MlflowTracker(db, "campaign", tmp_path / "spool")
        if not known:
            tracker._driver.renamed = lambda local, real: None  # type: ignore[method-assign]
        with tracker.run("train"):
            _wait()

    dead, _ = _command(work)
    dead.kill()
    dead.join()
    with MlflowTracker(db, "campaign", tmp_path / "spool").run("next"):
        pass
    assert _runs(db)["train"].info.status == "KILLED"
