"""Evaluate all models of a campaign on one node: same rows, same corruptions, same time."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc
import torch

from ray_distill.artifacts import Efficiency, EvalReport, SnapshotRef, StudentRef
from ray_distill.config import Campaign
from ray_distill.errors import ChangedModel, EvaluationError
from ray_distill.evaluation.measures.efficiency import Runner, count_parameters, further_rates, measure_efficiency
from ray_distill.evaluation.measures.intervals import Resampling
from ray_distill.evaluation.measures.robustness import Robustness, measure_robustness
from ray_distill.evaluation.predict.panel import SHOWN_ARMS, Extras, Panel, Timed
from ray_distill.evaluation.predict.texts import Written
from ray_distill.evaluation.report.assemble import Measured, judge
from ray_distill.labels.model.manifest import TeacherIdentity
from ray_distill.models.core.model import Model
from ray_distill.models.io.trained import load_labelling_teacher, load_trained
from ray_distill.promotion.chain import lost_champion
from ray_distill.redact import redact
from ray_distill.snapshots.reader import open_snapshot
from ray_distill.storage import files
from ray_distill.tasks.catalogue import get_task
from ray_distill.tasks.inputs.modality import Corruption

#: Examples that timing repeats in its requests and batches.
TIMED_EXAMPLES = 256


@dataclass(frozen=True, kw_only=True)
class Judged:
    """The report, the student's test predictions for the plots, and the texts that models wrote."""

    report: EvalReport
    predictions: pa.Table
    written: tuple[Written, ...] = ()


def judge_students(
    config: Campaign,
    snapshot: SnapshotRef,
    students: Mapping[str, StudentRef],
    *,
    labelled_by: TeacherIdentity,
    champion: StudentRef | None,
    url: str,
    threads: int,
    progress: Callable[[str, int, int], None] = lambda activity, done, total: None,
) -> Judged:
    """Measure teacher, students and champion on the test split.

    Args:
        config: the campaign.
        snapshot: the snapshot with the test split.
        students: by arm, ``student`` among them.
        labelled_by: the teacher as the label store names it, with its fitted head if it has one.
        champion: the model in production, None if there is none.
        url: URL at which the report will be written.
        threads: CPU threads of every model.
        progress: is called with the activity, the steps done and all steps.

    Raises:
        EvaluationError: the test split is empty or no model accepts its rows, or classes or tokens differ.
        ModelError: a prompt cannot be continued, or teacher or a student is not the one that labelled or was trained.
    """
    torch.set_num_threads(threads)
    refs = {**students, **({"champion": champion} if champion else {})}
    corruptions = requested_corruptions(config)
    steps = _Steps(report=progress, total=4 + len(corruptions) * len(config.evaluation.severities))
    models = _load(config, refs, labelled_by)
    sizes = {arm: size_of(model, labelled_by.head if arm == "teacher" else None) for arm, model in models.items()}
    opened = open_snapshot(snapshot)
    panel = panel_of(config, models, opened.classes)
    rows = opened.read("test", columns=[*panel.columns, *config.snapshot.test_slices])
    # First, so that an unusable prompt or benchmark fails before the measurements.
    extras = panel.task.answers.judge.extras(panel, rows, config)
    steps.done()
    measured = _measure(config, panel, rows, sizes=sizes, corruptions=corruptions, extras=extras, steps=steps)
    steps.done()
    report = judge(
        measured,
        task=config.task,
        student=students["student"],
        url=url,
        slices=config.snapshot.test_slices,
        names=opened.classes,
        how=Resampling.of(config),
    )
    return Judged(report=report, predictions=measured["student"].predictions, written=extras.written)


@dataclass(kw_only=True)
class _Steps:
    """Count the steps of an evaluation, which differ in length.

    They are models, answers, requests, corruptions and intervals.
    """

    report: Callable[[str, int, int], None]
    total: int
    finished: int = 0

    def done(self) -> None:
        """Count and report a finished step."""
        self.finished += 1
        self.report("evaluate", self.finished, self.total)


