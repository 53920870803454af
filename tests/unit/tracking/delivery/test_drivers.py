"""Runs that dead processes left open are found; those of living processes never."""

import json
import multiprocessing
import os
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

from ray_distill.tracking.delivery.drivers import Driver, OpenRun, abandoned, open_runs

RUN = OpenRun(run="spooled-1", name="train", start=5)


def _process(folder: Path, work: Callable[[Driver], None]) -> tuple[multiprocessing.Process, Connection]:
    """Start a process with a journal, which waits after its work until it is killed."""
    here, there = multiprocessing.Pipe()

    def run() -> None:
        driver = Driver(folder)
        work(driver)
        there.send("ready")
        there.recv()
        os._exit(1)

    process = multiprocessing.get_context("fork").Process(target=run)
    process.start()
    assert here.recv() == "ready"
    return process, here


def _left(folder: Path) -> list[str]:
    with abandoned(folder) as found:
        return [run.run for run, _ in found]


def test_the_runs_of_a_killed_process_are_found_once(tmp_path: Path) -> None:
    """While it lives none is; killed, each run that was not closed, by the server's id where it was known."""

    def work(driver: Driver) -> None:
        driver.opened(RUN)
        driver.renamed("spooled-1", "abc")
        for name in ("spooled-2", "def"):
            driver.opened(OpenRun(run=name, name=name, start=0))
        driver.closed("def")

    process, _ = _process(tmp_path / "drivers", work)
    assert _left(tmp_path / "drivers") == [] and open_runs(tmp_path / "drivers") == {"abc", "spooled-2"}
    process.kill()
    process.join()
    with abandoned(tmp_path / "drivers") as found:
        assert [run for run, _ in found] == [
            OpenRun(run="abc", name="train", start=5),
            OpenRun(run="spooled-2", name="spooled-2", start=0),
        ]
        assert open_runs(tmp_path / "drivers") == set()
    assert _left(tmp_path / "drivers") == [] and list((tmp_path / "drivers").iterdir()) == []


def test_a_run_that_a_living_process_has_open_too_is_left_out(tmp_path: Path) -> None:
    """Two commands share the run of their campaign: the death of one does not end the other's."""
    dead, _ = _process(tmp_path, lambda driver: driver.opened(RUN))
    living, _ = _process(tmp_path, lambda driver: driver.opened(RUN))
    dead.kill()
    dead.join()
    assert _left(tmp_path) == []
    living.kill()
    living.join()
    assert _left(tmp_path) == ["spooled-1"]


def test_runs_whose_closing_failed_are_found_by_the_next(tmp_path: Path) -> None:
    """A command that is killed while it closes them leaves the journal."""
    process, _ = _process(tmp_path, lambda driver: driver.opened(RUN))
    process.kill()
    process.join()
    try:
        with abandoned(tmp_path):
            raise KeyboardInterrupt
    except KeyboardInterrupt:
        pass
    assert _left(tmp_path) == ["spooled-1"]


def test_a_process_that_ends_well_leaves_nothing(tmp_path: Path) -> None:
    """Neither a journal nor an empty folder; what others put into the folder stays."""
    driver = Driver(tmp_path / "spool" / "drivers")
    driver.opened(RUN)
    driver.closed("spooled-1")
    driver.release()
    assert list(tmp_path.iterdir()) == []
    driver.opened(RUN)
    (tmp_path / "spool" / "spool.db").touch()
    driver.release()
    assert [path.name for path in (tmp_path / "spool").iterdir()] == ["spool.db"]


def test_a_line_that_was_cut_is_left_out(tmp_path: Path) -> None:
    """A kill during a write costs that line alone."""
    lines = [json.dumps({"open": "a", "name": "a", "start": 0}), '{"open": "b", "na']
    (tmp_path / "x.jsonl").write_text("\n".join(lines))
    assert _left(tmp_path) == ["a"]
