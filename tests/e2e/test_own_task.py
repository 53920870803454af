"""A task of somebody's own, from a package outside of this one, through the commands to a report."""

import json
from pathlib import Path

import pytest

from ray_distill.artifacts import EvalReport, LabelSetRef
from ray_distill.labels.store.reader import open_label_set
from ray_distill.storage import files
from tests.labs import campaign as lab
from tests.labs import own_task

pytestmark = pytest.mark.e2e

ROWS = 400
#: Rows that cannot be read, among the others.
BROKEN = ["1,2,three,4,5,6", "1,2,3"]


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A campaign of the task: its file."""
    folder = tmp_path_factory.mktemp("machines")
    rows = [*own_task.readings(ROWS, seed=3), *((text, "idle") for text in BROKEN)]
    lines = [
        json.dumps({"readings": text, "label": None if at % 5 == 0 else label}) for at, (text, label) in enumerate(rows)
    ]
    source = folder / "rows.jsonl"
    source.write_text("\n".join(lines) + "\n", encoding="utf-8")
    value = lab.config_of(
        folder,
        source,
        {"model": "sensor_readings.models:teacher"},
        task=own_task.TASK,
        snapshot__classes=list(own_task.CLASSES),
        labels__hidden={"layers": [-1], "dtype": "float32"},
        student__model={"from": "module", "model": "sensor_readings.models:student"},
        student__training={
            "epochs": 30,
            "global_batch": 32,
            "micro_batch": 32,
            "learning_rate": 0.02,
            "engine": "torch",
            "evaluate_every": 50,
            "checkpoint_every": 100,
        },
        student__losses={"soft": {"weight": 0.7, "temperature": 2}, "hard": {"weight": 0.2}, "hidden": {"weight": 0.1}},
    )
    return lab.write_config(folder / "campaign.yaml", value)


def run(config: Path, command: str) -> object:
    """Run a command in a process of its own, with a Ray of its own; return its JSON."""
    found = lab.Command.start(config.parent, command, str(config), "--json")
    assert found.wait() == 0, found.stderr
    return found.result


def test_label_train_and_evaluate_a_task_of_ones_own(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its package is on the path of the commands and of Ray's workers; nothing of this package names it."""
    own_task.put_on_path(monkeypatch)
    labels = LabelSetRef.from_dict(run(config, "label"))
    assert open_label_set(labels).rows == ROWS
    students = run(config, "train")
    assert isinstance(students, dict) and "student" in students
    report = EvalReport.from_dict(run(config, "evaluate"))
    assert report.task == own_task.TASK
    student = report.models["student"]
    assert student.metrics["accuracy"].value > 0.8
    assert set(student.robustness) == {"noise"}
    assert EvalReport.from_dict(files.read_json(report.url)) == report
    page = files.read_bytes(report.url.rpartition("/")[0] + "/report.html").decode()
    assert "Accuracy" in page and "noise" in page
