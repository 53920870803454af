"""The loss curve of a language model is a function of seed, documents and global batch: not of how it is computed.

Against the dense float64 loop of `tests.labs.language_training` the tolerance is 1e-6 relative over six steps; between
runs in float32 it is 1e-5 (`tests.labs.training.TOLERANCE`).
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from ray_distill.models.io.save import save_model
from ray_distill.testing.gloo import run_gloo
from tests.labs import language_training as lab
from tests.labs.language_training import Lab
from tests.labs.training import TOLERANCE, Ran, assert_same_curve, loss_curve

#: Losses, the estimator of the labels, and the student.
VARIANTS: Mapping[str, Mapping[str, Any]] = {
    "topk": {},
    "sampled": {"estimator": "sampled"},
    "hybrid": {"estimator": "hybrid"},
    "dense": {"estimator": "dense"},
    "hot": {"losses": {"soft": {"temperature": 2}, "hard": {"weight": 0.5}}, "estimator": "dense"},
    "reverse_kl": {"losses": {"soft": {"divergence": "reverse_kl"}}},
    "jsd": {"losses": {"soft": {"divergence": {"jsd": {"beta": 0.3}}}}},
    "skewed_kl": {"losses": {"soft": {"divergence": "skewed_kl"}}},
    "hard": {"losses": {"hard": {}}},
    "teacher_hard": {"losses": {"teacher_hard": {}}},
    "hidden_cosine": {"losses": {"soft": {"weight": 0.5}, "hidden": {"kind": "cosine"}}},
    "hidden_mse": {"losses": {"soft": {"weight": 0.5}, "hidden": {"kind": "mse", "weight": 0.01}}},
    "tied": {"student": "tied"},
    "bent": {"student": "bent", "losses": {"soft": {"weight": 0.7}, "hard": {"weight": 0.3}, "hidden": {}}},
    "lora": {"lora": True},
}
ALL = {"soft": {"weight": 0.6}, "hard": {"weight": 0.3}, "hidden": {"weight": 0.5}}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder with the checkpoints."""
    return lab.write_models(tmp_path_factory.mktemp("lab"))


@pytest.fixture(scope="module")
def expected(home: str) -> Ran:
    """Plain torch, one process, padded micro-batches of 3, every kind of loss."""
    return lab.run(Lab(folder=home, losses=ALL))


@pytest.mark.parametrize("variant", VARIANTS)
def test_training_follows_the_dense_float64_loop(home: str, variant: str) -> None:
    """Total and every term of six steps: any loss, estimator and head, also one that cannot be fused."""
    run = Lab(folder=home, **VARIANTS[variant])
    wanted, found = lab.reference(run), lab.run(run)
    for step, values in enumerate(wanted, start=1):
        for name, value in values.items():
            assert found.curve[step][name] == pytest.approx(value, rel=1e-6), (step, name)
    totals = [values["loss"] for values in wanted]
    assert max(totals) - min(totals) > 1e-3 * totals[0], "nothing moved, so nothing was compared"


@pytest.mark.parametrize(
    "training",
    [
        {"micro_batch": 1},
        {"micro_batch": 2},
        {"micro_batch": 4},
        {"micro_batch": 12},
        {"packed": 64},
        {"packed": 20, "micro_batch": 12},
        {"packed": 400, "micro_batch": 5},
        {"micro_tokens": 64},
        {"packed": 64, "micro_tokens": 128},
        {"activation_checkpointing": True},
        {"activation_checkpointing": True, "packed": 64},
    ],
    ids=str,
)
def test_how_documents_are_laid_out_does_not_matter(home: str, expected: Ran, training: dict[str, Any]) -> None:
    """Micro-batches at an equal global batch, packing (also into less than a document) and recomputed activations."""
    assert_same_curve(lab.run(Lab(folder=home, losses=ALL, training=training)), expected)


@pytest.mark.golden
def test_a_compiled_student_learns_the_same(home: str, expected: Ran) -> None:
    """The body alone is compiled, the fused head stays as it is."""
    training = {"compile": "aot_eager", "packed": 64}
    assert_same_curve(lab.run(Lab(folder=home, losses=ALL, training=training)), expected)


def test_a_head_that_cannot_be_fused_is_packed_all_the_same(home: str) -> None:
    """Whole logits, packed or padded: one curve."""
    run = Lab(folder=home, losses=ALL, student="bent")
    assert_same_curve(lab.run(replace(run, training={"packed": 64})), lab.run(run))


def test_bf16_stays_close(home: str, expected: Ran) -> None:
    """Under autocast each step's loss is within 1 % of float32's."""
    half = lab.run(Lab(folder=home, losses=ALL, training={"precision": "bf16"}))
    assert loss_curve(half) == pytest.approx(loss_curve(expected), rel=0.01)


def test_adapters_alone_are_trained_and_the_student_is_saved_without_them(home: str, tmp_path: Path) -> None:
    """Every weight but the adapters' stays bit for bit; what is saved loads with plain transformers, merged."""
    run = Lab(folder=home, lora=True)
    model, found = lab.student_of(run), lab.run(run)
    before = model.module.state_dict()
    moved = {name for name, value in found.weights.items() if not torch.equal(value, before[name])}
    assert moved and all("lora_" in name for name in moved)
    model.module.load_state_dict(found.weights)
    save_model(model, tmp_path, card="", metadata={})
    assert not any("lora" in name for name in load_file(tmp_path / "model.safetensors"))
    plain, ids = AutoModelForCausalLM.from_pretrained(tmp_path), torch.arange(20, 30)[None]
    with torch.no_grad():
        torch.testing.assert_close(plain(ids).logits, model.module.eval()(ids).logits, rtol=1e-4, atol=1e-4)


def assert_goes_on(rest: Ran, whole: Ran) -> None:
    """The steps after the third, as if nothing had happened."""
    assert sorted(rest.curve) == [4, 5, 6]
    for step, values in rest.curve.items():
        assert values["loss"] == pytest.approx(whole.curve[step]["loss"], rel=1e-6)


@pytest.mark.parametrize("variant", ["tied", "lora"])
def test_a_stopped_run_goes_on(home: str, variant: str) -> None:
    """Stopped after step 3 and resumed from its checkpoint: tied weights and adapters are back as they were."""
    run = Lab(folder=home, **VARIANTS[variant])
    rest = lab.run_cut(replace(run, stop_after=3, trial=f"cut-{variant}", training={"packed": 64}))
    assert_goes_on(rest, lab.run(replace(run, training={"packed": 64})))


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
    run = Lab(folder=home, losses=ALL)
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
    runs = [lab.deepspeed(Lab(folder=home, losses=ALL), stage, precision="bf16") for stage in range(4)]
    for found in run_gloo(lab.run_all, 2, runs)[0]:
        assert loss_curve(found) == pytest.approx(loss_curve(expected), rel=0.01)


def assert_same_weights(found: Ran, expected: Ran) -> None:
    """The best weights, whole again, name by name."""
    assert set(found.weights) == set(expected.weights)
    for name, value in expected.weights.items():
        assert torch.allclose(found.weights[name], value, rtol=1e-3, atol=1e-5), name
