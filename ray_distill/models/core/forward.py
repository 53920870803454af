"""One forward pass, the same for every model; and how hidden states are pooled."""

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from ray_distill.errors import ModelError


@dataclass(frozen=True, kw_only=True)
class States:
    """The hidden states of B examples."""

    hidden: Mapping[int, Tensor] = field(default_factory=dict)
    """States by layer, 0 = the embeddings: ``[B, L, D]``; L differs by layer in convolutional networks."""
    mask_BL: Tensor | None = None
    """bool, True on real tokens; None where nothing is padded (images)."""


@dataclass(frozen=True, kw_only=True)
class Output(States):
    """Outputs of a model for B examples."""

    logits_BV: Tensor
    """``[B, V]``; ``[B, L, V]`` of a model that answers at every token."""


@dataclass(frozen=True, kw_only=True)
class BodyOutput(States):
    """Outputs of a language model's body for B examples."""

    last_BLD: Tensor
    """``[B, L, D]``: what its head makes logits of."""


def forward(module: nn.Module, batch: Mapping[str, Tensor], layers: Sequence[int] = ()) -> Output:
    """Run ``module`` on a collated batch, on the module's device and dtype.

    Gradients and mode (train, eval) are the caller's. Feature maps ``[B, C, H, W]`` become ``[B, H*W, C]``. No cache
    of keys and values is made: it costs memory, and with one transformers does not read from ``position_ids`` where
    the documents of a packed row begin.

    Args:
        module: a transformers model, or any module with the interface of `ModelParts`, wrapped or not.
        batch: tensors by the name the module's forward takes; floating ones are cast to its dtype.
        layers: non-negative indices of the hidden states to return.

    Raises:
        ModelError: the module has no such layer.
    """
    found, mask_BL = _run(module, batch, layers)
    return Output(logits_BV=found.logits, hidden=_pick(found, layers), mask_BL=mask_BL)


def forward_body(
    body: nn.Module, head: nn.Module, batch: Mapping[str, Tensor], layers: Sequence[int] = ()
) -> BodyOutput:
    """Run a language model's body (`body_and_head`) as `forward` runs a model: all but the head."""
    with spared(body, head) as caught:
        found, mask_BL = _run(body, batch, layers)
    return BodyOutput(last_BLD=last_states(found, caught), hidden=_pick(found, layers), mask_BL=mask_BL)


@contextmanager
def spared(body: nn.Module, head: nn.Module) -> Iterator[list[Tensor]]:
    """Skip a head inside the body while the body runs, and capture its input.

    The body of an encoder-decoder is the model itself, because families do things to what the decoder gives before the
    head sees it (T5 scales it): so no family need be known, and no ``[B, L, V]`` logits are made.
    """
    caught: list[Tensor] = []

    def catch(_: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        caught.append(inputs[0])
        return (inputs[0][:, :0], *inputs[1:])

    hook = head.register_forward_pre_hook(catch) if any(part is head for part in body.modules()) else None
    try:
        yield caught
    finally:
        if hook is not None:
            hook.remove()


def last_states(found: Any, caught: Sequence[Tensor]) -> Tensor:
    """Return ``[B, L, D]``: the head's input from a body that ran in `spared`."""
    states: Tensor = caught[0] if caught else found.last_hidden_state
    return states


def states_of(found: Any) -> tuple[Tensor, ...]:
    """Return the hidden states of an output, the decoder's of an encoder-decoder; or ()."""
    return getattr(found, "hidden_states", None) or getattr(found, "decoder_hidden_states", None) or ()


def without_cache(module: nn.Module) -> dict[str, bool]:
    """Return ``use_cache=False`` if the module's forward, or a wrapped one, has the parameter."""
    kind: Any = type(module)
    names, passes_on = _parameters(kind)
    if "use_cache" in names:
        return {"use_cache": False}
    inner = getattr(module, "module", None)
    return without_cache(inner) if passes_on and isinstance(inner, nn.Module) else {}


def pool_hidden(hidden_BLD: Tensor, mask_BL: Tensor | None, how: str) -> Tensor:
    """Pool token states to ``[B, D]``; ``token`` keeps all: ``[sum(mask), D]``.

    Args:
        hidden_BLD: ``[B, L, D]``.
        mask_BL: True on real tokens; None = all are real. Every example has at least one.
        how: ``mean`` over real tokens, ``cls`` (the first), ``last`` (the last real one) or ``token``.
    """
    if mask_BL is None or hidden_BLD.shape[1] == 1:
        mask_BL = torch.ones(hidden_BLD.shape[:2], dtype=torch.bool, device=hidden_BLD.device)
    if how == "mean":
        weight_BL1 = mask_BL.unsqueeze(-1).to(hidden_BLD.dtype)
        return (hidden_BLD * weight_BL1).sum(1) / weight_BL1.sum(1)
    if how == "cls":
        return hidden_BLD[:, 0]
    if how == "last":
        positions = torch.arange(mask_BL.shape[1], device=mask_BL.device)
        last_B = torch.where(mask_BL, positions, -1).amax(1)
        return hidden_BLD[torch.arange(len(hidden_BLD), device=last_B.device), last_B]
    if how == "token":
        return hidden_BLD[mask_BL]
    raise ModelError(f"cannot pool hidden states by {how!r}: use mean, cls, last or token")


def as_tokens(hidden: Tensor) -> Tensor:
    """Reshape to ``[B, L, D]``: feature maps ``[B, C, H, W]`` by place, vectors as one token."""
    if hidden.ndim == 4:
        return hidden.flatten(2).transpose(1, 2)
    if hidden.ndim == 2:
        return hidden.unsqueeze(1)
    if hidden.ndim == 3:
        return hidden
    raise ModelError(f"a hidden state has shape {tuple(hidden.shape)}: expected [B, L, D], [B, C, H, W] or [B, D]")


def place_batch(module: nn.Module, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Place batch tensors on the module's device, floating ones in its parameters' dtype."""
    anchor = next((p for p in module.parameters() if p.is_floating_point()), None)
    if anchor is None:
        return dict(batch)
    return {
        name: value.to(anchor.device, anchor.dtype if value.is_floating_point() else value.dtype, non_blocking=True)
        for name, value in batch.items()
    }


def _run(module: nn.Module, batch: Mapping[str, Tensor], layers: Sequence[int]) -> tuple[Any, Tensor | None]:
    """Run the module; return its own output, and which tokens are real."""
    inputs = place_batch(module, batch)
    found = module(**inputs, **without_cache(module), output_hidden_states=bool(layers))
    mask = inputs.get("decoder_attention_mask", inputs.get("attention_mask"))
    return found, None if mask is None else mask.bool()


@cache
def _parameters(kind: Any) -> tuple[frozenset[str], bool]:
    """Return the parameters of a module class's forward, and whether it takes ``**kwargs``."""
    found = inspect.signature(kind.forward).parameters
    return frozenset(found), any(item.kind is inspect.Parameter.VAR_KEYWORD for item in found.values())


def _pick(found: Any, layers: Sequence[int]) -> dict[int, Tensor]:
    if not layers:
        return {}
    states = states_of(found)
    wrong = [layer for layer in layers if not 0 <= layer < len(states)]
    if wrong:
        raise ModelError(f"the model has no hidden state {wrong[0]}: it has {len(states)}, counted from 0")
    return {layer: as_tokens(states[layer]) for layer in layers}
