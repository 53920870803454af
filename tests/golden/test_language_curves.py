"""The loss curve of a language model is a function of seed, documents and global batch: not of how it is computed.

Against the dense float64 loop of `tests.labs.language_training` the tolerance is 1e-6 relative over six steps; between
runs in float32 it is 1e-5 (`tests.labs.training.TOLERANCE`). Runs of several ranks and of DeepSpeed are in
`test_language_ranks`.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from ray_distill.models.io.save import save_model
from tests.labs import language_training as lab
from tests.labs.language_training import EVERY_LOSS, VARIANTS, Lab
from tests.labs.training import Ran, assert_same_curve, loss_curve


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder with the checkpoints."""
    return lab.write_models(tmp_path_factory.mktemp("lab"))


@pytest.fixture(scope="module")
def expected(home: str) -> Ran:
    """Plain torch, one process, padded micro-batches of 3, every kind of loss."""
    return lab.run(Lab(folder=home, losses=EVERY_LOSS))


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
    assert_same_curve(lab.run(Lab(folder=home, losses=EVERY_LOSS, training=training)), expected)


@pytest.mark.golden
def test_a_compiled_student_learns_the_same(home: str, expected: Ran) -> None:
    """The body alone is compiled, the fused head stays as it is."""
    training = {"compile": "aot_eager", "packed": 64}
    assert_same_curve(lab.run(Lab(folder=home, losses=EVERY_LOSS, training=training)), expected)


def test_a_head_that_cannot_be_fused_is_packed_all_the_same(home: str) -> None:
    """Whole logits, packed or padded: one curve."""
    run = Lab(folder=home, losses=EVERY_LOSS, student="bent")
    assert_same_curve(lab.run(replace(run, training={"packed": 64})), lab.run(run))


def test_bf16_stays_close(home: str, expected: Ran) -> None:
    """Under autocast each step's loss is within 1 % of float32's."""
    half = lab.run(Lab(folder=home, losses=EVERY_LOSS, training={"precision": "bf16"}))
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
