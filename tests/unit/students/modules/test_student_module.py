"""Student and projections: which layers are paired, how states are pooled, what stays behind."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from ray_distill.errors import ConfigError
from ray_distill.models.io.load import load_model
from ray_distill.students.modules.student_module import build_bundle, layer_pairs
from ray_distill.testing.models import write_tiny_text_model


def student(layers: int) -> Any:
    """All that pairing asks of a model."""
    return SimpleNamespace(layers=layers, url="s")


@pytest.mark.parametrize(
    ("stored", "layers", "pairs"),
    [
        ((3, 6), 2, {1: 3, 2: 6}),
        ((6, 12), 4, {2: 6, 4: 12}),
        ((1, 2, 3, 4, 5, 6), 2, {1: 3, 2: 6}),
        ((12,), 3, {3: 12}),
        ((2, 4, 6), 4, {1: 2, 3: 4, 4: 6}),
    ],
)
def test_uniform_spreads_the_pairs_and_ends_with_the_last(
    stored: tuple[int, ...], layers: int, pairs: dict[int, int]
) -> None:
    """As many pairs as possible, evenly over both sides."""
    assert layer_pairs("uniform", stored, student(layers)) == pairs


def test_last_and_explicit() -> None:
    """Only the last pair, or exactly what is named."""
    assert layer_pairs("last", (3, 9), student(4)) == {4: 9}
    assert layer_pairs({0: 3, 2: 9}, (3, 9), student(4)) == {0: 3, 2: 9}


def test_layers_that_are_not_there_are_named() -> None:
    """Nothing stored, no such layer of either side, a student without hidden states."""
    with pytest.raises(ConfigError, match="the label store holds no hidden states"):
        layer_pairs("uniform", (), student(2))
    with pytest.raises(ConfigError, match="the student has layers 0 to 2, found 3"):
        layer_pairs({3: 6}, (6,), student(2))
    with pytest.raises(ConfigError, match=r"the store holds the teacher layers \[6\], found 5"):
        layer_pairs({1: 5}, (6,), student(2))
    with pytest.raises(ConfigError, match="the student s shows no hidden states"):
        layer_pairs("last", (6,), student(-1))


@pytest.mark.parametrize(("pool", "shape"), [("mean", (2, 7)), ("cls", (2, 7)), ("last", (2, 7)), ("token", (2, 4, 7))])
def test_states_are_pooled_and_projected(tmp_path: Path, pool: str, shape: tuple[int, ...]) -> None:
    """The student's states come out at the teacher's width, and padding does not change an example's."""
    model = load_model(str(write_tiny_text_model(tmp_path, ("a", "b"), seed=1)), task="text_classification")
    bundle = build_bundle(model, model.module, layers={1: 6, 2: 12}, widths={6: 7, 12: 7}, pool=pool, seed=0)
    ids, mask = torch.tensor([[7, 8, 9, 10], [7, 8, 0, 0]]), torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    with torch.no_grad():
        logits, hidden, _, _ = bundle({"input_ids": ids, "attention_mask": mask})
        _, short, _, _ = bundle({"input_ids": ids[1:, :2], "attention_mask": mask[1:, :2]})
    assert logits.shape == (2, 2) and sorted(hidden) == [1, 2]
    assert hidden[2].shape == shape
    expected = short[2][0] if pool != "token" else short[2][0, :2]
    found = hidden[2][1] if pool != "token" else hidden[2][1, :2]
    assert torch.allclose(found, expected, atol=1e-5)


def test_first_projections_depend_on_the_seed_alone(tmp_path: Path) -> None:
    """Ranks and reruns start from the same weights, whatever torch's own generator holds."""
    model = load_model(str(write_tiny_text_model(tmp_path, ("a", "b"), seed=1)), task="text_classification")
    made = []
    for seed in (1, 1, 2):
        torch.manual_seed(len(made))
        bundle = build_bundle(model, model.module, layers={1: 6}, widths={6: 7}, pool="mean", seed=seed)
        made.append(bundle.projections["1"].weight)
    assert torch.equal(made[0], made[1]) and not torch.equal(made[0], made[2])
