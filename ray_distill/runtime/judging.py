"""Evaluate all models of a campaign on one node: the same rows, the same damage, the same minutes."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import torch

from ray_distill.artifacts import EvalReport, SnapshotRef, StudentRef
from ray_distill.config import Campaign, TeacherConfig
from ray_distill.errors import EvaluationError
from ray_distill.evaluation.efficiency import Runner, count_parameters, measure_efficiency
from ray_distill.evaluation.evaluate import Measured, Resampling, judge
from ray_distill.evaluation.predict import Predictor, predict_all, predictor
from ray_distill.evaluation.predictions import join_predictions
from ray_distill.evaluation.robustness import measure_robustness
from ray_distill.models.load import load_model
from ray_distill.models.model import Model
from ray_distill.snapshots.reader import open_snapshot
from ray_distill.storage import files
from ray_distill.tasks.base import Task
from ray_distill.tasks.catalogue import TASKS

#: Examples that requests and batches go round when models are timed.
TIMED_EXAMPLES = 256


@dataclass(frozen=True, kw_only=True)
class Judged:
    """The report, and the student's predictions on the test split that its plots are drawn from."""

    report: EvalReport
    predictions: pa.Table


def judge_students(
    config: Campaign, snapshot: SnapshotRef, students: Mapping[str, StudentRef], *, head_url: str | None,
    champion: StudentRef | None, url: str, threads: int,
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
        EvaluationError: the test split is empty or no model accepts its rows, or classes differ.
    """
    torch.set_num_threads(threads)
    task, opened = TASKS[config.task], open_snapshot(snapshot)
    columns = ["row_id", task.input_column, "label", "count", *config.snapshot.columns.slices]
    rows = opened.read("test", columns=columns)
    models = {"teacher": load_model(config.labels.teacher, task=config.task, head_url=head_url)}
    urls = {arm: ref.url for arm, ref in students.items()} | ({"champion": champion.url} if champion else {})
    for arm, place in urls.items():
        models[arm] = load_model(TeacherConfig(model=place, device=config.labels.teacher.device), task=config.task)
    sizes = {arm: _size(model, head_url if arm == "teacher" else None) for arm, model in models.items()}
    predictors = {arm: predictor(model, task, opened.classes, batch=config.evaluation.batch)
                  for arm, model in models.items()}
    return _judge(config, task, rows, predictors, sizes, students["student"], url)


def _judge(
    config: Campaign, task: Task, rows: pa.Table, predictors: Mapping[str, Predictor], sizes: Mapping[str, int],
    student: StudentRef, url: str,
) -> Judged:
    answers = predict_all(predictors, rows)
    rows = _accepted_by_all(rows, answers)
    slices, settings = config.snapshot.columns.slices, config.evaluation
    joined = {arm: join_predictions(rows, answer, teacher=answers["teacher"], slices=slices)
              for arm, answer in answers.items()}
    runners = {arm: _runner(one, rows, sizes[arm]) for arm, one in predictors.items()}
    efficiency = measure_efficiency(
        runners, examples=min(rows.num_rows, TIMED_EXAMPLES), requests=settings.latency_requests, batch=settings.batch)
    names = settings.corruptions if settings.corruptions is not None else tuple(task.corruptions)
    unknown = sorted(set(names) - set(task.corruptions))
    if unknown:
        raise EvaluationError(f"evaluation.corruptions: {task.name} has no {', '.join(unknown)}; it has "
                              f"{', '.join(sorted(task.corruptions))}")
    tried = {arm: one for arm, one in predictors.items() if arm in ("teacher", "student", "champion")}
    robustness = measure_robustness(
        rows, {name: task.corruptions[name] for name in names}, settings.severities, measure=task.measure,
        predict=lambda damaged: predict_all(tried, damaged), seed=config.seed, bootstrap=settings.bootstrap,
        bins=settings.bins)
    measured = {
        arm: Measured(url=one.model.url, predictions=joined[arm], efficiency=efficiency[arm],
                      robustness=robustness.get(arm, {}))
        for arm, one in predictors.items()}
    report = judge(
        measured, student=student, url=url, measure=task.measure, slices=slices,
        resampling=Resampling(seed=config.seed, bootstrap=settings.bootstrap, bins=settings.bins))
    return Judged(report=report, predictions=joined["student"])


def _accepted_by_all(rows: pa.Table, answers: Mapping[str, pa.Table]) -> pa.Table:
    """The rows that every model could answer, so that all are judged on the same."""
    for answer in answers.values():
        rows = rows.filter(pc.is_in(rows["row_id"], value_set=answer["row_id"].combine_chunks()))
    if not rows.num_rows:
        raise EvaluationError("no row of the test split is accepted by all models: nothing can be compared")
    return rows


def _runner(one: Predictor, rows: pa.Table, size: int) -> Runner:
    """A model over the first rows, encoded beforehand; what is timed is collation and the forward pass."""
    encoded = one.encode(rows.slice(0, TIMED_EXAMPLES))

    def run(index: npt.NDArray[np.int64]) -> object:
        return one.logits(encoded, index)

    device = str(next(one.model.module.parameters()).device)
    return Runner(run=run, parameters=count_parameters(one.model.module), bytes_on_disk=size, device=device)


def _size(model: Model, head_url: str | None) -> int:
    """Bytes a model's files take; of a ``module:function`` model, which has none, what its weights take."""
    if model.factory is not None and model.url == model.factory.name:
        return sum(tensor.numel() * tensor.element_size() for tensor in model.module.state_dict().values())
    return sum(item.size for url in (model.url, head_url) if url for item in files.list_files(url))
