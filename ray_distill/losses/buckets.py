"""Compute the buckets of a position: K stored classes and the rest (MATHS.md §1-3).

Every divergence and cross-entropy is a small function of the student's log masses in these buckets. They come from
whole logits here, and without any whole logits in `fused`.
"""

import math
from abc import abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from ray_distill.losses.base import Loss, LossBatch, SparseTargets


@dataclass(frozen=True, kw_only=True)
class Buckets:
    """Log probabilities of the student at N positions and one temperature. Natural logs."""

    logq_NB: Tensor
    """``[N, K+1]``: log masses of the stored classes, the tail's last; meaningless on padding. ``[N, 1]`` without
    targets."""
    log_gold_N: Tensor
    """``[N]``: log-probability of the true class; meaningless where it is unknown."""


class BucketLoss(Loss):
    """Compute a loss from the student's buckets at one temperature: its head can be fused."""

    @property
    @abstractmethod
    def temperature(self) -> float:
        """Return the temperature of the buckets."""

    @abstractmethod
    def weights(self, batch: LossBatch) -> Tensor:
        """Return the weight of each example ``[B]``."""

    @abstractmethod
    def of_buckets(self, student: Buckets, batch: LossBatch) -> Tensor:
        """Return the weighted sum over the positions: a scalar, differentiable in ``student``."""

    def weight(self, batch: LossBatch) -> Tensor:
        """Return the sum of `weights`."""
        return self.weights(batch).sum()


def soften(targets: SparseTargets, temperature: float) -> tuple[Tensor, Tensor]:
    """Return teacher log-probabilities at T: stored classes ``[N, K]`` and tail ``[N]``.

    ``p_T(i) ∝ exp(logp_i / T)`` on the stored classes, scaled to ``1 - τ_T``; -inf on padding and where there
    is no tail.

    Raises:
        ValueError: the temperature is not declared; the declared ones are named.
    """
    log_tail_N = targets.log_tail_NT[:, temperature_index(targets.temperatures, temperature)]
    scaled_NK = targets.logp_NK / temperature
    log_head_N = _log1mexp(log_tail_N)
    return scaled_NK - (scaled_NK.logsumexp(-1) - log_head_N).unsqueeze(-1), log_tail_N


def renormalise(targets: SparseTargets, temperature: float) -> tuple[Tensor, Tensor]:
    """Soften, scale the stored classes to 1 and drop the tail: biased by -log(retained mass)."""
    scaled_NK = targets.logp_NK / temperature
    nothing_N = torch.full_like(targets.log_tail_NT[:, 0], -math.inf)
    return scaled_NK - scaled_NK.logsumexp(-1, keepdim=True), nothing_N


def drawn_weights(targets: SparseTargets, temperature: float) -> Tensor:
    """Return the log targets ``ŵ`` of drawn entries at T: ``[N, K]``, -inf on padding.

    ``ŵ_j = c_j p_T(j) / (N r_j)`` with ``r_j = p_j^a / Z`` where the entry was drawn, ``p_T(j)`` where it is exact.
    Never normalised by their own sum: that would bias them.
    """
    assert targets.count_NK is not None and targets.log_normaliser_N is not None
    logp_NK, _ = soften(targets, temperature)
    drawn_NK = (targets.count_NK > 0) & (targets.logp_NK != -math.inf)
    log_r_NK = targets.exponent * targets.logp_NK - targets.log_normaliser_N.unsqueeze(-1)
    log_share_NK = (targets.count_NK.clamp(min=1) / targets.draws).log()
    return logp_NK + torch.where(drawn_NK, log_share_NK - log_r_NK, 0.0)


def temperature_index(declared: tuple[float, ...], temperature: float) -> int:
    """Return the position of a temperature among the declared ones.

    Raises:
        ValueError: it is not among them.
    """
    for index, value in enumerate(declared):
        if math.isclose(value, temperature, rel_tol=1e-6):
            return index
    names = ", ".join(f"{value:g}" for value in declared)
    raise ValueError(
        f"temperature {temperature:g} is not declared by the labels, which declare {names}: the mass outside the "
        "stored classes is only known there; train at one of these, or declare it in labels.signal.temperatures; "
        "for labels that exist, label again into a new store (labels.store)"
    )


def student_masses(logits_NV: Tensor, targets: SparseTargets, temperature: float) -> Tensor:
    """Compute `Buckets.logq_NB` from whole logits, which are raised to float32 at least.

    The tail is a logsumexp over the classes that are not stored, because ``1 - Σ q`` cancels.
    """
    scaled_NV = logits_NV.to(torch.promote_types(logits_NV.dtype, torch.float32)) / temperature
    norm_N = scaled_NV.logsumexp(-1)
    head_NK = scaled_NV.gather(-1, targets.ids_NK) - norm_N.unsqueeze(-1)
    has_tail_N = targets.log_tail_NT[:, temperature_index(targets.temperatures, temperature)] != -math.inf
    tail_N = _complement_logsumexp(scaled_NV, targets, has_tail_N) - norm_N
    return torch.cat([head_NK, tail_N.unsqueeze(-1)], -1)


def _complement_logsumexp(scaled_NV: Tensor, targets: SparseTargets, has_tail_N: Tensor) -> Tensor:
    """Return the logsumexp over classes that are not stored.

    Rows without a tail get any finite value.
    """
    stored_NV = torch.zeros(scaled_NV.shape, dtype=torch.int32, device=scaled_NV.device)
    stored_NV.scatter_add_(-1, targets.ids_NK, (targets.logp_NK != -math.inf).to(torch.int32))
    outside_NV = (stored_NV == 0) | ~has_tail_N.unsqueeze(-1)
    return scaled_NV.masked_fill(~outside_NV, -math.inf).logsumexp(-1)


def _log1mexp(x: Tensor) -> Tensor:
    """Return ``log(1 - e^x)`` for x <= 0 without cancellation (Mächler 2012); 0 at -inf.

    Rounding can lift the log of a tail of almost all the mass just above 0, which counts as 0.
    """
    x = x.clamp(max=0.0)
    near = x > -math.log(2)
    return torch.where(near, torch.log(-torch.expm1(x)), torch.log1p(-torch.exp(x)))
