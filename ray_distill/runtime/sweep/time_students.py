"""Measure size and speed of a sweep's students, in turns on one node, on validation rows."""

from collections.abc import Mapping

import torch

from ray_distill.artifacts import Efficiency, SnapshotRef, StudentRef
from ray_distill.config import Campaign
from ray_distill.fingerprint import fingerprint
from ray_distill.models.core.checkpoint_files import read_saved
from ray_distill.models.io.trained import load_trained
from ray_distill.runtime.stages.judge import TIMED_EXAMPLES, panel_of, size_of, time_models
from ray_distill.snapshots.reader import open_snapshot
from ray_distill.storage import files


def time_students(
    config: Campaign, snapshot: SnapshotRef, students: Mapping[str, StudentRef], *, threads: int
) -> dict[str, Efficiency]:
    """Time models in turns, as evaluation does.

    Args:
        config: the campaign.
        snapshot: the snapshot with the validation split.
        students: by name.
        threads: CPU threads of every model.

    Raises:
        EvaluationError: the models' classes or tokens differ, or they accept no row.
        ModelError: a model cannot be loaded.
    """
    torch.set_num_threads(threads)
    teacher = config.labels.teacher
    models = {name: load_trained(ref, teacher, task=config.task) for name, ref in students.items()}
    opened = open_snapshot(snapshot)
    panel = panel_of(config, models, opened.classes)
    rows = opened.read("validation", columns=panel.columns).slice(0, TIMED_EXAMPLES)
    sizes = {name: size_of(model, None) for name, model in models.items()}
    return time_models(config, models, panel.task.answers.judge.timed(panel, rows), sizes)


def shape_of(student: StudentRef) -> str:
    """Return the key of a student's architecture, however a trial's settings describe it."""
    saved = read_saved(student.url)
    config = files.join(student.url, "config.json")
    return fingerprint(
        {
            "config": files.read_json(config) if files.exists(config) else None,
            "function": saved.get("factory"),
            "language": [saved.get("language"), saved.get("max_length")],
        }
    )
