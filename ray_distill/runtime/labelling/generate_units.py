"""Let a teacher write with Ray Data: actors generate and store units, the driver commits.

`pipeline` schedules the units, isolates failed units and commits receipts.
"""

import functools
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from ray_distill.artifacts import SnapshotRef
from ray_distill.config import Campaign, SequencesConfig
from ray_distill.errors import LabelError
from ray_distill.labels.model.work_units import WorkUnit
from ray_distill.redact import redact
from ray_distill.runtime.core.connection import on_cluster
from ray_distill.runtime.core.failures import Answers
from ray_distill.runtime.labelling.actors import GenerateActor, WriteJob
from ray_distill.runtime.labelling.death_counter import Deaths
from ray_distill.runtime.labelling.isolate_failures import FailedUnit, isolate
from ray_distill.runtime.labelling.pipeline import Seen, Work, dataset_of, teacher_pool, work_through
from ray_distill.runtime.labelling.teacher_actor import Plan
from ray_distill.sequences.attempts import rejected_table
from ray_distill.sequences.derive import Derived, derive
from ray_distill.sequences.generator import Generator
from ray_distill.sequences.store import SequenceStore, create_or_open
from ray_distill.sequences.units import WriteReceipt, write_attempt
from ray_distill.snapshots.reader import open_snapshot
from ray_distill.tasks.catalogue import get_task


@dataclass(frozen=True, kw_only=True)
class Wrote:
    """Counts of one writing run."""

    prompts: int
    rejected: int
    sequences: int
    tokens: int
    bytes_written: int
    seconds: float
    isolated: int
    """Units that the teacher failed on and that were then written in isolation."""
    halved: int
    """Units in which a batch had to be halved."""


def make_generator(config: Campaign, settings: SequencesConfig) -> Generator:
    """Open the teacher, and return everything that decides the texts it will write.

    Raises:
        ModelError: the teacher cannot be loaded, or cannot write.
        ConfigError: the context has no room for a prompt.
    """
    from ray_distill.teachers.author import open_author

    author = open_author(config.labels.teacher, settings, task=config.task, seed=config.seed)
    return Generator(
        teacher=author.model.fingerprint,
        model=redact(config.labels.teacher.model),
        format=get_task(config.task).inputs.form(config),
        method=settings.method,
        candidates=settings.candidates,
        temperature=settings.temperature,
        top_p=settings.top_p,
        top_k=settings.top_k,
        beams=settings.beams,
        length_penalty=settings.length_penalty,
        new_tokens=settings.new_tokens,
        own=author.form.token_fingerprint,
        seed=config.seed if settings.method == "sample" else 0,
        prompts_a_batch=settings.prompts_a_batch,
        threads=max(1, int(config.labels.resources.cpus)),
    )


def write_units(
    job: WriteJob,
    store: SequenceStore,
    units: Sequence[WorkUnit],
    *,
    max_rejected: int,
    progress: Callable[[int], None],
) -> Wrote:
    """Write for units and commit them as they finish; committed units survive an interruption.

    Args:
        job: the prompts, and how to answer them.
        store: the open store of ``job.generator``.
        units: from ``store.coverage``.
        max_rejected: prompts that may get no answer before the run stops.
        progress: called with the number of prompts that were just finished.

    Raises:
        LabelError: too many prompts got no answer, or the teacher fails on every prompt.
        ClusterError: the actors do not fit the cluster, or a stage failed.
    """
    tally, reasons, seen = Counter[str](), Counter[str](), Seen()
    with work_through(_work(job, store), units, seen) as receipts:
        started = time.monotonic()
        for receipt in receipts:
            tally.update(
                prompts=receipt.rows,
                rejected=receipt.rejected,
                sequences=receipt.sequences,
                tokens=receipt.tokens,
                bytes_written=receipt.bytes_written,
                halved=receipt.halved > 0,
            )
            reasons.update(receipt.reasons)
            progress(receipt.rows + receipt.rejected)
            if tally["rejected"] > max_rejected:
                raise LabelError(_too_many(tally, reasons, max_rejected))
        seconds = time.monotonic() - started
    return Wrote(
        seconds=seconds,
        isolated=seen.isolated,
        **{name: tally[name] for name in ("prompts", "rejected", "sequences", "tokens", "bytes_written", "halved")},
    )


def _work(job: WriteJob, store: SequenceStore) -> Work[WriteReceipt]:
    return Work(
        name="write",
        doing="writing",
        resources=job.resources,
        failures=job.failures,
        pipeline=functools.partial(_pipeline, job),
        read=WriteReceipt.from_dict,
        isolate=functools.partial(_rewrite, job),
        commit=store.commit,
    )


def _pipeline(job: WriteJob, units: Sequence[WorkUnit], deaths: Deaths) -> Any:
    rows = [{"unit_id": unit.unit_id, "work": json.dumps(unit.to_dict())} for unit in units]
    return dataset_of(rows).map_batches(
        GenerateActor,
        fn_constructor_kwargs={"job": job, "deaths": deaths},
        batch_size=None,
        batch_format="pyarrow",
        **teacher_pool(job.resources),
    )


def _rewrite(job: WriteJob, failed: Sequence[FailedUnit], good: WorkUnit | None) -> Iterator[WriteReceipt]:
    return isolate(job, failed, good, actor=GenerateActor, finish=functools.partial(_written, job))


def _written(job: WriteJob, one: FailedUnit, plan: Plan, found: Answers[pa.Table]) -> WriteReceipt:
    failed = [(plan.row_ids[row], failure.reason) for row, failure in sorted(found.failed.items())]
    table = pa.concat_tables([*found.parts, rejected_table([*plan.rejected, *failed])])
    return on_cluster(
        write_attempt, job.store_url, job.generator, one.unit, table, halved=found.halved, what="storing sequences"
    )


def derive_snapshot(
    snapshot: SnapshotRef, store_url: str, generator: Generator, settings: SequencesConfig, *, url: str, shard_rows: int
) -> Derived:
    """Run `derive` with the configured scorer.

    Raises:
        ModelError: the scorer cannot be imported; other errors as `derive`.
    """
    from ray_distill.models.core.module_function import import_factory

    name = settings.filters.scorer
    return derive(
        open_snapshot(snapshot),
        create_or_open(store_url, generator),
        settings,
        url=url,
        scorer=None if name is None else import_factory(name),
        shard_rows=shard_rows,
    )


def _too_many(tally: Counter[str], reasons: Counter[str], limit: int) -> str:
    found = ", ".join(f"{count} × {reason}" for reason, count in reasons.most_common(5))
    done = tally["rejected"] + tally["prompts"]
    return (
        f"{tally['rejected']} of {done} prompts so far got no answer, more than the {limit} that "
        f"sequences.max_bad_fraction allows: {found}; correct the source or raise the limit"
    )
