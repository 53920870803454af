"""The fused head against whole float64 logits: values and gradients over drawn shapes, masks, targets and losses."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, fields

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor, nn

from ray_distill.losses import fused as fused_module
from ray_distill.losses.base import LossBatch, SparseTargets, StudentOutput
from ray_distill.losses.buckets import BucketLoss
from ray_distill.losses.cross_entropy import Hard, TeacherHard
from ray_distill.losses.divergences import DIVERGENCES
from ray_distill.losses.fused import Part, fused_loss
from ray_distill.losses.soft import Soft

TEMPERATURES = (1.0, 2.0)


@pytest.fixture(autouse=True, scope="module")
def small_cache() -> Iterator[None]:
    """A cache that holds a row or a few: what is taken piece by piece at real sizes is here, too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fused_module, "CACHED_ELEMENTS", 100)
        yield


def targets_of(
    logp_NV: Tensor, k: int, generator: torch.Generator, *, drawn: int = 0, exponent: float = 1.0, padded: bool = False
) -> SparseTargets:
    """The k likeliest classes of float64 log-probabilities, or k or fewer; with draws from all others (``hybrid``).

    Without any exact class (k = 0) the draws are from all (``sampled``).
    """
    positions, classes = logp_NV.shape
    likeliest_NK = logp_NV.topk(k, dim=1).indices
    exact_NV = torch.zeros_like(logp_NV, dtype=torch.bool).scatter_(1, likeliest_NK, True)
    if padded and k > 1:
        short_N = torch.randint(1, k + 1, (positions,), generator=generator)
        exact_NV = torch.zeros_like(exact_NV).scatter_(1, likeliest_NK, torch.arange(k) < short_N[:, None])
    count_NV, log_normaliser_N = _draw(logp_NV.masked_fill(exact_NV, -math.inf), drawn, exponent, generator)
    kept_NV = exact_NV | (count_NV > 0)
    width = max(int(kept_NV.sum(1).max()), 1) if positions else 1
    order_NK = kept_NV.int().topk(width, dim=1).indices
    inside_NK = kept_NV.gather(1, order_NK)
    tails = [(logp_NV / t).log_softmax(-1).masked_fill(kept_NV, -math.inf).logsumexp(-1) for t in TEMPERATURES]
    return SparseTargets(
        classes=classes,
        ids_NK=order_NK.masked_fill(~inside_NK, 0),
        temperatures=TEMPERATURES,
        logp_NK=logp_NV.gather(1, order_NK).masked_fill(~inside_NK, -math.inf).float(),
        log_tail_NT=torch.stack(tails, -1).float(),
        draws=drawn,
        exponent=exponent,
        count_NK=count_NV.gather(1, order_NK) if drawn else None,
        log_normaliser_N=log_normaliser_N.float() if drawn else None,
    )


