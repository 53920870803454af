"""Models that are judged together, and results of a family's `judge` facet beside answers."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from ray_distill.artifacts import Estimate
from ray_distill.evaluation.predict.texts import Written
from ray_distill.models.core.model import Model
from ray_distill.tasks.task import Task

#: Answers the examples of the given indices as one batch: inputs encoded beforehand, collation included.
Run = Callable[[npt.NDArray[np.int64]], object]
#: Arms that are measured on corrupted inputs and benchmarks, and that continue prompts.
SHOWN_ARMS = ("teacher", "student", "champion")


@dataclass(frozen=True, kw_only=True)
class Panel:
    """Models of one task that answer the same rows."""

    task: Task
    models: Mapping[str, Model]
    """Models by arm; of models that share their tokens the first one's processor encodes for all."""
    classes: tuple[str, ...] = ()
    """Names of what is answered, in the snapshot's order; empty where answers have no names."""
    batch: int
    """Examples a batch at most."""
    bins: int
    """Bins of the calibration histogram."""
    reference: str | None = "teacher"
    """The arm that the others are compared with; None to measure each alone."""

    @property
    def columns(self) -> list[str]:
        """Columns of a snapshot that the models' answers are made and measured from."""
        return ["row_id", self.task.inputs.column, *self.task.answers.judge.COLUMNS, "count"]

    def only(self, arms: Iterable[str]) -> "Panel":
        """Return a panel of some of the arms, in the same order."""
        return replace(self, models={arm: model for arm, model in self.models.items() if arm in arms})


@dataclass(frozen=True, kw_only=True)
class Timed:
    """Models over the same encoded examples, ready to be timed."""

    runs: Mapping[str, Run]
    """Keyed by arm."""
    examples: int
    """Number of examples that the runs can be called with: those that all models accept."""
    rates: Mapping[str, float] = field(default_factory=dict)
    """Further rates, as units an example: ``{"tokens_per_second": mean tokens of an example}``."""


@dataclass(frozen=True, kw_only=True)
class Extras:
    """Results of a family beside its answers.

    They are benchmarks, continued prompts and generated targets.
    """

    figures: Mapping[str, Mapping[str, Estimate]] = field(default_factory=dict)
    """Further metrics by arm."""
    written: tuple[Written, ...] = ()
    """Texts that the models wrote side by side."""
