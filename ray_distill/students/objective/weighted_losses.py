"""The configured losses as terms: a name, a loss and a weight over time; and their exact global reduction."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Tensor

from ray_distill.config import LossConfig
from ray_distill.errors import ConfigError, TrainingError
from ray_distill.losses.base import Loss, LossBatch, StudentOutput
from ray_distill.losses.buckets import BucketLoss
from ray_distill.losses.fused import Asked, Part
from ray_distill.students.objective.loss_settings import fields_of, known_loss, settings_of, stages_of
from ray_distill.students.objective.schedules import Curve, stage_at, weight_curve
from ray_distill.students.process_group import Ranks


@dataclass(frozen=True, kw_only=True)
class Term:
    """One loss by name, and its weight as a function of the step."""

    name: str
    stages: tuple[tuple[int, Loss], ...]
    """The loss from a step on: several where its temperature changes."""
    weight: Curve

    @property
    def loss(self) -> Loss:
        """The loss of the first step. All stages weigh a batch alike and want the same of the student."""
        return self.stages[0][1]

    def at(self, step: int) -> Loss:
        """The loss of a step."""
        return stage_at(self.stages, step)


def build_terms(
    losses: Mapping[str, LossConfig],
    *,
    steps: int,
    temperatures: Sequence[float],
    layers: Mapping[str, Mapping[int, int]],
    scales: Mapping[int, float] | None = None,
) -> tuple[Term, ...]:
    """Build the terms of a configuration.

    Args:
        losses: by name.
        steps: of the whole run, over which weights change.
        temperatures: the labels declare.
        layers: student layer to stored teacher layer, by the name of each loss of hidden states.
        scales: mean squared length of the stored states, by teacher layer.

    Raises:
        ConfigError: an unknown loss or setting, a value that does not fit it, or a temperature the labels do not
            declare.
    """
    given = {name: {"layers": layers.get(name, {}), "scales": scales or {}} for name in losses}
    terms = tuple(
        Term(
            name=name,
            weight=weight_curve(config.weight, steps),
            stages=_stages(name, config, steps, temperatures, given[name]),
        )
        for name, config in losses.items()
    )
    group_of(terms)
    return terms


def _stages(
    name: str, config: LossConfig, steps: int, temperatures: Sequence[float], given: Mapping[str, object]
) -> tuple[tuple[int, Loss], ...]:
    kind, settings = known_loss(name), settings_of(name, config)
    known = {field.name for field in fields_of(kind)}
    own = {key: value for key, value in given.items() if key in known}
    try:
        return tuple(
            (start, kind(**{**settings, **own, **changed}))
            for start, changed in stages_of(name, settings, steps, temperatures)
        )
    except (TypeError, ValueError) as error:
        raise ConfigError(f"student.losses.{name}: {error}") from error


def group_of(terms: Sequence[Term]) -> int:
    """Rows that the sampler must keep together for these terms: 1 where none compares rows with each other.

    Raises:
        ConfigError: two want groups of different sizes.
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
    """The global weight of each term over all micro-batches of all ranks: known before the first backward.

    Raises:
        TrainingError: a loss finds that the batch does not fit.
    """
    try:
        own = [sum(float(term.loss.weight(batch)) for batch in batches) for term in terms]
    except ValueError as error:
        raise TrainingError(str(error)) from error
    return ranks.total(own, device)


def ask_head(
    terms: Sequence[Term], batch: LossBatch, *, step: int, weights: Sequence[float], norms: bool = False
) -> Asked:
    """What a fused head is asked for: the terms that need no logits, with their factors in the global loss, and if
    ``norms`` the size of each one's gradient."""
    parts = tuple(
        Part(loss=cast(BucketLoss, term.at(step)), factor=term.weight(step) / (weight or 1.0))
        for term, weight in zip(terms, weights, strict=True)
        if _fits(term)
    )
    return Asked(batch=batch, parts=parts, norms=norms)


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
    """Squared norm of each term's gradient at what the student gave for a micro-batch, in float64.

    The gradient is of the term's global mean, without the term's own weight, at logits and hidden states as the losses
    see them; at the final hidden states where a fused head made the losses. Outputs of different examples are
    different outputs: the sum over all micro-batches and ranks is the square for the whole global batch. Nothing of
    the student's own graph is touched.
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
    """Whether a fused head can give this term."""
    return isinstance(term.loss, BucketLoss)


def to_device(batch: LossBatch, device: torch.device) -> LossBatch:
    """The batch with all its tensors on ``device``; class ids cross as they are stored, and become int64 there."""
    targets = batch.targets
    if targets is not None:
        targets = replace(
            targets,
            ids_NK=targets.ids_NK.to(device).to(torch.int64),
            logp_NK=targets.logp_NK.to(device),
            log_tail_NT=targets.log_tail_NT.to(device),
            count_NK=_moved(targets.count_NK, device),
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
