"""Train a student through low-rank adapters (LoRA by peft), merged when it is saved."""

import copy
import importlib
import importlib.util
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ray_distill.config.student import LoraSettings
from ray_distill.errors import ConfigError, ModelError


def add_lora(module: nn.Module, settings: LoraSettings, *, seed: int) -> nn.Module:
    """Put adapters beside linear layers, in place; they alone are trained from now on.

    ``W x`` becomes ``W x + (alpha/rank) B A x``, with B = 0 at first: the student begins as it was. Embeddings and the
    head stay as they are.

    Args:
        module: a transformers model with its weights.
        settings: rank, scale, dropout and which layers.
        seed: of the drawn A.

    Raises:
        ModelError: peft is not installed.
        ConfigError: there are no such layers.
    """
    peft = _peft()
    adapter_config = peft.LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        bias="none",
        target_modules=list(settings.targets) or "all-linear",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            adapted: nn.Module = peft.inject_adapter_in_model(adapter_config, module)
        except ValueError as error:
            names = sorted(
                {name.rpartition(".")[2] for name, part in module.named_modules() if isinstance(part, nn.Linear)}
            )
            raise ConfigError(
                f"student.model.lora.targets {list(settings.targets)} fit no layer of "
                f"{type(module).__name__}: its linear layers are {', '.join(names)}"
            ) from error
    return adapted


def has_lora(module: nn.Module) -> bool:
    """Return whether a module has adapters."""
    return any("lora_A" in name for name, _ in module.named_parameters())


def merged(module: nn.Module, state_dict: Mapping[str, Tensor] | None = None) -> nn.Module:
    """Return a copy with the adapters merged: a model of its own class, as before `add_lora`.

    Args:
        module: with adapters; left as it is.
        state_dict: full weights to take instead of the module's own, where those are sharded.
    """
    layer_class = importlib.import_module("peft.tuners.tuners_utils").BaseTunerLayer
    module = copy.deepcopy(module)
    if state_dict is not None:
        module.load_state_dict(dict(state_dict))
    adapted: list[tuple[str, Any]] = [
        (name, part) for name, part in module.named_modules() if isinstance(part, layer_class)
    ]
    for name, part in adapted:
        part.merge()
        parent, _, own = name.rpartition(".")
        setattr(module.get_submodule(parent), own, part.get_base_layer())
    return module.requires_grad_(True)


def _peft() -> Any:
    if importlib.util.find_spec("peft") is None:
        raise ModelError(
            "student.model.lora needs the optional package peft: pip install peft, on every machine that trains"
        )
    return importlib.import_module("peft")
