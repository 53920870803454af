"""Drawn targets: no bias over thousands of redraws, and which divergences an estimator allows (MATHS.md §1-3)."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch import Tensor

from ray_distill.config import LossConfig
from ray_distill.labels.model.distributions import Distributions
from ray_distill.losses import catalogue
from ray_distill.losses.base import LossBatch, SparseTargets, StudentOutput
from ray_distill.losses.buckets import drawn_weights
from ray_distill.losses.soft import Soft, forward_kl
from ray_distill.students.data.sparse_targets import sparse_targets
from ray_distill.students.objective.weighted_losses import build_terms
from ray_distill.teachers.base import LabelRequest
from ray_distill.teachers.reduce import reduce_logits

REDRAWS, CLASSES, K, DRAWS = 4000, 40, 6, 8
TEMPERATURES = (1.0, 2.0)


def as_targets(found: Distributions) -> SparseTargets:
    """What the student is given of a label set."""
    targets = sparse_targets(found, np.arange(found.rows), np.diff(found.row_offsets))
    return replace(targets, ids_NK=targets.ids_NK.long())


def label(teacher_V: Tensor, estimator: str, exponent: float = 1.0, redraws: int = 1) -> SparseTargets:
    """One position labelled ``redraws`` times: another row id is another draw."""
    ids = pa.array([n.to_bytes(16, "big") for n in range(redraws)], pa.binary(16))
    request = LabelRequest(estimator=estimator, k=K, temperatures=TEMPERATURES, draws=DRAWS, exponent=exponent, seed=7)
    return as_targets(reduce_logits(teacher_V.expand(redraws, -1), request, ids))


def logits() -> tuple[Tensor, Tensor]:
    """A teacher and a student, ``[V]`` each."""
    generator = torch.Generator().manual_seed(3)
    return 2 * torch.randn(CLASSES, generator=generator), torch.randn(CLASSES, generator=generator)


def gradients(student_V: Tensor, targets: SparseTargets, temperature: float) -> Tensor:
    """T times the gradient of the forward KL in the logits, per redraw, in float64: ``[N, V]``."""
    leaf = student_V.double().expand(len(targets.ids_NK), -1).clone().requires_grad_(True)
    forward_kl(leaf, targets, temperature).sum().backward()
    assert leaf.grad is not None
    return temperature * leaf.grad


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize(
    ("estimator", "exponent"), [("sampled", 1.0), ("sampled", 0.5), ("hybrid", 1.0), ("hybrid", 0.5)]
)
def test_the_mean_gradient_is_the_dense_one(estimator: str, exponent: float, temperature: float) -> None:
    """Over 4,000 redraws every class is within 5 standard errors of q - p; the truncated top-k is off by far more."""
    teacher_V, student_V = logits()
    exact_V = (student_V.double() / temperature).softmax(-1) - (teacher_V.double() / temperature).softmax(-1)
    found_NV = gradients(student_V, label(teacher_V, estimator, exponent, REDRAWS), temperature)
    error_V = found_NV.mean(0) - exact_V
    # Classes of an exact head with Σŵ constant do not vary at all; what float32 rounds is left.
    deviation_V = found_NV.std(0) / REDRAWS**0.5 + 1e-7
    assert float((error_V / deviation_V).abs().max()) < 5
    biased_V = gradients(student_V, label(teacher_V, "topk"), temperature)[0] - exact_V
    assert float(biased_V.norm()) > 10 * float(error_V.norm())


def test_the_mean_value_is_the_full_divergence() -> None:
    """The value estimates the KL over all classes, not over buckets."""
    teacher_V, student_V = logits()
    value_N = forward_kl(student_V.double().expand(REDRAWS, -1), label(teacher_V, "sampled", 1.0, REDRAWS), 1.0)
    p_V, q_V = teacher_V.double().softmax(-1), student_V.double().softmax(-1)
    exact = float((p_V * (p_V / q_V).log()).sum())
    assert abs(float(value_N.mean()) - exact) < 5 * float(value_N.std()) / REDRAWS**0.5


@pytest.mark.parametrize("estimator", ["sampled", "hybrid"])
def test_the_gradient_is_the_published_formula(estimator: str) -> None:
    """(Σŵ) q - ŵ, with ŵ = c/N at a = 1 and T = 1 for sampled entries, and p itself for the exact head."""
    teacher_V, student_V = logits()
    targets = label(teacher_V, estimator, 1.0, 20)
    assert targets.count_NK is not None
    w_NK = drawn_weights(targets, 1.0).double().exp()
    p_NK = teacher_V.double().softmax(-1)[targets.ids_NK]
    drawn_NK, padding_NK = targets.count_NK > 0, targets.logp_NK == -torch.inf
    head_N1 = p_NK.masked_fill(drawn_NK | padding_NK, 0.0).sum(-1, keepdim=True)  # 0 for sampled
    expected_NK = torch.where(drawn_NK, (1 - head_N1) * targets.count_NK / DRAWS, p_NK).masked_fill(padding_NK, 0.0)
    torch.testing.assert_close(w_NK, expected_NK, rtol=1e-5, atol=1e-6)
    w_NV = torch.zeros(20, CLASSES, dtype=torch.float64).scatter_add(-1, targets.ids_NK, w_NK)
    formula_NV = w_NV.sum(-1, keepdim=True) * student_V.double().softmax(-1) - w_NV
    torch.testing.assert_close(gradients(student_V, targets, 1.0), formula_NV, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("exponent", [1.0, 0.5])
def test_counts_have_the_mean_of_free_draws_and_less_variance(exponent: float) -> None:
    """Stratified points: N r_j on average, and over all classes less variance than a multinomial has."""
    teacher_V, _ = logits()
    targets = label(teacher_V, "sampled", exponent, REDRAWS)
    assert targets.count_NK is not None
    count_NV = torch.zeros(REDRAWS, CLASSES).scatter_add(-1, targets.ids_NK, targets.count_NK.float())
    r_V = (exponent * teacher_V).softmax(-1)
    free_V = DRAWS * r_V * (1 - r_V)
    assert float(((count_NV.mean(0) - DRAWS * r_V) / (free_V / REDRAWS).sqrt()).abs().max()) < 5
    assert float(count_NV.var(0).sum()) < 0.95 * float(free_V.sum())


def reference(student_NV: Tensor, teacher_NV: Tensor, ids_NK: Tensor, temperature: float, kind: str) -> Tensor:
    """The divergence over explicit buckets, in float64."""
    outside = torch.ones(teacher_NV.shape, dtype=torch.bool).scatter_(-1, ids_NK, False)
    p, q = (
        torch.cat([x.gather(-1, ids_NK), (x * outside).sum(-1, keepdim=True)], -1)[:, :CLASSES]
        for x in ((z.double() / temperature).softmax(-1) for z in (teacher_NV, student_NV))
    )
    if kind == "reverse_kl":
        return (q * (q / p).log()).sum(-1)
    m = (p + q) / 2
    return 0.5 * (p * (p / m).log() + q * (q / m).log()).sum(-1)


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("estimator", ["dense", "topk"])
@pytest.mark.parametrize("kind", ["reverse_kl", "jsd"])
def test_other_divergences_equal_float64(kind: str, estimator: str, temperature: float) -> None:
    """Value and gradient over the buckets, times T²."""
    generator = torch.Generator().manual_seed(0)
    teacher_NV, student_NV = (2 * torch.randn(5, CLASSES, generator=generator) for _ in range(2))
    request = LabelRequest(estimator=estimator, k=K, temperatures=TEMPERATURES)
    targets = as_targets(reduce_logits(teacher_NV, request))
    found, exact = student_NV.clone().requires_grad_(True), student_NV.double().requires_grad_(True)
    batch = LossBatch(
        labels_B=torch.full((5,), -1),
        targets=targets,
        distil_B=torch.ones(5, dtype=torch.bool),
        example_weight_B=torch.ones(5),
    )
    value = Soft(temperature=temperature, divergence=kind)(StudentOutput(logits_BV=found), batch)
    expected = temperature**2 * reference(exact, teacher_NV, targets.ids_NK, temperature, kind).sum()
    value.backward()
    expected.backward()
    assert found.grad is not None and exact.grad is not None
    torch.testing.assert_close(value.double(), expected, rtol=1e-5, atol=1e-6)
    assert float((found.grad - exact.grad).abs().max()) <= 1e-5 * float(exact.grad.abs().max())


@pytest.mark.parametrize("kind", ["forward_kl", "reverse_kl", "jsd"])
def test_classes_without_mass_leave_finite_gradients(kind: str) -> None:
    """Padding, an empty tail and a student that excludes a class: no NaN, with a target that is met exactly too."""
    teacher_NV = torch.tensor([[1.0, 0.0, -torch.inf, -torch.inf], [0.5, 0.2, 0.1, 0.0]])
    targets = as_targets(reduce_logits(teacher_NV, LabelRequest(estimator="topk", k=2, temperatures=TEMPERATURES)))
    targets = replace(
        targets,
        ids_NK=torch.cat([targets.ids_NK, targets.ids_NK[:, :1]], -1),
        logp_NK=torch.cat([targets.logp_NK, torch.full((2, 1), -torch.inf)], -1),
    )
    leaf = torch.tensor([[1.0, 0.0, 0.3, -1.0], [0.5, 0.2, 0.1, 0.0]], requires_grad=True)
    batch = LossBatch(
        labels_B=torch.full((2,), -1),
        targets=targets,
        distil_B=torch.ones(2, dtype=torch.bool),
        example_weight_B=torch.ones(2),
    )
    value = Soft(divergence=kind)(StudentOutput(logits_BV=leaf), batch)
    value.backward()
    assert leaf.grad is not None and bool(leaf.grad.isfinite().all()) and bool(value.isfinite())
    assert float(leaf.grad[1].abs().max()) < 1e-6


@pytest.mark.parametrize("estimator", ["sampled", "hybrid"])
@pytest.mark.parametrize("kind", ["reverse_kl", "jsd"])
def test_drawn_targets_refuse_what_is_not_linear(estimator: str, kind: str) -> None:
    """The message says why, and what to do."""
    teacher_V, student_V = logits()
    batch = LossBatch(
        labels_B=torch.full((1,), -1),
        targets=label(teacher_V, estimator),
        example_weight_B=torch.ones(1),
        distil_B=torch.ones(1, dtype=torch.bool),
    )
    with pytest.raises(ValueError, match=f"'{kind}' cannot be used with sampled or hybrid.*only forward KL is linear"):
        Soft(divergence=kind)(StudentOutput(logits_BV=student_V.unsqueeze(0)), batch)


def test_an_unknown_divergence_is_named() -> None:
    """With the ones there are."""
    with pytest.raises(ValueError, match="total_variation, adaptive_kl, found 'mse'"):
        Soft(divergence="mse")


def test_a_configuration_names_the_divergence() -> None:
    """It reaches the loss; forward KL is what none means."""
    for given, expected in (({"divergence": "jsd"}, "jsd"), ({}, "forward_kl")):
        losses = {"soft": LossConfig.model_validate(given)}
        (term,) = build_terms(losses, kinds=catalogue.LOSSES, steps=1, temperatures=TEMPERATURES, layers={})
        assert term.loss == Soft(divergence=expected)
