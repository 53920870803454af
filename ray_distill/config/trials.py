"""Expand the section ``sweep`` into trials, each with its whole campaign."""

import json
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ray_distill.config.campaign import Campaign
from ray_distill.config.load import parse_config, put
from ray_distill.config.student import SIZED_FIELDS
from ray_distill.config.sweep import SweepConfig
from ray_distill.errors import ConfigError
from ray_distill.redact import redact, redacted

#: Settings that choose a model.
SIZES = ("student.size", "student.latency_ms")
#: Longest name of a trial.
NAME_LENGTH = 100


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One student to be tried."""

    number: int
    """From 1, in the order of the configuration: named trials, then the grid."""
    name: str
    changes: Mapping[str, Any]
    """Dotted path to value."""
    config: Campaign
    """The campaign with the changes, and without the sweep."""


def expand(config: Campaign) -> tuple[Trial, ...]:
    """Return all trials of a campaign, validated.

    Raises:
        ConfigError: there is no sweep, or trials are wrong: everything that is, at once, by path and trial.
    """
    if config.sweep is None:
        raise ConfigError(f"the campaign {config.campaign} has no section `sweep`: give it a grid, or trials")
    trials, wrong = [], WrongTrials()
    for number, (name, changes) in enumerate(_changes(config.sweep, config.seed), start=1):
        try:
            trials.append(Trial(number=number, name=name, changes=changes, config=_apply(config, changes)))
        except ConfigError as error:
            wrong.add(name, error)
    wrong.refuse(config.sweep.count)
    return tuple(trials)


class WrongTrials:
    """List errors of trials; the same error in many of them is reported once."""

    def __init__(self) -> None:
        self._lines: dict[str, list[str]] = {}

    def add(self, trial: str, error: Exception) -> None:
        """Note an error whose message has a line a mistake, after a heading or without one."""
        heading, *lines = str(error).split("\n  ")
        for line in lines or [heading]:
            self._lines.setdefault(line, []).append(trial)

    def lines(self) -> list[str]:
        """Return a line a mistake, with the trials that have it."""
        return [f"{line} ({_named(found)})" for line, found in self._lines.items()]

    def refuse(self, trials: int, others: Sequence[str] = ()) -> None:
        """Raise what was noted.

        Args:
            trials: how many the sweep has.
            others: mistakes of the sweep itself.

        Raises:
            ConfigError: something was.
        """
        names, messages = {name for found in self._lines.values() for name in found}, self.lines()
        if messages:
            raise ConfigError("\n  ".join([f"sweep: {len(names)} of {trials} trials are wrong", *others, *messages]))
        if others:
            raise ConfigError("\n  ".join([f"{len(others)} wrong field(s)", *others]))


def value_at(config: Campaign, path: str) -> Any:
    """Return the value of a campaign at a dotted path, or None."""
    value: Any = config.model_dump(mode="json", by_alias=True)
    for part in path.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value


def _apply(config: Campaign, changes: Mapping[str, Any]) -> Campaign:
    value = config.model_dump(mode="json", by_alias=True, exclude={"sweep"})
    if config.student.model.chosen_by is not None:
        value["student"]["model"] = _without_choice(value["student"]["model"], changes)
    for path, item in changes.items():
        put(value, path, item)
    return parse_config(value)


def _without_choice(model: dict[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return a model that a size chose, without what a trial replaces: its shape, or its facts."""
    if any(path in SIZES for path in changes):
        return {name: model[name] for name in SIZED_FIELDS}
    changed = any(path.startswith("student.model") for path in changes)
    return {**model, "chosen_by": None} if changed else model


def _changes(sweep: SweepConfig, seed: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """Name and changes of every trial."""
    for trial in sweep.trials:
        yield trial.name, dict(trial.set)
    chosen = range(sweep.combinations)
    if sweep.samples is not None:
        chosen = sorted(random.Random(seed).sample(chosen, sweep.samples))  # type: ignore[assignment]
    short, taken = _short_names(tuple(sweep.grid)), {trial.name for trial in sweep.trials}
    for index in chosen:
        changes = _combination(sweep.grid, index)
        name = ", ".join(_in_name(short[path], item, sweep.grid[path]) for path, item in changes.items())
        if len(name) > NAME_LENGTH or name in taken:
            name = f"{name[: NAME_LENGTH - 10]}… #{index + 1}"
        yield name, changes


def _combination(grid: Mapping[str, tuple[Any, ...]], index: int) -> dict[str, Any]:
    """Return a point of the grid by its place; the last path changes fastest."""
    found = {}
    for path in reversed(list(grid)):
        index, at = divmod(index, len(grid[path]))
        found[path] = grid[path][at]
    return {path: found[path] for path in grid}


def _short_names(paths: tuple[str, ...]) -> dict[str, str]:
    """Return the last parts of each path, as few as make it unique."""

    def tail(path: str, parts: int) -> str:
        return ".".join(path.split(".")[-parts:])

    found = {}
    for path in paths:
        parts = 1
        while any(tail(other, parts) == tail(path, parts) for other in paths if other != path):
            parts += 1
        found[path] = tail(path, parts)
    return found


def _in_name(name: str, item: Any, others: Sequence[Any]) -> str:
    """Return a value as the name of a trial shows it.

    Of a whole section only what differs from the ``others`` is shown.
    """
    if not isinstance(item, dict):
        return f"{name}={_shown(item)}"
    leaves = [leaves_of(other) for other in others if isinstance(other, dict)]
    own = {
        path: value
        for path, value in leaves_of(item).items()
        if any(path not in other or other[path] != value for other in leaves)
    }
    short = _short_names(tuple(dict.fromkeys(path for other in leaves for path in other)))
    return ", ".join(f"{short[path]}={_shown(value)}" for path, value in own.items()) or f"{name}={_shown(item)}"


def leaves_of(section: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    """Return the values of a section by dotted path."""
    found: dict[str, Any] = {}
    for name, value in section.items():
        if isinstance(value, dict) and value:
            found |= leaves_of(value, f"{before}{name}.")
        else:
            found[f"{before}{name}"] = value
    return found


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    return redact(value) if isinstance(value, str) else json.dumps(redacted(value), default=str)


def _named(names: list[str]) -> str:
    shown = ", ".join(f"'{name}'" for name in names[:2])
    more = f" and {len(names) - 2} more" if len(names) > 2 else ""
    return f"trial{'s' if len(names) > 1 else ''} {shown}{more}"
