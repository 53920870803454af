"""The last step of every way to get a model: fingerprint it, try it, and describe it."""

import hashlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from ray_distill.errors import ConfigError
from ray_distill.fingerprint import fingerprint
from ray_distill.labels.model.part_specs import AnswerSpace
from ray_distill.models.core.model import Factory, Model
from ray_distill.redact import lasting, redacted
from ray_distill.tasks.inputs.modality import Processor


def finish(
    module: nn.Module,
    processor: Processor,
    space: AnswerSpace,
    *,
    task: str,
    url: str,
    identity: Mapping[str, Any],
    describe: Mapping[str, Any],
    factory: Factory | None = None,
) -> Model:
    """Wrap a placed module.

    Args:
        module: in its dtype, on its device.
        processor: gives its features.
        space: classes in the order of the logits.
        task: name of the task.
        url: where it came from.
        identity: JSON that stands for the weights and dtype.
        describe: facts beyond architecture and size.
        factory: the function it came from, if one.
    """
    known = {"architecture": type(module).__name__, "parameters": count_parameters(module)}
    return Model(
        task=task,
        module=module.eval(),
        processor=processor,
        space=space,
        url=url,
        factory=factory,
        describe=redacted({**known, **describe}),
        fingerprint=fingerprint(
            {**lasting(identity), "task": task, "classes": space.names, "processor": processor.fingerprint}
        ),
    )


def tried(model: Model) -> Model:
    """Return the model after it has run once.

    Raises:
        ModelError: it does not run.
    """
    assert model.states is not None
    return model


def count_parameters(module: nn.Module) -> int:
    """Number of weights, shared ones counted once."""
    return sum(parameter.numel() for parameter in module.parameters())


def state_digest(module: nn.Module) -> str:
    """Digest a module's weights and buffers by name, dtype, shape and bytes, ``sha256:…``."""
    total = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        total.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\n".encode())
        total.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return "sha256:" + total.hexdigest()


#: A device: all GPUs this process has, with some layers each.
SPREAD = "spread"


def place(module: nn.Module, *, dtype: str | None, device: str) -> nn.Module:
    """Move a module to its dtype (None: unchanged) and device; ``auto``: cuda, else cpu.

    Raises:
        ConfigError: there is no such device.
    """
    if device == SPREAD:
        raise ConfigError(
            "device: spread is for checkpoints that transformers loads whole, not for functions and "
            "fitted heads: set labels.teacher.device to auto, or place the model in the function"
        )
    name = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    take_from_file(module)
    try:
        return module.to(device=torch.device(name), dtype=None if dtype is None else getattr(torch, dtype))
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"device {device!r} cannot be used: {str(error).splitlines()[0]}") from error


def take_from_file(module: nn.Module) -> None:
    """Copy weights out of the file they are mapped from.

    A file replaced under a running job must not change them, and the last bits of a product depend on how its operands
    are aligned in memory.
    """
    for tensor in (*module.parameters(), *module.buffers()):
        if tensor.device.type == "cpu":
            tensor.data = tensor.data.clone()
