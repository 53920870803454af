"""Progress of a task: written at most every so often, shown as a line an activity, and gone in the end."""

import json
import pickle
from pathlib import Path

import pytest

from ray_distill.runtime.core import console, task_progress
from ray_distill.runtime.core.task_progress import TaskProgress, followed


def test_a_task_reports_to_the_driver_that_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each activity with its count and the time left; nothing before the first report, and no file after the last."""
    monkeypatch.setattr(task_progress, "SECONDS", 0.0)
    monkeypatch.setattr(console, "INTERVAL_LOG", 0.0)
    with followed(str(tmp_path)) as watch:
        watch.poll()
        report = pickle.loads(pickle.dumps(TaskProgress(watch.url)))
        for activity, done in (("embedding", 20), ("embedding", 50), ("evaluate", 2)):
            report(activity, done, 100)
            watch.poll()
        assert Path(watch.url).exists()
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert [line["event"] for line in lines] == [
        "embedding 20/100 steps",
        "embedding 50/100 steps",
        "evaluate 2/100 steps",
    ]
    assert all(line["seconds_left"] >= 0 for line in lines)
    assert not list(tmp_path.rglob("*.json"))


def test_reports_are_few(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The storage gets one at once, and the next after some time."""
    written: list[object] = []
    monkeypatch.setattr(task_progress.files, "write_json", lambda url, value: written.append(value["done"]))
    report = TaskProgress(f"{tmp_path}/progress.json")
    for done in range(1, 101):
        report("embedding", done, 100)
    assert written == [1]
