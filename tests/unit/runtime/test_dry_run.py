"""A dry run names what the verdict would refuse after everything has been paid."""

from pathlib import Path
from typing import Any

import pytest

from ray_distill.config import parse_config
from ray_distill.errors import ConfigError
from ray_distill.runtime.dry_run import plan
from ray_distill.testing.models import write_tiny_text_model

AGREEMENT = {"accuracy": None, "ece": None, "agreement": {"min": 0.9}}


@pytest.mark.parametrize(
    ("columns", "test", "limits", "noted"),
    [
        ({}, None, {}, True),
        ({"label": "label"}, None, {}, False),
        ({}, {"label": "label"}, {}, False),
        ({}, None, AGREEMENT, False),
    ],
)
def test_a_gate_that_needs_labels_of_test_rows_is_noted(
    tmp_path: Path, columns: dict[str, str], test: dict[str, str] | None, limits: dict[str, Any], *, noted: bool
) -> None:
    """Labels are in the traffic, or in a source of one's own; agreement with the teacher needs none."""
    for name in ("rows", "test"):
        (tmp_path / f"{name}.jsonl").write_text('{"text": "one", "label": "a"}\n')
    model = str(write_tiny_text_model(tmp_path / "teacher", ("a", "b"), 0))
    own = {} if test is None else {"test": {"source": str(tmp_path / "test.jsonl"), "columns": test}}
    value = {
        "campaign": "c",
        "task": "text_classification",
        "output": str(tmp_path / "out"),
        "snapshot": {"source": str(tmp_path / "rows.jsonl"), "columns": columns, **own},
        "labels": {"teacher": {"model": model}},
        "student": {"losses": {"soft": {}}, "training": {"engine": "torch"}},
        "gate": {"limits": limits},
        "tracking": {"enabled": False},
    }
    notes = [line for line in plan(parse_config(value)) if line.startswith("note ")]
    assert [("accuracy and ece" in note, "no student is promoted" in note) for note in notes] == [(True, True)] * noted


def test_views_are_a_line_of_their_own(tmp_path: Path) -> None:
    """How many, of which kinds, and which teach nobody."""
    (tmp_path / "rows.jsonl").write_text('{"text": "one", "label": "a"}\n')
    model = str(write_tiny_text_model(tmp_path / "teacher", ("a", "b"), 0))
    value: dict[str, Any] = {
        "campaign": "c",
        "task": "text_classification",
        "output": str(tmp_path / "out"),
        "snapshot": {
            "source": str(tmp_path / "rows.jsonl"),
            "columns": {"label": "label"},
            "augment": {"views": 3, "kinds": {"cut": 0.4}, "most_entropy": 0.9},
        },
        "labels": {"teacher": {"model": model}},
        "student": {"losses": {"soft": {}}, "training": {"engine": "torch"}},
        "tracking": {"enabled": False},
    }
    (line,) = [line for line in plan(parse_config(value)) if line.startswith("augment ")]
    unsure = "none above 90% of the largest entropy teaches"
    assert line == f"augment   3 views of each train row, labelled like rows: cut 0.4; {unsure}"
    value["snapshot"]["augment"] = {"kinds": {"cutt": 0.4}}
    with pytest.raises(
        ConfigError, match="snapshot.augment.kinds: text_classification has no 'cutt'.*did you mean cut"
    ):
        plan(parse_config(value))
