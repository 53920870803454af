"""A whole text campaign, from a YAML file to a verdict and a served model; and again, with nothing left to do."""

from collections.abc import Iterator
from pathlib import Path

import mlflow
import pandas as pd
import pytest
import ray

from ray_distill.artifacts import Estimate, EvalReport, LabelSetRef, SnapshotRef, StudentRef, Verdict
from ray_distill.config import StudentModel
from ray_distill.labels.store.reader import open_label_set
from ray_distill.models.io.load import load_model
from ray_distill.promotion.chain import champion, read_chain
from ray_distill.runtime import campaign
from ray_distill.snapshots.reader import open_snapshot
from ray_distill.storage import files
from ray_distill.storage.portable import located
from tests.labs import campaign as lab
from tests.labs.whole import ROWS, WholeCampaign

pytestmark = [pytest.mark.e2e, pytest.mark.usefixtures("embedded_ray")]

ARMS = {"teacher", "student", "baseline_hard_labels", "baseline_teacher_hard_labels"}


@pytest.fixture
def client(whole: WholeCampaign) -> Iterator[mlflow.MlflowClient]:
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(whole.result.tracking_uri)
    yield mlflow.MlflowClient()
    mlflow.set_tracking_uri(before)


def _nested(whole: WholeCampaign, client: mlflow.MlflowClient) -> dict[str, mlflow.entities.Run]:
    parent = client.get_run(whole.result.run_id)
    runs = client.search_runs([parent.info.experiment_id], f"tags.`mlflow.parentRunId` = '{whole.result.run_id}'")
    return {run.data.tags["stage"]: run for run in runs}


def test_every_stage_hands_over_a_reference_that_the_next_can_open(whole: WholeCampaign) -> None:
    """Snapshot, labels and students are references with content behind them, and survive their own JSON."""
    result = whole.result
    assert sum(shard.rows for shard in open_snapshot(result.snapshot).shards) == ROWS
    assert result.labels.snapshot == result.snapshot
    assert open_label_set(result.labels).rows == ROWS
    assert set(result.students) == ARMS - {"teacher"}
    for arm, ref in result.students.items():
        assert ref.arm == arm
        assert ref.labels == result.labels
        assert load_model(ref.url, task="text_classification").classes == lab.CLASSES
    for ref in (result.snapshot, result.labels, *result.students.values(), result.report, result.decision):
        assert type(ref).from_json(ref.to_json()) == ref
    assert isinstance(result.snapshot, SnapshotRef)
    assert isinstance(result.labels, LabelSetRef)
    assert isinstance(result.students["student"], StudentRef)


def test_the_report_holds_all_models_with_intervals(whole: WholeCampaign) -> None:
    """Every model has every metric with a value inside its interval, and every arm's cost was measured."""
    report = whole.result.report
    assert EvalReport.from_dict(located(files.read_json(report.url), report.output)) == report
    assert set(report.models) == ARMS
    for arm, model in report.models.items():
        names = {"accuracy", "macro_f1", "nll", "ece"} | (set() if arm == "teacher" else {"agreement"})
        assert names <= set(model.metrics), arm
        for name in names:
            _inside(model.metrics[name])
        assert model.efficiency.latency_ms_p95 >= model.efficiency.latency_ms_p50 > 0
    assert report.models["student"].efficiency.parameters < report.models["teacher"].efficiency.parameters
    assert {"accuracy_minus_baseline_hard_labels", "accuracy_minus_baseline_teacher_hard_labels"} <= set(
        report.comparisons
    )
    assert report.models["teacher"].metrics["accuracy"].value > 0.8
    assert report.models["student"].metrics["accuracy"].value > 0.6


def _inside(estimate: Estimate) -> None:
    assert estimate.low <= estimate.value <= estimate.high
    assert estimate.n > 0


def test_the_report_has_robustness_and_a_page_with_costs(whole: WholeCampaign) -> None:
    """Teacher and student were measured on three corruptions, and the page shows them and the bill."""
    report = whole.result.report
    for arm in ("teacher", "student"):
        assert len(report.models[arm].robustness) == 3
    page = files.read_bytes(report.url.rpartition("/")[0] + "/report.html").decode()
    for name in report.models["student"].robustness:
        assert name in page
    stages = {cost.stage for cost in whole.result.costs.stages}
    assert stages >= {"snapshot", "label", "train", "evaluate"}
    assert whole.result.costs.total.wall_seconds > 0
    assert whole.result.costs.total.currency in page


