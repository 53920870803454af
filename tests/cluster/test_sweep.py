"""A sweep of twelve trials on two cores as a Ray job, its driver killed midway, and sent again."""

import json
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflow
import pytest
import yaml

from ray_distill.cli.submit import submit
from ray_distill.evaluation.sweep.compare import SweepResult
from ray_distill.storage import files
from tests.labs import sweep as lab
from tests.labs.ray_head import ROOT, Head, ray_head

pytestmark = pytest.mark.cluster

TRIALS = 12


@dataclass(frozen=True, kw_only=True)
class Ran:
    """What was there when the driver was killed, and what the second job ended with."""

    folder: Path
    killed_ms: float
    before: Mapping[str, float]
    """Times of change of the students that were finished then, by trial."""
    unfinished: frozenset[str]
    """Trials of which there was a checkpoint then, and no student."""
    result: SweepResult


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ran]:
    folder = tmp_path_factory.mktemp("sweep")
    teacher_rows, _ = lab.write_digits(folder)
    lab.write_teacher(folder / "teacher", teacher_rows)
    (folder / "sweep.yaml").write_text(yaml.safe_dump(lab.config_of(folder)))
    trials = folder / "out" / "sweep" / "trials"
    with ray_head(folder, cpus=2) as head, pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "token")
        patch.setenv("RAY_AUTH_TOKEN", head.token)
        first = _send(head, folder)
        # One student is enough: how many trials ever become one depends on which reaches a rung first.
        _until(lambda: len(_students(trials)) >= 1 and len(_unfinished(trials)) > 0)
        _kill_driver(head, first)
        killed, before, unfinished = time.time() * 1e3, _students(trials), _unfinished(trials)
        second = _send(head, folder)
        result = SweepResult.from_json(_log(head, second).strip().splitlines()[-1])
    yield Ran(folder=folder, killed_ms=killed, before=before, unfinished=unfinished, result=result)


def _send(head: Head, folder: Path) -> str:
    """Submit the sweep without following it; the job's id."""
    from ray.job_submission import JobSubmissionClient

    known = {job.submission_id for job in JobSubmissionClient(head.address, headers=_headers(head)).list_jobs()}
    assert (
        submit(
            job="sweep",
            config_path=folder / "sweep.yaml",
            address=head.address,
            token=head.token,
            working_dir=ROOT,
            follow=False,
        )
        == 0
    )
    jobs = JobSubmissionClient(head.address, headers=_headers(head)).list_jobs()
    (new,) = {job.submission_id for job in jobs if job.submission_id} - known
    return str(new)


def _kill_driver(head: Head, job: str) -> None:
    """SIGKILL, as an out-of-memory killer would."""
    from ray.job_submission import JobSubmissionClient

    client = JobSubmissionClient(head.address, headers=_headers(head))
    pid = int(client.get_job_info(job).driver_info.pid)
    os.kill(pid, signal.SIGKILL)
    _until(lambda: str(client.get_job_status(job).value) == "FAILED")


def _log(head: Head, job: str) -> str:
    """The log of a job that has succeeded."""
    from ray.job_submission import JobSubmissionClient

    client = JobSubmissionClient(head.address, headers=_headers(head))
    _until(lambda: str(client.get_job_status(job).value) in ("SUCCEEDED", "FAILED"))
    log = str(client.get_job_logs(job))
    assert str(client.get_job_status(job).value) == "SUCCEEDED", log
    return log


def _headers(head: Head) -> dict[str, str]:
    return {"Authorization": f"Bearer {head.token}"}


def _until(what: Callable[[], bool], seconds: float = 500) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, "it did not come to it"
        time.sleep(0.1)


def _students(trials: Path) -> dict[str, float]:
    return {path.parent.name: path.stat().st_mtime_ns for path in trials.glob("*/student.json")}


def _unfinished(trials: Path) -> frozenset[str]:
    """Trials that have a checkpoint to go on from, and no end."""
    found = {path.parts[len(trials.parts)] for path in trials.glob("*/work/*/*/checkpoints/*/marker.json")}
    return frozenset(
        key for key in found if not any((trials / key / name).exists() for name in ("student.json", "stopped.json"))
    )


def _nested(ran: Ran, client: mlflow.MlflowClient) -> list[Any]:
    experiment = client.get_run(ran.result.run_id).info.experiment_id
    return list(client.search_runs([experiment], f"tags.`mlflow.parentRunId` = '{ran.result.run_id}'"))


@pytest.fixture
def client(ran: Ran) -> mlflow.MlflowClient:
    return mlflow.MlflowClient(ran.result.tracking_uri)


