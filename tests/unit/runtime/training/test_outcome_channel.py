"""Outcomes of runs between ranks and driver, and trials at their rungs, without a cluster."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ray_distill.artifacts import LabelSetRef, SnapshotRef, StudentRef
from ray_distill.errors import ConfigError, DistillError, TrainingError
from ray_distill.runtime.sweep.coordinator import Coordinator, CoordinatorHandle
from ray_distill.runtime.sweep.trial_worker import STOPPED, PlannedTrial, RungJudge, known_rungs
from ray_distill.runtime.training.outcome_channel import OutcomeChannel, OutcomeChannelHandle, RankReporter, RunOutcome
from ray_distill.runtime.training.workers import send_outcome
from ray_distill.storage import files
from ray_distill.students import run
from ray_distill.students.telemetry.reporter import TrainingStopped

LABELS = LabelSetRef(
    store="s", fingerprint="l", snapshot=SnapshotRef(url="u", fingerprint="s"), log_length=1, log_digest="d"
)
STUDENT = StudentRef(url="u", fingerprint="f", arm="student", labels=LABELS)


class _Local:
    """An actor's handle whose calls run here, at once."""

    def __init__(self, actor: object) -> None:
        self._actor = actor

    def __getattr__(self, name: str) -> Any:
        return SimpleNamespace(remote=getattr(self._actor, name))


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let handles take the answers of local actors as they are."""
    monkeypatch.setattr(OutcomeChannelHandle, "_get", lambda self, answer: answer)


def _train(channel: OutcomeChannelHandle, ends: BaseException | None, rank: int = 0) -> list[str]:
    """Send the outcome of a rank whose training ends so; what was called when it was stopped."""
    called: list[str] = []

    def run_arms(job: object, reporter: object) -> list[StudentRef]:
        if ends is not None:
            raise ends
        return [STUDENT]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "run_arms", run_arms)
        send_outcome(
            "run",
            None,  # type: ignore[arg-type]
            channel,
            RankReporter(),
            first=rank == 0,
            on_stopped=lambda: called.append("stopped"),
        )
    return called


@pytest.mark.usefixtures("here")
def test_the_first_rank_sends_the_students_and_any_rank_an_error() -> None:
    """An error of ours as it is, a defect in our words; the first outcome stays. A lost peer's error is no outcome."""
    channel = OutcomeChannelHandle(_Local(OutcomeChannel()))
    assert not channel.begun("run") and channel.outcomes() == {}
    channel.begin("run")
    _train(channel, None, rank=1)
    with pytest.raises(RuntimeError, match="lost"):
        _train(channel, RuntimeError("peer lost"), rank=1)
    assert channel.begun("run") and channel.outcomes() == {}
    _train(channel, None)
    assert channel.outcomes() == {"run": RunOutcome(students=(STUDENT.to_json(),))}

    for raised, kind, text in (
        (ConfigError("wrong"), ConfigError, "wrong"),
        (ValueError("odd"), TrainingError, "training failed: ValueError: odd"),
    ):
        channel = OutcomeChannelHandle(_Local(OutcomeChannel()))
        with pytest.raises(type(raised)):
            _train(channel, raised, rank=1)
        with pytest.raises(DistillError):
            _train(channel, TrainingError("later"))
        _train(channel, None)
        error = channel.outcomes()["run"].error
        assert isinstance(error, kind) and str(error) == text


@pytest.mark.usefixtures("here")
def test_a_run_that_its_reporter_stops_is_recorded_before_that_is_sent() -> None:
    """All ranks end without an error; the first records and sends."""
    channel = OutcomeChannelHandle(_Local(OutcomeChannel()))
    assert _train(channel, TrainingStopped("enough"), rank=1) == [] and channel.outcomes() == {}
    assert _train(channel, TrainingStopped("enough")) == ["stopped"]
    assert isinstance(channel.outcomes()["run"].error, TrainingStopped)


@pytest.mark.usefixtures("here")
def test_a_trial_goes_on_at_a_rung_that_it_passes_and_stops_at_one_that_it_fails(tmp_path: Path) -> None:
    """The first at a rung passes; a worse one after it stops, with what it had, unless it is what others are compared
    with. All are known to a later command."""
    coordinator = CoordinatorHandle(_Local(Coordinator((1.0, 2.0), 0.5, {})))
    stops = []
    for name, loss in (("good", 0.5), ("bad", 0.9), ("compared with", 0.95)):
        planned = PlannedTrial(
            trial=None,  # type: ignore[arg-type]
            job=SimpleNamespace(output=str(tmp_path / name)),  # type: ignore[arg-type]
            metric="validation_nll",
            higher_is_better=False,
            rule="r",
            to_the_end=name == "compared with",
        )
        judge = RungJudge(planned, coordinator)
        reporter = RankReporter(on_validation=judge.validated)
        # Short runs that try a rate are not judged, however many passes they have.
        reporter.metrics("student/probe-0.01", 9, {"loss": 1.0, "epoch": 3.0, "validation_nll": 0.1})
        reporter.metrics("student", 1, {"loss": 1.0})
        reporter.metrics("student", 2, {"loss": 1.0, "epoch": 0.5, "validation_nll": loss})
        assert not reporter.should_stop() and not reporter.should_save()
        reporter.metrics("student", 3, {"loss": 1.0, "epoch": 1.0, "validation_nll": loss})
        stops.append(reporter.should_stop())
        if stops[-1]:
            judge.record_stop()
    assert stops == [False, True, False]
    assert known_rungs(str(tmp_path / "compared with"), "r") == {1.0: 0.95}
    assert known_rungs(str(tmp_path / "good"), "r") == {1.0: 0.5}
    assert known_rungs(str(tmp_path / "bad"), "r") == {1.0: 0.9} and known_rungs(str(tmp_path / "bad"), "other") == {}
    stopped = files.read_json(str(tmp_path / "bad" / STOPPED))
    assert (stopped["step"], stopped["place"], stopped["of"]) == (3, 2, 2)
    assert stopped["metrics"] == {"validation_nll": 0.9}
