"""Evaluate all models of a campaign on one node: the same rows, the same damage, the same minutes."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import pyarrow as pa
import pyarrow.compute as pc
import torch

from ray_distill.artifacts import Estimate, EvalReport, SnapshotRef, StudentRef
from ray_distill.config import Campaign, TeacherConfig
from ray_distill.errors import EvaluationError
from ray_distill.evaluation.measures.efficiency import Runner, count_parameters, measure_efficiency
from ray_distill.evaluation.measures.overlap import measure_overlap
from ray_distill.evaluation.measures.robustness import Robustness, measure_robustness
from ray_distill.evaluation.predict.generated_targets import measure_targets, write_targets
from ray_distill.evaluation.predict.harness import run_harness
from ray_distill.evaluation.predict.panels import ClassPanel, LanguagePanel, Panel, Run
from ray_distill.evaluation.predict.side_by_side import Written, choose_prompts, write_side_by_side
from ray_distill.evaluation.report.assemble import Measured, Resampling, judge
from ray_distill.models.core.model import Model
from ray_distill.models.io.load import load_model
from ray_distill.snapshots.reader import open_snapshot
from ray_distill.storage import files
from ray_distill.tasks.catalogue import get_task
from ray_distill.tasks.inputs.modality import Corruption

#: Examples that requests and batches go round when models are timed.
TIMED_EXAMPLES = 256
#: Whose quality on corrupted inputs and benchmarks is measured, and who continues prompts.
SHOWN_ARMS = ("teacher", "student", "champion")


@dataclass(frozen=True, kw_only=True)
class Judged:
    """The report, the student's predictions on the test split that its plots are drawn from, and what models wrote."""

    report: EvalReport
    predictions: pa.Table
    written: tuple[Written, ...] = ()


def judge_students(
    config: Campaign,
    snapshot: SnapshotRef,
    students: Mapping[str, StudentRef],
    *,
    head_url: str | None,
    champion: StudentRef | None,
    url: str,
    threads: int,
) -> Judged:
    """Measure teacher, students and champion on the test split.

    Args:
        config: the campaign.
        snapshot: whose test split is used.
        students: by arm, ``student`` among them.
        head_url: the teacher's fitted head, where it has one.
        champion: the model in production, None if there is none.
        url: where the report will be written.
        threads: CPU threads of every model.

    Raises:
        EvaluationError: the test split is empty or no model accepts its rows, or classes or tokens differ.
        ModelError: a prompt cannot be continued.
    """
    torch.set_num_threads(threads)
    urls = {arm: ref.url for arm, ref in students.items()} | ({"champion": champion.url} if champion else {})
    models = _load(config, urls, head_url)
    sizes = {arm: size_of(model, head_url if arm == "teacher" else None) for arm, model in models.items()}
    opened = open_snapshot(snapshot)
    panel = panel_of(config, models, opened.classes)
    rows = opened.read("test", columns=[*panel.columns, *config.snapshot.columns.slices])
    # First, so that a prompt or a task that cannot be used costs no measurement.
    written, benchmarks = _write(config, models, rows), _benchmark(config, models)
    return replace(_judge(config, panel, rows, sizes, students["student"], url, benchmarks), written=written)


def _load(config: Campaign, urls: Mapping[str, str], head_url: str | None) -> dict[str, Model]:
    teacher = config.labels.teacher
    models = {"teacher": load_model(teacher, task=config.task, head_url=head_url)}
    for arm, place in urls.items():
        spec = TeacherConfig(model=place, device=teacher.device, language=teacher.language)
        models[arm] = load_model(spec, task=config.task)
    return models


def panel_of(config: Campaign, models: Mapping[str, Model], classes: tuple[str, ...]) -> Panel:
    """Models of the campaign's task, ready to answer the same rows."""
    settings = config.evaluation
    if get_task(config.task).answers.per_token:
        return LanguagePanel(
            task=get_task(config.task),
            models=models,
            batch=settings.batch,
            bins=settings.bins,
            raw=config.labels.teacher.language.format == "text",
        )
    return ClassPanel(task=get_task(config.task), models=models, classes=classes, batch=settings.batch)