def test_the_decision_stands_in_the_chain(whole: WholeCampaign) -> None:
    """The student clears the low bar of this gate; it is promoted, with a reason, and is the chain's champion."""
    decision = whole.result.decision
    assert decision.verdict is Verdict.PROMOTE
    assert any("accuracy" in reason for reason in decision.reasons)
    chain = read_chain(f"{whole.folder}/out/promotion")
    assert [entry.decision for entry in chain] == [decision]
    assert champion(chain) == whole.result.students["student"]


def test_mlflow_has_a_parent_and_nested_runs_with_verdict_and_digests(
    whole: WholeCampaign, client: mlflow.MlflowClient
) -> None:
    """One parent run with the verdict as a tag, one finished run a stage, and the datasets' own digests."""
    parent = client.get_run(whole.result.run_id)
    assert parent.info.status == "FINISHED"
    assert parent.data.tags["verdict"] == "PROMOTE"
    accuracy = whole.result.report.models["student"].metrics["accuracy"].value
    assert parent.data.metrics["accuracy"] == pytest.approx(accuracy)
    nested = _nested(whole, client)
    assert set(nested) == {"snapshot", "label", "train", "evaluate", "promote"}
    assert {run.info.status for run in nested.values()} == {"FINISHED"}
    digests = {stage: {item.dataset.digest for item in run.inputs.dataset_inputs} for stage, run in nested.items()}
    assert whole.result.snapshot.fingerprint in digests["snapshot"] & digests["label"] & digests["evaluate"]
    assert whole.result.labels.fingerprint in digests["train"]
    curve = client.get_metric_history(nested["train"].info.run_id, "student_loss")
    assert [point.step for point in curve] == list(range(1, len(curve) + 1))
    assert len(curve) > 30
    names = {item.path for item in client.list_artifacts(whole.result.run_id)}
    assert {"report.html", "report.json", "plots"} <= names
    plots = {item.path for item in client.list_artifacts(whole.result.run_id, "plots")}
    assert {"plots/loss.png", "plots/confusion.png", "plots/reliability.png"} <= plots


def test_the_student_is_a_registered_model_that_mlflow_serves(
    whole: WholeCampaign, client: mlflow.MlflowClient
) -> None:
    """The alias leads to a model that pyfunc loads and that answers texts with classes."""
    version = client.get_model_version_by_alias("spelling", "champion")
    assert StudentRef.from_json(version.tags["student"]) == whole.result.students["student"]
    served = mlflow.pyfunc.load_model("models:/spelling@champion")
    rows = lab.texts(40, seed=11)
    answers = served.predict(pd.DataFrame({"text": [text for text, _ in rows]}))
    right = sum(answer == label for answer, (_, label) in zip(answers["label"], rows, strict=True))
    assert right > 20


def test_a_student_of_a_size_is_that_of_the_model_that_it_chooses(whole: WholeCampaign, tmp_path: Path) -> None:
    """It is trained, its card states the size, and the same model by hand has nothing left to train."""
    labels = whole.config.labels.model_copy(update={"store": whole.config.store_url})
    training = whole.config.student.training.model_copy(update={"epochs": 1.0})
    plain = whole.config.student.model_copy(update={"training": training, "model": StudentModel(), "size": 0.8})
    config = whole.config.model_copy(update={"output": str(tmp_path / "out"), "labels": labels, "student": plain})
    trained = campaign.train(config, whole.result.labels)
    card = files.read_bytes(files.join(trained["student"].url, "README.md")).decode()
    assert "| model: chosen by | `size 0.8: from teacher_layers, 1 of 2 layers: " in card
    model = StudentModel.model_validate({"from": "teacher_layers", "keep": 1})
    student = plain.model_copy(update={"model": model, "size": None})
    assert campaign.train(config.model_copy(update={"student": student}), whole.result.labels) == trained
    assert len(list((tmp_path / "out" / "students").iterdir())) == 1


def test_a_second_run_skips_every_stage_and_never_starts_ray(
    whole: WholeCampaign, client: mlflow.MlflowClient, no_ray: None, capfd: pytest.CaptureFixture[str]
) -> None:
    """The same command again gives the same result, says what it skipped, and needs no cluster for it."""
    assert not ray.is_initialized()
    again = campaign.run(whole.config)
    assert not ray.is_initialized()
    assert again == whole.result
    told = capfd.readouterr().err
    for stage in ("snapshot", "label", "train", "evaluate", "promote"):
        assert f'"skipped": "{stage}"' in told
    assert len(_nested(whole, client)) == 5
