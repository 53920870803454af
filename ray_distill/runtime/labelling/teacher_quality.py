"""Compare the teacher with its floor and a trivial model, on the calibration split.

The check comes before labelling. `check_teacher` runs as one task on a node with the teacher's resources; only plain
values leave the task.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from ray_distill.artifacts import Estimate, SnapshotRef, StudentRef
from ray_distill.config import Campaign, CheckConfig
from ray_distill.config.labels import Floor
from ray_distill.errors import TeacherRefused
from ray_distill.evaluation.measures.intervals import Z95, Resampling
from ray_distill.evaluation.measures.power import deviation_of, rows_in_words, rows_needed
from ray_distill.evaluation.predict.panel import Panel
from ray_distill.models.core.model import Model
from ray_distill.models.io.load import load_model
from ray_distill.models.io.trained import load_trained
from ray_distill.snapshots.reader import Snapshot, open_snapshot
from ray_distill.tasks.catalogue import get_task
from ray_distill.text import estimate, has_interval

#: Classes that a message names; more are counted.
NAMED = 5


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
    present = None if champion is None else load_trained(champion, config.labels.teacher, task=config.task)
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
    wrong = [line for name, limit in floor.limits.items() for line in _missed(name, check, limit)]
    wrong += [
        f"{metric} {estimate(found)} does not exceed the {trivial:.4f} of always giving the commonest answer"
        for metric, found, trivial in _beside_trivial(check, floor)
        if not found.value > trivial and not _is_undecided(found, trivial)
    ]
    if wrong:
        raise TeacherRefused(
            f"the teacher {name} is below its floor on the calibration split: {'; '.join(wrong)}. "
            "Nothing was labelled; use a better teacher, or change labels.check"
        )


def doubts(check: TeacherCheck, floor: CheckConfig, *, rows: str, classes: Mapping[str, int]) -> list[str]:
    """Return one sentence for each part of a passed check that the split cannot decide.

    Args:
        check: what was measured.
        floor: the configured floor.
        rows: the units of the task's rows, as a plural noun.
        classes: labelled rows of the calibration split by class; empty where there are no classes.
    """
    found = [
        line for name, limit in floor.limits.items() for line in _doubt(name, check.teacher.get(name), limit, rows)
    ]
    found += [
        line
        for metric, measured, trivial in _beside_trivial(check, floor)
        for line in _doubt_about_majority(metric, measured, trivial, rows)
    ]
    unmeasured = sorted(check.trivial.keys() - check.teacher.keys()) if floor.beat_majority else []
    if unmeasured:
        found.append(
            f"whether the teacher beats the commonest answer is unknown for {', '.join(unmeasured)}, which the labels "
            "of the calibration split do not define"
        )
    absent = [name for name, count in classes.items() if not count]
    if absent and any(classes.values()):
        shown = ", ".join(absent[:NAMED]) + (f" and {len(absent) - NAMED} more" if len(absent) > NAMED else "")
        found.append(
            f"no {rows.removesuffix('s')} of the calibration split has {shown}: the check covers "
            f"{len(classes) - len(absent)} of {len(classes)} classes"
        )
    return found


def _beside_trivial(check: TeacherCheck, floor: CheckConfig) -> list[tuple[str, Estimate, float]]:
    """Return the metrics that are compared with those of the commonest answer."""
    if not floor.beat_majority:
        return []
    return [(name, check.teacher[name], value) for name, value in check.trivial.items() if name in check.teacher]


def _is_undecided(found: Estimate, trivial: float) -> bool:
    """Return whether even a faultless teacher would not beat this score beyond doubt.

    The lower end of Wilson's interval of n right answers out of n is ``n / (n + z²)``. One class in the whole split is
    the extreme case: nothing exceeds a score of 1.
    """
    return not math.isnan(found.value) and trivial >= found.n / (found.n + Z95**2)


def _doubt_about_majority(metric: str, found: Estimate, trivial: float, rows: str) -> Iterator[str]:
    if _is_undecided(found, trivial):
        yield (
            "whether the teacher beats the commonest answer cannot be decided: always giving that answer scores "
            f"{metric} {trivial:.4f} on {found.n} {rows} of the calibration split, and the teacher {estimate(found)}; "
            "label more rows of other classes there, or set labels.check.beat_majority: false"
        )
    elif found.low <= trivial:
        lead = found.value - trivial
        needed = rows_needed(deviation_of(found.value - found.low, found.n), lead)
        yield (
            f"the teacher's {metric} {estimate(found)} exceeds the {trivial:.4f} of the commonest answer, but not "
            f"beyond doubt on {found.n} {rows}: {rows_in_words(needed, rows)} would decide"
        )


def _doubt(name: str, found: Estimate | None, limit: Floor, rows: str) -> Iterator[str]:
    if found is None or not has_interval(found):
        return
    for bound, inside in ((limit.min, found.low), (limit.max, found.high)):
        if bound is None or (inside >= bound if bound == limit.min else inside <= bound):
            continue
        needed = rows_needed(deviation_of(abs(found.value - inside), found.n), found.value - bound)
        yield (
            f"the teacher's {name} {estimate(found)} keeps the floor of {bound:g}, but not beyond doubt on {found.n} "
            f"{rows}: {rows_in_words(needed, rows)} would decide"
        )


def _missed(name: str, check: TeacherCheck, limit: Floor) -> list[str]:
    found = check.teacher.get(name)
    if found is None:
        reason = "no row of the calibration split has a true label"
        if check.teacher or check.trivial:
            reason = "the labels of the calibration split do not define it; change splits, or remove the limit"
        return [f"{name} was not measured, because {reason}"]
    wrong = []
    if limit.min is not None and not found.value >= limit.min:
        wrong.append(
            f"{name} {found.value:.4f} is {limit.min - found.value:.4f} below the least {name} of {limit.min:g}"
            + _reaching(found, found.high >= limit.min)
        )
    if limit.max is not None and not found.value <= limit.max:
        wrong.append(
            f"{name} {found.value:.4f} is {found.value - limit.max:.4f} above the greatest {name} of {limit.max:g}"
            + _reaching(found, found.low <= limit.max)
        )
    return wrong


def _reaching(found: Estimate, reaches: bool) -> str:
    """Return a clause about an interval that reaches across the limit."""
    return (
        f" (but its interval {found.low:.4f} to {found.high:.4f} on {found.n} rows reaches across)" if reaches else ""
    )
