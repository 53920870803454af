"""Whole campaigns of several labels a row, of texts and of images, from files to a verdict and a served model."""

import json
from dataclasses import dataclass
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest

from ray_distill.artifacts import Verdict
from ray_distill.config import Campaign
from ray_distill.labels.store.reader import open_label_set
from ray_distill.models.io.load import load_model
from ray_distill.runtime import campaign
from ray_distill.snapshots.reader import open_snapshot
from ray_distill.tasks.catalogue import get_task
from tests.labs import campaign as lab
from tests.labs import drawn, multi_label

pytestmark = [pytest.mark.e2e, pytest.mark.usefixtures("embedded_ray")]

TASKS = ("text_multi_label", "image_multi_label")
ARMS = {"student", "baseline_hard_labels", "baseline_teacher_hard_labels"}


@dataclass(frozen=True, kw_only=True)
class Ran:
    """A campaign that was run once."""

    task: str
    config: Campaign
    result: campaign.CampaignResult


@pytest.fixture(scope="module", params=drawn.one_of(*TASKS))
def ran(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Ran:
    task, folder = request.param, tmp_path_factory.mktemp(request.param)
    teacher = multi_label.write_teacher(folder / "teacher", task)
    applies = multi_label.sets(500, seed=3)
    if get_task(task).inputs.binary:
        source = multi_label.write_images(folder / "rows.parquet", multi_label.images(applies, seed=3), applies)
    else:
        made = multi_label.texts(applies, seed=3)
        source = multi_label.write_texts(folder / "rows.jsonl", made, applies, unknown=range(0, 500, 7))
    value = lab.config_of(
        folder,
        source,
        {"model": str(teacher)},
        task=task,
        campaign="several",
        student__training__epochs=12 if get_task(task).inputs.binary else 4,
        labels__check={"limits": {"map": {"min": 0.8}}},
        gate={"limits": {"map": {"min": 0.5}, "ece": None}, "beat": []},
    )
    config = lab.load(folder / "campaign.yaml", value)
    return Ran(task=task, config=config, result=campaign.run(config))


def test_snapshot_and_labels_are_sets_and_log_odds(ran: Ran) -> None:
    """Lists of names and vectors of 0 and 1 become sets; the store has one yes or no a class."""
    snapshot, labels = open_snapshot(ran.result.snapshot), open_label_set(ran.result.labels)
    assert snapshot.manifest.truth == "classes" and snapshot.classes == lab.CLASSES
    assert labels.rows == 500
    _, signal = labels.read()
    found = signal.distributions
    assert found.log_odds is not None and found.log_odds.shape == (500 * len(lab.CLASSES),)


def test_students_learn_and_are_judged_with_thresholds_of_their_own(ran: Ran) -> None:
    """Every arm has every metric; the student is near its teacher, and each arm's thresholds are in its folder."""
    report, names = ran.result.report, get_task(ran.task).answers.metrics.names
    assert set(report.models) == ARMS | {"teacher"}
    for arm in ARMS:
        assert set(names) <= set(report.models[arm].metrics), arm
        model = load_model(ran.result.students[arm].url, task=ran.task)
        thresholds = model.decision["thresholds"]
        assert set(thresholds) == set(lab.CLASSES) and all(0 < value < 1 for value in thresholds.values())
    student = report.models["student"].metrics
    assert student["map"].value > 0.6 and student["nll"].value < np.log(2)
    assert student["kl_from_teacher"].value < 0.3
    assert report.models["teacher"].metrics["map"].value > 0.8
    assert report.models["student"].robustness.keys() == get_task(ran.task).inputs.corruptions.keys()
    assert ran.result.decision.verdict is Verdict.PROMOTE


def test_the_review_page_has_the_labels(ran: Ran) -> None:
    """A line a label, and the figures, beside the report and on the run."""
    client = mlflow.MlflowClient(ran.result.tracking_uri)
    plots = {item.path for item in client.list_artifacts(ran.result.run_id, "plots")}
    assert {"plots/map.png", "plots/labels.png", "plots/reliability.png"} <= plots
    page = Path(ran.result.report.url).with_name("report.html").read_text(encoding="utf-8")
    assert "<h2>Labels</h2>" in page and all(name in page for name in lab.CLASSES)


def test_the_student_is_served_with_its_thresholds(ran: Ran) -> None:
    """The registered model answers new rows with the names that apply to most of them."""
    mlflow.set_tracking_uri(ran.result.tracking_uri)
    served = mlflow.pyfunc.load_model("models:/several@champion")
    applies, column = multi_label.sets(60, seed=11), get_task(ran.task).inputs.column
    made = multi_label.images(applies, seed=11) if column == "image" else multi_label.texts(applies, seed=11)
    found = served.predict(pd.DataFrame({column: made}))
    thresholds = load_model(ran.result.students["student"].url, task=ran.task).decision["thresholds"]
    for answered, probabilities in zip(found["labels"], found["probabilities"], strict=True):
        wanted = [name for name, p in zip(lab.CLASSES, probabilities, strict=True) if p >= thresholds[name]]
        assert answered == wanted
    right = [
        (name in answered) == (name in multi_label.names(row))
        for answered, row in zip(found["labels"], applies, strict=True)
        for name in lab.CLASSES
    ]
    assert np.mean(right) > 0.7


def test_a_second_run_does_nothing(ran: Ran, capfd: pytest.CaptureFixture[str]) -> None:
    """The same result, and every stage is reported as skipped."""
    assert campaign.run(ran.config) == ran.result
    events = [json.loads(line) for line in capfd.readouterr().err.splitlines() if '"skipped"' in line]
    assert {event["skipped"] for event in events} == {"snapshot", "label", "train", "evaluate", "promote"}
