"""Choose the layers that a student keeps, by leaving out the layer that matters least."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from torch.nn.functional import log_softmax, logsigmoid

from ray_distill.errors import ModelError
from ray_distill.labels.model.distributions import Family
from ray_distill.models.core.forward import Output, forward
from ray_distill.models.students.layer_copy import shorter
from ray_distill.tasks.encoded import Batch

#: Most calibration rows, and passes of a row through a part of the teacher, of which a deep teacher needs many.
ROWS, PASSES = 256, 16_384


@dataclass(frozen=True, kw_only=True)
class LayerChoice:
    """The layers that are kept, and how the others were left out."""

    kept: tuple[int, ...]
    removed: tuple[int, ...]
    """In the order in which they were left out."""
    kl: tuple[float, ...]
    """KL divergence from the whole teacher, in nats, after each of them."""


def rows_of(depth: int, keep: int) -> int:
    """Return how many calibration rows are used to leave ``keep`` of ``depth`` layers."""
    passes = sum(range(keep + 1, depth + 1))
    return min(ROWS, max(PASSES // max(passes, 1), 32))


def config_of(module: nn.Module) -> Any:
    """Return the transformers config of a module, or of the encoder in it; None without one."""
    found = (part.config for part in module.modules() if isinstance(part, transformers.PreTrainedModel))
    return next(found, None)


def choose_layers(module: nn.Module, batches: Sequence[Batch], *, depth: int, keep: int, family: Family) -> LayerChoice:
    """Return the layers whose absence changes the teacher's answers least, by greedy removal.

    From all layers, the one is left out without which the KL divergence from the whole teacher is least, until ``keep``
    are left; of equal ones the last. This takes d + (d-1) + … + (keep+1) passes over the rows for d layers.

    Args:
        module: the teacher, in eval mode.
        batches: calibration rows.
        depth: its layers.
        keep: how many are left.
        family: how its logits become probabilities.

    Raises:
        ModelError: the module has no such stack of layers.
    """
    kept, removed, found = tuple(range(depth)), list[int](), list[float]()
    with torch.inference_mode():
        whole = [_answer(module, batch) for batch in batches]
        while len(kept) > keep:
            rises = []
            for layer in kept:
                with without_layers(module, [other for other in kept if other != layer], depth):
                    rises.append(_mean_kl(module, batches, whole, family))
            least = min(range(len(kept)), key=lambda at: (rises[at], -at))
            removed.append(kept[least])
            found.append(rises[least])
            kept = (*kept[:least], *kept[least + 1 :])
    return LayerChoice(kept=kept, removed=tuple(removed), kl=tuple(float(f"{value:.6g}") for value in found))


@contextmanager
def without_layers(module: nn.Module, kept: Sequence[int], depth: int) -> Iterator[None]:
    """Leave only some layers in the stacks of a module, and restore it on exit.

    Raises:
        ModelError: it has no list of ``depth`` layers.
    """
    parts = list(module.named_modules())
    stacks = [(name, part) for name, part in parts if isinstance(part, nn.ModuleList) and len(part) == depth]
    if not stacks:
        raise ModelError(f"{type(module).__name__} has no list of {depth} layers: none can be left out of it")
    found = [part.config for _, part in parts if isinstance(part, transformers.PreTrainedModel)]
    configs = {id(config): config for config in found if getattr(config, "num_hidden_layers", None) == depth}
    before = [(config, key, getattr(config, key)) for config in configs.values() for key in shorter(config, kept)]
    after = [(config, shorter(config, kept)) for config in configs.values()]
    try:
        for name, stack in stacks:
            _replace(module, name, nn.ModuleList([stack[layer] for layer in kept]))
        for config, values in after:
            _set(config, values)
        yield
    finally:
        for name, stack in stacks:
            _replace(module, name, stack)
        for config, key, value in before:
            _set(config, {key: value})


def _set(config: Any, values: Mapping[str, Any]) -> None:
    for key, value in values.items():
        setattr(config, key, value)


def _replace(module: nn.Module, name: str, stack: nn.Module) -> None:
    above, _, own = name.rpartition(".")
    setattr(module.get_submodule(above), own, stack)


def _answer(module: nn.Module, batch: Batch) -> Output:
    return forward(module, batch)


def _mean_kl(module: nn.Module, batches: Sequence[Batch], whole: Sequence[Output], family: Family) -> float:
    """Return the mean over rows, of a language model over real tokens, in nats."""
    total, count = 0.0, 0
    for batch, known in zip(batches, whole, strict=True):
        each = DIVERGENCES[family](known.logits_BV.double(), _answer(module, batch).logits_BV.double())
        if each.ndim == 2 and known.mask_BL is not None:
            each = each[known.mask_BL]
        total, count = total + float(each.sum()), count + each.numel()
    return total / max(count, 1) if math.isfinite(total) else math.inf


def _softmax_kl(known: Tensor, found: Tensor) -> Tensor:
    logp = log_softmax(known, -1)
    return (logp.exp() * (logp - log_softmax(found, -1))).sum(-1)


def _sigmoid_kl(known: Tensor, found: Tensor) -> Tensor:
    yes, no = logsigmoid(known), logsigmoid(-known)
    return (yes.exp() * (yes - logsigmoid(found)) + no.exp() * (no - logsigmoid(-found))).sum(-1)


#: KL divergence of each position, by the family of distributions.
DIVERGENCES: Mapping[Family, Callable[[Tensor, Tensor], Tensor]] = {
    "categorical": _softmax_kl,
    "bernoulli": _sigmoid_kl,
}
