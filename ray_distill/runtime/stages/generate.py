"""Run the writing stage: identify the teacher, write missing sequences, make their snapshot."""

from ray_distill.artifacts import SnapshotRef
from ray_distill.config import Campaign, SequencesConfig
from ray_distill.config.identity import identity
from ray_distill.errors import ConfigError, LabelError
from ray_distill.fingerprint import fingerprint
from ray_distill.labels.model.work_units import Coverage
from ray_distill.runtime.core import console
from ray_distill.runtime.core.connection import on_cluster
from ray_distill.runtime.core.console import Progress
from ray_distill.runtime.core.session import Session, Stage
from ray_distill.runtime.labelling.actors import WriteJob
from ray_distill.runtime.labelling.bounded_task import run_teacher_task
from ray_distill.runtime.labelling.generate_units import Wrote, derive_snapshot, make_generator, write_units
from ray_distill.runtime.stages import label
from ray_distill.runtime.stages.snapshot import open_for
from ray_distill.sequences.derive import Derived, require_answers
from ray_distill.sequences.store import SequenceStore, create_or_open
from ray_distill.snapshots.reader import Snapshot, open_snapshot
from ray_distill.storage import files
from ray_distill.storage.portable import movable
from ray_distill.tasks.catalogue import get_task


def write(session: Session, snapshot: SnapshotRef) -> SnapshotRef:
    """Let the teacher answer the prompts of a snapshot; return the snapshot of the answers.

    Prompts that have an answer already, from any snapshot, are not answered again.

    Raises:
        ConfigError: the campaign has no section ``sequences``.
        LabelError: too many prompts got no answer, or the teacher or the scorer fails.
        SnapshotError: the filters leave a split empty.
    """
    config, settings = session.config, _settings(session.config)
    key = key_of(config, snapshot)
    done = session.done("write", key)
    if done is not None and files.exists(files.join(done["url"], "snapshot.json")):
        ref = SnapshotRef.from_dict(done)
        console.report(f"write: every prompt has an answer already, skipped ({ref.url})", skipped="write")
        return ref
    resources = config.labels.resources
    with session.stage(
        "write", cores=resources.cpus * resources.actors[1] + 1, accelerators=resources.gpus * resources.actors[1]
    ) as stage:
        ref = _write(session, stage, settings, open_for(config.task, snapshot))
    session.finish("write", key, ref.to_dict())
    return ref


def _write(session: Session, stage: Stage, settings: SequencesConfig, opened: Snapshot) -> SnapshotRef:
    config = session.config
    form, roles = get_task(config.task).inputs.form(config), config.labels.teacher.language.roles
    require_answers(
        opened, splits=settings.splits, form=form, roles=roles, max_bad_fraction=config.labels.max_bad_fraction
    )
    label.record_snapshot(stage.run, opened, "prompts")
    generator = run_teacher_task(
        make_generator, config, settings, labels=config.labels, rows=0, what="opening the teacher"
    )
    store = create_or_open(session.url("sequences", generator.fingerprint), generator)
    store.log.check_pins()
    coverage = store.coverage(opened, settings.splits, settings.unit_rows)
    if coverage.units:
        job = WriteJob(
            snapshot=opened.ref,
            task=config.task,
            teacher=config.labels.teacher,
            settings=settings,
            generator=generator,
            store_url=store.url,
            resources=config.labels.resources,
        )
        _record_wrote(stage, _fill(job, store, coverage))
    left = store.coverage(opened, settings.splits, settings.unit_rows)
    if left.units:
        raise LabelError(f"{store.url}: {left.rows_left} prompts still have no answer after the run; run it again")
    if coverage.units:
        store.log.pin()
    scored = settings.filters.scorer is not None
    derived = on_cluster(
        derive_snapshot,
        opened.ref,
        store.url,
        generator,
        settings,
        url=session.url("snapshots"),
        shard_rows=config.snapshot.shard_rows,
        what="making the snapshot",
        cpus=config.labels.resources.cpus if scored else 1,
        gpus=config.labels.resources.gpus if scored else 0,
    )
    _record_derived(stage, derived, coverage)
    return derived.ref


