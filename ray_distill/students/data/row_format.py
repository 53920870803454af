"""Match rows that are answered once, over named classes, with their labels.

A row is one position; classes are matched by name.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

import numpy as np

from ray_distill.errors import ConfigError, TrainingError
from ray_distill.labels.model.distributions import Distributions
from ray_distill.labels.model.manifest import StoreManifest
from ray_distill.labels.model.ragged import RaggedArray
from ray_distill.labels.model.signal import DISTRIBUTIONS, Signal
from ray_distill.models.core.model import Model
from ray_distill.students.data.answer_format import StateLayout
from ray_distill.students.order.cursor import Index
from ray_distill.tasks.encoded import Batch, Encoded
from ray_distill.tasks.task import Task


@dataclass(frozen=True, kw_only=True)
class RowFormat:
    """Rows that are answered once, over named classes, which are matched by name.

    A family of answers adds ``truth`` and ``sampling_classes``; see `AnswerFormat`.
    """

    task: Task
    student_classes: tuple[str, ...]
    """In the order of the student's logits."""
    store_classes: tuple[str, ...]
    """In which the labels count."""
    snapshot_classes: tuple[str, ...]
    """In which the snapshot's ``label`` counts."""
    states: StateLayout = "row"
    truth_columns: tuple[str, ...] = ("label",)

    @classmethod
    def of(cls, *, task: Task, model: Model, manifest: StoreManifest, snapshot_classes: tuple[str, ...]) -> Self:
        """Return the format of a source's rows; see `LearnFacet.answer_format`."""
        return cls(
            task=task,
            student_classes=model.classes,
            store_classes=manifest.space.names,
            snapshot_classes=snapshot_classes,
            states="sequence" if manifest.pool == "token" else "row",
        )

    def positions(self, encoded: Encoded) -> RaggedArray:
        """Return position 0 of each row."""
        return self.task.answers.store.positions(encoded)

    def align(self, signal: Signal, stored: Index, encoded: Encoded, answered: RaggedArray) -> Signal:
        """Return the labels over the student's classes; see `AnswerFormat`.

        Raises:
            ConfigError: the labels have other classes, or states of other tokens.
            TrainingError: the labels have several positions a row.
        """
        if self.states == "sequence":
            _check_tokens(signal, stored, encoded)
        if DISTRIBUTIONS not in signal.parts:
            return signal
        return signal.with_parts({DISTRIBUTIONS: self._over_students(signal.distributions)})

    def collate(self, encoded: Encoded, rows: Index) -> tuple[Batch, None]:
        """Return the model inputs; the model answers once a row."""
        return self.task.inputs.collate(encoded, rows), None

    def snapshot_to_student(self) -> Index:
        """Return for each class of the snapshot its index among the student's.

        Raises:
            ConfigError: the snapshot has a class that the student does not have.
        """
        return remap(self.snapshot_classes, self.student_classes, "the snapshot")

    def _over_students(self, found: Distributions) -> Distributions:
        if set(self.store_classes) != set(self.student_classes):
            raise ConfigError(
                f"the label store has the classes {_names(self.store_classes)}, the student "
                f"{_names(self.student_classes)}: a distribution can only be taught over the same classes; use a "
                "student with the store's class names"
            )
        if not np.array_equal(found.row_offsets, np.arange(found.rows + 1)):
            raise TrainingError("the labels have several positions a row: classification needs exactly one")
        if self.store_classes == self.student_classes:
            return found
        to_student = remap(self.store_classes, self.student_classes, "the label store")
        return replace(found, ids=to_student[found.ids].astype(np.int32))


def remap(source: Sequence[str], target: Sequence[str], side: str) -> Index:
    """Return for each class of ``source`` its index in ``target``, by name.

    Raises:
        ConfigError: a class of ``source`` is not in ``target``; both sides are named.
    """
    index = {name: i for i, name in enumerate(target)}
    missing = [name for name in source if name not in index]
    if missing:
        raise ConfigError(
            f"{side} has classes the student does not: {_names(missing)}; the student has {_names(target)}. "
            "Classes are matched by name: use a student with the same class names"
        )
    return np.array([index[name] for name in source], dtype=np.int64)


def _check_tokens(signal: Signal, stored: Index, encoded: Encoded) -> None:
    """Refuse states one a token where the student cuts a text into another number of tokens."""
    tokens = encoded.features.get("input_ids")
    if tokens is None:
        return
    have = np.flatnonzero(stored >= 0)
    student_tokens = np.diff(tokens.offsets)[have]
    for layer, hidden in signal.hidden.items():
        teacher_states = np.diff(hidden.offsets)[stored[have]]
        wrong = np.flatnonzero((teacher_states > 0) & (teacher_states != student_tokens))
        if len(wrong):
            raise ConfigError(
                f"labels.hidden.pool is token, but row {encoded.row_ids[int(have[wrong[0]])].as_py().hex()} has "
                f"{teacher_states[wrong[0]]} states in teacher layer {layer} and {student_tokens[wrong[0]]} tokens "
                f"in the student ({len(wrong)} such rows): the tokenizers differ; store pooled states "
                "(mean, cls or last)"
            )


def _names(names: Sequence[str]) -> str:
    shown = ", ".join(repr(name) for name in names[:8])
    return shown + (f" and {len(names) - 8} more" if len(names) > 8 else "")
