"""The configured losses as terms: a name, a loss and a weight over time; and their exact global reduction."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Tensor

from ray_distill.config import LossConfig
from ray_distill.errors import ConfigError, TrainingError
from ray_distill.losses.base import Loss, LossBatch, StudentOutput
from ray_distill.losses.buckets import BucketLoss, temperature_index
from ray_distill.losses.catalogue import LOSSES
from ray_distill.losses.fused import Asked, Part
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
        return {"temperature": declared_temperature(config, temperatures), "divergence": config.divergence,
                "beta": config.beta, "skew": config.skew, "tail": config.tail}
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


def ask_head(terms: Sequence[Term], batch: LossBatch, *, step: int, weights: Sequence[float]) -> Asked:
    """What a fused head is asked for: the terms that need no logits, with their factors in the global loss."""
    parts = tuple(
        Part(loss=cast(BucketLoss, term.loss), factor=term.weight(step) / (weight or 1.0))
        for term, weight in zip(terms, weights, strict=True) if _fits(term))
    return Asked(batch=batch, parts=parts)


def combine(
    terms: Sequence[Term], output: StudentOutput, batch: LossBatch, *, step: int, weights: Sequence[float]
) -> tuple[Tensor, list[Tensor]]:
    """One micro-batch's share of the global loss, and of each term's global mean.

    ``Σ w_term · sum / W_term`` (MATHS.md §6): adding up the shares of all micro-batches and ranks, or their
    gradients, gives the loss of the whole batch. A term nothing in the batch carries counts 0. What a fused head has
    been asked for (`ask_head`) is taken from it.

    Raises:
        TrainingError: a loss finds that student and labels do not fit.
    """
    made = iter(() if output.fused is None else output.fused[1])
    known = [next(made) if output.fused is not None and _fits(term) else None for term in terms]
    try:
        parts = [(term.loss(output, batch) if value is None else value) / (weight or 1.0)
                 for term, value, weight in zip(terms, known, weights, strict=True)]
    except ValueError as error:
        raise TrainingError(f"step {step}: {error}") from error
    own = [term.weight(step) * part for term, value, part in zip(terms, known, parts, strict=True) if value is None]
    loss = torch.stack(own if output.fused is None else [output.fused[0], *own]).sum()
    return loss, [part.detach() for part in parts]


def _fits(term: Term) -> bool:
    """Whether a fused head can give this term."""
    return hasattr(term.loss, "of_buckets")


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
