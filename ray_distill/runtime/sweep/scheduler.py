"""Run the trials of a sweep, several at a time, from one thread.

A trial of one rank is a Ray task, so that a process, which takes seconds to import torch, trains several trials in
succession. A trial of several ranks is a Ray Train run. A lost trial continues from its checkpoint.
"""

import pickle
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from ray_distill.artifacts import StudentRef
from ray_distill.config import StopConfig, TrainingConfig
from ray_distill.errors import ClusterError
from ray_distill.evaluation.measures.cost import SECONDS_AN_HOUR
from ray_distill.evaluation.sweep.compare import TrialResult
from ray_distill.runtime.core import console
from ray_distill.runtime.core.connection import capacity, explain, require_bundles
from ray_distill.runtime.sweep.coordinator import Coordinator, CoordinatorHandle
from ray_distill.runtime.sweep.resolve_trials import finished, on_disk, result_of
from ray_distill.runtime.sweep.trial_worker import PlannedTrial, known_rungs, train_alone, train_together
from ray_distill.runtime.training.outcome_channel import RunOutcome
from ray_distill.runtime.training.workers import fit_ranks, resources_of
from ray_distill.storage.scratch import Scratch
from ray_distill.students.telemetry.reporter import TrainingStopped

#: Seconds between two polls of the coordinator, and of the curves of all running trials.
POLL_SECONDS, CURVE_SECONDS = 0.5, 2.0


def require_room(planned: Sequence[PlannedTrial]) -> None:
    """Refuse trials that would wait for ever.

    Raises:
        ClusterError: a trial does not fit the cluster, even alone.
    """
    for training in {training.model_dump_json(): training for training in map(training_of, planned)}.values():
        require_bundles([resources_of(training)] * training.least_workers, "a trial of the sweep")


def need(planned: PlannedTrial) -> dict[str, float]:
    """Return the resources that a trial reserves, over all of its ranks."""
    training = training_of(planned)
    return {name: training.least_workers * amount for name, amount in resources_of(training).items()}


def training_of(planned: PlannedTrial) -> TrainingConfig:
    """Return a trial's training settings with a fixed number of workers.

    A variable number is fixed at its minimum, so that trials do not compete for workers.
    """
    training = planned.trial.config.student.training
    return training.model_copy(update={"workers": training.least_workers})


