"""Fuse a student's head with its losses: without a ``[tokens, V]`` tensor (MATHS.md §4).

Positions are taken in chunks with whole rows of V, so that all that exists at once is one chunk's logits, which become
their own gradient in place. Gradients are made in the forward pass; nothing is computed twice: three matrix products,
as many as the plain loss has.

Every loss here is a function of K + 1 buckets, the stored classes and the rest, and of the true class's logit. Its
gradient in those few numbers comes from autograd, so a loss with `of_buckets` needs nothing else. The gradient of
the tail's bucket spreads over the classes that are not stored in proportion to the student's own probabilities there:
``∂L/∂z_j = ∂L/∂(log Σ_tail e^z) · e^{z_j} / Σ_tail e^z``, which cancels nowhere, however small the tail.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ray_distill.losses.base import LossBatch, SparseTargets
from ray_distill.losses.buckets import BucketLoss, Buckets
from ray_distill.losses.products import add_products, head_logits

#: Logits of a chunk of positions: as many as are in memory at once, in float32. With fewer, reading and
#: writing the weight's gradient for every chunk takes longer than its products.
CHUNK_ELEMENTS = 5 << 23
#: Logits that are made exponentials at once on a CPU: as many as fit its cache, so that memory is passed over once, not
#: four times. A device that runs ahead of its launches takes the whole chunk.
CACHED_ELEMENTS = 1 << 19


@dataclass(frozen=True, kw_only=True)
class Part:
    """One loss in a total."""

    loss: BucketLoss
    factor: float
    """Factor of its sum over the positions."""


@dataclass(frozen=True, kw_only=True)
class HeadRequest:
    """Request losses of a batch from a fused head, instead of logits."""

    batch: LossBatch
    """Its "examples" are the positions the head is applied to."""
    parts: tuple[Part, ...]
    norms: bool = False
    """True: return the squared norm of each loss's own gradient too."""


class FusedHead(nn.Module):
    """Return logits, or losses without logits; owns the weight, so that ZeRO-3 gathers it.

    Built from the model's own head it shares its parameters, tied to the input embedding or not, and takes its place
    under the same names.
    """

    def __init__(self, head: nn.Linear, chunk_elements: int = CHUNK_ELEMENTS) -> None:
        super().__init__()
        self.weight, self.bias = head.weight, head.bias
        self.in_features, self.out_features = head.in_features, head.out_features
        self.chunk_elements = chunk_elements

    def forward(self, hidden: Tensor, request: HeadRequest | None = None) -> Tensor | tuple[Tensor, Tensor, Tensor]:
        """Return logits ``[..., V]`` of hidden states ``[..., D]``, or the requested losses.

        The latter are the total and the sums of `fused_loss`, and `fused_squares` (``[0]`` without norms).
        """
        if request is None:
            return nn.functional.linear(hidden, self.weight, self.bias)
        head, measured = (self.weight, self.bias), request.parts if request.norms else ()
        total, sums = fused_loss(hidden, *head, request.batch, parts=request.parts, chunk_elements=self.chunk_elements)
        return (
            total,
            sums,
            fused_squares(hidden, *head, request.batch, parts=measured, chunk_elements=self.chunk_elements),
        )


def fused_loss(
    hidden_ND: Tensor,
    weight_VD: Tensor,
    bias_V: Tensor | None,
    batch: LossBatch,
    *,
    parts: Sequence[Part],
    chunk_elements: int = CHUNK_ELEMENTS,
) -> tuple[Tensor, Tensor]:
    """Compute ``Σ factor · loss`` over N positions of a linear head's logits, and each sum.

    Each loss's own sum is returned without its factor.

    Positions that no loss gives weight leave before the first product. Products are taken in the dtype of
    ``hidden_ND`` and summed in float32; a half-precision CPU takes them in float32. Autocast has no effect.

    Args:
        hidden_ND: what the head is applied to.
        weight_VD: of the head.
        bias_V: of the head, or None.
        batch: of N "examples": the positions. All is on the device of ``hidden_ND``.
        parts: the losses, at any of the declared temperatures; each further temperature costs one copy of a chunk.
        chunk_elements: logits in memory at once.

    Returns:
        The total, a scalar to call ``backward`` on, once; and the sums ``[parts]``, without a gradient.
    """
    hidden_ND, batch = _counted(hidden_ND, batch, parts)
    needed = tuple(
        torch.is_grad_enabled() and tensor is not None and tensor.requires_grad
        for tensor in (hidden_ND, weight_VD, bias_V)
    )
    work = _Work(batch=batch, parts=tuple(parts), chunk_elements=chunk_elements, needed=needed)
    total, sums = _Fused.apply(hidden_ND, weight_VD, bias_V, work)  # type: ignore[no-untyped-call]
    return total, sums