def _draw(logp_NV: Tensor, drawn: int, exponent: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """How often each class comes up, and the log normaliser of the proposal; of the classes with any probability."""
    scaled_NV = (exponent * logp_NV).masked_fill(logp_NV == -math.inf, -math.inf)
    count_NV = torch.zeros(logp_NV.shape, dtype=torch.int32)
    if drawn and len(logp_NV):
        hit_NN = torch.multinomial(scaled_NV.softmax(-1), drawn, replacement=True, generator=generator)
        count_NV.scatter_add_(1, hit_NN, torch.ones(hit_NN.shape, dtype=torch.int32))
    return count_NV, scaled_NV.logsumexp(-1)


def batch_of(positions: int, classes: int, targets: SparseTargets | None, generator: torch.Generator) -> LossBatch:
    """Labels of which some are unknown, rows that may not teach, padding."""
    return LossBatch(
        labels_B=torch.randint(-1, classes, (positions,), generator=generator),
        targets=targets,
        distil_B=torch.rand(positions, generator=generator) < 0.8,
        example_weight_B=torch.randint(0, 3, (positions,), generator=generator).float(),
    )


@dataclass(frozen=True, kw_only=True)
class Student:
    """A head and what it is applied to: hidden states, or, tied, a linear map of rows of the head's own weight."""

    hidden_ND: Tensor
    weight_VD: Tensor
    bias_V: Tensor | None
    tokens_N: Tensor | None = None
    """Tied: whose embeddings the hidden states are made of; ``hidden_ND`` is added to them."""

    def leaves(self, dtype: torch.dtype) -> list[Tensor]:
        return [
            t.detach().to(dtype).clone().requires_grad_()
            for t in (self.hidden_ND, self.weight_VD, self.bias_V)
            if t is not None
        ]

    def states(self, leaves: list[Tensor]) -> Tensor:
        return leaves[0] if self.tokens_N is None else leaves[0] + leaves[1][self.tokens_N]


def dense(student: Student, batch: LossBatch, parts: list[Part]) -> list[Tensor]:
    """Total, sums and gradients from whole float64 logits by autograd."""
    leaves = student.leaves(torch.float64)
    logits = nn.functional.linear(student.states(leaves), *leaves[1:])
    sums = torch.stack([part.loss(StudentOutput(logits_BV=logits), batch) for part in parts])
    total = (sums * torch.tensor([part.factor for part in parts], dtype=torch.float64)).sum()
    return [total.detach(), sums.detach(), *torch.autograd.grad(total, leaves, materialize_grads=True)]


def fused(
    student: Student, batch: LossBatch, parts: list[Part], chunk: int, dtype: torch.dtype = torch.float32
) -> list[Tensor]:
    leaves = student.leaves(dtype)
    total, sums = fused_loss(
        student.states(leaves),
        leaves[1],
        leaves[2] if len(leaves) > 2 else None,
        batch,
        parts=parts,
        chunk_elements=chunk,
    )
    total.backward()
    return [total.detach(), sums, *(leaf.grad for leaf in leaves if leaf.grad is not None)]


@st.composite
def losses(draw: st.DrawFn, *, drawn: bool) -> list[Part]:
    name = draw(st.sampled_from(["forward_kl"] if drawn else sorted(DIVERGENCES)))
    parameters = {field.name: draw(st.floats(0.05, 0.95)) for field in fields(DIVERGENCES[name])}
    found: list[BucketLoss] = [
        Soft(
            divergence={name: parameters},
            temperature=draw(st.sampled_from(TEMPERATURES)),
            tail="bucket" if drawn else draw(st.sampled_from(("bucket", "renormalised"))),
        )
    ]
    if draw(st.booleans()):
        found.append(Hard())
    if draw(st.booleans()):
        found.append(TeacherHard())
    return [Part(loss=loss, factor=draw(st.floats(0.01, 3.0))) for loss in found]


@st.composite
def problems(draw: st.DrawFn) -> tuple[Student, LossBatch, list[Part], int]:
    """A head, a batch, losses and a chunk's size."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    positions, width = draw(st.integers(0, 9)), draw(st.integers(1, 12))
    classes, drawn = draw(st.one_of(st.integers(2, 40), st.just(700))), draw(st.sampled_from((0, 0, 5)))
    # With every class exact nothing is left to draw.
    k = draw(st.integers(0, classes - 1)) if drawn else draw(st.integers(1, classes))
    logp_NV = (4 * torch.randn(positions, classes, generator=generator, dtype=torch.float64)).log_softmax(-1)
    targets = targets_of(
        logp_NV, k, generator, drawn=drawn, padded=draw(st.booleans()), exponent=draw(st.sampled_from((1.0, 0.5)))
    )
    tied, biased = draw(st.booleans()), draw(st.booleans())
    student = Student(
        hidden_ND=torch.randn(positions, width, generator=generator),
        weight_VD=torch.randn(classes, width, generator=generator),
        bias_V=torch.randn(classes, generator=generator) if biased else None,
        tokens_N=torch.randint(classes, (positions,), generator=generator) if tied else None,
    )
    batch = batch_of(positions, classes, targets, generator)
    return student, batch, draw(losses(drawn=bool(drawn))), draw(st.integers(1, 4)) * classes


@settings(max_examples=300, deadline=None)
@given(problem=problems())
def test_values_and_gradients_are_those_of_whole_logits(problem: tuple[Student, LossBatch, list[Part], int]) -> None:
    """Relative error at most 1e-5 in float32 of the total, each loss, and the gradients in hidden states, weight and
    bias: any shapes, masks, k, V, temperature, divergence and estimator, tied to the embedding or not.
    """
    student, batch, parts, chunk = problem
    wanted, found = dense(student, batch, parts), fused(student, batch, parts, chunk)
    assert [tuple(t.shape) for t in found] == [tuple(t.shape) for t in wanted]
    for ours, theirs in zip([found[0], *found[1], *found[2:]], [wanted[0], *wanted[1], *wanted[2:]], strict=True):
        assert float((ours.double() - theirs).norm()) <= 1e-5 * float(theirs.norm())


@settings(max_examples=60, deadline=None)
@given(problem=problems())
def test_in_float64_they_are_equal(problem: tuple[Student, LossBatch, list[Part], int]) -> None:
    """What float32 leaves apart is rounding: in float64 the error is at most 1e-12."""
    student, batch, parts, chunk = problem
    wanted, found = dense(student, batch, parts), fused(student, batch, parts, chunk, torch.float64)
    for ours, theirs in zip([found[0], *found[1], *found[2:]], [wanted[0], *wanted[1], *wanted[2:]], strict=True):
        assert float((ours - theirs).norm()) <= 1e-12 * float(theirs.norm()) + 1e-13


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("frozen", [(1,), (1, 2), (0,), (0, 1, 2)])
def test_who_is_frozen_gets_no_gradient(frozen: tuple[int, ...], dtype: torch.dtype) -> None:
    """The frozen head of an adapted student costs no product of its own; the others' gradients do not change."""
    generator = torch.Generator().manual_seed(0)
    logp_NV = torch.randn(5, 11, generator=generator, dtype=torch.float64).log_softmax(-1)
    batch = batch_of(5, 11, targets_of(logp_NV, 3, generator), generator)
    parts = [Part(loss=Soft(), factor=1.0), Part(loss=Hard(), factor=0.5)]
    whole = [torch.randn(shape, generator=generator).to(dtype).requires_grad_() for shape in ((5, 4), (11, 4), (11,))]
    some = [t.detach().clone().requires_grad_(at not in frozen) for at, t in enumerate(whole)]
    totals = [fused_loss(h, w, b, batch, parts=parts, chunk_elements=22)[0] for h, w, b in (whole, some)]
    assert torch.equal(*totals)
    totals[0].backward()
    if len(frozen) < 3:
        totals[1].backward()
    for at, (expected, found) in enumerate(zip(whole, some, strict=True)):
        assert found.grad is None if at in frozen else torch.equal(found.grad, expected.grad)