def _fill(job: WriteJob, store: SequenceStore, coverage: Coverage) -> Wrote:
    console.report(
        f"write: {coverage.rows_left:,} of {coverage.rows_total:,} prompts to answer in {len(coverage.units):,} units, "
        f"{coverage.rows_total - coverage.rows_left:,} have an answer already",
        prompts=coverage.rows_left,
    )
    limit = int(job.settings.max_bad_fraction * coverage.rows_total)
    if coverage.rows_quarantined > limit:
        raise LabelError(
            f"{coverage.rows_quarantined} of {coverage.rows_total} prompts got no answer already, more than the "
            f"{limit} that sequences.max_bad_fraction allows: correct the source, or raise the limit"
        )
    with Progress("write", coverage.rows_left, "prompts") as progress:
        return write_units(
            job, store, coverage.units, max_rejected=limit - coverage.rows_quarantined, progress=progress.add
        )


def _record_wrote(stage: Stage, wrote: Wrote) -> None:
    stage.meter.wrote(wrote.bytes_written)
    stage.run.metrics(
        {
            "prompts_written": float(wrote.prompts),
            "prompts_newly_quarantined": float(wrote.rejected),
            "sequences_written": float(wrote.sequences),
            "tokens_written": float(wrote.tokens),
            "tokens_per_second": wrote.tokens / max(wrote.seconds, 1e-9),
            "units_rewritten": float(wrote.isolated),
            "units_halved": float(wrote.halved),
        }
    )


def _record_derived(stage: Stage, derived: Derived, coverage: Coverage) -> None:
    counts, opened = derived.counts, open_snapshot(derived.ref)
    stage.meter.wrote(sum(shard.bytes for shard in opened.shards))
    label.record_snapshot(stage.run, opened, "sequences")
    stage.run.metrics(
        {
            "prompts_total": float(counts["prompts"]),
            "prompts_reused": float(coverage.rows_reused + coverage.rows_quarantined),
            "prompts_left": float(counts["prompts_left"]),
            "prompts_quarantined": float(sum(counts["quarantined"].values())),
            "sequences_total": float(counts["sequences"]),
            "sequences_kept": float(counts["kept"]),
            "sequences_cut_off": float(counts["cut_off"]),
            "sequences_of_other_tokens": float(counts["other_tokens"]),
            "tokens_kept": float(counts["tokens_kept"]),
        }
    )
    stage.run.metrics(
        {f"dropped_{reason.replace(' ', '_')}": float(count) for reason, count in counts["dropped"].items()}
    )
    dropped = ", ".join(f"{count:,} {reason}" for reason, count in counts["dropped"].items()) or "none"
    console.report(
        f"write: {counts['kept']:,} of {counts['sequences']:,} sequences for {counts['prompts']:,} prompts are kept; "
        f"dropped: {dropped}",
        snapshot=derived.ref.url,
        dropped=counts["dropped"],
    )
    for reason, count in counts["quarantined"].items():
        console.report(f"write: {count:,} prompts went to quarantine: {reason}", quarantined=count)
    if counts["other_tokens"]:
        console.report(
            f"write: {counts['other_tokens']:,} of the kept sequences have other tokens after reading than the teacher "
            "wrote; their labels are the teacher's for the tokens after reading"
        )


def _settings(config: Campaign) -> SequencesConfig:
    if config.sequences is None:
        raise ConfigError(
            f"the campaign {config.campaign} has no section sequences: configure there how the teacher writes "
            "(sequences: {} uses every default), or label the snapshot as it is"
        )
    if wrong := get_task(config.task).refuse(config):
        raise ConfigError(f"{len(wrong)} wrong field(s)\n  " + "\n  ".join(wrong))
    return config.sequences


def key_of(config: Campaign, snapshot: SnapshotRef) -> str:
    """Return the key of everything that decides the written snapshot.

    The teacher's files count by name, size and time, to be cheap.
    """
    settings = {
        "snapshot": snapshot.fingerprint,
        "seed": config.seed,
        "task": config.task,
        "sequences": identity(_settings(config)),
        "teacher": identity(config.labels.teacher),
        "resources": identity(config.labels.resources),
        "frozen": identity(config.snapshot),
        "teacher_files": label.model_files(config.labels.teacher.model),
    }
    return fingerprint(movable(settings, config.output_url))
