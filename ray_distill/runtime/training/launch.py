"""Start training ranks with Ray Train, wait for their outcome, restart ranks that were lost.

The ranks write students and checkpoints themselves (`ray_distill.students`); Ray starts the ranks and reports lost
ones. A restart continues from the newest verified checkpoint, so a lost worker costs the steps since then.
"""

import pickle
import time
from collections.abc import Callable

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from ray_distill.artifacts import StudentRef
from ray_distill.config import TrainingConfig
from ray_distill.errors import ClusterError
from ray_distill.runtime.core import console
from ray_distill.runtime.core.connection import explain, require_bundles
from ray_distill.runtime.training.outcome_channel import OutcomeChannel, OutcomeChannelHandle, RunOutcome
from ray_distill.runtime.training.workers import RUN, fit_ranks, resources_of
from ray_distill.storage.scratch import Scratch
from ray_distill.students.job import TrainingJob

#: Seconds between two polls of the channel and of the curves.
POLL_SECONDS = 1.0
#: Seconds without a working rank after which a message reports possible causes.
WAIT_SECONDS = 60.0


def train_ranks(job: TrainingJob, training: TrainingConfig, *, on_poll: Callable[[], None]) -> list[StudentRef]:
    """Run ``students.run.run_arms`` on the configured number of ranks and return its result.

    Args:
        job: the training job; ``job.resume`` must be set, because a restart relies on it.
        training: number of ranks, their resources, and number of restarts.
        on_poll: called in this process every `POLL_SECONDS` while the ranks train, to read the curves they write.

    Raises:
        DistillError: a rank raised it; it is raised at once.
        ClusterError: the ranks were lost more often than ``training.max_failures``, or cannot be placed.
    """
    assert job.resume, "a restarted rank must go on, not begin anew"
    require_bundles([resources_of(training)] * training.least_workers, "training")
    # The channel stays on the driver's node: Ray Train restarts the ranks by itself when a rank's node is lost.
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    for attempt in range(training.max_failures + 1):
        channel = OutcomeChannelHandle(ray.remote(num_cpus=0, scheduling_strategy=here)(OutcomeChannel).remote())
        failure = _fit(job, training, channel, on_poll)
        try:
            outcome = channel.outcomes().get(RUN, RunOutcome())
        except ray.exceptions.RayError as lost:
            outcome, failure = RunOutcome(), failure or lost
        if outcome.error is not None:
            raise outcome.error
        if outcome.students is not None:
            return [StudentRef.from_json(text) for text in outcome.students]
        reason = "no rank finished" if failure is None else str(explain(failure, "training"))
        if attempt < training.max_failures:
            console.report(
                f"training was interrupted ({reason}); restart {attempt + 1} of {training.max_failures} goes on from "
                "the last checkpoint"
            )
    raise ClusterError(
        f"{reason}; that was the last of {training.max_failures} restart(s) that "
        "student.training.max_failures allows; the last checkpoint is kept: run again to go on from it"
    )


def _fit(
    job: TrainingJob, training: TrainingConfig, channel: OutcomeChannelHandle, on_poll: Callable[[], None]
) -> BaseException | None:
    """Make one attempt; return the error that Ray raised, if it did.

    A task calls Ray Train. On the main thread of this process, Ray Train would install its handler of Ctrl-C for the
    rest of the process, and end it with exit status 0; on another thread, it would still call Ray while Ctrl-C shuts
    Ray down, and Ray's core would then end the process immediately, with exit status 1 and without a message.
    """
    failure: BaseException | None = None
    with Scratch("train") as scratch:
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        # The task's process is used once: Ray Train does not remove its handler of SIGINT.
        fit = ray.remote(num_cpus=0, max_retries=0, max_calls=1, scheduling_strategy=here)(fit_ranks)
        running = fit.remote(pickle.dumps(job), training, channel, str(scratch.path))
        report_at: float | None = time.monotonic() + WAIT_SECONDS
        try:
            while not ray.wait([running], timeout=POLL_SECONDS)[0]:
                report_at = _report_wait(channel, training, report_at)
                on_poll()
                if _finished(channel):
                    return None  # without a dashboard, the shutdown of Ray Train takes twelve seconds more
            ray.get(running)
        except ray.exceptions.RayError as lost:
            failure = lost
    return failure


def _report_wait(channel: OutcomeChannelHandle, training: TrainingConfig, at: float | None) -> float | None:
    """Report once, at time ``at``, that no rank works yet; return ``at`` while that is pending."""
    if at is None:
        return None
    try:
        if channel.begun(RUN):
            return None
    except ray.exceptions.RayError:
        return None  # as in `_finished`
    if time.monotonic() < at:
        return at
    console.report(
        f"train: none of {training.least_workers} worker(s) is at work after {WAIT_SECONDS:g} s: other jobs use the "
        "resources, Ray reserves them for a run that was killed (three minutes at most), or workers are slow to start"
    )
    return None


def _finished(channel: OutcomeChannelHandle) -> bool:
    """Return whether the students are trained."""
    try:
        found = channel.outcomes().get(RUN)
    except ray.exceptions.RayError:
        return False  # the channel was lost with its node; the attempt fails and reports that
    return found is not None and found.students is not None