def test_no_finished_trial_is_repeated_and_others_go_on(ran: Ran, client: mlflow.MlflowClient) -> None:
    """Students from before the kill are untouched, their runs hold each step once; no other began anew."""
    assert 1 <= len(ran.before) < TRIALS - 2
    assert ran.unfinished, "the driver was to be killed while trials were being trained"
    now = _students(ran.folder / "out" / "sweep" / "trials")
    assert {key: now[key] for key in ran.before} == ran.before
    runs = {run.data.tags["plan"]: run for run in _nested(ran, client) if run.data.tags["stage"] == "trial"}
    for key in {*ran.before, *ran.unfinished}:
        steps = [point.step for point in client.get_metric_history(runs[key].info.run_id, "loss")]
        assert len(steps) == len(set(steps)), f"{key} was trained again"
    for key in ran.unfinished:
        begun = ran.folder / "out" / "sweep" / "trials" / key / "curves" / "student" / "000000001.jsonl"
        assert begun.stat().st_mtime * 1000 < ran.killed_ms, f"{key} had a checkpoint and began anew"


def test_every_trial_has_an_end_and_the_failing_one_its_reason(ran: Ran) -> None:
    """One failed, hopeless ones were stopped at a rung, the one that is another one again was not trained."""
    trials = ran.result.trials
    assert [trial.number for trial in trials] == list(range(1, TRIALS + 1))
    assert [trial.number for trial in trials if trial.verdict == "failed"] == [1]
    assert "no_such_field" in trials[0].reason
    assert trials[3].same_as == 2, "the first point of the grid is the trial `small again`"
    stopped = [trial for trial in trials if trial.verdict == "stopped"]
    assert stopped
    slow = [trial for trial in trials if trial.changes.get("student.training.learning_rate") == 1e-5]
    assert len(slow) == 3
    assert {trial.number for trial in slow} <= {trial.number for trial in stopped}
    assert all("at the rung of" in trial.reason and trial.student is None for trial in stopped)
    finished = [trial for trial in trials if trial.verdict == "finished"]
    assert ran.result.winner.metrics["validation_nll"] == min(one.metrics["validation_nll"] for one in finished)
    assert any(trial.on_frontier for trial in finished)
    assert ran.result.headline == "Accuracy"
    for trial in finished:
        share = trial.headline
        assert share is not None and share.low < share.value == trial.metrics["validation_accuracy"] < share.high
        assert share.n == ran.result.validation_rows
    assert all(trial.efficiency is not None for trial in finished)


def test_mlflow_has_one_parent_and_one_run_a_trial(ran: Ran, client: mlflow.MlflowClient) -> None:
    """Eleven students, eleven runs, whatever happened to the driver; plots, page and tables hang on the parent."""
    experiment = client.get_run(ran.result.run_id).info.experiment_id
    parents = [run for run in client.search_runs([experiment]) if "mlflow.parentRunId" not in run.data.tags]
    assert [run.data.tags["stage"] for run in parents] == ["sweep"]
    runs = [run for run in _nested(ran, client) if run.data.tags["stage"] == "trial"]
    assert len(runs) == TRIALS - 1
    own = {trial.run_id: trial for trial in ran.result.trials if trial.same_as is None}
    for run in runs:
        trial = own[run.info.run_id]
        assert run.data.tags["verdict"] == trial.verdict
        assert run.info.status == ("FAILED" if trial.verdict == "failed" else "FINISHED")
        assert set(run.data.params) >= {path for path in trial.changes if path.count(".") == 2}
        if trial.verdict == "finished":
            assert run.data.metrics["best_validation_nll"] == pytest.approx(trial.metrics["validation_nll"])
            assert trial.efficiency is not None
            assert run.data.metrics["parameters"] == trial.efficiency.parameters
    names = {item.path for item in client.list_artifacts(ran.result.run_id)}
    assert names == {"results.json", "results.csv", "sweep.html", "best.yaml", "parallel.png", "frontier.png"}


def test_what_it_leaves_can_be_used(ran: Ran) -> None:
    """The table is the result, and the best trial is a campaign that finds its labels."""
    assert SweepResult.from_dict(files.read_json(f"{ran.result.url}/results.json")) == ran.result
    best = yaml.safe_load(files.read_bytes(f"{ran.result.url}/best.yaml"))
    assert "sweep" not in best
    rates = {rate for trial in ran.result.trials if (rate := trial.changes.get("student.training.learning_rate"))}
    assert 1e-5 in rates <= set(best["student"]["training"]["learning_rate"]), "baselines try what the sweep tried"
    assert Path(best["labels"]["store"], "store.json").is_file()
    assert json.loads(json.dumps(best)) == best
