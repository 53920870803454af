"""Rows that came several times: a row that is weighed by its count teaches as much as that many equal rows.

The curve depends neither on the number of ranks nor on an interruption.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from ray_distill.testing.gloo import run_gloo
from tests.labs.training import Lab, Ran, assert_same_curve, loss_curve, run, run_part, write_model

#: Every step has all examples.
WHOLE = {"global_batch": 2000, "micro_batch": 64}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the student's checkpoint."""
    folder = tmp_path_factory.mktemp("counts")
    write_model(folder)
    return folder


@pytest.fixture(scope="module")
def reference(home: Path) -> Ran:
    """Batches of 12 examples, in one process."""
    return run(weighed(home, "reference"))


def weighed(home: Path, trial: str, **changes: Any) -> Lab:
    return Lab(folder=str(home), trial=trial, hidden=True, counts="weighed", **changes)


def test_full_batches_are_those_of_the_expanded_rows(home: Path) -> None:
    """Soft, hard and hidden losses of steps on all rows equal those on as many equal rows, and those of single rows
    do not."""
    whole = weighed(home, "whole", training=WHOLE, steps=3)
    found, expanded, once = (
        run(replace(whole, trial=counts, counts=counts)) for counts in ("weighed", "expanded", "once")
    )
    names = ("loss", "loss_soft", "loss_hard", "loss_hidden")
    for step, values in found.curve.items():
        losses = {name: values[name] for name in names}
        assert losses == pytest.approx({name: expanded.curve[step][name] for name in names}, rel=1e-5)
    assert loss_curve(found) != pytest.approx(loss_curve(once), rel=1e-2)
    # The same student, measured on validation rows that came several times, and on the same rows once.
    assert found.best["score"]["value"] != pytest.approx(expanded.best["score"]["value"], rel=1e-4)


def test_ranks_do_not_matter(home: Path, reference: Ran) -> None:
    """Two gloo ranks, whose shares of a batch weigh differently, give the curve of one."""
    assert_same_curve(run_gloo(run, 2, weighed(home, "ranks"))[0], reference)


def test_an_interrupted_run_ends_bit_for_bit_the_same(home: Path, reference: Ran) -> None:
    """Stopped between two checkpoints and continued: the same losses and weights, to the bit."""
    first, _ = run_part(weighed(home, "cut", stop_after=5))
    rest = run(weighed(home, "cut", resume=True))
    for step, values in reference.curve.items():
        assert (rest.curve.get(step) or first[step])["loss"] == values["loss"], step
    assert all(torch.equal(rest.weights[name], value) for name, value in reference.weights.items())
