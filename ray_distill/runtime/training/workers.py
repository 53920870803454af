"""Run the ranks of a training job with Ray Train, and the work of each rank.

A separate process calls Ray Train, so this module imports only what that call needs; a rank imports the rest.
"""

import logging
import os
import pickle
import uuid
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ray_distill.config import TrainingConfig
from ray_distill.errors import DistillError, TrainingError
from ray_distill.runtime.training.outcome_channel import OutcomeChannelHandle, RankReporter
from ray_distill.students.telemetry.reporter import TrainingStopped

if TYPE_CHECKING:
    from ray_distill.students.job import TrainingJob

#: Name of a campaign's training in its channel.
RUN = "train"
#: Errors that another attempt would raise again. A lost peer raises a RuntimeError in the other ranks, none of these.
DEFECTS = (TypeError, ValueError, LookupError, AttributeError, ImportError, AssertionError, ZeroDivisionError)

#: Maximum preemptions after a notice; bounded, because any failure on a machine with a notice counts as a preemption.
MAX_PREEMPTIONS = 100
#: Seconds between two checks of Ray Train for room for more workers, if their number may change.
RESIZE_SECONDS = 60.0
#: Seconds that Ray Train waits for workers whose number may change (its default is 60). The number follows a view of
#: the nodes that Ray renews every twenty seconds: after the loss of a node, the next try starts fewer workers.
START_SECONDS = 20.0


def fit_ranks(
    job: bytes,
    training: TrainingConfig,
    channel: OutcomeChannelHandle,
    folder: str,
    *,
    rank: Callable[[dict[str, Any]], None] | None = None,
) -> None:
    """Run a job's ranks to their end; errors report lost ranks.

    Args:
        job: a pickled ``TrainingJob``.
        training: number of ranks, and their resources.
        channel: receives the outcome.
        folder: for Ray Train's own files, on this node.
        rank: function of each rank; default: `train_rank`.
    """
    import ray.train
    from ray.train.torch import TorchConfig, TorchTrainer

    logging.getLogger("ray.train").setLevel(logging.ERROR)
    # Ray Train's controller polls the dashboard's state API, which an embedded Ray does not have (FACTS: Ray Train).
    os.environ.setdefault("RAY_TRAIN_ENABLE_STATE_TRACKING", "0")
    if not isinstance(training.workers, int):
        os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", str(START_SECONDS))
    trainer = TorchTrainer(
        rank or train_rank,
        train_loop_config={"job": job, "channel": channel, "threads": max(1, int(training.cpus))},
        torch_config=TorchConfig(backend="nccl" if training.gpus else "gloo"),
        scaling_config=ray.train.ScalingConfig(
            num_workers=training.workers,
            use_gpu=training.gpus > 0,
            resources_per_worker=resources_of(training),
            elastic_resize_monitor_interval_s=RESIZE_SECONDS,
        ),
        # The caller counts failures; preemptions have a much higher limit.
        run_config=ray.train.RunConfig(
            name=f"train-{uuid.uuid4().hex[:8]}",
            storage_path=folder,
            failure_config=ray.train.FailureConfig(max_failures=0, max_preemption_failures=MAX_PREEMPTIONS),
        ),
    )
    trainer.fit()


def resources_of(training: TrainingConfig) -> dict[str, float]:
    """Return the resources of one rank, by Ray's names."""
    gpus = {"GPU": training.gpus} if training.gpus else {}
    return {"CPU": training.cpus, **gpus}


def train_rank(config: dict[str, Any]) -> None:
    """Run one rank in the process group that Ray Train made; ``config["job"]`` is a pickled job."""
    import ray.train
    import torch

    from ray_distill.runtime.training.prometheus import TrainingGauges

    torch.set_num_threads(config["threads"])
    first, job = ray.train.get_context().get_world_rank() == 0, pickle.loads(config["job"])
    if first:
        config["channel"].begin(RUN)
    reporter = RankReporter(gauges=TrainingGauges(job.config.campaign) if first else None, notices=True)
    send_outcome(RUN, job, config["channel"], reporter, first=first)


def send_outcome(
    run: str,
    job: "TrainingJob",
    channel: OutcomeChannelHandle,
    reporter: RankReporter,
    *,
    first: bool,
    on_stopped: Callable[[], None] = lambda: None,
) -> None:
    """Train the arms of a job on this rank, and send the students or the error that ended it.

    Args:
        run: name of the run in the channel.
        job: the training job.
        channel: receives the outcome.
        reporter: the rank's reporter.
        first: whether this is the first rank, which sends the students.
        on_stopped: called on the first rank when the reporter has stopped the run, before the stop is sent.

    Raises:
        DistillError: the error that was sent, which must end the other ranks too; not if the reporter stopped them all.
    """
    from ray_distill.students.run import run_arms

    try:
        students = run_arms(job, reporter)
    except TrainingStopped as stopped:
        if first:
            on_stopped()
            channel.fail(run, stopped)
        return
    except DistillError as error:
        channel.fail(run, error)
        raise
    except DEFECTS as error:
        channel.fail(run, TrainingError(f"training failed: {type(error).__name__}: {error}"))
        raise
    if first:
        channel.finish(run, tuple(student.to_json() for student in students))