@torch.no_grad()
def fused_squares(
    hidden_ND: Tensor,
    weight_VD: Tensor,
    bias_V: Tensor | None,
    batch: LossBatch,
    *,
    parts: Sequence[Part],
    chunk_elements: int = CHUNK_ELEMENTS,
) -> Tensor:
    """Return squared norms ``[parts]``, float64, of each loss's gradient in ``hidden_ND``.

    The gradient is that of the loss's own sum, without its factor. Arguments as of `fused_loss`. Costs two matrix
    products a loss, and leaves no graph.
    """
    found = []
    for part in parts:
        own_ND, own = _counted(hidden_ND, batch, (part,))
        work = _Work(
            batch=own, parts=(replace(part, factor=1.0),), chunk_elements=chunk_elements, needed=(True, False, False)
        )
        with torch.autocast(hidden_ND.device.type, enabled=False):
            gradient_ND = _run(own_ND, weight_VD, bias_V, work)[1][0]
        assert gradient_ND is not None
        found.append(gradient_ND.double().square().sum())
    return torch.stack(found) if found else hidden_ND.new_zeros(0, dtype=torch.float64)


def _counted(hidden_ND: Tensor, batch: LossBatch, parts: Sequence[Part]) -> tuple[Tensor, LossBatch]:
    """Select the positions that any of the losses gives weight."""
    used_N = torch.zeros(len(hidden_ND), dtype=torch.bool, device=hidden_ND.device)
    for part in parts:
        used_N |= part.loss.weights(batch) != 0
    if bool(used_N.all()):
        return hidden_ND, batch
    return hidden_ND[used_N], select(batch, used_N)


def select(batch: LossBatch, chosen: Tensor | slice) -> LossBatch:
    """Select positions of a batch by a mask or a slice; hidden states are dropped."""
    targets = batch.targets
    if targets is not None:
        targets = replace(
            targets,
            ids_NK=targets.ids_NK[chosen],
            logp_NK=targets.logp_NK[chosen],
            log_tail_NT=targets.log_tail_NT[chosen],
            count_NK=None if targets.count_NK is None else targets.count_NK[chosen],
            log_normaliser_N=None if targets.log_normaliser_N is None else targets.log_normaliser_N[chosen],
        )
    return LossBatch(
        labels_B=batch.labels_B[chosen],
        targets=targets,
        distil_B=batch.distil_B[chosen],
        example_weight_B=batch.example_weight_B[chosen],
    )


@dataclass(frozen=True, kw_only=True)
class _Work:
    batch: LossBatch
    parts: tuple[Part, ...]
    chunk_elements: int
    needed: tuple[bool, ...]
    """Need of a gradient: hidden states, weight, bias. The frozen head of an adapted student needs none."""

    @property
    def gradients(self) -> bool:
        """Return whether any gradient is needed."""
        return any(self.needed)

    @property
    def scale(self) -> float:
        """Return the largest factor, which gradients exclude against underflow in half precision."""
        return max((abs(part.factor) for part in self.parts), default=0.0) or 1.0


class _Fused(torch.autograd.Function):
    """`fused_loss` of positions that all count."""

    @staticmethod
    def forward(ctx: Any, hidden_ND: Tensor, weight_VD: Tensor, bias_V: Tensor | None, work: _Work) -> Any:
        with torch.autocast(hidden_ND.device.type, enabled=False):
            sums, gradients = _run(hidden_ND, weight_VD, bias_V, work)
        ctx.gradients, ctx.scale = gradients, work.scale
        ctx.dtypes = [None if t is None else t.dtype for t in (hidden_ND, weight_VD, bias_V)]
        ctx.mark_non_differentiable(sums)
        factors = torch.tensor([part.factor for part in work.parts], dtype=sums.dtype, device=sums.device)
        return (sums * factors).sum(), sums

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor, _: Tensor) -> Any:
        if ctx.gradients is None:
            raise RuntimeError("the gradients of a fused loss were used already: call backward once")
        made, ctx.gradients = ctx.gradients, None
        return (
            *(
                None if gradient is None else gradient.mul_(upstream * ctx.scale).to(dtype)
                for gradient, dtype in zip(made, ctx.dtypes, strict=True)
            ),
            None,
        )


