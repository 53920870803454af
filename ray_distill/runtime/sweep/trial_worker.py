"""Run the ranks of a trial: train one student, which is judged at each rung.

<trial>/student/, student.json    the finished student, as in any training
<trial>/rungs.json                the trial's values at the rungs that it has passed
<trial>/stopped.json              the reason of the stop; the checkpoint beside it allows another rule to continue
"""

import pickle
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from ray_distill.errors import TrainingError
from ray_distill.runtime.sweep.coordinator import CoordinatorHandle
from ray_distill.runtime.training.outcome_channel import RankReporter
from ray_distill.runtime.training.workers import send_outcome
from ray_distill.storage import files

if TYPE_CHECKING:
    from ray_distill.students.run import TrainingJob

RUNGS, STOPPED = "rungs.json", "stopped.json"


@dataclass(frozen=True, kw_only=True)
class TrialTask:
    """Inputs of a trial's ranks, as plain picklable values."""

    key: str
    """Fingerprint of the trial's plan: the name of its folder, and of its run in the channel."""
    job: "TrainingJob"
    """Training job of the arm ``student``."""
    metric: str
    higher_is_better: bool
    rule: str | None = None
    """Fingerprint of the rule that may stop the trial; None = no rule."""


class RungJudge:
    """Send a trial's validations to the coordinator, from the first rank, to be judged at rungs."""

    def __init__(self, task: TrialTask, coordinator: CoordinatorHandle) -> None:
        self._task, self._coordinator = task, coordinator
        self._passed = known_rungs(task.job.output, task.rule)
        self._stopped: dict[str, Any] = {}

    def validated(self, step: int, values: Mapping[str, float]) -> bool:
        """Report a validation; return whether the trial failed a rung and must stop."""
        value = objective_of(values, self._task)
        found = self._coordinator.judge(self._task.key, values["epoch"], value)
        if not found:
            return False
        if not found[-1].goes_on:
            self._stopped = {
                "rule": self._task.rule,
                "step": step,
                "epoch": values["epoch"],
                "metrics": {name: value for name, value in values.items() if name.startswith("validation_")},
                "passed": _pairs(self._passed),
                **asdict(found[-1]),
            }
            return True
        self._passed |= {one.rung: one.value for one in found}
        files.write_json(
            files.join(self._task.job.output, RUNGS), {"rule": self._task.rule, "passed": _pairs(self._passed)}
        )
        return False

    def record_stop(self) -> None:
        """Write the reason of the stop, after the trial's last checkpoint."""
        files.write_json(files.join(self._task.job.output, STOPPED), self._stopped)


def objective_of(values: Mapping[str, float], task: TrialTask) -> float:
    """Return the objective as a number of which less is better.

    Raises:
        TrainingError: the objective was not measured.
    """
    if task.metric not in values:
        raise TrainingError(
            f"sweep.objective: {task.metric} is not measured on this validation split; measured are "
            f"{', '.join(sorted(name for name in values if name.startswith('validation_')))}"
        )
    return -values[task.metric] if task.higher_is_better else values[task.metric]


def known_rungs(folder: str, rule: str | None) -> dict[float, float]:
    """Return a trial's values at the rungs that it has passed or failed under a rule, by rung."""
    found: dict[float, float] = {}
    for name in (RUNGS, STOPPED):
        url = files.join(folder, name)
        kept = files.read_json(url) if files.exists(url) else {}
        if kept.get("rule") == rule is not None:
            found |= {float(rung): float(value) for rung, value in kept["passed"]}
            found |= {float(kept["rung"]): float(kept["value"])} if "rung" in kept else {}
    return found


def train_alone(task: bytes, coordinator: CoordinatorHandle, threads: int) -> None:
    """Train a trial of one rank, without a process group; a process runs several in succession."""
    run_rank(pickle.loads(task), coordinator, 0, threads)


def train_together(config: dict[str, Any]) -> None:
    """Train one of several ranks, started by Ray Train; `workers.fit_ranks` makes ``config``."""
    import ray.train

    rank = ray.train.get_context().get_world_rank()
    run_rank(pickle.loads(config["job"]), config["channel"], rank, config["threads"])


def run_rank(task: TrialTask, coordinator: CoordinatorHandle, rank: int, threads: int) -> None:
    """Train, and send the outcome to the coordinator; see `workers.send_outcome`."""
    import torch

    torch.set_num_threads(threads)
    judge = RungJudge(task, coordinator) if rank == 0 and task.rule is not None else None
    send_outcome(
        task.key,
        task.job,
        coordinator,
        RankReporter(on_validation=None if judge is None else judge.validated),
        first=rank == 0,
        on_stopped=_no_stop if judge is None else judge.record_stop,
    )


def _no_stop() -> None:
    raise AssertionError("only its rungs stop a trial")


def _pairs(values: Mapping[float, float]) -> list[list[float]]:
    return [[rung, value] for rung, value in values.items()]
