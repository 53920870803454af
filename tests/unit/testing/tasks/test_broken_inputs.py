"""The checks of inputs and settings fail on tasks that are broken in what they check."""

from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from ray_distill.config import Campaign
from ray_distill.tasks.encoded import Batch, Encoded
from ray_distill.tasks.inputs import text
from ray_distill.tasks.inputs.modality import Index, Processor
from tests.labs.broken_tasks import assert_found, with_answers, with_facet, with_inputs
from tests.labs.task_cases import case_of

CASE = case_of("text_classification")


def _backwards(rows: pa.Table, processor: Processor) -> Encoded:
    found = text.encode(rows, processor)
    return found.take(np.arange(found.rows, dtype=np.int64)[::-1].copy())


def _filled(rows: pa.Table, processor: Processor) -> Encoded:
    at = rows.schema.get_field_index("text")
    return text.encode(rows.set_column(at, "text", rows["text"].fill_null("nothing")), processor)


def _in_order(encoded: Encoded, index: Index) -> Batch:
    return text.collate(encoded, np.sort(index))


def _padded_by_mean(encoded: Encoded, index: Index) -> Batch:
    """Features of a row that change with the rows beside it."""
    batch = dict(text.collate(encoded, index))
    return {**batch, "input_ids": batch["input_ids"] + len(index)}


def _other_features(processor: Processor) -> Encoded:
    found = text.example(processor)
    return replace(found, features={**found.features, "more": found.features["input_ids"]})


def _unseeded(rows: pa.Table, severity: int, generator: np.random.Generator) -> pa.Table:
    return text.TEXT_CORRUPTIONS["typos"](rows, severity, np.random.default_rng())


def _shortened(rows: pa.Table, severity: int, generator: np.random.Generator) -> pa.Table:
    return rows.slice(1)


BROKEN: list[tuple[str, dict[str, Any], str]] = [
    ("encoding", {"encode": _backwards}, "the order of rows changed"),
    ("rejection", {"encode": _filled}, "a missing input was not rejected"),
    ("collation", {"collate": _in_order}, "differs with the batch it is in"),
    ("collation", {"collate": _padded_by_mean}, "differs with the batch it is in"),
    ("example", {"example": _other_features}, "real rows have"),
    ("views", {"statistics": lambda column: text.statistics(column.slice(1))}, "not one number a row"),
    ("views", {"show": lambda data: ""}, "nothing is shown"),
    ("corruptions", {"corruptions": {"typos": _unseeded}}, "typos is not seeded"),
    ("corruptions", {"corruptions": {"cut": _shortened}}, "cut changed the rows"),
    ("refusal", {"refuse": lambda config: []}, r"refused as \[\]"),
    ("refusal", {"refuse": lambda config: ["everything is wrong"]}, "everything is wrong"),
]


@pytest.mark.parametrize(("check", "changes", "match"), BROKEN)
def test_a_modality_that_is_broken_is_found(
    check: str, changes: dict[str, Any], match: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Order, rejection, batches, example, views, corruptions and refusals, each broken alone."""
    assert_found(check, with_inputs(CASE, **changes), match, monkeypatch)


def test_metrics_that_are_not_in_the_table_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that is shown beside the headline; a headline without a better side."""
    answers = CASE.task.answers
    assert_found("metrics", with_answers(CASE, replace(answers, beside=("f2",))), "not in the table", monkeypatch)
    metrics = [replace(metric, better="zero") for metric in answers.metrics.metrics]
    table = replace(answers.metrics, metrics=tuple(metrics))
    assert_found("metrics", with_answers(CASE, replace(answers, metrics=table)), "a better side", monkeypatch)


def test_a_family_that_refuses_a_good_campaign_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """The campaign of the case has nothing wrong."""

    def refuse(config: Campaign) -> list[str]:
        return ["seed: odd numbers alone"]

    assert_found("refusal", with_facet(CASE, "refuse", refuse=refuse), "odd numbers", monkeypatch)
