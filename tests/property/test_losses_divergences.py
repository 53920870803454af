"""Total variation and adaptive KL over drawn shapes against float64 written out from their formulas, whole or fused."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from ray_distill.losses.base import LossBatch, SparseTargets, StudentOutput
from ray_distill.losses.fused import Part, fused_loss
from ray_distill.losses.soft import Soft

Reference = Callable[[Tensor, Tensor, float], Tensor]


def buckets(probabilities_V: Tensor, ids: list[int]) -> Tensor:
    """Masses of the given classes and of all others together."""
    rest = [c for c in range(len(probabilities_V)) if c not in ids]
    return torch.stack([*(probabilities_V[c] for c in ids), *([probabilities_V[rest].sum()] if rest else [])])


def total_variation(p: Tensor, q: Tensor, _: float) -> Tensor:
    return 0.5 * (p - q).abs().sum()


def adaptive_kl(p: Tensor, q: Tensor, head: float, stored: int = 0) -> Tensor:
    """The buckets come in the order of the ids, the tail's, if there is one, last."""
    held, chosen = 0.0, []
    for place in sorted(range(stored), key=lambda place: -float(p[place])):
        if held >= head:
            break
        chosen.append(place)
        held += float(p[place])
    gap = (p - q).abs().detach()
    share = float(gap[chosen].sum() / gap.sum())
    return share * (p * (p / q).log()).sum() + (1 - share) * (q * (q / p).log()).sum()


@dataclass(frozen=True)
class Case:
    """Teacher and student logits in float64, and what is stored of the teacher's."""

    teacher_NV: Tensor
    student_NV: Tensor
    k: int
    temperature: float
    head: float
    weight_N: Tensor

    def targets(self) -> SparseTargets:
        logp_NK, ids_NK = functional.log_softmax(self.teacher_NV, -1).topk(self.k, -1)
        # The order of what is stored is no one's promise.
        order_K = torch.randperm(self.k, generator=torch.Generator().manual_seed(self.k))
        inside = torch.zeros(self.teacher_NV.shape, dtype=torch.bool).scatter_(-1, ids_NK, True)
        tail_N = functional.log_softmax(self.teacher_NV / self.temperature, -1).masked_fill(inside, -math.inf)
        return SparseTargets(
            classes=self.teacher_NV.shape[1],
            ids_NK=ids_NK[:, order_K],
            logp_NK=logp_NK[:, order_K].float(),
            temperatures=(self.temperature,),
            log_tail_NT=tail_N.logsumexp(-1, keepdim=True).float(),
        )

    def batch(self) -> LossBatch:
        return LossBatch(
            labels_B=torch.full((len(self.weight_N),), -1),
            targets=self.targets(),
            distil_B=torch.ones(len(self.weight_N), dtype=torch.bool),
            example_weight_B=self.weight_N,
        )

    def expected(self, divergence: str, student_NV: Tensor) -> Tensor:
        total = torch.zeros((), dtype=torch.float64)
        for place, ids in enumerate(self.targets().ids_NK.tolist()):
            p, q = (buckets((z[place] / self.temperature).softmax(-1), ids) for z in (self.teacher_NV, student_NV))
            value = (
                total_variation(p, q, 0) if divergence == "total_variation" else adaptive_kl(p, q, self.head, len(ids))
            )
            total = total + self.weight_N[place].double() * value
        return self.temperature**2 * total


@st.composite
def cases(draw: st.DrawFn) -> Case:
    n, classes = draw(st.integers(1, 5)), draw(st.integers(2, 30))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    return Case(
        teacher_NV=torch.randn(n, classes, generator=generator).double() * draw(st.sampled_from([0.3, 1.0, 4.0])),
        student_NV=torch.randn(n, classes, generator=generator).double() * 2,
        k=draw(st.integers(1, classes)),
        temperature=draw(st.sampled_from([1.0, 2.0])),
        head=draw(st.sampled_from([0.2, 0.5, 0.9])),
        weight_N=torch.tensor(draw(st.lists(st.sampled_from([0.0, 1.0, 2.5]), min_size=n, max_size=n))),
    )


def close(found: Tensor, expected: Tensor, scale: float) -> bool:
    return float((found.double() - expected).abs().max()) <= 2e-5 * max(float(expected.abs().max()), scale)