def _run(
    hidden_ND: Tensor, weight_VD: Tensor, bias_V: Tensor | None, work: _Work
) -> tuple[Tensor, list[Tensor | None]]:
    """Return sums and gradients in hidden states, weight and bias, in at least float32."""
    positions, classes = len(hidden_ND), len(weight_VD)
    wide = torch.promote_types(hidden_ND.dtype, torch.float32)
    made = [
        torch.zeros(t.shape, dtype=wide, device=t.device) if t is not None and needed else None
        for t, needed in zip((hidden_ND, weight_VD, bias_V), work.needed, strict=True)
    ]
    sums = torch.zeros(len(work.parts), dtype=wide, device=hidden_ND.device)
    step = max(1, min(positions, work.chunk_elements // classes))
    room_NV = torch.empty((step, classes), dtype=wide, device=hidden_ND.device)
    for start in range(0, positions, step):
        at = slice(start, start + step)
        chunk_nD = hidden_ND[at]
        z_nV = head_logits(chunk_nD, weight_VD, bias_V, room_NV[: len(chunk_nD)])
        gradient_nV = _gradient(z_nV, select(work.batch, at), work, sums)
        if gradient_nV is not None:
            add_products(gradient_nV, chunk_nD, weight_VD, at=at, made=made)
    return sums, made


def _gradient(z_nV: Tensor, batch: LossBatch, work: _Work, sums: Tensor) -> Tensor | None:
    """Add a chunk's losses to ``sums``; return their gradient over `_Work.scale`, in place."""
    temperatures = sorted({part.loss.temperature for part in work.parts})
    total_nV = None
    for number, temperature in enumerate(temperatures, start=1):
        own_nV = z_nV if number == len(temperatures) else z_nV.clone()
        if temperature != 1:
            own_nV.div_(temperature)
        chosen = [index for index, part in enumerate(work.parts) if part.loss.temperature == temperature]
        _differentiate(own_nV, batch, work, chosen=chosen, sums=sums)
        if work.gradients:
            total_nV = own_nV if total_nV is None else total_nV.add_(own_nV)
    return total_nV


def _differentiate(z_nV: Tensor, batch: LossBatch, work: _Work, *, chosen: Sequence[int], sums: Tensor) -> None:
    """Differentiate the parts at one temperature in logits divided by it; overwrites ``z_nV``."""
    ids_nK, stored_nK = _stored(batch.targets, z_nV)
    gold_n1 = batch.labels_B.clamp(min=0).unsqueeze(-1)
    head_nK = z_nV.gather(-1, ids_nK).masked_fill(~stored_nK, -torch.inf)
    true_n = z_nV.gather(-1, gold_n1).squeeze(-1)
    z_nV.scatter_(-1, ids_nK, -torch.inf)
    top_n1, outside_n = _exponentials(z_nV)
    # A few numbers a position: in float64 what these divergences subtract from each other costs no digits.
    exact = torch.float32 if z_nV.device.type == "mps" else torch.float64
    leaves = [
        leaf.to(exact).requires_grad_(work.gradients)
        for leaf in (head_nK, top_n1.squeeze(-1) + outside_n.log(), true_n)
    ]
    with torch.set_grad_enabled(work.gradients):
        student = _buckets(*leaves)
        found = torch.stack([work.parts[index].loss.of_buckets(student, batch) for index in chosen])
        factors = [work.parts[index].factor / work.scale for index in chosen]
        total = (found * torch.tensor(factors, dtype=found.dtype, device=found.device)).sum()
    sums[list(chosen)] += found.detach().to(sums.dtype)
    if not work.gradients:
        return
    temperature = work.parts[chosen[0]].loss.temperature
    d_head_nK, d_tail_n, d_true_n = (
        (gradient / temperature).to(z_nV.dtype)
        for gradient in torch.autograd.grad(total, leaves, materialize_grads=True)
    )
    z_nV.mul_(torch.where(outside_n > 0, d_tail_n / outside_n, 0.0).unsqueeze(-1))
    z_nV.scatter_add_(-1, ids_nK, d_head_nK.masked_fill(~stored_nK, 0.0))
    z_nV.scatter_add_(-1, gold_n1, d_true_n.unsqueeze(-1))


def _exponentials(z_nV: Tensor) -> tuple[Tensor, Tensor]:
    """Compute ``e^(z - top)`` in place; return top ``[n, 1]``, 0 for -inf, and sums ``[n]``."""
    rows = max(1, CACHED_ELEMENTS // z_nV.shape[-1]) if z_nV.device.type == "cpu" else max(1, len(z_nV))
    tops, sums = [], []
    for start in range(0, len(z_nV), rows):
        part_nV = z_nV[start : start + rows]
        top_n1 = part_nV.amax(-1, keepdim=True)
        tops.append(top_n1.masked_fill_(top_n1 == -torch.inf, 0.0))
        sums.append(part_nV.sub_(top_n1).exp_().sum(-1))
    return torch.cat(tops), torch.cat(sums)


def _stored(targets: SparseTargets | None, z_nV: Tensor) -> tuple[Tensor, Tensor]:
    """Return stored classes ``[n, K]``, padding replaced by a stored one, and the padding mask."""
    if targets is None:
        nothing = torch.zeros((len(z_nV), 0), dtype=torch.int64, device=z_nV.device)
        return nothing, nothing.bool()
    stored_nK = targets.logp_NK != -torch.inf
    first_n1 = targets.ids_NK.gather(-1, targets.logp_NK.argmax(-1, keepdim=True))
    return torch.where(stored_nK, targets.ids_NK, first_n1), stored_nK


def _buckets(head_nK: Tensor, tail_n: Tensor, true_n: Tensor) -> Buckets:
    """Return log masses of the buckets and of the true class from their logits."""
    logits_nB = torch.cat([head_nK, tail_n.unsqueeze(-1)], -1)
    norm_n = logits_nB.logsumexp(-1)
    return Buckets(logq_NB=logits_nB - norm_n.unsqueeze(-1), log_gold_N=true_n - norm_n)
