"""Find the head of a language model, and whether it can read packed documents."""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ray_distill.errors import ModelError
from ray_distill.models.core.forward import last_states, spared, without_cache

#: Settings with which families bend their logits after the head, and what to call it.
_BENDS = {
    "final_logit_softcapping": "soft-caps its logits",
    "logits_soft_cap": "soft-caps its logits",
    "output_logit_soft_cap": "soft-caps its logits",
    "logit_scale": "scales its logits",
    "logits_scaling": "scales its logits",
    "lm_head_multiplier": "scales its logits",
}
#: Tokens of the made-up documents.
_FIRST, _SECOND = 7, 9


def body_and_head(module: nn.Module) -> tuple[nn.Module, nn.Linear]:
    """Split a language model into its body, which returns final hidden states, and its head.

    ``body(input_ids=…, attention_mask=…, use_cache=False).last_hidden_state`` is ``[B, L, D]``, and ``head`` of it is
    the model's logits ``[B, L, V]``: this is tried on made-up tokens, in eval mode. Both are parts of ``module``, not
    copies; the head's weight may be the embeddings' too. The body of an encoder-decoder is ``module`` itself, to be run
    while its head is `spared`.

    Raises:
        ModelError: it has no linear head, or its logits are not the head's output.
    """
    name = type(module).__name__
    written = is_encoder_decoder(module)
    body, head = module if written else getattr(module, "base_model", None), _output(module)
    if not isinstance(head, nn.Linear):
        raise ModelError(
            f"{name} has no linear head that turns its last hidden states into logits: found "
            f"{type(head).__name__ if head is not None else 'none'}; {_INSTEAD}"
        )
    if not isinstance(body, nn.Module) or (body is module and not written):
        raise ModelError(f"{name} has no part (`base_model`) that gives its last hidden states; {_INSTEAD}")
    bent = _bends(module)
    if any("soft-caps" in how for how in bent):  # invisible where logits are small
        raise ModelError(f"{name} {bent[0]}: its logits are not its head's output; {_INSTEAD}")
    inputs = {"input_ids": _tokens(module, _FIRST, seed=0)}
    if written:
        inputs["decoder_input_ids"] = _tokens(module, _SECOND, seed=1)
    with _evaluated(module), torch.no_grad():
        logits_BLV = module(**inputs, **without_cache(module)).logits
        with spared(body, head) as caught:
            hidden_BLD = last_states(body(**inputs, **without_cache(body)), caught)
        fits = hidden_BLD.shape[-1] == head.in_features
        if not fits or not _alike(head(hidden_BLD), logits_BLV, 8 * torch.finfo(logits_BLV.dtype).eps):
            why = (bent or _biased(module) or ["does something between its last hidden states and its logits"])[0]
            raise ModelError(f"{name} {why}: its logits are not its head's output; {_INSTEAD}")
    return body, head


def is_encoder_decoder(module: nn.Module) -> bool:
    """Return whether a model writes with a decoder what it reads of an encoder."""
    return bool(getattr(getattr(module, "config", None), "is_encoder_decoder", False))


def keeps_documents_apart(module: nn.Module) -> bool:
    """Return whether documents packed into the rows of a batch get the logits they get alone.

    They are separated by ``position_ids`` that restart at 0, with neither ``attention_mask`` nor a cache. Tried
    on made-up documents: what the second one of a row gets must be what it gets alone, up to rounding, and must not
    depend in any digit on what stands before it. Two rows at once, because flash attention in transformers reads the
    positions of a batch of one row alone.
    """
    names = inspect.signature(type(module).forward).parameters
    if "position_ids" not in names or "use_cache" not in names or _output(module) is None:
        return False
    first_BL = torch.cat([_tokens(module, _FIRST, seed=seed) for seed in (0, 1)])
    second_BL = _tokens(module, _SECOND, seed=2).expand(2, -1)
    with _evaluated(module), torch.no_grad():
        alone = module(input_ids=second_BL, use_cache=False).logits
        packed, otherwise = (_packed(module, before_BL, second_BL) for before_BL in (first_BL, first_BL.flip(0)))
        rounding = torch.finfo(alone.dtype).eps ** 0.5
        return torch.equal(packed, otherwise) and _alike(packed, alone, rounding)


_INSTEAD = (
    "its loss cannot be fused with its head: take a student whose logits are a linear layer's output, "
    "such as Llama's or GPT-2's"
)


def _packed(module: nn.Module, before_BL: Tensor, document_BL: Tensor) -> Tensor:
    """Return logits ``[B, L, V]`` of documents that follow others, each pair in a row."""
    lengths = before_BL.shape[1], document_BL.shape[1]
    positions_L = torch.cat([torch.arange(length) for length in lengths])
    positions_BL = positions_L.expand(len(document_BL), -1).to(document_BL.device)
    found: Tensor = module(
        input_ids=torch.cat([before_BL, document_BL], 1),
        position_ids=positions_BL,
        attention_mask=None,
        use_cache=False,
    ).logits
    return found[:, lengths[0] :]


def _output(module: nn.Module) -> Any:
    get = getattr(module, "get_output_embeddings", None)
    return get() if callable(get) else None


def _bends(module: nn.Module) -> list[str]:
    """Return the config's settings of the logits, except those that change nothing."""
    config: Any = getattr(module, "config", None)
    config = config.get_text_config() if hasattr(config, "get_text_config") else config
    found = {key: getattr(config, key, None) for key in _BENDS}
    return [
        f"{_BENDS[key]} ({key} {value:g})"
        for key, value in found.items()
        if value is not None and not (value == 1 and "scales" in _BENDS[key])
    ]


def _biased(module: nn.Module) -> list[str]:
    """Return whether a bias beside the head (BART) is not zero, as in Marian."""
    bias: Any = getattr(module, "final_logits_bias", None)
    return [] if bias is None or not bool(bias.any()) else ["adds a bias to its logits (final_logits_bias)"]


def _tokens(module: nn.Module, length: int, *, seed: int) -> Tensor:
    """Return made-up token ids ``[1, length]`` on the module's device."""
    known: int = module.get_input_embeddings().weight.shape[0]  # type: ignore[operator]
    device = next(module.parameters()).device
    return torch.randint(known, (1, length), generator=torch.Generator().manual_seed(seed)).to(device)


def _alike(one: Tensor, other: Tensor, tolerance: float) -> bool:
    """Return whether two tensors differ by no more than a share of the greatest value."""
    if one.shape != other.shape:
        return False
    return bool((one - other).abs().max() <= tolerance * other.abs().max())


@contextmanager
def _evaluated(module: nn.Module) -> Iterator[None]:
    """Put a module in eval mode, and every part of it back in its own mode afterwards."""
    modes = {part: part.training for part in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for part, training in modes.items():
            part.training = training
