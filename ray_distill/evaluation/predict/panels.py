"""All models of an evaluation, ready to answer the same rows: one panel for classifiers, one for language models."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from ray_distill.artifacts import Efficiency, Estimate
from ray_distill.errors import EvaluationError
from ray_distill.evaluation.measures.classification import (
    Compare,
    Measure,
    compare_classification,
    measure_classification,
)
from ray_distill.evaluation.measures.language_model import compare_language, measure_language
from ray_distill.evaluation.measures.predictions import join_predictions
from ray_distill.evaluation.predict.classification import Predictor, predict_all, predictor
from ray_distill.evaluation.predict.language_model import batches, encode_for_all, predict_documents, run_batch
from ray_distill.models.core.model import Model
from ray_distill.tasks.answers.classes import CLASSES
from ray_distill.tasks.answers.tokens import TOKENS
from ray_distill.tasks.inputs.modality import Corruption
from ray_distill.tasks.task import Task

#: Answers the examples of the given indices as one batch: inputs encoded beforehand, collation included.
Run = Callable[[npt.NDArray[np.int64]], object]


class Panel(Protocol):
    """Models that are judged together, and how models of their kind are."""

    @property
    def models(self) -> Mapping[str, Model]:
        """By arm, ``teacher`` first."""

    @property
    def columns(self) -> Sequence[str]:
        """What `answer` reads of the snapshot, beside the slices."""

    @property
    def measure(self) -> Measure:
        """Quality of one model's answers."""

    @property
    def compare(self) -> Compare:
        """Paired differences of two models' answers."""

    @property
    def corruptions(self) -> Mapping[str, Corruption]:
        """The corruptions that its inputs can suffer."""

    @property
    def usual(self) -> Sequence[str]:
        """Those that are tried where the config names none."""

    @property
    def robust(self) -> Sequence[str]:
        """The metrics reported on corrupted inputs."""

    def answer(self, rows: pa.Table, slices: Sequence[str]) -> dict[str, pa.Table]:
        """What ``measure`` reads, by arm: the same rows in the same order, those that all models accept."""

    def answer_damaged(self, rows: pa.Table, arms: Iterable[str]) -> dict[str, pa.Table]:
        """What ``measure`` reads, of some arms on corrupted rows."""

    def runs(self, rows: pa.Table) -> dict[str, Run]:
        """Each model over ``rows``, to be timed."""

    def speed(self, rows: pa.Table, efficiency: Mapping[str, Efficiency]) -> dict[str, dict[str, Estimate]]:
        """What else follows from having timed ``rows``, by arm."""


@dataclass(frozen=True, kw_only=True)
class ClassPanel:
    """Classifiers: one answer a row, held against its label."""

    task: Task
    models: Mapping[str, Model]
    classes: tuple[str, ...]
    batch: int
    compare: Compare = compare_classification
    robust: Sequence[str] = CLASSES.robust

    @property
    def columns(self) -> Sequence[str]:
        """See `Panel`."""
        return "row_id", self.task.inputs.column, "label", "count"

    @property
    def measure(self) -> Measure:
        """See `Panel`."""
        return measure_classification

    @property
    def corruptions(self) -> Mapping[str, Corruption]:
        """See `Panel`."""
        return self.task.inputs.corruptions

    @property
    def usual(self) -> Sequence[str]:
        """See `Panel`."""
        return tuple(self.task.inputs.corruptions)

    def answer(self, rows: pa.Table, slices: Sequence[str]) -> dict[str, pa.Table]:
        """See `Panel`."""
        answers = predict_all(self._predictors(), rows)
        rows = _accepted_by_all(rows, answers)
        return {
            arm: join_predictions(rows, answer, teacher=answers["teacher"], slices=slices)
            for arm, answer in answers.items()
        }

    def answer_damaged(self, rows: pa.Table, arms: Iterable[str]) -> dict[str, pa.Table]:
        """See `Panel`; a row that a model rejects is an error."""
        tried = {arm: one for arm, one in self._predictors().items() if arm in arms}
        return {arm: join_predictions(rows, answer) for arm, answer in predict_all(tried, rows).items()}

    def runs(self, rows: pa.Table) -> dict[str, Run]:
        """See `Panel`."""
        return {arm: _run_classifier(one, rows) for arm, one in self._predictors().items()}

    def speed(self, rows: pa.Table, efficiency: Mapping[str, Efficiency]) -> dict[str, dict[str, Estimate]]:
        """See `Panel`."""
        return {}

    def _predictors(self) -> dict[str, Predictor]:
        return {arm: predictor(model, self.task, self.classes, batch=self.batch) for arm, model in self.models.items()}