def _judge(
    config: Campaign,
    panel: Panel,
    rows: pa.Table,
    sizes: Mapping[str, int],
    student: StudentRef,
    url: str,
    benchmarks: Mapping[str, Mapping[str, Estimate]],
) -> Judged:
    slices, settings = config.snapshot.columns.slices, config.evaluation
    corruptions = _corruptions(config, panel)
    answers = panel.answer(rows, slices)
    rows = rows.filter(pc.is_in(rows["row_id"], value_set=answers["teacher"]["row_id"].combine_chunks()))
    timed = rows.slice(0, TIMED_EXAMPLES)
    runners = {arm: runner_of(panel.models[arm], run, sizes[arm]) for arm, run in panel.runs(timed).items()}
    efficiency = measure_efficiency(
        runners, examples=timed.num_rows, requests=settings.latency_requests, batch=settings.batch
    )
    robustness, speed = _robustness(config, panel, rows, corruptions), panel.speed(timed, efficiency)
    written = _written_targets(config, panel.models, rows)
    measured = {
        arm: Measured(
            url=model.url,
            predictions=answers[arm],
            efficiency=efficiency[arm],
            robustness=robustness.get(arm, {}),
            more={**speed.get(arm, {}), **benchmarks.get(arm, {}), **written.get(arm, {})},
        )
        for arm, model in panel.models.items()
    }
    report = judge(
        measured,
        task=config.task,
        student=student,
        url=url,
        measure=panel.measure,
        compare=panel.compare,
        slices=slices,
        resampling=Resampling(seed=config.seed, bootstrap=settings.bootstrap, bins=settings.bins),
    )
    return Judged(report=report, predictions=answers["student"])


def _written_targets(config: Campaign, models: Mapping[str, Model], rows: pa.Table) -> dict[str, dict[str, Estimate]]:
    """What models that write a target of a source make of some rows, beside the references: by arm."""
    settings = config.evaluation
    if config.task != "seq2seq" or not settings.written:
        return {}
    texts = write_targets(models, rows.slice(0, settings.written), task=get_task(config.task), batch=settings.batch)
    measures = (measure_targets, measure_overlap) if settings.overlap else (measure_targets,)
    return {
        arm: {
            name: found
            for measure in measures
            for name, found in measure(table, seed=config.seed, bootstrap=settings.bootstrap).items()
        }
        for arm, table in texts.items()
    }


def _write(config: Campaign, models: Mapping[str, Model], rows: pa.Table) -> tuple[Written, ...]:
    settings = config.evaluation
    if config.task != "causal_lm" or not settings.prompts:
        return ()
    shown = _shown(models)
    documents = rows[get_task(config.task).inputs.column]
    prompts = choose_prompts(shown, settings.prompts, documents, new_tokens=settings.new_tokens)
    return write_side_by_side(shown, prompts, new_tokens=settings.new_tokens)


def _benchmark(config: Campaign, models: Mapping[str, Model]) -> dict[str, dict[str, Estimate]]:
    settings = config.evaluation
    if config.task != "causal_lm" or settings.lm_eval is None:
        return {}
    return run_harness(_shown(models), settings.lm_eval, seed=config.seed, batch=settings.batch)


def _shown(models: Mapping[str, Model]) -> dict[str, Model]:
    return {arm: model for arm, model in models.items() if arm in SHOWN_ARMS}


def _corruptions(config: Campaign, panel: Panel) -> dict[str, Corruption]:
    """The corruptions that are wanted, by name."""
    wanted = config.evaluation.corruptions
    names = wanted if wanted is not None else tuple(panel.usual)
    unknown = sorted(set(names) - set(panel.corruptions))
    if unknown:
        raise EvaluationError(
            f"evaluation.corruptions: {config.task} has no {', '.join(unknown)}; it has "
            f"{', '.join(sorted(panel.corruptions)) or 'none (for conversations)'}"
        )
    return {name: panel.corruptions[name] for name in names}


def _robustness(
    config: Campaign, panel: Panel, rows: pa.Table, corruptions: Mapping[str, Corruption]
) -> dict[str, Robustness]:
    settings = config.evaluation
    return measure_robustness(
        rows,
        corruptions,
        settings.severities,
        measure=panel.measure,
        predict=lambda damaged: panel.answer_damaged(damaged, SHOWN_ARMS),
        join=lambda _, answers: answers,
        metrics=panel.robust,
        seed=config.seed,
        bootstrap=settings.bootstrap,
        bins=settings.bins,
    )


def runner_of(model: Model, run: Run, size: int) -> Runner:
    """A model over the first rows, encoded beforehand; what is timed is collation and the forward pass."""
    device = str(next(model.module.parameters()).device)
    return Runner(run=run, parameters=count_parameters(model.module), bytes_on_disk=size, device=device)


def size_of(model: Model, head_url: str | None) -> int:
    """Bytes a model's files take; of a ``module:function`` model, which has none, what its weights take."""
    if model.factory is not None and model.url == model.factory.name:
        return sum(tensor.numel() * tensor.element_size() for tensor in model.module.state_dict().values())
    return sum(item.size for url in (model.url, head_url) if url for item in files.list_files(url))
