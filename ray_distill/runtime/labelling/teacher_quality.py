"""Compare the teacher with its floor and a trivial model, on the calibration split.

The check comes before labelling. `check_teacher` runs as one task on a node with the teacher's resources; only plain
values leave the task.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from ray_distill.artifacts import Estimate, SnapshotRef, StudentRef
from ray_distill.config import Campaign, CheckConfig
from ray_distill.config.labels import Floor
from ray_distill.errors import TeacherRefused
from ray_distill.evaluation.measures.intervals import Resampling
from ray_distill.evaluation.predict.panel import Panel
from ray_distill.models.core.model import Model
from ray_distill.models.io.load import load_model
from ray_distill.snapshots.reader import Snapshot, open_snapshot
from ray_distill.tasks.catalogue import get_task


@dataclass(frozen=True, kw_only=True)
class TeacherCheck:
    """Metrics of the teacher on the calibration split, beside trivial scores and the champion."""

    teacher: Mapping[str, Estimate]
    trivial: Mapping[str, float] = field(default_factory=dict)
    """Score of the train split's commonest answer, by metric where more is better; empty without truth."""
    champion: Mapping[str, Estimate] = field(default_factory=dict)


def check_teacher(
    config: Campaign, snapshot: SnapshotRef, head_url: str | None, champion: StudentRef | None
) -> TeacherCheck:
    """Measure the teacher, and the champion if there is one, on the calibration split."""
    opened = open_snapshot(snapshot)
    teacher = load_model(config.labels.teacher, task=config.task, head_url=head_url)
    present = None if champion is None else load_model(champion.url, task=config.task)
    panel = _alone(config, teacher, opened)
    return TeacherCheck(
        teacher=_measure(config, panel, opened),
        trivial=panel.task.answers.judge.trivial(panel, opened),
        champion={} if present is None else _measure(config, _alone(config, present, opened), opened),
    )


def _alone(config: Campaign, model: Model, opened: Snapshot) -> Panel:
    """Return a panel of one model, which answers in the batches of labelling."""
    return Panel(
        task=get_task(config.task),
        models={"model": model},
        classes=opened.classes,
        batch=config.labels.resources.batch,
        bins=config.evaluation.bins,
        reference=None,
    )


def _measure(config: Campaign, panel: Panel, opened: Snapshot) -> dict[str, Estimate]:
    judging = panel.task.answers.judge
    answers = judging.answer(panel, opened.read("calibration", columns=panel.columns))["model"]
    return judging.measure(answers, Resampling.of(config))


def refuse_weak_teacher(check: TeacherCheck, floor: CheckConfig, name: str) -> None:
    """Refuse a teacher below its floor before any labelling; pure.

    Raises:
        TeacherRefused: the teacher misses a floor; the message names each missed floor, and by how much.
    """
    wrong = [line for name, limit in floor.limits.items() for line in _missed(name, check.teacher.get(name), limit)]
    for metric, trivial in check.trivial.items() if floor.beat_majority else ():
        found = check.teacher.get(metric)
        if found is not None and not found.value > trivial:
            wrong.append(
                f"{metric} {found.value:.4f} does not exceed the {trivial:.4f} of always giving the commonest answer"
            )
    if wrong:
        raise TeacherRefused(
            f"the teacher {name} is below its floor on the calibration split: {'; '.join(wrong)}. "
            "Nothing was labelled; use a better teacher, or change labels.check"
        )


def _missed(name: str, found: Estimate | None, limit: Floor) -> list[str]:
    if found is None:
        return [f"{name} was not measured, because no row of the calibration split has a true label"]
    wrong = []
    if limit.min is not None and not found.value >= limit.min:
        wrong.append(
            f"{name} {found.value:.4f} is {limit.min - found.value:.4f} below the least {name} of {limit.min:g}"
        )
    if limit.max is not None and not found.value <= limit.max:
        wrong.append(
            f"{name} {found.value:.4f} is {found.value - limit.max:.4f} above the greatest {name} of {limit.max:g}"
        )
    return wrong
