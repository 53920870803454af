"""Call the teacher in one task with a time limit: before it labels, to plan, to audit.

While a teacher labels, rows that it fails on go to quarantine (`isolate_failures`); these tasks need its answer, so a
teacher that hangs is an error.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

from ray_distill.artifacts import SnapshotRef
from ray_distill.config import Campaign, LabelsConfig
from ray_distill.errors import ClusterError, LabelError
from ray_distill.runtime.core.connection import on_cluster
from ray_distill.runtime.core.python_envs import environment, once, require_environment, require_same_tokens
from ray_distill.runtime.core.task_progress import Followed, TaskProgress, followed
from ray_distill.runtime.labelling.death_counter import Deaths, counted_deaths, limit
from ray_distill.runtime.labelling.identify_teacher import TeacherFacts, prepare_teacher, tokens_here
from ray_distill.snapshots.reader import Snapshot, open_snapshot
from ray_distill.teachers.engines import refuse_labels

T = TypeVar("T")


def run_teacher_task(
    function: Callable[..., T],
    *arguments: Any,
    labels: LabelsConfig,
    rows: int,
    what: str,
    watch: Followed | None = None,
    **named: Any,
) -> T:
    """Run ``function`` as one task with the teacher's resources and return its result.

    Args:
        function: importable; loads the teacher and calls it.
        arguments: positional arguments of the function.
        labels: the teacher's resources, and its time limits.
        rows: rows that the teacher answers, repeats counted.
        what: the activity, for error messages.
        watch: shows the progress that the function reports.
        named: keyword arguments of the function.

    Raises:
        LabelError: the task took longer than ``labels.failures`` allows for loading and for every batch of the rows.
        DistillError: the error that the function raised, or ClusterError if the task itself was lost, or the teacher's
            environment is not usable.
    """
    require_environment(labels.teacher)
    seconds = labels.failures.load_seconds + math.ceil(rows / labels.resources.batch) * labels.failures.batch_seconds
    error = LabelError(
        f"{what} took longer than {seconds:g} s, so it was ended: the teacher hangs, or labels.failures "
        "(load_seconds, and batch_seconds for each batch) allows too little time"
    )
    with counted_deaths(labels.failures.attempts) as deaths:
        try:
            result: T = on_cluster(
                _limited,
                partial(function, *arguments, **named),
                error,
                deaths,
                seconds=seconds,
                what=what,
                cpus=labels.resources.cpus,
                gpus=labels.resources.gpus,
                options=once(labels.teacher),
                watch=watch,
            )
        except ClusterError as lost:
            hung = deaths.error()
            if hung is None:
                raise
            raise hung from lost
    return result


def teacher_facts(config: Campaign, snapshot: SnapshotRef, head_url: str | None) -> TeacherFacts:
    """Run `prepare_teacher` on the cluster.

    Raises:
        TeacherRefused: the engine cannot give the requested labels, or tokenizes texts differently from the students.
        DistillError: as `prepare_teacher` and `run_teacher_task`.
    """
    teacher = config.labels.teacher
    refuse_labels(config.labels, task=config.task)
    fits = config.labels.teacher.head is not None and head_url is None
    rows = rows_of(open_snapshot(snapshot), "train") if fits else 0
    with followed(config.output_url) as watch:
        facts = run_teacher_task(
            prepare_teacher,
            config,
            snapshot,
            head_url,
            labels=config.labels,
            rows=rows,
            what="opening the teacher",
            watch=watch,
            progress=TaskProgress(watch.url),
        )
    if environment(teacher):
        here = on_cluster(tokens_here, teacher, config.task, what="reading the teacher's tokenizer")
        require_same_tokens(here, facts.tokens, teacher)
    return facts


def rows_of(snapshot: Snapshot, split: str) -> int:
    """Return the number of rows of one split."""
    return sum(shard.rows for shard in snapshot.shards if shard.split == split)


def _limited(work: Callable[[], T], error: LabelError, deaths: Deaths, *, seconds: float) -> T:
    """Run the work; after the time limit, report ``error`` and end the process for good."""
    before = deaths.error()
    if before is not None:
        raise before
    with limit(seconds, lambda: deaths.fail(error)):
        return work()
