"""Configure the trials of a sweep, their objective and their early stopping."""

import json
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from ray_distill.config.section import NOT_DECIDING, Section
from ray_distill.redact import is_secret

#: Settings that a trial may change: a student, the labels it learns from, or its seed. All others are equal, so that
#: trials can be compared.
CHANGEABLE = ("student", "labels", "seed")

#: Trials a sweep may have: each is a run, a line of every plot and a row of every table.
MOST_TRIALS = 1000


def check_path(path: str) -> str:
    """Validate a dotted path that a trial may change.

    Raises:
        ValueError: it is none.
    """
    first, *rest = path.split(".")
    if first not in CHANGEABLE or not all(rest) or (first == "seed") != (not rest):
        raise ValueError(
            f"{path!r} is not a dotted path below student or labels, nor seed: other sections are the same for all "
            "trials"
        )
    if is_secret(path):
        raise ValueError(f"{path!r} is a secret, which cannot differ between trials: they are named by what differs")
    return path


class TrialConfig(Section):
    """One trial by name."""

    name: str = Field(min_length=1, max_length=100, description="as runs, plots and tables show it")
    set: dict[str, Any] = Field(min_length=1, description="dotted path to value: student.…, labels.… or seed")

    @field_validator("set")
    @classmethod
    def _paths(cls, value: dict[str, Any]) -> dict[str, Any]:
        return {check_path(path): item for path, item in value.items()}


class StopConfig(Section):
    """Asynchronous successive halving in its stopping form (Li et al. 2020, arXiv 1810.05934).

    A trial that reaches a rung goes on only if it is among the best of all that have reached it so far.
    """

    rungs: tuple[Annotated[float, Field(gt=0, allow_inf_nan=False)], ...] = Field(
        min_length=1,
        description="epochs after which a trial is compared with the others, at its next validation "
        "(student.training.evaluate_every); increasing",
    )
    keep: float = Field(
        1 / 3,
        gt=0,
        lt=1,
        description="share of the trials at a rung that goes on, rounded up: the first to reach it always does",
    )

    @field_validator("rungs")
    @classmethod
    def _increasing(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if any(later <= earlier for earlier, later in zip(value, value[1:], strict=False)):
            raise ValueError("must increase")
        return value


class SweepConfig(Section):
    """Students to be compared: every combination of a grid, or some of them, and trials by name."""

    preset: Literal["auto"] | None = Field(
        None,
        description="auto: a handful of trials around the configured student, where a setting is likeliest to help, "
        "and a rule that stops hopeless ones; `sweep: auto` is short for it",
    )
    grid: dict[str, Annotated[tuple[Any, ...], Field(min_length=1)]] = Field(
        default_factory=dict, description="dotted path to the values it takes; a trial is a combination"
    )
    samples: int | None = Field(
        None, ge=1, description="take this many of the grid's combinations, drawn by the campaign's seed; default: all"
    )
    trials: tuple[TrialConfig, ...] = Field((), description="further trials, by name")
    objective: str | None = Field(
        None,
        pattern=r"^validation_\w+$",
        description="number on the validation split by which trials are compared; never of the test split. "
        "Default: what students are judged by, NLL on true labels, or KL from the teacher where too few rows have one",
    )
    stop: StopConfig | None = Field(None, description="when a trial is hopeless; default: all are trained to their end")
    max_concurrent: int | None = Field(
        None,
        ge=1,
        description="trials at once; default: as many as fit the cluster, each taking "
        "student.training.workers × (cpus, gpus)",
        json_schema_extra=NOT_DECIDING,
    )

    @field_validator("grid")
    @classmethod
    def _grid(cls, value: dict[str, tuple[Any, ...]]) -> dict[str, tuple[Any, ...]]:
        for path, items in value.items():
            check_path(path)
            known = set[str]()
            for item in items:
                if (key := _key(item)) in known:
                    raise ValueError(f"{path} has the value {item!r} twice")
                known.add(key)
        return value

    @model_validator(mode="after")
    def _some(self) -> Self:
        if not self.grid and not self.trials and self.preset is None:
            raise ValueError("needs a grid or trials, or preset: auto")
        if self.samples is not None and self.samples > self.combinations:
            raise ValueError(f"samples is {self.samples}, but the grid has {self.combinations} combinations")
        if self.count > MOST_TRIALS:
            raise ValueError(f"{self.count} trials are more than {MOST_TRIALS}: set samples, or leave values out")
        names = [trial.name for trial in self.trials]
        if len(set(names)) < len(names):
            raise ValueError(f"two trials have the name {next(name for name in names if names.count(name) > 1)!r}")
        return self

    @property
    def combinations(self) -> int:
        """Combinations of the grid; 0 without one."""
        total = 1 if self.grid else 0
        for values in self.grid.values():
            total *= len(values)
        return total

    @property
    def count(self) -> int:
        """How many trials there are."""
        return len(self.trials) + (self.combinations if self.samples is None else self.samples)


def _key(item: Any) -> str:
    """Return a text that equal values share; True, 1 and 1.0 are three values."""
    return json.dumps(item, sort_keys=True, default=str)
