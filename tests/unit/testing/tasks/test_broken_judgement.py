"""The checks of judgement, page and serving fail on tasks that are broken in what they check."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from ray_distill.artifacts import Estimate
from ray_distill.evaluation.measures.intervals import Resampling
from ray_distill.evaluation.predict.panel import Panel
from ray_distill.evaluation.report.family_page import Wording
from ray_distill.tasks.answers.classes import judge, page, serve
from tests.labs.broken_tasks import assert_found, with_facet
from tests.labs.task_cases import case_of

CASE = case_of("text_classification")


def _sorted(panel: Panel, rows: pa.Table, slices: Sequence[str] = ()) -> dict[str, pa.Table]:
    return {arm: table.sort_by("row_id") for arm, table in judge.answer(panel, rows, slices).items()}


def _short(panel: Panel, rows: pa.Table, slices: Sequence[str] = ()) -> dict[str, pa.Table]:
    return {arm: table.slice(1) for arm, table in judge.answer(panel, rows, slices).items()}


def _by_split(panel: Panel, rows: pa.Table, slices: Sequence[str] = ()) -> dict[str, pa.Table]:
    """Answers that depend on how many rows are asked: their distributions are as sharp as the split is long."""
    found = {}
    for arm, table in judge.answer(panel, rows, slices).items():
        logp_NV = np.array(table["logp"].to_pylist()) * rows.num_rows
        logp_NV -= np.logaddexp.reduce(logp_NV, axis=1)[:, None]
        at = table.schema.get_field_index("logp")
        found[arm] = table.set_column(at, "logp", pa.array(list(logp_NV), pa.list_(pa.float32())))
    return found


def _with(name: str, value: float) -> Any:
    def measure(answers: pa.Table, how: Resampling) -> dict[str, Estimate]:
        return {**judge.measure(answers, how), name: Estimate(value=value, n=3)}

    return measure


def _weighted(answers: pa.Table, how: Resampling) -> dict[str, Estimate]:
    """An NLL that is a sum over counts."""
    found = judge.measure(answers, how)
    total = sum(answers["count"].to_pylist())
    return {**found, "nll": Estimate(value=found["nll"].value * total, n=found["nll"].n)}


def _partial(answers: pa.Table, how: Resampling) -> dict[str, Estimate]:
    found = judge.measure(answers, how)
    return {name: found[name] for name in found if name != "accuracy"}


def _distant(answers: pa.Table, how: Resampling) -> dict[str, Estimate]:
    found = judge.measure(answers, how)
    return {**found, "kl_from_teacher": Estimate(value=0.25, n=3)}


def _biased(student: pa.Table, other: pa.Table, how: Resampling) -> dict[str, Estimate]:
    found = judge.compare(student, other, how)
    return {**found, "nll": Estimate(value=found["nll"].value + 0.1, n=3)}


def _reversed(student: pa.Table, other: pa.Table, how: Resampling) -> dict[str, Estimate]:
    return judge.compare(other, student, how)


@pytest.mark.parametrize(
    ("check", "changes", "match"),
    [
        ("answers", {"answer": _sorted}, "another order"),
        ("answers", {"answer": _short}, "other rows"),
        ("answers", {"answer_damaged": lambda panel, rows: {}}, "on corrupted rows"),
        ("measures", {"measure": _with("f2", 0.5)}, "f2 is not in the table"),
        ("measures", {"measure": _with("ece", 1.5)}, "ece is 1.5"),
        ("measures", {"measure": _weighted}, "unit of counts"),
        ("measures", {"measure": _partial}, "the headline accuracy was not measured"),
        ("parts", {"answer": _by_split}, "parts are measured as"),
        ("comparison", {"compare": _biased}, "differs from itself"),
        ("comparison", {"compare": _reversed}, "not"),
        ("reference", {"measure": _distant}, "of the teacher itself is 0.25"),
        ("confidence", {"confidence": lambda answers: np.ones(3)}, "have confidences"),
        ("confidence", {"confidence": lambda answers: np.full(answers.num_rows, 1.5)}, "confidences are"),
        ("trivial", {"trivial": lambda panel, opened: {"nll": 1.0}}, "more is better"),
        ("trivial", {"trivial": lambda panel, opened: {"accuracy": 1.5}}, "accuracy is 1.5"),
    ],
)
def test_a_judgement_that_is_broken_is_found(
    check: str, changes: dict[str, Any], match: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows, order, bounds, counts, parts, differences and distances, each broken alone."""
    assert_found(check, with_facet(CASE, "judge", **changes), match, monkeypatch)


def _needs_teacher(report: Any, *, predictions: Mapping[str, pa.Table], names: Sequence[str], bins: int) -> Any:
    return page.figures(report, predictions={"student": predictions["teacher"]}, names=names, bins=bins)


def _uncaptioned() -> Wording:
    """The family draws a confusion matrix that has no caption."""
    captions = {name: text for name, text in page.WORDING.captions.items() if name != "confusion"}
    return replace(page.WORDING, captions=captions)


@pytest.mark.parametrize(
    ("check", "changes", "match", "raises"),
    [
        ("wording", {"WORDING": replace(page.WORDING, compared=("f2",))}, "f2", AssertionError),
        ("wording", {"WORDING": replace(page.WORDING, pair=("confusion", "roc"))}, "captions", AssertionError),
        ("page", {"WORDING": replace(page.WORDING, elsewhere=("nll",))}, "NLL", AssertionError),
        ("page", {"figures": _needs_teacher}, "teacher", KeyError),
        ("page", {"WORDING": _uncaptioned()}, "figures without captions", AssertionError),
    ],
)
def test_a_page_that_is_broken_is_found(
    check: str, changes: dict[str, Any], match: str, raises: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Metrics and figures that are not there, a metric that is hidden, a page that needs the teacher."""
    assert_found(check, with_facet(CASE, "page", **changes), match, monkeypatch, raises)


ALWAYS_BIRD = """
def columns(logits_NV, names, facts):
    rows = len(logits_NV)
    return {"label": ["bird"] * rows, "probability": [1.0] * rows, "probabilities": [[1.0, 0.0, 0.0]] * rows}
"""


def test_serving_that_is_broken_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A column that is declared and not answered, of another kind, or answered otherwise than by the model."""
    own = serve.SERVING
    for changed, match in (
        (replace(own, outputs={**own.outputs, "reason": "string"}), "columns"),
        (replace(own, outputs={**own.outputs, "label": "double"}), "label is not of double"),
    ):
        assert_found("served", with_facet(CASE, "serve", SERVING=changed), match, monkeypatch)
    code = tmp_path / "always_bird.py"
    code.write_text(ALWAYS_BIRD)
    broken = with_facet(CASE, "serve", SERVING=replace(own, parts={**own.parts, "answers": code}))
    assert_found("served", broken, "the model itself answers|Not equal", monkeypatch)


def test_an_example_of_another_kind_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bytes for a model of texts."""
    broken = with_facet(CASE, "serve", example=lambda config: [b"bytes"])
    assert_found("serving_example", broken, "an example request is not str", monkeypatch)
