"""Size and speed of a sweep's students, timed in turns on one node, on rows of the validation split."""

from collections.abc import Mapping

import pyarrow as pa
import pyarrow.compute as pc
import torch

from ray_distill.artifacts import Efficiency, SnapshotRef
from ray_distill.config import Campaign, TeacherConfig
from ray_distill.evaluation.measures.efficiency import measure_efficiency
from ray_distill.evaluation.predict.language_model import encode_for_all
from ray_distill.models.core.model import Model
from ray_distill.models.io.load import load_model
from ray_distill.runtime.stages.judge import TIMED_EXAMPLES, panel_of, runner_of, size_of
from ray_distill.snapshots.reader import open_snapshot
from ray_distill.tasks.catalogue import get_task


def time_students(
    config: Campaign, snapshot: SnapshotRef, urls: Mapping[str, str], *, threads: int
) -> dict[str, Efficiency]:
    """Time models in turns, as evaluation does.

    Args:
        config: the campaign.
        snapshot: whose validation split is used.
        urls: folders of students, by name.
        threads: CPU threads of every model.

    Raises:
        EvaluationError: the models answer other classes or tokens than each other, or accept no row.
        ModelError: one cannot be loaded.
    """
    torch.set_num_threads(threads)
    teacher = config.labels.teacher
    models = {
        name: load_model(TeacherConfig(model=url, device=teacher.device, language=teacher.language), task=config.task)
        for name, url in urls.items()
    }
    opened = open_snapshot(snapshot)
    panel = panel_of(config, models, opened.classes)
    rows = _accepted(config, models, opened.read("validation", columns=list(panel.columns)).slice(0, TIMED_EXAMPLES))
    runners = {
        name: runner_of(models[name], run, size_of(models[name], None)) for name, run in panel.runs(rows).items()
    }
    return measure_efficiency(
        runners, examples=rows.num_rows, requests=config.evaluation.latency_requests, batch=config.evaluation.batch
    )


def _accepted(config: Campaign, models: Mapping[str, Model], rows: pa.Table) -> pa.Table:
    """The rows that every model can answer."""
    if get_task(config.task).answers.per_token:
        known = [encode_for_all(models, rows, task=get_task(config.task)).row_ids]
    else:
        task = get_task(config.task)
        processors = {model.processor.fingerprint: model.processor for model in models.values()}
        known = [task.inputs.encode(rows, processor).row_ids for processor in processors.values()]
    for ids in known:
        rows = rows.filter(pc.is_in(rows["row_id"], value_set=ids))
    return rows
