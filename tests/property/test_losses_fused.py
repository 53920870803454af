"""The fused head against whole float64 logits: values and gradients over drawn shapes, masks, targets and losses."""

import math

import hypothesis.strategies as st
import torch
from hypothesis import given, settings
from torch import Tensor, nn

from ray_distill.losses.base import LossBatch, SparseTargets, StudentOutput
from ray_distill.losses.buckets import BucketLoss
from ray_distill.losses.cross_entropy import Hard, TeacherHard
from ray_distill.losses.fused import Part, fused_loss
from ray_distill.losses.soft import DIVERGENCES, Soft

TEMPERATURES = (1.0, 2.0)


def targets_of(
    logp_NV: Tensor, k: int, generator: torch.Generator, *, drawn: int = 0, padded: bool = False
) -> SparseTargets:
    """The k likeliest classes of float64 log-probabilities; or classes drawn from them; or k or fewer of them."""
    positions, classes = logp_NV.shape
    if drawn:
        hit_NN = torch.multinomial(logp_NV.exp(), drawn, replacement=True, generator=generator)
        count_NV = torch.zeros_like(logp_NV).scatter_add_(1, hit_NN, torch.ones(hit_NN.shape, dtype=logp_NV.dtype))
        kept_NV = count_NV > 0
        k = int(kept_NV.sum(1).max())
        order_NK = count_NV.masked_fill(~kept_NV, -1).topk(k, dim=1).indices
    else:
        order_NK = logp_NV.topk(k, dim=1).indices
        kept_NV = torch.zeros_like(logp_NV, dtype=torch.bool).scatter_(1, order_NK, True)
    inside_NK = kept_NV.gather(1, order_NK)
    if padded and k > 1:
        short_N = torch.randint(1, k + 1, (positions,), generator=generator)
        inside_NK &= torch.arange(k) < short_N[:, None]
        kept_NV = torch.zeros_like(kept_NV).scatter_(1, order_NK, inside_NK)
    tails = []
    for temperature in TEMPERATURES:
        soft_NV = (logp_NV / temperature).log_softmax(-1)
        tails.append(soft_NV.masked_fill(kept_NV, -math.inf).logsumexp(-1))
    count_NK = count_NV.gather(1, order_NK).masked_fill(~inside_NK, 0).int() if drawn else None
    return SparseTargets(
        classes=classes, ids_NK=order_NK.masked_fill(~inside_NK, 0), temperatures=TEMPERATURES,
        logp_NK=logp_NV.gather(1, order_NK).masked_fill(~inside_NK, -math.inf).float(),
        log_tail_NT=torch.stack(tails, -1).float(), count_NK=count_NK, draws=drawn,
        log_normaliser_N=torch.zeros(positions) if drawn else None)


def batch_of(positions: int, classes: int, targets: SparseTargets | None, generator: torch.Generator) -> LossBatch:
    """Labels of which some are unknown, rows that may not teach, padding."""
    return LossBatch(
        labels_B=torch.randint(-1, classes, (positions,), generator=generator), targets=targets,
        distil_B=torch.rand(positions, generator=generator) < 0.8,
        example_weight_B=torch.randint(0, 3, (positions,), generator=generator).float())


def dense(hidden: Tensor, weight: Tensor, bias: Tensor | None, batch: LossBatch, parts: list[Part]) -> list[Tensor]:
    """Total, sums and gradients from whole float64 logits by autograd."""
    leaves = [t.double().requires_grad_() for t in (hidden, weight, bias) if t is not None]
    logits = nn.functional.linear(*leaves)
    sums = torch.stack([part.loss(StudentOutput(logits_BV=logits), batch) for part in parts])
    total = (sums * torch.tensor([part.factor for part in parts], dtype=torch.float64)).sum()
    return [total.detach(), sums.detach(), *torch.autograd.grad(total, leaves, materialize_grads=True)]


def fused(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, batch: LossBatch, parts: list[Part], chunk: int
) -> list[Tensor]:
    leaves = [None if t is None else t.clone().requires_grad_() for t in (hidden, weight, bias)]
    total, sums = fused_loss(leaves[0], leaves[1], leaves[2], batch, parts, chunk_elements=chunk)
    total.backward()
    return [total.detach(), sums, *(leaf.grad for leaf in leaves if leaf is not None)]


@st.composite
def losses(draw: st.DrawFn, *, drawn: bool) -> list[Part]:
    names = ["forward_kl"] if drawn else sorted(DIVERGENCES)
    found: list[BucketLoss] = [
        Soft(divergence=draw(st.sampled_from(names)), temperature=draw(st.sampled_from(TEMPERATURES)),
             beta=draw(st.floats(0.05, 0.95)), skew=draw(st.floats(0.05, 0.95)),
             tail="bucket" if drawn else draw(st.sampled_from(("bucket", "renormalised"))))]
    if draw(st.booleans()):
        found.append(Hard())
    if draw(st.booleans()):
        found.append(TeacherHard())
    return [Part(loss=loss, factor=draw(st.floats(0.01, 3.0))) for loss in found]


@settings(max_examples=150, deadline=None)
@given(data=st.data(), seed=st.integers(0, 2**31), positions=st.integers(0, 9), classes=st.integers(2, 40),
       width=st.integers(1, 12), biased=st.booleans(), drawn=st.sampled_from((0, 0, 5)), padded=st.booleans())
def test_values_and_gradients_are_those_of_whole_logits(
    data: st.DataObject, seed: int, positions: int, classes: int, width: int, biased: bool, drawn: int, padded: bool
) -> None:
    generator = torch.Generator().manual_seed(seed)
    parts = data.draw(losses(drawn=bool(drawn)))
    k = data.draw(st.integers(1, classes))
    logp_NV = (4 * torch.randn(positions, classes, generator=generator, dtype=torch.float64)).log_softmax(-1)
    targets = targets_of(logp_NV, k, generator, drawn=drawn, padded=padded) if positions else targets_of(
        torch.zeros(1, classes, dtype=torch.float64).log_softmax(-1), k, generator)
    if not positions:
        targets = SparseTargets(classes=classes, temperatures=TEMPERATURES, ids_NK=targets.ids_NK[:0],
                                logp_NK=targets.logp_NK[:0], log_tail_NT=targets.log_tail_NT[:0])
    batch = batch_of(positions, classes, targets, generator)
    hidden = torch.randn(positions, width, generator=generator)
    weight = torch.randn(classes, width, generator=generator)
    bias = torch.randn(classes, generator=generator) if biased else None
    chunk = data.draw(st.integers(1, 4)) * classes
    wanted = dense(hidden, weight, bias, batch, parts)
    found = fused(hidden, weight, bias, batch, parts, chunk)
    assert [tuple(t.shape) for t in found] == [tuple(t.shape) for t in wanted]
    scale = float(wanted[1].abs().max()) if len(batch.labels_B) else 0.0
    assert float((found[1].double() - wanted[1]).abs().max()) <= 1e-5 * max(scale, 1e-3)
    for ours, theirs in zip(found[2:], wanted[2:], strict=True):
        assert float((ours.double() - theirs).norm()) <= 1e-5 * max(float(theirs.norm()), 1e-3)
