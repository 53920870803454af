"""Soft loss on drawn shapes, truncations, temperatures and masks, against float64 (MATHS.md §2-3, §6)."""

import math

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from ray_distill.losses.base import LossBatch, SparseTargets, StudentOutput
from ray_distill.losses.soft import Soft


@st.composite
def cases(draw: st.DrawFn) -> tuple[Tensor, Tensor, int, float, Tensor, Tensor]:
    """Teacher logits, student logits, k, T, example weights and distil mask."""
    n, classes = draw(st.integers(1, 6)), draw(st.integers(2, 60))
    k = draw(st.integers(1, classes))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    teacher = torch.randn(n, classes, generator=generator).double() * draw(st.sampled_from([0.1, 1.0, 6.0]))
    logits = torch.randn(n, classes, generator=generator) * draw(st.sampled_from([0.1, 1.0, 4.0]))
    weight = torch.tensor(draw(st.lists(st.sampled_from([0.0, 1.0, 2.5]), min_size=n, max_size=n)))
    distil = torch.tensor(draw(st.lists(st.booleans(), min_size=n, max_size=n)))
    return teacher, logits, k, draw(st.sampled_from([0.5, 1.0, 2.0, 4.0])), weight, distil


def targets_of(teacher_NV: Tensor, k: int, temperature: float) -> SparseTargets:
    """Top-k targets in float32 with the tail at T computed over the complement in float64."""
    logp_NK, ids_NK = functional.log_softmax(teacher_NV, -1).topk(k, -1)
    inside = torch.zeros(teacher_NV.shape, dtype=torch.bool).scatter_(-1, ids_NK, True)
    log_tail = functional.log_softmax(teacher_NV / temperature, -1).masked_fill(inside, -math.inf).logsumexp(-1)
    return SparseTargets(
        classes=teacher_NV.shape[1],
        ids_NK=ids_NK,
        logp_NK=logp_NK.float(),
        temperatures=(temperature,),
        log_tail_NT=log_tail.unsqueeze(-1).float(),
    )


def reference(z_NV: Tensor, teacher_NV: Tensor, ids_NK: Tensor, temperature: float, weight_N: Tensor) -> Tensor:
    """T² times the weighted bucketed KL, in float64."""
    bucket_p, bucket_q = [], []
    for logits, into in ((teacher_NV, bucket_p), (z_NV, bucket_q)):
        probabilities = (logits.double() / temperature).softmax(-1)
        outside = torch.ones(probabilities.shape, dtype=torch.bool).scatter_(-1, ids_NK, False)
        into += [probabilities.gather(-1, ids_NK)]
        if bool(outside.any()):
            into += [(probabilities * outside).sum(-1, keepdim=True)]
    p, q = torch.cat(bucket_p, -1), torch.cat(bucket_q, -1)
    return temperature**2 * ((p * (p.log() - q.log())).sum(-1) * weight_N.double()).sum()


@given(case=cases())
@settings(max_examples=150, deadline=None)
def test_soft_equals_float64_everywhere(case: tuple[Tensor, Tensor, int, float, Tensor, Tensor]) -> None:
    """Value and gradient agree to a relative 1e-5 in float32, and the weight is that of the rows that count."""
    teacher, logits, k, temperature, weight, distil = case
    targets = targets_of(teacher, k, temperature)
    batch = LossBatch(
        labels_B=torch.full((len(weight),), -1), targets=targets, distil_B=distil, example_weight_B=weight
    )
    loss = Soft(temperature=temperature)
    found, exact = logits.clone().requires_grad_(True), logits.double().requires_grad_(True)
    value = loss(StudentOutput(logits_BV=found), batch)
    expected = reference(exact, teacher, targets.ids_NK, temperature, weight * distil)
    value.backward()
    expected.backward()
    assert found.grad is not None and exact.grad is not None
    mass = temperature**2 * max(1.0, float((weight * distil).sum()))
    assert abs(value.item() - expected.item()) <= 1e-5 * max(abs(expected.item()), mass)
    assert float((found.grad - exact.grad).abs().max()) <= 1e-5 * max(float(exact.grad.abs().max()), temperature)
    assert float(loss.weight(batch)) == float((weight * distil).sum())
