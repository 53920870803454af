"""Refuse names that a campaign's task does not have, and limits that no value can meet.

The check reads the tables of the task alone, no file and no model, so every command can begin with it.
"""

from collections.abc import Iterable, Iterator, Mapping
from math import isfinite

from ray_distill.config import Campaign, Limit
from ray_distill.config.labels import Floor
from ray_distill.tasks.metrics import Metric, MetricTable
from ray_distill.tasks.task import Task
from ray_distill.text import ARM_NAMES, did_you_mean

#: The arm that a setting of the campaign adds.
_CEILING = "ceiling_true_labels"
#: A larger share of the teacher's value is a percentage.
_LARGEST_SHARE = 2.0


def unknown_names(config: Campaign, task: Task) -> list[str]:
    """Return one sentence for each unknown arm, corruption, or metric of the teacher's floor.

    Metrics of the gate are refused by its own rules (`ray_distill.promotion.rules.wrong_limits`).
    """
    return [
        *unknown_floors(config.labels.check.limits, task),
        *_wrong_floors(config.labels.check.limits, task),
        *unknown_arms("gate.beat", config.gate.beat, ceiling=config.student.ceiling is not None),
        *unknown_corruptions(config, task),
    ]


def unknown_metrics(field: str, names: Iterable[str], task: Task) -> list[str]:
    """Return one sentence for each metric that a report on the task's models never has.

    Args:
        field: dotted path of the mapping whose keys are ``names``.
        names: metrics, as the configuration names them.
        task: the campaign's.
    """
    answers = task.answers
    tables = MetricTable(metrics=(*answers.metrics.metrics, *answers.efficiency.metrics))
    return [_unknown(f"{field}.{name}", name, tables, task) for name in names if answers.find(name) is None]


def unknown_floors(names: Iterable[str], task: Task) -> list[str]:
    """Return one sentence for each metric that a teacher alone does not have."""
    table = MetricTable(metrics=[metric for metric in task.answers.metrics.metrics if not metric.of_teacher])
    return [
        _unknown(f"labels.check.limits.{name}", name, table, task)
        if task.answers.metrics.find(name) is None
        else f"labels.check.limits.{name}: it is measured against the teacher, which has none of its own; "
        f"a teacher has {', '.join(table.names)}"
        for name in names
        if table.find(name) is None
    ]


def wrong_bounds(field: str, metric: Metric, limit: Limit | Floor) -> Iterator[str]:
    """Yield one sentence for each number of a limit that cannot be meant.

    Args:
        field: dotted path of the limit.
        metric: what it limits.
        limit: the numbers.
    """
    low, high, width = metric.low, metric.high, metric.high - metric.low
    for kind in ("min", "max"):
        value = getattr(limit, kind)
        if value is not None and not low <= value <= high:
            span = f"lies between {low:g} and {high:g}" if isfinite(high) else f"is at least {low:g}"
            yield f"{field}.{kind} is {value:g}, and {metric.name} {span}{_as_share(value, high)}"
    for kind in ("margin", "teacher_margin"):
        value = getattr(limit, kind, None)
        if value is not None and isfinite(width) and value >= width:
            yield f"{field}.{kind} is {value:g}, which allows any {metric.name}{_as_share(value, high)}"
    share = getattr(limit, "relative", None)
    if share is not None and share > _LARGEST_SHARE:
        yield f"{field}.relative is {share:g} times the teacher's value{_as_share(share, 1.0)}"
    if limit.min is not None and limit.max is not None and limit.min > limit.max:
        yield f"{field}.min is {limit.min:g}, above its max {limit.max:g}: no value is between them"


def _as_share(value: float, high: float) -> str:
    """Return what to write for a percentage of a metric of at most 1."""
    return f": write {value / 100:g} for {value:g} %" if high == 1.0 and 1.0 < value <= 100.0 else ""


def _wrong_floors(limits: Mapping[str, Floor], task: Task) -> list[str]:
    table = task.answers.metrics
    found = [(name, table.find(name), limit) for name, limit in limits.items()]
    return [
        wrong
        for name, metric, limit in found
        if metric is not None
        for wrong in wrong_bounds(f"labels.check.limits.{name}", metric, limit)
    ]


def unknown_arms(field: str, names: Iterable[str], *, ceiling: bool) -> list[str]:
    """Return one sentence for each arm that the student of the campaign is never compared with."""
    known = [arm for arm in ARM_NAMES if arm != "student" and (ceiling or arm != _CEILING)]
    wrong = []
    for name in names:
        if name == _CEILING and not ceiling:
            wrong.append(f"{field}: {name} is trained where student.ceiling names the teacher's labelled rows: set it")
        elif name not in known:
            wrong.append(f"{field}: there is no arm {name!r}; there are {', '.join(known)}{did_you_mean(name, known)}")
    return wrong


def unknown_corruptions(config: Campaign, task: Task) -> list[str]:
    """Return one sentence for each corruption that the campaign's inputs cannot suffer."""
    known = sorted(task.inputs.corruptions_of(config))
    return [
        f"evaluation.corruptions: {config.task} has no {name!r}; it has {', '.join(known) or 'none'}"
        f"{did_you_mean(name, known)}"
        for name in config.evaluation.corruptions or ()
        if name not in known
    ]


def _unknown(field: str, name: str, table: MetricTable, task: Task) -> str:
    near = did_you_mean(name, [value for metric in table.metrics for value in metric.names])
    return f"{field}: {task.name} has no such metric; it has {', '.join(table.names)}{near}"