@dataclass(frozen=True, kw_only=True)
class LanguagePanel:
    """Language models: an answer at every position, held against the true token and the teacher's own answer."""

    task: Task
    models: Mapping[str, Model]
    batch: int
    bins: int
    raw: bool
    """Texts, not conversations: only they can be corrupted and stay what they are. The corrupted text has other tokens,
    so its NLL is compared between models, not with that of the clean text."""
    measure: Measure = measure_language
    compare: Compare = compare_language
    usual: Sequence[str] = ()
    robust: Sequence[str] = TOKENS.robust

    @property
    def columns(self) -> Sequence[str]:
        """See `Panel`."""
        return "row_id", self.task.inputs.column, "count"

    @property
    def corruptions(self) -> Mapping[str, Corruption]:
        """See `Panel`."""
        return self.task.inputs.corruptions if self.raw else {}

    def answer(self, rows: pa.Table, slices: Sequence[str]) -> dict[str, pa.Table]:
        """See `Panel`."""
        return predict_documents(
            self.models, rows, task=self.task, batch=self.batch, bins=self.bins, teacher="teacher", keep=slices
        )

    def answer_damaged(self, rows: pa.Table, arms: Iterable[str]) -> dict[str, pa.Table]:
        """See `Panel`; texts of which too little is left are left out for all."""
        return replace(self, models={arm: self.models[arm] for arm in self.models if arm in arms}).answer(rows, ())

    def runs(self, rows: pa.Table) -> dict[str, Run]:
        """See `Panel`; a batch whose logits would take too much memory is run in parts."""
        encoded = encode_for_all(self.models, rows, task=self.task)

        def run_of(model: Model) -> Run:
            def run(index: npt.NDArray[np.int64]) -> object:
                return [
                    run_batch(model, self.task, encoded, part)[:, -1].cpu()
                    for part in batches(
                        encoded, task=self.task, batch=self.batch, vocabulary=model.vocabulary, index=index
                    )
                ]

            return run

        return {arm: run_of(model) for arm, model in self.models.items()}

    def speed(self, rows: pa.Table, efficiency: Mapping[str, Efficiency]) -> dict[str, dict[str, Estimate]]:
        """Tokens answered at a second, padding not counted: throughput times the mean length of the timed documents."""
        encoded = encode_for_all(self.models, rows, task=self.task)
        length = float(np.diff(encoded.features[self.task.inputs.answering].offsets).mean())
        rates = {arm: cost.examples_per_second * length for arm, cost in efficiency.items()}
        return {
            arm: {"tokens_per_second": Estimate(value=rate, low=rate, high=rate, n=encoded.rows)}
            for arm, rate in rates.items()
        }


def _run_classifier(one: Predictor, rows: pa.Table) -> Run:
    encoded = one.encode(rows)

    def run(index: npt.NDArray[np.int64]) -> object:
        return one.logits(encoded, index)

    return run


def _accepted_by_all(rows: pa.Table, answers: Mapping[str, pa.Table]) -> pa.Table:
    """The rows that every model could answer, so that all are judged on the same."""
    for answer in answers.values():
        rows = rows.filter(pc.is_in(rows["row_id"], value_set=answer["row_id"].combine_chunks()))
    if not rows.num_rows:
        raise EvaluationError("no row of the test split is accepted by all models: nothing can be compared")
    return rows
