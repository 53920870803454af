"""The configured losses as terms: a name, a loss and a weight over time; and their exact global reduction."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ray_distill.config import LossConfig
from ray_distill.errors import ConfigError, TrainingError
from ray_distill.losses.base import Loss, LossBatch, StudentOutput
from ray_distill.losses.buckets import temperature_index
from ray_distill.losses.catalogue import LOSSES
from ray_distill.students.ranks import Ranks
from ray_distill.students.schedules import Curve, weight_curve

#: Losses that follow true labels; all others follow the teacher.
LABEL_LOSSES = frozenset({"hard"})


@dataclass(frozen=True, kw_only=True)
class Term:
    """One loss by name, and its weight as a function of the step."""

    name: str
    loss: Loss
    weight: Curve


def build_terms(
    losses: Mapping[str, LossConfig], *, steps: int, temperatures: Sequence[float], layers: Mapping[int, int]
) -> tuple[Term, ...]:
    """Build the terms of a configuration.

    Args:
        losses: by name.
        steps: of the whole run, over which weights change.
        temperatures: the labels declare.
        layers: student layer to stored teacher layer, for ``hidden``.

    Raises:
        ConfigError: an unknown loss, or a temperature the labels do not declare.
    """
    unknown = sorted(set(losses) - set(LOSSES))
    if unknown:
        raise ConfigError(f"student.losses: unknown loss {unknown[0]!r}; there are {', '.join(sorted(LOSSES))}")
    return tuple(
        Term(name=name, weight=weight_curve(config.weight, steps),
             loss=LOSSES[name](**_arguments(name, config, temperatures, layers)))
        for name, config in losses.items())


def _arguments(
    name: str, config: LossConfig, temperatures: Sequence[float], layers: Mapping[int, int]
) -> dict[str, object]:
    if name == "soft":
        return {"temperature": declared_temperature(config, temperatures), "divergence": config.divergence}
    if name == "hidden":
        return {"layers": layers, "kind": config.kind}
    return {}


def declared_temperature(config: LossConfig, temperatures: Sequence[float]) -> float:
    """The declared temperature a soft loss asks for; 1 where it asks for none.

    Raises:
        ConfigError: it is not declared; the declared ones are named.
    """
    try:
        return temperatures[temperature_index(tuple(temperatures), config.temperature or 1.0)]
    except ValueError as error:
        raise ConfigError(f"student.losses.soft: {error}") from error


def weights_of(terms: Sequence[Term], batches: Sequence[LossBatch], ranks: Ranks, device: torch.device) -> list[float]:
    """The global weight of each term over all micro-batches of all ranks: known before the first backward."""
    return ranks.total([sum(float(term.loss.weight(batch)) for batch in batches) for term in terms], device)


def combine(
    terms: Sequence[Term], output: StudentOutput, batch: LossBatch, *, step: int, weights: Sequence[float]
) -> tuple[Tensor, list[Tensor]]:
    """One micro-batch's share of the global loss, and of each term's global mean.

    ``Σ w_term · sum / W_term`` (MATHS.md §6): adding up the shares of all micro-batches and ranks, or their
    gradients, gives the loss of the whole batch. A term nothing in the batch carries counts 0.

    Raises:
        TrainingError: a loss finds that student and labels do not fit.
    """
    try:
        parts = [term.loss(output, batch) / (weight or 1.0) for term, weight in zip(terms, weights, strict=True)]
    except ValueError as error:
        raise TrainingError(f"step {step}: {error}") from error
    loss = torch.stack([term.weight(step) * part for term, part in zip(terms, parts, strict=True)]).sum()
    return loss, [part.detach() for part in parts]


def to_device(batch: LossBatch, device: torch.device) -> LossBatch:
    """The batch with all its tensors on ``device``."""
    targets = batch.targets
    if targets is not None:
        targets = replace(
            targets, ids_NK=targets.ids_NK.to(device), logp_NK=targets.logp_NK.to(device),
            log_tail_NT=targets.log_tail_NT.to(device), count_NK=_moved(targets.count_NK, device),
            log_normaliser_N=_moved(targets.log_normaliser_N, device))
    return LossBatch(
        labels_B=batch.labels_B.to(device), targets=targets, distil_B=batch.distil_B.to(device),
        hidden={layer: states.to(device) for layer, states in batch.hidden.items()},
        hidden_mask_BL=_moved(batch.hidden_mask_BL, device),
        example_weight_B=batch.example_weight_B.to(device))


def _moved(tensor: Tensor | None, device: torch.device) -> Tensor | None:
    return None if tensor is None else tensor.to(device)
