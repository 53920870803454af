"""Run the ranks of a trial: train one student, which is judged at each rung.

<trial>/student/, student.json    the finished student, as in any training
<trial>/rungs.json                the trial's values at the rungs that it has passed
<trial>/stopped.json              the reason of the stop; the checkpoint beside it allows another rule to continue
"""

import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from ray_distill.artifacts import Document, Number
from ray_distill.config.trials import Trial
from ray_distill.errors import TrainingError
from ray_distill.runtime.sweep.coordinator import CoordinatorHandle
from ray_distill.runtime.training.outcome_channel import RankReporter
from ray_distill.runtime.training.workers import send_outcome
from ray_distill.storage import files
from ray_distill.storage.sealed import read_document, write_sealed

if TYPE_CHECKING:
    from ray_distill.students.job import TrainingJob

D = TypeVar("D", bound=Document)

RUNGS, STOPPED = "rungs.json", "stopped.json"


@dataclass(frozen=True, kw_only=True)
class PlannedTrial:
    """A trial with its training job; all values can be pickled for its ranks."""

    trial: Trial
    job: "TrainingJob"
    """Training job of the arm ``student``."""
    metric: str
    higher_is_better: bool
    rule: str | None = None
    """Fingerprint of the rule that may stop the trial; None = no rule."""
    to_the_end: bool = False
    """Whether the trial only sets the rungs for others: it is what they are compared with."""

    @property
    def key(self) -> str:
        """Fingerprint of the trial's plan: the name of its folder, and of its run in the channel."""
        return self.job.output.rpartition("/")[2]


class PassedRungs(Document):
    """The content of ``rungs.json``: the rungs that a trial has passed under a rule."""

    rule: str | None
    passed: tuple[tuple[float, float], ...]
    """Rung and value."""


class StoppedTrial(PassedRungs):
    """The content of ``stopped.json``: when and why a trial was stopped."""

    step: int
    epoch: float
    metrics: dict[str, Number]
    """On the validation split."""
    rung: float
    """The rung that it failed, and its value there."""
    value: float
    place: int
    of: int

    @property
    def reason(self) -> str:
        """The comparison that stopped it."""
        return f"at epoch {self.epoch:.3g}: place {self.place} of {self.of} at the rung of {self.rung:g}"


class RungJudge:
    """Send a trial's validations to the coordinator, from the first rank, to be judged at rungs."""

    def __init__(self, planned: PlannedTrial, coordinator: CoordinatorHandle) -> None:
        self._planned, self._coordinator = planned, coordinator
        self._passed = known_rungs(planned.job.output, planned.rule)
        self._stopped: StoppedTrial | None = None

    def validated(self, step: int, values: Mapping[str, float]) -> bool:
        """Report a validation; return whether the trial failed a rung and must stop."""
        value = objective_of(values, self._planned)
        found = self._coordinator.judge(self._planned.key, values["epoch"], value)
        if not found:
            return False
        last = found[-1]
        if not last.goes_on and not self._planned.to_the_end:
            self._stopped = StoppedTrial(
                rule=self._planned.rule,
                passed=tuple(self._passed.items()),
                step=step,
                epoch=values["epoch"],
                metrics={name: value for name, value in values.items() if name.startswith("validation_")},
                rung=last.rung,
                value=last.value,
                place=last.place,
                of=last.of,
            )
            return True
        self._passed |= {one.rung: one.value for one in found}
        passed = PassedRungs(rule=self._planned.rule, passed=tuple(self._passed.items()))
        write_sealed(files.join(self._planned.job.output, RUNGS), passed.to_dict())
        return False

    def record_stop(self) -> None:
        """Write the reason of the stop, after the trial's last checkpoint."""
        assert self._stopped is not None
        write_sealed(files.join(self._planned.job.output, STOPPED), self._stopped.to_dict())


def objective_of(values: Mapping[str, float], planned: PlannedTrial) -> float:
    """Return the objective as a number of which less is better.

    Raises:
        TrainingError: the objective was not measured.
    """
    if planned.metric not in values:
        raise TrainingError(
            f"sweep.objective: {planned.metric} is not measured on this validation split; measured are "
            f"{', '.join(sorted(name for name in values if name.startswith('validation_')))}"
        )
    return -values[planned.metric] if planned.higher_is_better else values[planned.metric]


def known_rungs(folder: str, rule: str | None) -> dict[float, float]:
    """Return a trial's values at the rungs that it has passed or failed under a rule, by rung."""
    passed, stopped = read_marker(folder, RUNGS, PassedRungs), read_marker(folder, STOPPED, StoppedTrial)
    found: dict[float, float] = {}
    for kept in (passed, stopped):
        if kept is not None and kept.rule == rule is not None:
            found |= dict(kept.passed)
    if stopped is not None and stopped.rule == rule is not None:
        found[stopped.rung] = stopped.value
    return found


def read_marker(folder: str, name: str, kind: type[D]) -> D | None:
    """Return what a trial's folder has under a name; None if it has nothing."""
    url = files.join(folder, name)
    way_out = "delete it, and the trial is judged again at its next validation, from its last checkpoint"
    return read_document(kind, url, way_out) if files.exists(url) else None


def train_alone(task: bytes, coordinator: CoordinatorHandle, threads: int) -> None:
    """Train a trial of one rank, without a process group; a process runs several in succession."""
    run_rank(pickle.loads(task), coordinator, 0, threads)


def train_together(config: dict[str, Any]) -> None:
    """Train one of several ranks, started by Ray Train; `workers.fit_ranks` makes ``config``."""
    import ray.train

    rank = ray.train.get_context().get_world_rank()
    run_rank(pickle.loads(config["job"]), config["channel"], rank, config["threads"])


def run_rank(planned: PlannedTrial, coordinator: CoordinatorHandle, rank: int, threads: int) -> None:
    """Train, and send the outcome to the coordinator; see `workers.send_outcome`."""
    import torch

    torch.set_num_threads(threads)
    judge = RungJudge(planned, coordinator) if rank == 0 and planned.rule is not None else None
    send_outcome(
        planned.key,
        planned.job,
        coordinator,
        RankReporter(on_validation=None if judge is None else judge.validated),
        first=rank == 0,
        on_stopped=_no_stop if judge is None else judge.record_stop,
    )


def _no_stop() -> None:
    raise AssertionError("only its rungs stop a trial")
