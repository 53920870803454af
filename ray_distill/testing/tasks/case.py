"""A task with all that its checks need."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa

from ray_distill.config import Campaign
from ray_distill.evaluation.measures.intervals import Resampling
from ray_distill.evaluation.predict.panel import Panel
from ray_distill.models.core.model import Model
from ray_distill.tasks.encoded import Encoded
from ray_distill.tasks.inputs.modality import Processor
from ray_distill.tasks.task import Task

#: (model, requests as they are served, their parameters) -> the answers by column that a server must give.
Answered = Callable[[Model, Sequence[Any], Mapping[str, Any]], Mapping[str, Sequence[Any]]]


@dataclass(frozen=True, kw_only=True)
class TaskCase:
    """A task, two small models of it, and rows that they read."""

    task: Task
    teacher: Model
    student: Model
    """Another model with the same processor; `save_model` can save it."""
    rows: pa.Table
    """At least six usable rows: ``row_id``, the input column, and the columns of the truth where there are some. There,
    at least two rows have a truth, and at least two have none."""
    config: Campaign
    """A campaign of the task that nothing is wrong with; its labels, losses and training settings are used."""
    classes: tuple[str, ...] = ()
    """Class names of the snapshot, in its order; empty where answers have no names."""
    requests: tuple[str | bytes, ...]
    """At least two requests, as they are sent to a served student."""
    params: Mapping[str, Any] = field(default_factory=dict)
    """Parameters of the requests; default: those of the family."""
    answered: Answered
    """The student's own answers to requests, with which those of the served student are compared."""

    @property
    def processor(self) -> Processor:
        """The processor of both models."""
        return self.teacher.processor

    @property
    def encoded(self) -> Encoded:
        """The rows as features."""
        return self.task.inputs.encode(self.rows, self.processor)

    @cached_property
    def counted(self) -> pa.Table:
        """The rows as evaluation reads them: each with a ``count``, which differ."""
        counts = np.arange(self.rows.num_rows, dtype=np.int64) % 3 + 1
        return self.rows.append_column("count", pa.array(counts))

    @cached_property
    def answers(self) -> dict[str, pa.Table]:
        """The answers of teacher and student to the rows, as they are measured."""
        return self.task.answers.judge.answer(self.panel(), self.counted)

    @property
    def how(self) -> Resampling:
        """Resampling with few resamples."""
        return Resampling(seed=self.config.seed, bootstrap=20, bins=self.config.evaluation.bins)

    def panel(self, reference: str | None = "teacher", **models: Model) -> Panel:
        """Return a panel of some models; default: teacher and student."""
        return Panel(
            task=self.task,
            models=models or {"teacher": self.teacher, "student": self.student},
            classes=self.classes,
            batch=2,
            bins=self.config.evaluation.bins,
            reference=reference,
        )
