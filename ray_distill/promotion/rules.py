"""List the rules of a gate: the defaults of the task's answers with the configured changes.

``gate.limits`` adds to the defaults by metric: a metric that it names has the limits given there, ``null`` leaves a
metric without any, and all other metrics keep their defaults.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from ray_distill.config import GateConfig, Limit
from ray_distill.config.identity import identity
from ray_distill.fingerprint import fingerprint
from ray_distill.tasks.catalogue import get_task
from ray_distill.tasks.known_names import unknown_metrics, wrong_bounds
from ray_distill.tasks.metrics import Metric

Kind = Literal["min", "max", "relative", "teacher_margin", "margin"]
KINDS: tuple[Kind, ...] = ("min", "max", "relative", "teacher_margin", "margin")
#: Kinds that compare a model with the teacher, and with any other model.
_WITH_TEACHER: tuple[Kind, ...] = ("relative", "teacher_margin")
_WITH_A_MODEL: tuple[Kind, ...] = (*_WITH_TEACHER, "margin")


@dataclass(frozen=True, kw_only=True)
class Rule:
    """One limit of one metric."""

    metric: str
    kind: Kind
    limit: float


def rules_of(gate: GateConfig, task: str) -> tuple[Rule, ...]:
    """Return the rules in force: the defaults' metrics first, then those of the configuration."""
    return tuple(
        Rule(metric=name, kind=kind, limit=value)
        for name, limit in limits_of(gate, task).items()
        for kind in KINDS
        if (value := getattr(limit, kind)) is not None
    )


def limits_of(gate: GateConfig, task: str) -> Mapping[str, Limit]:
    """Return the limits in force by metric: the defaults, with the configuration's changes."""
    merged: dict[str, Limit | None] = {**get_task(task).answers.limits, **gate.limits}
    return {name: limit for name, limit in merged.items() if limit is not None}


def gate_fingerprint(gate: GateConfig, task: str) -> str:
    """Return the fingerprint of a gate's rules, without the place of publication."""
    # The default limits are rules too: if they change, verdicts are computed again.
    limits = {name: identity(limit) for name, limit in limits_of(gate, task).items()}
    return fingerprint({**identity(gate), "limits": limits})


def in_words(limit: Limit) -> str:
    """Return a limit as a phrase: ``relative 0.97, margin 0.01``."""
    values = {kind: getattr(limit, kind) for kind in KINDS}
    return ", ".join(f"{kind} {value:g}" for kind, value in values.items() if value is not None)


def changed_defaults(gate: GateConfig, task: str) -> str:
    """Return a sentence without full stop about default limits that are not in force, if any."""
    defaults = get_task(task).answers.limits
    changed = {name: limit for name, limit in gate.limits.items() if name in defaults and limit != defaults[name]}
    if not changed:
        return ""
    found = [
        f"{name} ({in_words(defaults[name])}{'' if limit is None else f'; now {in_words(limit)}'})"
        for name, limit in changed.items()
    ]
    return f"gate.limits sets aside the default limits of {' and '.join(found)}"


def wrong_limits(gate: GateConfig, task: str) -> list[str]:
    """Return one sentence for each limit that does not apply, or that no value can meet."""
    answers = get_task(task).answers
    wrong = unknown_metrics("gate.limits", gate.limits, get_task(task))
    for name, limit in gate.limits.items():
        known = answers.find(name)
        if known is not None and limit is not None:
            wrong += [*_wrong_kinds(known, name, limit), *wrong_bounds(f"gate.limits.{name}", known, limit)]
    return wrong


def _wrong_kinds(known: Metric, name: str, limit: Limit) -> Iterator[str]:
    given = [kind for kind in KINDS if getattr(limit, kind) is not None]
    if known.higher_is_better is None and any(kind in _WITH_A_MODEL for kind in given):
        yield (
            f"gate.limits.{name}: {', '.join(_WITH_A_MODEL)} compare with another model, but {name} is best at 0: "
            "use min or max"
        )
    elif known.of_teacher and any(kind in _WITH_TEACHER for kind in given):
        yield (
            f"gate.limits.{name}: {name} is itself a comparison with the teacher, so {' and '.join(_WITH_TEACHER)} "
            "mean nothing: use min, max or margin"
        )
