"""Loss curves as they are kept for the report."""

from pathlib import Path

import pytest

from ray_distill.config import parse_config
from ray_distill.runtime.session import Session, session
from ray_distill.runtime.train_stage import Curves
from ray_distill.runtime.training import StepMetrics
from ray_distill.storage import files


def _add(curves: Curves, arm: str, steps: range, loss: float) -> None:
    for step in steps:
        curves.add(StepMetrics(arm=arm, step=step, values={"loss": loss, "examples_per_second": 1.0}))


def _curves(held: Session) -> Curves:
    with held.stage("train") as stage:
        return Curves(held, stage)


@pytest.fixture
def config(tmp_path: Path):
    return parse_config({
        "campaign": "c", "task": "text_classification", "output": str(tmp_path), "snapshot": {"source": "x"},
        "labels": {"teacher": {"model": "big"}}, "tracking": {"enabled": False}})


def test_a_run_that_goes_on_from_a_checkpoint_replaces_what_it_repeats(config) -> None:
    """Steps 4 and 5 were done twice: the curve has each step once, with the later value; other arms stay."""
    with session(config) as held:
        first = _curves(held)
        _add(first, "baseline_hard_labels", range(1, 3), 9.0)
        _add(first, "student", range(1, 6), 1.0)
        first.keep()
        second = _curves(held)
        _add(second, "student", range(4, 7), 2.0)
        second.keep()
        kept = files.read_json(held.url("state", "curves.json"))
    assert kept["student"] == [[1, 1.0], [2, 1.0], [3, 1.0], [4, 2.0], [5, 2.0], [6, 2.0]]
    assert kept["baseline_hard_labels"] == [[1, 9.0], [2, 9.0]]


def test_a_model_that_is_trained_anew_gets_a_new_curve(config) -> None:
    """Beginning at step 1 forgets the arm's earlier curve."""
    with session(config) as held:
        curves = _curves(held)
        _add(curves, "student", range(1, 6), 1.0)
        _add(curves, "student", range(1, 3), 2.0)
        curves.keep()
        assert files.read_json(held.url("state", "curves.json")) == {"student": [[1, 2.0], [2, 2.0]]}
