"""The moving average of the weights: what is validated and exported, and nothing else, on every engine."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from ray_distill.students.engines.ema import decay_at
from ray_distill.students.loop.train_loop import take_step
from ray_distill.students.process_group import current_ranks
from ray_distill.testing.gloo import run_gloo
from tests.labs import training as lab
from tests.labs.training import Lab, assert_same_curve, learnt, loss_curve

EMA = {"ema": 0.4}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the student's checkpoint."""
    folder = tmp_path_factory.mktemp("lab")
    lab.write_model(folder)
    return folder


@pytest.fixture(scope="module")
def reference(home: Path) -> lab.Ran:
    """Plain torch, one process."""
    return lab.run(Lab(folder=str(home), hidden=True, training=EMA))


def test_the_decay_rises_to_the_configured_one() -> None:
    """(1 + t) / (10 + t) until that is more."""
    assert [decay_at(step, 0.4) for step in (1, 4, 5, 100)] == [2 / 11, 5 / 14, 0.4, 0.4]


def test_it_is_the_average_of_the_weights_after_each_step(home: Path) -> None:
    """Against float64, weight by weight; and the weights that train are afterwards what they were, bit for bit."""
    trial, engine = lab.build(Lab(folder=str(home), training=EMA))
    expected: dict[str, torch.Tensor] = {}
    for step in range(6):
        take_step(trial, engine, current_ranks(), step)
        weights = {name: value.double() for name, value in engine.weights().items() if value.is_floating_point()}
        decay = decay_at(step + 1, EMA["ema"])
        expected = {
            name: decay * expected[name] + (1 - decay) * value if expected else value for name, value in weights.items()
        }
        with engine.averaged():
            found = engine.weights()
        for name, value in expected.items():
            torch.testing.assert_close(found[name].double(), value, rtol=1e-5, atol=1e-7)
        assert all(torch.equal(engine.weights()[name].double(), value) for name, value in weights.items())
    assert any(not torch.equal(expected[name], value) for name, value in weights.items())


def test_training_does_not_feel_it(home: Path, reference: lab.Ran) -> None:
    """The same losses as without it, exactly; another result on validation, and other weights to export."""
    plain = lab.run(Lab(folder=str(home), hidden=True))
    assert loss_curve(reference) == loss_curve(plain)
    assert reference.best["score"]["metrics"] != plain.best["score"]["metrics"]
    assert any(not torch.equal(reference.weights[name], value) for name, value in plain.weights.items())


def test_it_is_resumed_exactly(tmp_path: Path) -> None:
    """Stopped after step 5 of 8: validation and weights are those of the uninterrupted run."""
    lab.write_model(tmp_path)
    run = Lab(folder=str(tmp_path), training=EMA)
    whole = lab.run(replace(run, trial="whole"))
    lab.run_until_stopped(replace(run, stop_after=5))
    rest = lab.run(replace(run, resume=True))
    assert rest.best == whole.best
    assert all(torch.equal(rest.weights[name], value) for name, value in whole.weights.items())


def zero(stage: int, **more: Any) -> dict[str, Any]:
    """DeepSpeed's settings at a stage."""
    return {"engine": "deepspeed", "zero_stage": stage, **EMA, **more}


@pytest.mark.golden
def test_every_engine_averages_alike(home: Path, reference: lab.Ran) -> None:
    """Two ranks, at every stage, with the optimiser and with all offloaded: the same validation, the same weights to
    export (but for keys' biases, whose gradient is rounding alone); half precision averages its float32 masters."""
    ways = [
        {"engine": "torch", **EMA},
        *(zero(stage) for stage in (0, 1, 2, 3)),
        zero(3, offload="all"),
        *(zero(stage, precision="bf16") for stage in (0, 1, 3)),
    ]
    found = run_gloo(lab.run_all, 2, [Lab(folder=str(home), hidden=True, training=way) for way in ways])[0]
    for ran in found[:6]:
        assert_same_curve(ran, reference)
        for name, value in reference.weights.items():
            if not name.endswith("key.bias"):
                assert torch.allclose(ran.weights[name], value, rtol=1e-3, atol=1e-5), name
    for ran in found[6:]:
        assert learnt(ran.curve[8]) == pytest.approx(learnt(reference.curve[8]), rel=0.03)


@pytest.mark.golden
def test_it_moves_between_engines_with_the_run(tmp_path: Path) -> None:
    """Three steps on two ranks at ZeRO 3, two with plain torch alone, the rest on two ranks at ZeRO 1: every metric,
    the averages' validation among them, is the uninterrupted run's."""
    lab.write_model(tmp_path)
    run = Lab(folder=str(tmp_path), hidden=True, training=EMA)
    whole = lab.run(replace(run, trial="whole"))
    curve: dict[int, dict[str, float]] = {}
    for world, training, stop_after in ((2, zero(3), 3), (1, {"engine": "torch", **EMA}, 2), (2, zero(1), None)):
        part = replace(run, training=training, resume=bool(curve), stop_after=stop_after)
        curve |= run_gloo(lab.run_part, world, part)[0][0]
    assert sorted(curve) == sorted(whole.curve)
    for step, values in whole.curve.items():
        assert learnt(curve[step]) == pytest.approx(learnt(values), rel=lab.TOLERANCE, abs=1e-6), step