class Schedule:
    """Queue of trials to train, and the running trials."""

    def __init__(
        self,
        todo: Sequence[PlannedTrial],
        others: Sequence[PlannedTrial],
        stop: StopConfig | None,
        *,
        most: int | None,
        begun: Callable[[PlannedTrial], None],
        recorded: Callable[[PlannedTrial], None],
        ended: Callable[[PlannedTrial, TrialResult], None],
    ) -> None:
        """Start the coordinator; `run` starts the trials.

        Args:
            todo: in the order in which they start.
            others: trials of the sweep that ended before this command; their values at rungs count.
            stop: the rule that stops a trial.
            most: maximum trials at once, queued by Ray if they do not fit; None = as many as fit the cluster.
            begun: called when a trial starts, also when a lost trial starts again.
            recorded: called every `CURVE_SECONDS` for a running trial, and when it has ended, to record the new steps
                of its curve.
            ended: called with the result of a trial.
        """
        self._waiting, self._most = deque(todo), most
        self._running: dict[str, tuple[PlannedTrial, Any]] = {}
        self._since: dict[str, float] = {}
        self.hours: dict[str, float] = {"CPU": 0.0, "GPU": 0.0}
        """Hours reserved by trials that have ended, by resource."""
        self._lost: dict[str, int] = {}
        self._begun, self._recorded, self._ended = begun, recorded, ended
        known = {one.key: known_rungs(one.job.output, one.rule) for one in (*todo, *others)}
        self._here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        actor = ray.remote(num_cpus=0, scheduling_strategy=self._here)(Coordinator)
        self._coordinator = CoordinatorHandle(
            actor.remote(stop.rungs if stop else (), stop.keep if stop else 1.0, known)
        )
        self._recorded_at = time.monotonic()

    def run(self) -> None:
        """Run all trials to their ends.

        Raises:
            ClusterError: the coordinator is gone.
        """
        with Scratch("sweep") as scratch:
            try:
                while self._waiting or self._running:
                    while self._waiting and self._has_room(self._waiting[0]):
                        self._start(self._waiting.popleft(), str(scratch.path))
                    done, _ = ray.wait([ref for _, ref in self._running.values()], timeout=POLL_SECONDS)
                    self._poll(done)
            except ray.exceptions.RayActorError as lost:
                raise ClusterError(
                    f"the sweep lost its coordinator ({explain(lost, 'the call')}): run the same command "
                    "again to continue the sweep"
                ) from lost
            finally:
                for planned, _ in list(self._running.values()):
                    self._end(planned)

    def _has_room(self, planned: PlannedTrial) -> bool:
        """Return whether the next trial may start.

        No trial overtakes it, so that a large trial does not wait for ever.
        """
        if self._most is not None:
            return len(self._running) < self._most
        if not self._running:
            return True  # the trial fitted when the sweep began: Ray waits until it fits again
        taken = [need(one) for one, _ in self._running.values()]
        return all(
            sum(one.get(name, 0.0) for one in taken) + amount <= capacity(name)
            for name, amount in need(planned).items()
            if amount > 0
        )

    def _start(self, planned: PlannedTrial, folder: str) -> None:
        self._begun(planned)
        training, data = training_of(planned), pickle.dumps(planned)
        if training.least_workers == 1:
            run = ray.remote(num_cpus=training.cpus, num_gpus=training.gpus, max_retries=0)(train_alone)
            ref = run.remote(data, self._coordinator, max(1, int(training.cpus)))
        else:
            fit = ray.remote(num_cpus=0, max_retries=0, max_calls=1, scheduling_strategy=self._here)(fit_ranks)
            ref = fit.remote(data, training, self._coordinator, folder, rank=train_together)
        self._running[planned.key], self._since[planned.key] = (planned, ref), time.monotonic()

    def _end(self, planned: PlannedTrial) -> None:
        """Remove a trial from the running ones, and add its reserved hours."""
        del self._running[planned.key]
        hours = (time.monotonic() - self._since.pop(planned.key)) / SECONDS_AN_HOUR
        for name, amount in need(planned).items():
            self.hours[name] += hours * amount

    def _poll(self, done: Sequence[Any]) -> None:
        """Record curves; handle the trials that ended with an outcome or with their process."""
        outcomes = self._coordinator.outcomes()
        record = time.monotonic() - self._recorded_at >= CURVE_SECONDS
        for key, (planned, ref) in list(self._running.items()):
            if record or key in outcomes:
                self._recorded(planned)
            if key in outcomes:
                self._end(planned)
                self._ended(planned, result_from(planned, outcomes[key]))
            elif ref in done:
                self._check_lost(planned, ref)
        if record:
            self._recorded_at = time.monotonic()

    def _check_lost(self, planned: PlannedTrial, ref: Any) -> None:
        """Handle a process that ended without an outcome, unless the outcome came after the poll."""
        if planned.key in self._coordinator.outcomes():
            return
        try:
            ray.get(ref)
            reason = "no rank finished"
        except ray.exceptions.RayError as error:
            reason = str(explain(error, "training"))
        self._end(planned)
        lost = self._lost[planned.key] = self._lost.get(planned.key, 0) + 1
        most = training_of(planned).max_failures
        if lost <= most:
            console.report(
                f"sweep: {planned.trial.name} was interrupted ({reason}); restart {lost} of {most} goes on from the "
                "last checkpoint",
                trial=planned.trial.number,
            )
            self._waiting.appendleft(planned)
            return
        reason += f"; that was the last of {most} restart(s) that student.training.max_failures allows"
        self._ended(planned, result_of(planned, "failed", reason=reason))


def result_from(planned: PlannedTrial, found: RunOutcome) -> TrialResult:
    """Return the result of a trial whose ranks have ended."""
    if found.students is not None:
        return finished(planned, StudentRef.from_json(found.students[0]))
    assert found.error is not None
    stopped = on_disk(planned) if isinstance(found.error, TrainingStopped) else None
    return stopped or result_of(planned, "failed", reason=str(found.error))