@given(case=cases(), divergence=st.sampled_from(["total_variation", "adaptive_kl"]))
@settings(max_examples=150, deadline=None)
def test_value_and_gradient_equal_float64_whole_and_fused(case: Case, divergence: str) -> None:
    """Of float32 logits, and of a fused head whose logits they are."""
    exact = case.student_NV.clone().requires_grad_()
    expected = case.expected(divergence, exact)
    expected.backward()
    parameters = {"head": case.head} if divergence == "adaptive_kl" else {}
    loss = Soft(divergence={divergence: parameters}, temperature=case.temperature)
    whole = case.student_NV.float().requires_grad_()
    value = loss(StudentOutput(logits_BV=whole), case.batch())
    value.backward()
    hidden = case.student_NV.float().requires_grad_()
    total, sums = fused_loss(
        hidden,
        torch.eye(hidden.shape[1]),
        None,
        case.batch(),
        parts=[Part(loss=loss, factor=1.0)],
        chunk_elements=2 * hidden.shape[1],
    )
    total.backward()
    assert exact.grad is not None
    for found, gradient in ((value.detach(), whole.grad), (sums[0], hidden.grad)):
        assert gradient is not None and close(found, expected.detach(), case.temperature**2)
        assert close(gradient, exact.grad, case.temperature**2 * 0.1)


@pytest.mark.parametrize("divergence", ["total_variation", "adaptive_kl"])
def test_classes_without_mass_leave_finite_gradients(divergence: str) -> None:
    """Padding, no tail at all, and a student that is right already."""
    targets = SparseTargets(
        classes=4,
        ids_NK=torch.tensor([[0, 1, 2], [0, 1, 1]]),
        temperatures=(1.0,),
        logp_NK=torch.tensor([[0.5, 0.3, 0.2], [0.6, 0.4, 0.0]]).log(),
        log_tail_NT=torch.full((2, 1), -math.inf),
    )
    batch = LossBatch(
        labels_B=torch.full((2,), -1),
        targets=targets,
        distil_B=torch.ones(2, dtype=torch.bool),
        example_weight_B=torch.ones(2),
    )
    leaf = torch.tensor([[1.0, 0.0, 0.3, -1.0], [0.6, 0.4, 0.0, 0.0]]).requires_grad_()
    value = Soft(divergence=divergence)(StudentOutput(logits_BV=leaf), batch)
    value.backward()
    assert leaf.grad is not None and bool(leaf.grad.isfinite().all()) and bool(value.isfinite())
    same = torch.tensor([[0.5, 0.3, 0.2, 0.0], [0.6, 0.4, 0.0, 0.0]]).log()
    assert float(Soft(divergence=divergence)(StudentOutput(logits_BV=same), batch)) == pytest.approx(0, abs=1e-6)


def test_total_variation_counts_what_is_given_to_classes_the_teacher_excludes() -> None:
    """p = (1, 0), q = (¼, ¾): ¾, though the second class is left out of the buckets."""
    targets = SparseTargets(
        classes=2,
        ids_NK=torch.tensor([[0, 1]]),
        logp_NK=torch.tensor([[0.0, -math.inf]]),
        temperatures=(1.0,),
        log_tail_NT=torch.tensor([[-math.inf]]),
    )
    batch = LossBatch(
        labels_B=torch.tensor([-1]), targets=targets, distil_B=torch.tensor([True]), example_weight_B=torch.ones(1)
    )
    output = StudentOutput(logits_BV=torch.tensor([[0.25, 0.75]]).log())
    assert float(Soft(divergence="total_variation")(output, batch)) == pytest.approx(0.75)


@pytest.mark.parametrize("divergence", ["total_variation", "adaptive_kl"])
def test_drawn_targets_are_refused(divergence: str) -> None:
    """As every divergence but forward KL; the reason is told."""
    targets = Case(torch.zeros(1, 3).double(), torch.zeros(1, 3).double(), 2, 1.0, 0.5, torch.ones(1)).targets()
    drawn = replace(targets, count_NK=torch.ones(1, 2, dtype=torch.int32), log_normaliser_N=torch.zeros(1), draws=2)
    batch = LossBatch(
        labels_B=torch.tensor([-1]), targets=drawn, distil_B=torch.tensor([True]), example_weight_B=torch.ones(1)
    )
    with pytest.raises(ValueError, match=f"'{divergence}' cannot be used with sampled or hybrid.*only forward KL is"):
        Soft(divergence=divergence)(StudentOutput(logits_BV=torch.zeros(1, 3)), batch)
