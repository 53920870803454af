"""What a running training tells: to Prometheus, from the agent of an embedded Ray; and while it waits for room."""

import re
import time
import urllib.request
from collections.abc import Mapping

import pytest
import ray

from ray_distill.config import CostConfig, TrainingConfig
from ray_distill.errors import TrainingError
from ray_distill.evaluation.measures.cost import stage_cost
from ray_distill.runtime.training import launch
from ray_distill.runtime.training.outcome_channel import OutcomeChannelHandle, RankReporter
from ray_distill.runtime.training.prometheus import TrainingGauges
from ray_distill.runtime.training.workers import RUN
from ray_distill.students.job import TrainingJob

pytestmark = [pytest.mark.e2e, pytest.mark.usefixtures("embedded_ray")]

VALUES = {
    "loss": 2.5,
    "loss_soft": 2.0,
    "seconds_data": 0.25,
    "data_wait": 0.125,
    "examples_per_second": 32.0,
    "peak_memory_gib_rank_1": 0.5,
}
#: Ray's agent collects every ten seconds.
PATIENCE = 60.0


class FirstRank:
    """A process that reports steps as the first rank does."""

    def __init__(self) -> None:
        self._reporter = RankReporter(gauges=TrainingGauges("camp"))

    def report(self, step: int, values: Mapping[str, float]) -> None:
        self._reporter.metrics("student", step, values)


def scraped(address: str) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """Samples of the campaign `camp` at a metrics endpoint, by name and by the labels that are ours."""
    with urllib.request.urlopen(address, timeout=10) as answer:
        text = answer.read().decode()
    found = {}
    for name, labels, value in re.findall(r"^(ray_distill_\w+)\{(.*)\} (\S+)$", text, re.M):
        own = {
            key: value
            for key, value in re.findall(r'(\w+)="([^"]*)"', labels)
            if key in ("campaign", "arm", "term", "part", "rank", "currency")
        }
        if own["campaign"] == "camp":  # the session's Ray has trained other campaigns
            found[name, frozenset(own.items())] = float(value)
    return found


def test_a_running_training_is_scraped() -> None:
    """The first rank's last step by campaign and arm, and the cost that the driver tells."""
    rank = ray.remote(num_cpus=0)(FirstRank).remote()
    for step in (1, 2):
        ray.get(rank.report.remote(step, {**VALUES, "loss": VALUES["loss"] / step}))
    TrainingGauges("camp").cost(
        stage_cost("train", 3600, cores=2, accelerators=1, bytes_written=0, prices=CostConfig())
    )
    node = ray.nodes()[0]
    address = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    arm = {("campaign", "camp"), ("arm", "student")}
    expected = {
        ("ray_distill_train_step", frozenset(arm)): 2.0,
        ("ray_distill_train_loss", frozenset({*arm, ("term", "total")})): 1.25,
        ("ray_distill_train_loss", frozenset({*arm, ("term", "soft")})): 2.0,
        ("ray_distill_train_step_seconds", frozenset({*arm, ("part", "data")})): 0.25,
        ("ray_distill_train_data_wait_ratio", frozenset(arm)): 0.125,
        ("ray_distill_train_examples_per_second", frozenset(arm)): 32.0,
        ("ray_distill_train_peak_memory_bytes", frozenset({*arm, ("rank", "1")})): 2.0**29,
        ("ray_distill_train_core_hours", frozenset({("campaign", "camp")})): 2.0,
        ("ray_distill_train_accelerator_hours", frozenset({("campaign", "camp")})): 1.0,
        ("ray_distill_train_money", frozenset({("campaign", "camp"), ("currency", "USD")})): 2.58,
    }
    give_up = time.monotonic() + PATIENCE
    while (found := scraped(address)) != expected and time.monotonic() < give_up:
        time.sleep(1)
    assert found == pytest.approx(expected)


def slow_ranks(job: bytes, settings: TrainingConfig, channel: OutcomeChannelHandle, folder: str) -> None:
    """What Ray Train would run: ranks that come to work after a while, and fail."""
    time.sleep(6)
    channel.begin(RUN)
    time.sleep(3)
    channel.fail(RUN, TrainingError("at work"))


def test_what_training_waits_for_is_said_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """While no rank is at work; and never where one is in time."""
    job = TrainingJob(config=None, labels=None, output="", resume=True)  # type: ignore[arg-type]
    monkeypatch.setattr(launch, "fit_ranks", slow_ranks)
    for seconds, expected in ((2.0, ["train: none of 1 worker(s) is at work after 2 s"]), (600.0, [])):
        said = list[str]()
        monkeypatch.setattr(launch.console, "report", said.append)
        monkeypatch.setattr(launch, "WAIT_SECONDS", seconds)
        with pytest.raises(TrainingError, match="at work"):
            launch.train_ranks(job, TrainingConfig(), on_poll=lambda: None)
        assert [text[:47] for text in said] == expected
