"""The checks of labels and learning fail on tasks that are broken in what they check."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch import Tensor, nn

from ray_distill.labels.format.codecs import CODECS
from ray_distill.labels.model.ragged import RaggedArray
from ray_distill.losses.base import LossBatch, StudentOutput
from ray_distill.losses.cross_entropy import Hard
from ray_distill.models.core.model import Model
from ray_distill.students.data.examples import PositionExamples
from ray_distill.students.loop.validation import Score, Validator
from ray_distill.tasks.answers.classes import learn, store
from ray_distill.tasks.answers.classes.learn import ByTeacher, ClassFormat
from ray_distill.tasks.encoded import Encoded
from ray_distill.testing.tasks import CHECKS
from tests.labs.broken_tasks import assert_found, with_facet
from tests.labs.task_cases import case_of, config_of

CASE = case_of("text_classification")


class Changed(nn.Module):
    """A model whose logits are changed."""

    def __init__(self, inner: nn.Module, change: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.inner, self.change = inner, change

    def forward(self, input_ids: Tensor, attention_mask: Tensor, output_hidden_states: bool = False) -> SimpleNamespace:
        found = self.inner(
            input_ids=input_ids, attention_mask=attention_mask, output_hidden_states=output_hidden_states
        )
        return SimpleNamespace(logits=self.change(found.logits), hidden_states=found.hidden_states)


def _changed(model: Model, change: Callable[[Tensor], Tensor]) -> Model:
    return replace(model, module=Changed(model.module, change).eval())


def _second(encoded: Encoded) -> RaggedArray:
    return replace(store.positions(encoded), values=np.ones(encoded.rows, np.int32))


def _falling(encoded: Encoded) -> RaggedArray:
    return RaggedArray(
        values=np.tile(np.array([1, 0], np.int32), encoded.rows),
        offsets=np.arange(encoded.rows + 1, dtype=np.int64) * 2,
    )


def _short_truth(encoded: Encoded, rows: pa.Table | None = None) -> RaggedArray:
    found = store.truth(encoded, rows)
    return replace(found, values=found.values[1:])


@pytest.mark.parametrize(
    ("check", "changes", "match"),
    [
        ("positions", {"positions": _falling}, "the truth is at other positions"),
        ("positions", {"truth": _short_truth}, "not a truth at each position"),
        ("reduction", {"positions": _second}, "answers at other positions"),
    ],
)
def test_a_family_that_answers_elsewhere_is_found(
    check: str, changes: dict[str, Any], match: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Positions that fall, a truth too few, and answers at other positions than the family states."""
    assert_found(check, with_facet(CASE, "store", **changes), match, monkeypatch)


def test_answers_that_depend_on_the_batch_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Logits less their mean over the batch."""
    teacher = _changed(CASE.teacher, lambda logits_BV: logits_BV - logits_BV.mean(0))
    assert_found("reduction", replace(CASE, teacher=teacher), "depends on the rows beside it", monkeypatch)


def test_answers_that_hide_what_is_not_finite_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """NaN becomes a uniform distribution, which nobody could tell from an answer."""
    teacher = _changed(CASE.teacher, torch.nan_to_num)
    broken = replace(CASE, teacher=teacher, config=_without_states())
    assert_found("storing", broken, "0 rows were rejected", monkeypatch)


def test_labels_that_change_in_the_store_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """A codec that reads other probabilities the second time than it stated at first."""
    dense = CODECS[("dense", 2)]
    reads: list[int] = []

    def decode(table: pa.Table, manifest: Any, fits: Any) -> Any:
        found = dense.decode(table, manifest, fits)
        reads.append(1)
        return found if len(reads) == 1 else replace(found, logp=found.logp - np.float32(0.01))

    class Drifting:
        def __getattr__(self, name: str) -> Any:
            return decode if name == "decode" else getattr(dense, name)

    monkeypatch.setitem(CODECS, ("dense", 2), Drifting())  # type: ignore[arg-type]
    with pytest.raises(AssertionError, match="labels differ after reading"):
        CHECKS["storing"](replace(CASE, config=_without_states()))


def test_a_student_that_does_not_learn_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its logits do not depend on its weights."""
    student = _changed(CASE.student, lambda logits_BV: 0 * logits_BV)
    config = config_of(
        "text_classification",
        student={"training": {"weight_decay": 0}, "losses": {"soft": {"weight": 1}, "hard": {"weight": 1}}},
    )
    assert_found("step", replace(CASE, student=student, config=config), "a step changed no weight", monkeypatch)


def test_a_validation_without_a_number_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """The validation loss must be finite."""

    class Nothing(ByTeacher):
        def finish(self, sums: Any) -> Score:
            return Score(value=float("nan"), metrics={})

    def validator(validation: PositionExamples) -> Validator:
        return replace(learn.validator(validation), measure=Nothing())

    assert_found("step", with_facet(CASE, "learn", validator=validator), "validation loss is nan", monkeypatch)


@dataclass(frozen=True, kw_only=True)
class _Guessing(ClassFormat):
    """Rows without a label are of the first class."""

    def truth(self, table: pa.Table, encoded: Encoded) -> RaggedArray:
        found = super().truth(table, encoded)
        return replace(found, values=np.maximum(found.values, 0))


def test_a_truth_that_is_made_up_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows without a label must have no truth."""

    def answer_format(**given: Any) -> ClassFormat:
        found = learn.answer_format(**given)
        return _Guessing(**{name: getattr(found, name) for name in found.__dataclass_fields__})

    broken = with_facet(CASE, "learn", answer_format=answer_format)
    assert_found("weights", broken, "with and without a truth", monkeypatch)


def _all_rows(self: Hard, batch: LossBatch) -> Tensor:
    return batch.example_weight_B


def _mean(self: Hard, output: StudentOutput, batch: LossBatch) -> Tensor:
    return output.logits_BV.float().log_softmax(-1)[:, 0].mean()


@pytest.mark.parametrize(
    ("name", "change", "match"),
    [
        ("weights", _all_rows, "learns from rows without a truth"),
        ("__call__", _mean, "does not scale with the weights"),
    ],
)
def test_a_loss_that_counts_other_rows_is_found(
    name: str, change: Callable[..., Tensor], match: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A weight for rows without a truth, and a mean in place of a sum."""
    monkeypatch.setattr(Hard, name, change)
    with pytest.raises(AssertionError, match=match):
        CHECKS["weights"](CASE)


def _without_states() -> Any:
    return config_of("text_classification", labels={"teacher": {"model": "t"}})
