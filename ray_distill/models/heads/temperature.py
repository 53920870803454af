"""Divide a model's logits by a temperature: inside its last linear layer where it has one.

A linear head ``W h + b`` whose weights and bias are divided by T gives ``(W h + b) / T``. So the saved checkpoint is
calibrated in every program that loads it, and the order of the classes is unchanged (Guo et al., ICML 2017).
"""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from ray_distill.models.core.forward import forward
from ray_distill.models.core.model import TEMPERATURE, Model
from ray_distill.tasks.catalogue import get_task
from ray_distill.tasks.encoded import Batch

#: Largest relative difference of logits that counts as rounding.
_ROUNDING = 1e-5


def tempered(model: Model, temperature: float) -> Model:
    """Return the model with its logits divided by a temperature.

    Its module may be changed in place. Without a linear layer that gives the logits, the temperature is a part of
    `Model.decision`: evaluation, teacher engine and served model divide by it.

    Args:
        model: in eval mode, without a temperature of its own.
        temperature: above 0.
    """
    if temperature == 1:
        return model
    head = linear_head(model)
    if head is None:
        return replace(model, decision={**model.decision, TEMPERATURE: temperature})
    _divide(head, temperature)
    return model


def linear_head(model: Model) -> nn.Linear | None:
    """Return the layer whose weights scale all logits and nothing else; None if there is none.

    Each candidate is tried: half of its weights must give half of the logits of one made-up example.
    """
    inputs = get_task(model.task).inputs
    batch = inputs.collate(inputs.example(model.processor), np.zeros(1, np.int64))
    return next((head for head in _candidates(model) if _scales_logits(model.module, head, batch)), None)


def _candidates(model: Model) -> Iterator[nn.Linear]:
    """Yield the linear layers with an output a class and weights of their own, the last first."""
    uses = [id(parameter) for _, parameter in model.module.named_parameters(remove_duplicate=False)]
    for part in reversed(list(model.module.modules())):
        if isinstance(part, nn.Linear) and part.out_features == model.class_count and uses.count(id(part.weight)) == 1:
            yield part


def _scales_logits(module: nn.Module, head: nn.Linear, batch: Batch) -> bool:
    kept = {name: value.detach().clone() for name, value in head.named_parameters(recurse=False)}
    before = _logits(module, batch)
    try:
        _divide(head, 2.0)
        after = _logits(module, batch)
    finally:
        with torch.no_grad():
            for name, value in head.named_parameters(recurse=False):
                value.copy_(kept[name])
    scale = before.abs().max()
    return bool(scale > 0) and bool(((2 * after - before).abs() <= _ROUNDING * scale).all())


@torch.inference_mode()
def _logits(module: nn.Module, batch: Batch) -> Tensor:
    return forward(module, batch).logits_BV.double().cpu()


def _divide(head: nn.Linear, temperature: float) -> None:
    """Divide in float64, so that each weight is rounded once."""
    with torch.no_grad():
        for value in head.parameters(recurse=False):
            value.copy_(value.double() / temperature)
