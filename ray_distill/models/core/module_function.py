"""Models that come from a Python function, ``module:function``."""

import importlib
import inspect
import re
import typing
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from ray_distill.errors import ConfigError, ModelError
from ray_distill.models.core.model import ModelParts

_NAME = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")


def is_factory(model: str) -> bool:
    """Return whether ``model`` names a function (``package.module:function``).

    It names a folder or URL otherwise.
    """
    return _NAME.fullmatch(model) is not None


def call_factory(name: str, arguments: Mapping[str, Any], *, seed: int | None = None) -> ModelParts:
    """Call a ``module:function``; ``seed`` decides its random initialisation.

    Raises:
        ModelError: it cannot be imported, raises, or returns something else than `ModelParts`.
    """
    function = import_factory(name)
    with torch.random.fork_rng(devices=[]):
        if seed is not None:
            torch.manual_seed(seed)
        try:
            found = function(**arguments)
        except Exception as error:
            raise ModelError(f"{name}({_shown(arguments)}) raised {type(error).__name__}: {error}") from error
    return _parts(name, found)


def import_factory(name: str) -> Callable[..., Any]:
    """Import the function that ``package.module:function`` names; errors as `call_factory`."""
    module, _, attribute = name.partition(":")
    try:
        function = getattr(importlib.import_module(module), attribute)
    except Exception as error:
        raise ModelError(
            f"cannot import {name}: {type(error).__name__}: {error}; the module must be installed, or "
            "on PYTHONPATH, on every machine that runs it"
        ) from error
    if not callable(function):
        raise ModelError(f"{name} is a {type(function).__name__}, not a function")
    return typing.cast(Callable[..., Any], function)


def check_annotated(name: str) -> None:
    """Refuse to call a function that is not annotated to build models.

    The file beside a saved model names its function; a forged file could name any function on the machine.

    Raises:
        ConfigError: the function's return annotation is not `ModelParts`.
    """
    hints = typing.get_type_hints(import_factory(name)) if _annotated(name) else {}
    if hints.get("return") is not ModelParts:
        raise ConfigError(
            f"{name} must be annotated `-> ModelParts` (ray_distill.models.core.model): "
            "only such functions are called to reload a saved model"
        )


def takes(name: str, parameter: str) -> bool:
    """Return whether the function has a parameter of this name."""
    return parameter in inspect.signature(import_factory(name)).parameters


def _annotated(name: str) -> bool:
    return "return" in getattr(import_factory(name), "__annotations__", {})


def _parts(name: str, found: Any) -> ModelParts:
    if not isinstance(found, tuple) or len(found) != 3:
        raise ModelError(f"{name} returned a {type(found).__name__}: expected (module, processor, classes)")
    module, processor, classes = found
    if not isinstance(module, nn.Module):
        raise ModelError(f"{name} returned a {type(module).__name__} as its module: expected a torch.nn.Module")
    if not hasattr(processor, "fingerprint"):
        raise ModelError(
            f"{name} returned a {type(processor).__name__} as its processor, which has no fingerprint: "
            "wrap a tokenizer with text_processor or an image processor with image_processor"
        )
    names = tuple(classes)
    distinct = all(isinstance(item, str) for item in names) and len(set(names)) == len(names)
    if not distinct:
        raise ModelError(f"{name} returned the classes {names!r}: expected distinct names")
    return ModelParts(module=module, processor=processor, classes=names)


def _shown(arguments: Mapping[str, Any]) -> str:
    text = ", ".join(f"{key}={value!r}" for key, value in arguments.items())
    return text if len(text) <= 80 else text[:77] + "..."
