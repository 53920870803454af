"""Multiply the matrices of a fused head: any dtype, summed in float32."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

#: Classes of the head that are raised to float32 at once, where products are taken in less.
TILE_CLASSES = 1 << 14


def head_logits(hidden_nD: Tensor, weight_VD: Tensor, bias_V: Tensor | None, out_nV: Tensor) -> Tensor:
    """Compute the head's logits, summed and kept in float32."""
    if hidden_nD.dtype == weight_VD.dtype == out_nV.dtype:
        torch.mm(hidden_nD, weight_VD.t(), out=out_nV)
    else:
        for tile in _tiles(len(weight_VD)):
            out_nV[:, tile] = _product(hidden_nD, weight_VD[tile].to(hidden_nD.dtype).t())
    return out_nV if bias_V is None else out_nV.add_(bias_V)


def add_products(
    gradient_nV: Tensor, hidden_nD: Tensor, weight_VD: Tensor, *, at: slice, made: Sequence[Tensor | None]
) -> None:
    """Add a chunk's gradients in hidden states, weight and bias to ``made``, except to None."""
    d_hidden_ND, d_weight_VD, d_bias_V = made
    whole = hidden_nD.dtype == weight_VD.dtype == gradient_nV.dtype
    if whole and d_hidden_ND is not None:
        torch.mm(gradient_nV, weight_VD, out=d_hidden_ND[at])
    if whole and d_weight_VD is not None:
        d_weight_VD.addmm_(gradient_nV.t(), hidden_nD)
    for tile in () if whole else _tiles(len(weight_VD)):
        part_nv = gradient_nV[:, tile].to(hidden_nD.dtype)
        if d_hidden_ND is not None:
            d_hidden_ND[at] += _product(part_nv, weight_VD[tile].to(hidden_nD.dtype))
        if d_weight_VD is not None:
            d_weight_VD[tile] += _product(part_nv.t(), hidden_nD)
    if d_bias_V is not None:
        d_bias_V += gradient_nV.sum(0)


def _product(left: Tensor, right: Tensor) -> Tensor:
    """Return a matrix product, summed and returned in float32 (float64 of float64)."""
    if left.dtype in (torch.float32, torch.float64):
        return left @ right
    if left.is_cuda:
        return torch.mm(left, right, out_dtype=torch.float32)
    return left.float() @ right.float()


def _tiles(classes: int) -> Iterator[slice]:
    return (slice(start, start + TILE_CLASSES) for start in range(0, classes, TILE_CLASSES))
