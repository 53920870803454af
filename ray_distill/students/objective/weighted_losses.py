"""Build the losses as weighted terms, and reduce them exactly over the global batch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Tensor

from ray_distill.config import LossConfig
from ray_distill.errors import ConfigError, TrainingError
from ray_distill.losses.base import Loss, LossBatch, StudentOutput
from ray_distill.losses.buckets import BucketLoss
from ray_distill.losses.fused import HeadRequest, Part
from ray_distill.students.objective.loss_settings import LossKinds, fields_of, known_loss, settings_of, stages_of
from ray_distill.students.objective.schedules import Curve, stage_at, weight_curve
from ray_distill.students.process_group import Ranks


@dataclass(frozen=True, kw_only=True)
class Term:
    """One loss by name, and its weight as a function of the step."""

    name: str
    stages: tuple[tuple[int, Loss], ...]
    """First step and loss of each stage; there are several if the temperature changes."""
    weight: Curve

    @property
    def loss(self) -> Loss:
        """The loss of the first step; all stages have the same weights and student outputs."""
        return self.stages[0][1]

    def at(self, step: int) -> Loss:
        """Return the loss of a step."""
        return stage_at(self.stages, step)


def build_terms(
    losses: Mapping[str, LossConfig],
    *,
    kinds: LossKinds,
    steps: int,
    temperatures: Sequence[float],
    layers: Mapping[str, Mapping[int, int]],
    scales: Mapping[int, float] | None = None,
) -> tuple[Term, ...]:
    """Build the terms of a configuration.

    Args:
        losses: settings by the name of the loss.
        kinds: the losses of the family of answers.
        steps: number of steps of the whole run, over which weights change.
        temperatures: temperatures that the labels declare.
        layers: student layer to stored teacher layer, by the name of each loss of hidden states.
        scales: mean squared length of the stored states, by teacher layer.

    Raises:
        ConfigError: a loss or setting is unknown, a value is invalid, or the labels do not declare a temperature.
    """
    given = {name: {"layers": layers.get(name, {}), "scales": scales or {}} for name in losses}
    terms = tuple(
        Term(
            name=name,
            weight=weight_curve(config.weight, steps),
            stages=_stages(name, config, kinds, steps=steps, temperatures=temperatures, given=given[name]),
        )
        for name, config in losses.items()
    )
    group_of(terms)
    return terms


def _stages(
    name: str,
    config: LossConfig,
    kinds: LossKinds,
    *,
    steps: int,
    temperatures: Sequence[float],
    given: Mapping[str, object],
) -> tuple[tuple[int, Loss], ...]:
    kind, settings = known_loss(name, kinds), settings_of(name, config, kinds)
    known = {field.name for field in fields_of(kind)}
    own = {key: value for key, value in given.items() if key in known}
    try:
        return tuple(
            (start, kind(**{**settings, **own, **changed}))
            for start, changed in stages_of(name, settings, steps, None if kind.any_temperature else temperatures)
        )
    except (TypeError, ValueError) as error:
        raise ConfigError(f"student.losses.{name}: {error}") from error


def group_of(terms: Sequence[Term]) -> int:
    """Return the number of rows that the sampler must keep together; 1 if no term compares rows.

    Raises:
        ConfigError: two terms need groups of different sizes.
    """
    found = {term.name: size for term in terms if (size := term.loss.group_rows()) is not None}
    if len(set(found.values())) > 1:
        named = ", ".join(f"{name} has {size}" for name, size in found.items())
        raise ConfigError(
            f"student.losses: the groups of rows that losses compare must be of one size, and {named}: "
            "give them the same `group`"
        )
    return max(found.values(), default=1)


def weights_of(terms: Sequence[Term], batches: Sequence[LossBatch], ranks: Ranks, device: torch.device) -> list[float]:
    """Return the global weight of each term.

    It is the sum over all micro-batches of all ranks, computed before the first backward pass.

    Raises:
        TrainingError: a loss refuses the batch.
    """
    try:
        own = [sum(float(term.loss.weight(batch)) for batch in batches) for term in terms]
    except ValueError as error:
        raise TrainingError(str(error)) from error
    return ranks.total(own, device)


def head_request(
    terms: Sequence[Term], batch: LossBatch, *, step: int, weights: Sequence[float], norms: bool = False
) -> HeadRequest:
    """Return the request to a fused head.

    It has the terms that need no logits, with their factors in the global loss.

    If ``norms`` is True, the head also computes the squared norm of each term's gradient.
    """
    parts = tuple(
        Part(loss=cast(BucketLoss, term.at(step)), factor=term.weight(step) / (weight or 1.0))
        for term, weight in zip(terms, weights, strict=True)
        if _fits(term)
    )
    return HeadRequest(batch=batch, parts=parts, norms=norms)


def combine(
    terms: Sequence[Term], output: StudentOutput, batch: LossBatch, *, step: int, weights: Sequence[float]
) -> tuple[Tensor, list[Tensor]]:
    """Return a micro-batch's share of the global loss, and its share of each term's global mean.

    ``Σ w_term · sum / W_term`` (MATHS.md §6): the sum of the shares of all micro-batches and ranks, or of their
    gradients, is that of the whole batch. A term without weight in the batch counts 0. The values of terms that a fused
    head has computed (`head_request`) are taken from its output.

    Raises:
        TrainingError: a loss refuses the combination of student output and labels.
    """
    made = iter(() if output.fused is None else output.fused[1])
    known = [next(made) if output.fused is not None and _fits(term) else None for term in terms]
    try:
        parts = [
            (term.at(step)(output, batch) if value is None else value) / (weight or 1.0)
            for term, value, weight in zip(terms, known, weights, strict=True)
        ]
    except ValueError as error:
        raise TrainingError(f"step {step}: {error}") from error
    own = [term.weight(step) * part for term, value, part in zip(terms, known, parts, strict=True) if value is None]
    loss = torch.stack(own if output.fused is None else [output.fused[0], *own]).sum()
    return loss, [part.detach() for part in parts]


def squares(
    terms: Sequence[Term], output: StudentOutput, batch: LossBatch, *, step: int, weights: Sequence[float]
) -> list[Tensor]:
    """Return the squared norm of each term's gradient for a micro-batch, in float64.

    The gradient is taken at the student's outputs.

    The gradient is of the term's global mean, without the term's own weight, with respect to the logits and hidden
    states that the losses read; with respect to the final hidden states if a fused head computed the losses. Outputs of
    different examples are separate variables: the sum over all micro-batches and ranks is the square for the whole
    global batch. The student's own graph is not changed.
    """
    made = iter(() if output.fused is None else output.fused[2])
    found = []
    for term, weight in zip(terms, weights, strict=True):
        square = next(made) if output.fused is not None and _fits(term) else _square(term.at(step), output, batch)
        found.append(square.double() / (weight or 1.0) ** 2)
    return found


def _square(loss: Loss, output: StudentOutput, batch: LossBatch) -> Tensor:
    with torch.enable_grad():
        free = StudentOutput(
            logits_BV=_leaf(output.logits_BV),
            hidden={layer: _leaf(states) for layer, states in output.hidden.items()},
            states={layer: _leaf(states) for layer, states in output.states.items()},
        )
        leaves = [free.logits_BV, *free.hidden.values(), *free.states.values()]
        gradients = torch.autograd.grad(loss(free, batch), leaves, materialize_grads=True)
    return torch.stack([gradient.double().square().sum() for gradient in gradients]).sum()


def _leaf(tensor: Tensor) -> Tensor:
    return tensor.detach().to(torch.promote_types(tensor.dtype, torch.float32)).requires_grad_()


def _fits(term: Term) -> bool:
    """Return whether a fused head can compute this term."""
    return isinstance(term.loss, BucketLoss)


def to_device(batch: LossBatch, device: torch.device) -> LossBatch:
    """Move a batch to ``device``.

    Class ids are moved in their stored type and converted to int64 there.
    """
    targets = batch.targets
    if targets is not None:
        targets = replace(
            targets,
            ids_NK=targets.ids_NK.to(device).to(torch.int64),
            logp_NK=targets.logp_NK.to(device),
            log_tail_NT=targets.log_tail_NT.to(device),
            count_NK=_moved(targets.count_NK, device),
            log_odds_NK=_moved(targets.log_odds_NK, device),
            log_normaliser_N=_moved(targets.log_normaliser_N, device),
        )
    return LossBatch(
        labels_B=batch.labels_B.to(device),
        targets=targets,
        distil_B=batch.distil_B.to(device),
        hidden={layer: states.to(device) for layer, states in batch.hidden.items()},
        hidden_mask_BL=_moved(batch.hidden_mask_BL, device),
        row_B=_moved(batch.row_B, device),
        example_weight_B=batch.example_weight_B.to(device),
    )


def _moved(tensor: Tensor | None, device: torch.device) -> Tensor | None:
    return None if tensor is None else tensor.to(device)
