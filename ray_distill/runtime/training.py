"""Start training ranks with Ray Train, carry their metrics to the driver, restart what was lost.

The ranks write students and checkpoints themselves (`ray_distill.students`); Ray starts them and tells when one
is gone. A restart goes on from the newest verified checkpoint, so a lost worker costs the steps since then.
"""

import logging
import os
import pickle
import tempfile
import uuid
from collections.abc import Callable
from typing import Any

import ray
import ray.train
from ray.train.torch import TorchConfig, TorchTrainer

from ray_distill.artifacts import StudentRef
from ray_distill.config import TrainingConfig
from ray_distill.errors import ClusterError
from ray_distill.runtime.cluster import explain, require_bundles
from ray_distill.runtime.console import say
from ray_distill.runtime.mailbox import Mailbox, StepMetrics, train_rank
from ray_distill.students.run import TrainingJob

#: Seconds between two looks into the mailbox.
POLL_SECONDS = 1.0


def train_ranks(
    job: TrainingJob, training: TrainingConfig, *, on_metrics: Callable[[StepMetrics], None]
) -> list[StudentRef]:
    """Run ``students.run.run_arms`` on ``training.workers`` ranks and return its result.

    Args:
        job: what to train; ``job.resume`` must be set, a restart relies on it.
        training: how many ranks, with which resources, and how many restarts.
        on_metrics: called on this process with every step's numbers; a restart repeats steps.

    Raises:
        DistillError: what a rank raised, at once.
        ClusterError: the ranks were lost more often than ``training.max_failures``, or cannot be placed.
    """
    assert job.resume, "a restarted rank must go on, not begin anew"
    require_bundles([_resources(training)] * training.workers, "training")
    for attempt in range(training.max_failures + 1):
        mailbox = ray.remote(num_cpus=0)(Mailbox).remote()
        failure = _fit(job, training, mailbox, on_metrics)
        try:
            students, error = ray.get(mailbox.outcome.remote())
        except ray.exceptions.RayError as lost:
            students, error, failure = None, None, failure or lost
        if error is not None:
            raise error
        if students is not None:
            return [StudentRef.from_json(text) for text in students]
        reason = "no rank finished" if failure is None else str(explain(failure, "training"))
        if attempt < training.max_failures:
            say(f"training was interrupted ({reason}); restart {attempt + 1} of {training.max_failures} goes on from "
                "the last checkpoint")
    raise ClusterError(f"{reason}; that was the last of {training.max_failures} restart(s) that "
                       "student.training.max_failures allows; the last checkpoint is kept: run again to go on from it")


def _fit(
    job: TrainingJob, training: TrainingConfig, mailbox: Any, on_metrics: Callable[[StepMetrics], None]
) -> BaseException | None:
    """One attempt: returns what Ray raised, if it did; metrics are delivered meanwhile and at the end.

    Ray Train is asked from a task. On this process's main thread it would take Ctrl-C over, for the rest of the
    process, and end it with exit status 0; on another thread it would still be asking Ray while Ctrl-C shuts Ray down,
    and Ray's core then ends the process on the spot, with exit status 1 and without a word.
    """
    # Its worker is used once: Ray Train leaves its handler of SIGINT behind.
    fit = ray.remote(num_cpus=0, max_retries=0, max_calls=1)(_fit_here)
    failure: BaseException | None = None
    running = fit.remote(pickle.dumps(job), training, mailbox)
    try:
        while not ray.wait([running], timeout=POLL_SECONDS)[0]:
            _deliver(mailbox, on_metrics)
        ray.get(running)
    except ray.exceptions.RayError as lost:
        failure = lost
    finally:  # Ctrl-C too: the curve then reaches as far as what the ranks have sent
        _deliver(mailbox, on_metrics)
    return failure


def _fit_here(job: bytes, training: TrainingConfig, mailbox: Any) -> None:
    """Let Ray Train run the ranks of a pickled job; what it raises tells what was lost."""
    logging.getLogger("ray.train").setLevel(logging.ERROR)
    # Ray Train's controller polls the dashboard's state API, which an embedded Ray does not have (FACTS: Ray Train).
    os.environ.setdefault("RAY_TRAIN_ENABLE_STATE_TRACKING", "0")
    with tempfile.TemporaryDirectory(prefix="ray-distill-train-", ignore_cleanup_errors=True) as folder:
        TorchTrainer(
            train_rank, train_loop_config={"job": job, "mailbox": mailbox, "threads": max(1, int(training.cpus))},
            torch_config=TorchConfig(backend="nccl" if training.gpus else "gloo"),
            scaling_config=ray.train.ScalingConfig(
                num_workers=training.workers, use_gpu=training.gpus > 0, resources_per_worker=_resources(training)),
            run_config=ray.train.RunConfig(name=f"train-{uuid.uuid4().hex[:8]}", storage_path=folder)).fit()


def _resources(training: TrainingConfig) -> dict[str, float]:
    gpus = {"GPU": training.gpus} if training.gpus else {}
    return {"CPU": training.cpus, **gpus}


def _deliver(mailbox: Any, on_metrics: Callable[[StepMetrics], None]) -> None:
    try:
        waiting = ray.get(mailbox.take.remote())
    except ray.exceptions.RayError:
        return  # the mailbox went with its node; the attempt fails and says so
    for metrics in waiting:
        on_metrics(metrics)