def _load(config: Campaign, refs: Mapping[str, StudentRef], labelled_by: TeacherIdentity) -> dict[str, Model]:
    teacher = config.labels.teacher
    models = {"teacher": load_labelling_teacher(teacher, labelled_by, task=config.task)}
    for arm, ref in refs.items():
        try:
            models[arm] = load_trained(ref, teacher, task=config.task)
        except ChangedModel as error:
            if arm == "champion":
                raise lost_champion(files.join(config.output_url, "promotion"), error) from error
            raise
    return models


def panel_of(config: Campaign, models: Mapping[str, Model], classes: tuple[str, ...]) -> Panel:
    """Return a panel of models of the campaign's task, which answers the same rows with each."""
    settings = config.evaluation
    return Panel(task=get_task(config.task), models=models, classes=classes, batch=settings.batch, bins=settings.bins)


def _measure(
    config: Campaign,
    panel: Panel,
    rows: pa.Table,
    *,
    sizes: Mapping[str, int],
    corruptions: Mapping[str, Corruption],
    extras: Extras,
    steps: "_Steps",
) -> dict[str, Measured]:
    """Return answers, costs and robustness by arm, on the rows that all models accept."""
    judging = panel.task.answers.judge
    answers = judging.answer(panel, rows, config.snapshot.test_slices)
    rows = rows.filter(pc.is_in(rows["row_id"], value_set=next(iter(answers.values()))["row_id"].combine_chunks()))
    steps.done()
    timed = judging.timed(panel, rows.slice(0, TIMED_EXAMPLES))
    efficiency = time_models(config, panel.models, timed, sizes)
    rates = further_rates(efficiency, timed.rates, timed.examples)
    robustness = _robustness(config, panel, rows, corruptions, steps=steps)
    return {
        arm: Measured(
            url=redact(model.url),
            predictions=answers[arm],
            efficiency=efficiency[arm],
            robustness=robustness.get(arm, {}),
            more={**rates[arm], **extras.figures.get(arm, {})},
        )
        for arm, model in panel.models.items()
    }


def requested_corruptions(config: Campaign) -> dict[str, Corruption]:
    """Return the corruptions that the config requests, by name.

    Raises:
        EvaluationError: there is none of a requested name.
    """
    task, requested = get_task(config.task), config.evaluation.corruptions
    possible = task.inputs.corruptions_of(config)
    if requested is None:
        return dict(task.answers.judge.default_corruptions(possible))
    unknown = sorted(set(requested) - set(possible))
    if unknown:
        raise EvaluationError(
            f"evaluation.corruptions: {config.task} has no {', '.join(unknown)}; it has "
            f"{', '.join(sorted(possible)) or 'none (for conversations)'}"
        )
    return {name: possible[name] for name in requested}


def _robustness(
    config: Campaign, panel: Panel, rows: pa.Table, corruptions: Mapping[str, Corruption], *, steps: "_Steps"
) -> dict[str, Robustness]:
    answers, shown = panel.task.answers, panel.only(SHOWN_ARMS)

    def answer(damaged: pa.Table) -> Mapping[str, pa.Table]:
        steps.done()
        return answers.judge.answer_damaged(shown, damaged)

    return measure_robustness(
        rows,
        corruptions,
        config.evaluation.severities,
        answer=answer,
        measure=answers.judge.measure,
        metrics=answers.robust,
        how=Resampling.of(config),
    )


def time_models(
    config: Campaign, models: Mapping[str, Model], timed: Timed, sizes: Mapping[str, int]
) -> dict[str, Efficiency]:
    """Time collation and forward pass of models in turns, by the campaign's settings."""
    settings = config.evaluation
    runners = {
        arm: Runner(
            run=run,
            parameters=count_parameters(models[arm].module),
            bytes_on_disk=sizes[arm],
            device=str(next(models[arm].module.parameters()).device),
        )
        for arm, run in timed.runs.items()
    }
    return measure_efficiency(
        runners, examples=timed.examples, requests=settings.latency_requests, batch=settings.batch
    )


def size_of(model: Model, head_url: str | None) -> int:
    """Return the bytes of a model's files; for a ``module:function`` model, of its weights."""
    if model.factory is not None and model.url == model.factory.name:
        return sum(tensor.numel() * tensor.element_size() for tensor in model.module.state_dict().values())
    return sum(item.size for url in (model.url, head_url) if url for item in files.list_files(url))
