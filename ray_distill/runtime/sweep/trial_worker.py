"""What the ranks of a trial run: the training of one student, which asks at each rung whether to go on.

<trial>/student/, student.json    the finished student, as in any training
<trial>/rungs.json                what it had at the rungs that it has passed
<trial>/stopped.json              why it was stopped; the checkpoint beside it lets it go on under another rule
"""

import pickle
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from ray_distill.errors import DistillError, TrainingError
from ray_distill.runtime.sweep.successive_halving import Judgement
from ray_distill.runtime.training.metrics_channel import Outbox
from ray_distill.runtime.training.workers import DEFECTS
from ray_distill.storage import files
from ray_distill.students.telemetry.reporter import TrainingStopped

RUNGS, STOPPED = "rungs.json", "stopped.json"


@dataclass(frozen=True, kw_only=True)
class TrialTask:
    """What a trial's ranks need, as plain picklable values."""

    key: str
    """Fingerprint of its plan: its folder's name, and what the desk knows it by."""
    job: Any
    """A ``TrainingJob`` of the arm ``student``."""
    metric: str
    higher_is_better: bool
    rule: str | None = None
    """Fingerprint of the rule by which it may be stopped; None = it may not."""


class TrialReporter:
    """The training loop's reporter inside a trial; only the first rank speaks."""

    def __init__(self, task: TrialTask, desk: Any, rank: int) -> None:
        self._task, self._desk, self._rank = task, desk, rank
        self._outbox = Outbox(partial(desk.put.remote, task.key))
        self._passed: dict[float, float] = known_rungs(task.job.output, task.rule) if rank == 0 else {}
        self.stopped: dict[str, Any] | None = None
        """What `STOPPED` is to say, once the trial is to stop."""

    def metrics(self, arm: str, step: int, values: Mapping[str, float]) -> None:
        """Send a step's numbers, several steps at a time; and ask at a rung."""
        if self._rank != 0:
            return
        self._outbox.add(arm, step, values)
        if "epoch" not in values:
            return
        self.flush()
        if self._task.rule is not None and self.stopped is None:
            self._ask(step, values)

    def repeat(self, arm: str, step: int, values: Mapping[str, float]) -> None:
        """Drop them: a trial's run shows by its steps where it went on, and may lack those that a kill caught."""

    def _ask(self, step: int, values: Mapping[str, float]) -> None:
        import ray

        value = objective_of(values, self._task)
        found: list[Judgement] = ray.get(self._desk.judge.remote(self._task.key, values["epoch"], value))
        if not found:
            return
        if not found[-1].goes_on:
            seen = {name: value for name, value in values.items() if name.startswith("validation_")}
            self.stopped = {
                "rule": self._task.rule,
                "step": step,
                "epoch": values["epoch"],
                "metrics": seen,
                "passed": _pairs(self._passed),
                **asdict(found[-1]),
            }
            return
        self._passed |= {one.rung: one.value for one in found}
        files.write_json(
            files.join(self._task.job.output, RUNGS), {"rule": self._task.rule, "passed": _pairs(self._passed)}
        )

    def flush(self) -> None:
        """Send what is waiting."""
        self._outbox.flush()

    def checkpoint(self, value: Mapping[str, Any]) -> None:
        """The checkpoint itself is in our own storage."""
        self.flush()

    def should_stop(self) -> bool:
        """Whether the trial has failed a rung."""
        return self.stopped is not None

    def should_save(self) -> bool:
        """Never: a trial whose node is taken away goes on from its last checkpoint."""
        return False


def objective_of(values: Mapping[str, float], task: TrialTask) -> float:
    """The objective as a number of which less is better.

    Raises:
        TrainingError: it was not measured.
    """
    if task.metric not in values:
        raise TrainingError(
            f"sweep.objective: {task.metric} is not measured on this validation split; measured are "
            f"{', '.join(sorted(name for name in values if name.startswith('validation_')))}"
        )
    return -values[task.metric] if task.higher_is_better else values[task.metric]


def known_rungs(folder: str, rule: str | None) -> dict[float, float]:
    """What a trial had at the rungs that it has passed or failed under a rule, by rung."""
    found: dict[float, float] = {}
    for name in (RUNGS, STOPPED):
        url = files.join(folder, name)
        kept = files.read_json(url) if files.exists(url) else {}
        if kept.get("rule") == rule is not None:
            found |= {float(rung): float(value) for rung, value in kept["passed"]}
            found |= {float(kept["rung"]): float(kept["value"])} if "rung" in kept else {}
    return found


def train_alone(task: bytes, desk: Any, threads: int) -> None:
    """A trial of one rank, in a process without a group; several such trials follow each other in one process."""
    run_rank(pickle.loads(task), desk, 0, threads)


def train_together(config: dict[str, Any]) -> None:
    """One rank of several, started by Ray Train; ``config`` as `ranks.fit_ranks` makes it."""
    import ray.train

    rank = ray.train.get_context().get_world_rank()
    run_rank(pickle.loads(config["job"]), config["mailbox"], rank, config["threads"])


def run_rank(task: TrialTask, desk: Any, rank: int, threads: int) -> None:
    """Train, and leave the outcome at the desk; an error of one rank alone must end the others, so it is raised."""
    import ray
    import torch

    from ray_distill.students.run import run_arms

    torch.set_num_threads(threads)
    reporter = TrialReporter(task, desk, rank)
    try:
        try:
            students = run_arms(task.job, reporter)
        finally:
            reporter.flush()  # before the outcome: the driver takes no metrics after it
    except TrainingStopped as stopped:  # of all ranks alike
        if rank == 0:
            assert reporter.stopped is not None, "nobody else asks a trial to stop"
            files.write_json(files.join(task.job.output, STOPPED), reporter.stopped)
            ray.get(desk.fail.remote(task.key, stopped))
        return
    except DistillError as error:
        ray.get(desk.fail.remote(task.key, error))
        raise
    except DEFECTS as error:
        ray.get(desk.fail.remote(task.key, TrainingError(f"training failed: {type(error).__name__}: {error}")))
        raise
    if rank == 0:
        ray.get(desk.finish.remote(task.key, [student.to_json() for student in students]))


def _pairs(values: Mapping[float, float]) -> list[list[float]]:
    return [[rung, value] for rung, value in values.items()]
