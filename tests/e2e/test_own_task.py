"""A task of somebody's own, from a package outside of this one, to a report, a verdict and a served student."""

import json
from pathlib import Path

import mlflow
import pandas as pd
import pytest

from ray_distill.artifacts import Verdict
from ray_distill.labels.store.reader import open_label_set
from ray_distill.runtime.campaign import CampaignResult
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


def test_a_task_of_ones_own_from_its_labels_to_a_served_student(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One command in a process of its own, with a Ray of its own: label, train, evaluate, promote.

    The package is on the path of the command and of Ray's workers, and nothing of ray_distill names it.
    """
    own_task.put_on_path(monkeypatch)
    command = lab.Command.start(config.parent, "run", str(config), "--json")
    assert command.wait() == 0, command.stderr
    result = CampaignResult.from_dict(command.result)
    assert open_label_set(result.labels).rows == ROWS
    assert set(result.students) == {"student", "baseline_hard_labels", "baseline_teacher_hard_labels"}
    student = result.report.models["student"]
    assert result.report.task == own_task.TASK and set(student.robustness) == {"noise"}
    assert student.metrics["accuracy"].value > 0.8 and result.decision.verdict is Verdict.PROMOTE
    page = files.read_bytes(result.report.url.rpartition("/")[0] + "/report.html").decode()
    assert "Accuracy" in page and "noise" in page
    _assert_served(result)


def _assert_served(result: CampaignResult) -> None:
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(result.tracking_uri)
    try:
        served = mlflow.pyfunc.load_model("models:/spelling@champion")
    finally:
        mlflow.set_tracking_uri(before)
    rows = own_task.readings(40, seed=11)
    answers = served.predict(pd.DataFrame({"readings": [text for text, _ in rows]}))
    assert sum(answer == label for answer, (_, label) in zip(answers["label"], rows, strict=True)) > 30
