"""Ranks, engines and ZeRO stages do not change how a language model learns, nor how a stopped run goes on.

What is expected is one process of plain torch; the tolerance is `tests.labs.training.TOLERANCE`.
"""

from dataclasses import replace

import pytest
import torch

from ray_distill.testing.gloo import run_gloo
from tests.labs import language_training as lab
from tests.labs.language_training import EVERY_LOSS, VARIANTS, Lab
from tests.labs.training import TOLERANCE, Ran, assert_same_curve, loss_curve


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder with the checkpoints."""
    return lab.write_models(tmp_path_factory.mktemp("lab"))


@pytest.fixture(scope="module")
def expected(home: str) -> Ran:
    """Plain torch, one process, padded micro-batches of 3, every kind of loss."""
    return lab.run(Lab(folder=home, losses=EVERY_LOSS))


@pytest.mark.golden
def test_deepspeed_goes_on_with_tied_and_frozen_weights(home: str) -> None:
    """ZeRO 2 and 3 on two ranks, stopped after step 3."""
    runs = [
        replace(
            lab.deepspeed(Lab(folder=home, **VARIANTS[variant]), stage), stop_after=3, trial=f"cut-{variant}-{stage}"
        )
        for variant in ("tied", "lora")
        for stage in (2, 3)
    ]
    for run, rest in zip(runs, run_gloo(lab.run_all_cut, 2, runs)[0], strict=True):
        whole = lab.run(replace(run, stop_after=None, training={}))
        assert [rest.curve[step]["loss"] for step in (4, 5, 6)] == pytest.approx(
            loss_curve(whole)[3:], rel=TOLERANCE
        ), run


@pytest.mark.golden
@pytest.mark.parametrize("world", [1, 2])
def test_ranks_engines_and_stages_do_not_matter(home: str, expected: Ran, world: int) -> None:
    """Plain torch and DeepSpeed at ZeRO 0 to 3, padded and packed, on one rank and on two, weights included."""
    run = Lab(folder=home, losses=EVERY_LOSS)
    runs = [
        run,
        replace(run, training={"packed": 64}),
        *(lab.deepspeed(run, stage) for stage in range(4)),
        lab.deepspeed(run, 3, packed=64, activation_checkpointing=True),
    ]
    for rank, found in enumerate(run_gloo(lab.run_all, world, runs)):
        for one in found:
            assert_same_curve(one, expected)
            if not rank:
                assert_same_weights(one, expected)


@pytest.mark.golden
def test_every_kind_of_head_and_label_on_two_ranks(home: str) -> None:
    """Drawn labels, another divergence, tied weights, frozen weights and a head that is not fused: ZeRO 0 to 3."""
    kinds = [Lab(folder=home, **VARIANTS[variant]) for variant in ("hybrid", "jsd", "tied", "lora", "bent")]
    ways = [[run, *(lab.deepspeed(run, stage) for stage in range(4))] for run in kinds]
    found = iter(run_gloo(lab.run_all, 2, [one for own in ways for one in own], timeout=900)[0])
    for run, own in zip(kinds, ways, strict=True):
        alone = lab.run(run)
        for _ in own:
            one = next(found)
            assert_same_curve(one, alone)
            assert_same_weights(one, alone)


@pytest.mark.golden
def test_bf16_of_deepspeed_stays_close(home: str, expected: Ran) -> None:
    """Half-precision weights at every stage: each step's loss is within 1 % of float32's."""
    runs = [lab.deepspeed(Lab(folder=home, losses=EVERY_LOSS), stage, precision="bf16") for stage in range(4)]
    for found in run_gloo(lab.run_all, 2, runs)[0]:
        assert loss_curve(found) == pytest.approx(loss_curve(expected), rel=0.01)


def assert_same_weights(found: Ran, expected: Ran) -> None:
    """The best weights, whole again, name by name."""
    assert set(found.weights) == set(expected.weights)
    for name, value in expected.weights.items():
        assert torch.allclose(found.weights[name], value, rtol=1e-3, atol=1e-5), name
