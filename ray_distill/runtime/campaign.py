"""The stages of a campaign, each a plain function from references and a config to a reference; and all of them.

    snapshot ─► (write) ─► label ─► train ─► evaluate ─► promote

Every stage asks first whether it has been done with the same inputs. So a campaign that was stopped anywhere is
run again with the same command, and goes on where it was.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from importlib.util import find_spec

from ray_distill.artifacts import Artifact, Decision, EvalReport, LabelSetRef, SnapshotRef, StudentRef
from ray_distill.config import Campaign
from ray_distill.errors import ConfigError, ModelError
from ray_distill.evaluation.cost import CostReport
from ray_distill.evaluation.directions import LANGUAGE_TASKS, decisive
from ray_distill.fingerprint import fingerprint
from ray_distill.models.factory import import_factory, is_factory
from ray_distill.promotion.gate import limits_of
from ray_distill.runtime import evaluate_stage, label_stage, promote_stage, train_stage, write_stage
from ray_distill.runtime.console import say
from ray_distill.runtime.freezing import freeze
from ray_distill.runtime.relabelling import RelabelReport, relabel_source
from ray_distill.runtime.session import Session, session
from ray_distill.snapshots.reader import open_snapshot
from ray_distill.snapshots.sources import describe_sources
from ray_distill.storage import files
from ray_distill.students.terms import build_terms
from ray_distill.tasks.catalogue import TASKS, TOKEN_TASKS, get_label_task
from ray_distill.teachers.vllm_limits import refuse_labels


@dataclass(frozen=True, kw_only=True)
class CampaignResult(Artifact):
    """Everything a campaign made, by reference, and the facts a reader wants first."""

    snapshot: SnapshotRef
    """What was labelled: the frozen source, or what the teacher wrote from it."""
    labels: LabelSetRef
    students: dict[str, StudentRef]
    report: EvalReport
    decision: Decision
    costs: CostReport
    labelled: dict[str, float]
    """``rows``, ``bytes`` and ``rows_per_second`` of the label store."""
    tracking_uri: str
    run_id: str
    review: str
    """Address at which the runs are looked at, once the tracking UI runs."""


def snapshot(config: Campaign) -> SnapshotRef:
    """Freeze the configured source; see `take_snapshot`."""
    with session(config) as held:
        return _snapshot(held)


def write(config: Campaign, snapshot: SnapshotRef) -> SnapshotRef:
    """Let the teacher write behind the prompts of a snapshot; the snapshot of what is kept is then labelled.

    Raises:
        ConfigError: the campaign has no section ``sequences``.
        LabelError: too many prompts got no answer, or the teacher or the scorer fails.
        SnapshotError: the filters leave nothing of a split.
    """
    with session(config) as held:
        return write_stage.write(held, snapshot)


def label(config: Campaign, snapshot: SnapshotRef) -> LabelSetRef:
    """Let the teacher label what the store does not hold yet.

    Raises:
        TeacherRefused: the teacher is below its floor; nothing was labelled.
        StoreMismatch: the store was made for another teacher or signal.
    """
    with session(config) as held:
        return label_stage.label(held, snapshot)


def train(config: Campaign, labels: LabelSetRef, *, resume: bool = True) -> dict[str, StudentRef]:
    """Train the student and its baselines from stored labels; by arm.

    Args:
        config: the campaign.
        labels: what `label` returned.
        resume: go on from finished arms and checkpoints; False forgets them.
    """
    with session(config) as held:
        return train_stage.train(held, labels, resume=resume)


def evaluate(config: Campaign, students: Mapping[str, StudentRef]) -> EvalReport:
    """Judge the student beside teacher, baselines and champion on the test split."""
    with session(config) as held:
        return evaluate_stage.evaluate(held, students)


def promote(config: Campaign, report: EvalReport) -> Decision:
    """Decide, record the decision, register the student and, on PROMOTE, point the alias at it."""
    with session(config) as held:
        return promote_stage.promote(held, report)


def relabel(config: Campaign, source: str | None = None) -> RelabelReport:
    """Label the new rows of newer traffic, and say whether it has drifted from the campaign's snapshot.

    Args:
        config: the campaign; its snapshot must have been labelled.
        source: file, folder or glob of the newer traffic; default: ``snapshot.source`` read again.
    """
    with session(config) as held:
        return relabel_source(held, source)


def run(config: Campaign) -> CampaignResult:
    """The whole way; stages that are done already are skipped, and said to be."""
    check(config)
    with session(config) as held:
        frozen = _snapshot(held)
        if config.sequences is not None:
            frozen = write_stage.write(held, frozen)
        labels = label_stage.label(held, frozen)
        students = train_stage.train(held, labels, resume=True)
        report = evaluate_stage.evaluate(held, students)
        decision = promote_stage.promote(held, report)
        return CampaignResult(
            snapshot=frozen, labels=labels, students=students, report=report, decision=decision,
            costs=evaluate_stage.campaign_costs(held, report), labelled=label_stage.store_facts(held, labels),
            tracking_uri=held.tracker.uri, run_id=held.parent.run_id,
            review=held.tracker.review_url(held.parent.run_id))


def check(config: Campaign) -> None:
    """Refuse now what training or evaluation would refuse when the teacher has been paid for.

    Raises:
        ConfigError: everything that is wrong, at once.
        TeacherRefused: what the teacher's engine cannot give, at once.
    """
    labels, wrong = config.labels, []
    for name, loss in config.student.losses.items():
        try:
            if name == "hidden" and not labels.hidden.layers:
                raise ConfigError("student.losses.hidden: no hidden states will be stored; set labels.hidden.layers")
            if loss.divergence != "forward_kl" and labels.signal.estimator in ("sampled", "hybrid"):
                raise ConfigError(
                    f"student.losses.{name}.divergence: {loss.divergence} needs dense or topk labels, the estimator is "
                    f"{labels.signal.estimator}: of draws only forward_kl is unbiased, as it alone is linear in p")
            # Which layers pair up is known with the student; any pair will do to check the rest.
            build_terms({name: loss}, steps=1, temperatures=labels.signal.temperatures, layers={0: 0})
        except ConfigError as error:
            wrong.append(str(error))
    known = _corruptions(config)
    wrong += [f"evaluation.corruptions: {config.task} has no {name!r}; it has {', '.join(sorted(known)) or 'none'}"
              for name in config.evaluation.corruptions or () if name not in known]
    wrong += _unlike_task(config)
    if config.sequences is not None and config.sequences.filters.scorer is not None:
        try:
            import_factory(config.sequences.filters.scorer)
        except ModelError as error:
            wrong.append(f"sequences.filters.scorer: {error}")
    if not is_factory(labels.teacher.model) and not files.exists(labels.teacher.model):
        wrong.append(f"labels.teacher.model: {labels.teacher.model} does not exist; give a checkpoint's folder or URL, "
                     "or module:function")
    if wrong:
        raise ConfigError(f"{len(wrong)} wrong field(s)\n  " + "\n  ".join(wrong))
    refuse_labels(labels, task=config.task)


def _corruptions(config: Campaign) -> Collection[str]:
    """What evaluation can do to inputs; a conversation must stay what it is."""
    if config.task not in LANGUAGE_TASKS:
        return TASKS[config.task].corruptions
    return TOKEN_TASKS[config.task].corruptions if config.labels.teacher.language.format == "text" else ()


def _unlike_task(config: Campaign) -> list[str]:
    """Settings that go with another kind of task."""
    labels, student, written = config.labels, config.student, config.task == "seq2seq"
    if (config.snapshot.columns.target is not None) != written:
        return [f"snapshot.columns.target: {config.task} " + (
            "needs the column of what is to be written" if written else "writes no targets; leave it out")]
    if config.task not in LANGUAGE_TASKS:
        return [f"{name}: only language models have it, and {config.task} is none; leave it out" for name, given in (
            ("student.training.packed", student.training.packed), ("student.model.lora", student.model.lora)) if given]
    named = (("labels.teacher.head", labels.teacher.head), ("student.ceiling", student.ceiling),
             ("snapshot.classes", config.snapshot.classes), ("snapshot.columns.label", config.snapshot.columns.label))
    wrong = [f"{name}: {config.task} has no classes; leave it out" for name, given in named if given]
    wrong += _of_one_kind(config)
    if "hidden" in student.losses and labels.hidden.pool != "token":
        wrong.append(f"labels.hidden.pool is {labels.hidden.pool}: a language model's states are matched token by "
                     "token; set it to token, or leave student.losses.hidden out")
    return wrong


def _of_one_kind(config: Campaign) -> list[str]:
    """Settings that go with one kind of language model alone."""
    settings = config.labels.teacher.language
    if config.task != "seq2seq":
        return [f"labels.teacher.language.{name}: {config.task} has no sources and targets; leave it out"
                for name in ("prefix", "target_length") if getattr(settings, name)]
    wrong = []
    if settings.format != "text":
        wrong.append("labels.teacher.language.format: a source and its target are texts, not a conversation: leave it "
                     "out, or take the task causal_lm")
    wrong += [f"evaluation.{name}: seq2seq models write targets of sources, and go on from no prompt; leave it out"
              for name in ("prompts", "lm_eval") if getattr(config.evaluation, name)]
    if config.evaluation.overlap and not all(map(find_spec, ("sacrebleu", "rouge_score"))):
        wrong.append("evaluation.overlap: ROUGE and chrF need optional packages: pip install 'ray-distill[seq2seq]'")
    if config.student.training.packed:
        wrong.append("student.training.packed: an encoder reads one source a row, and a decoder looks at all of it, so "
                     "rows cannot be put together: leave it out")
    return wrong


def plan(config: Campaign) -> list[str]:
    """What `run` would do, without doing it: a line a stage."""
    check(config)
    task, language = get_label_task(config.task), config.task in LANGUAGE_TASKS
    damages = config.evaluation.corruptions if config.evaluation.corruptions is not None or language else tuple(
        _corruptions(config))
    sources = describe_sources(config.snapshot)
    training = config.student.training
    lines = [
        f"snapshot  {len(sources)} source file(s) of {task.input_column} → {config.output_url}/snapshots",
        *_plan_writing(config),
        f"label     {config.labels.teacher.model}, {config.labels.signal.estimator}, "
        f"T {', '.join(f'{t:g}' for t in config.labels.signal.temperatures)} → {config.store_url}",
        f"train     {', '.join(train_stage.arms(config))}: {training.workers} × {training.engine} ZeRO "
        f"{training.zero_stage}, {training.precision} → {config.output_url}/students",
        f"evaluate  test split, {len(damages or ())} corruptions × {len(config.evaluation.severities)} severities",
        f"promote   {', '.join(limits_of(config.gate, decisive(config.task)))}; alias {config.gate.alias}"]
    return [*lines, f"record    {config.tracking.uri or 'SQLite beside the output'}"]


def _plan_writing(config: Campaign) -> list[str]:
    settings = config.sequences
    if settings is None:
        return []
    return [f"write     {config.labels.teacher.model}, {settings.method}, {settings.candidates} for a prompt of "
            f"{' and '.join(settings.splits)}, up to {settings.new_tokens} tokens, keep {settings.keep} → "
            f"{config.output_url}/sequences"]


def snapshot_key(config: Campaign) -> str:
    """Everything that decides a snapshot; the sources' files by name, size and time, to be cheap."""
    return fingerprint({
        "config": config.snapshot.model_dump(mode="json", exclude={"source", "exclude"}), "seed": config.seed,
        "task": config.task, "sources": describe_sources(config.snapshot)})


def _snapshot(held: Session) -> SnapshotRef:
    config = held.config
    key = snapshot_key(config)
    done = held.done("snapshot", key)
    if done is not None and files.exists(files.join(done["url"], "snapshot.json")):
        ref = SnapshotRef.from_dict(done)
        say(f"snapshot: already taken, skipped ({ref.url})", skipped="snapshot")
        return ref
    with held.stage("snapshot") as stage:
        ref = freeze(config)
        opened = open_snapshot(ref)
        stage.meter.wrote(sum(shard.bytes for shard in opened.shards))
        say(opened.summary(), snapshot=ref.url)
        label_stage.record_snapshot(stage.run, opened, "snapshot")
        stage.run.metrics({f"{name}_rows": float(part.rows) for name, part in opened.manifest.splits.items()})
        stage.run.metrics({"quarantined_rows": float(opened.manifest.rows.quarantined)})
    held.finish("snapshot", key, ref.to_dict())
    return ref
