"""Which sequences are kept, and that every other one is counted under its reason."""

from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from ray_distill.config import SequencesConfig
from ray_distill.errors import LabelError
from ray_distill.labels.model.rowids import ROW_ID
from ray_distill.sequences.select import SCORED, Selection, select
from ray_distill.testing.labels import row_id

#: prompt, candidate, text, tokens, log-probability, ended
ROWS = [
    (0, 0, "aa", 2, -2.0, True),
    (0, 1, "bbb", 3, -1.5, True),
    (0, 2, "aa", 2, -2.0, True),
    (0, 3, "  ", 2, -0.1, True),
    (1, 0, "c", 1, -9.0, True),
    (1, 1, "dddd", 4, -4.0, False),
    (2, 0, "aa", 2, -8.0, True),
]


def _table() -> pa.Table:
    prompt, candidate, text, tokens, logp, ended = zip(*ROWS, strict=True)
    return pa.table(
        {
            "row_id": pa.array([row_id(n) for n in prompt], ROW_ID),
            "candidate": pa.array(candidate, pa.int32()),
            "input": [f"row {n}" for n in prompt],
            "text": text,
            "tokens": pa.array(tokens, pa.int32()),
            "log_probability": logp,
            "ended": ended,
        }
    )


def _select(scorer: Any = None, **settings: Any) -> Selection:
    values = {"method": "sample", "candidates": 4, **settings}
    return select(_table(), SequencesConfig.model_validate(values), scorer)


@pytest.mark.parametrize(
    ("settings", "kept", "dropped"),
    [
        ({}, [0, 1, 4, 5, 6], {"empty": 1, "duplicate": 1}),
        ({"filters": {"dedup": False}}, [0, 1, 2, 4, 5, 6], {"empty": 1}),
        ({"filters": {"min_tokens": 2}}, [0, 1, 5, 6], {"empty": 1, "too short": 1, "duplicate": 1}),
        ({"filters": {"max_tokens": 2}}, [0, 4, 6], {"empty": 1, "too long": 2, "duplicate": 1}),
        ({"filters": {"ended": True}}, [0, 1, 4, 6], {"empty": 1, "cut off": 1, "duplicate": 1}),
        ({"filters": {"min_log_probability": -1.0}}, [0, 1, 5], {"empty": 1, "improbable": 2, "duplicate": 1}),
        ({"keep": "best"}, [1, 5, 6], {"empty": 1, "duplicate": 1, "not the best": 2}),
        (
            {"keep": "best", "filters": {"max_tokens": 3, "ended": True, "min_log_probability": -3.9}},
            [1],
            {"empty": 1, "too long": 1, "improbable": 2, "duplicate": 1, "not the best": 1},
        ),
    ],
)
def test_each_is_dropped_for_the_first_reason(
    settings: dict[str, Any], kept: list[int], dropped: dict[str, int]
) -> None:
    """What is kept and what was dropped make up the whole; the best is the likeliest a token."""
    found = _select(**settings)
    assert np.flatnonzero(found.kept).tolist() == kept
    assert found.dropped == dropped
    assert sum(dropped.values()) + len(kept) == len(ROWS)


def test_a_scorer_sees_what_is_left_and_decides_the_best() -> None:
    """It gets the columns that are promised, of sequences that passed the filters; NaN drops one."""
    seen: list[pa.Table] = []

    def scorer(table: pa.Table) -> list[float]:
        seen.append(table)
        return [float("nan") if text == "c" else -len(text) for text in table["text"].to_pylist()]

    found = _select(scorer, keep="best", filters={"scorer": "m:f", "min_score": -3, "max_tokens": 4})
    assert tuple(seen[0].column_names) == SCORED and len(seen[0]) == len(ROWS) - 1
    assert seen[0]["input"].to_pylist()[:1] == ["row 0"]
    assert np.flatnonzero(found.kept).tolist() == [0, 6]
    assert found.dropped == {"empty": 1, "not scored": 1, "low score": 1, "duplicate": 1, "not the best": 1}
    assert np.isnan(found.scores).tolist() == [False, False, False, True, True, False, False]


@pytest.mark.parametrize(
    ("scorer", "says"),
    [
        (lambda table: [1.0], "numbers of shape \\[1\\] for 6 sequences"),
        (lambda table: ["x"] * len(table), "ValueError"),
        (lambda table: 1 / 0, "ZeroDivisionError"),
    ],
)
def test_a_wrong_scorer_is_named(scorer: Any, says: str) -> None:
    """With what it did and what it must return."""
    with pytest.raises(LabelError, match=f"sequences.filters.scorer: m:f .*{says}"):
        _select(scorer, filters={"scorer": "m:f"})
