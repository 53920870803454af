"""How every arm of a campaign is judged while it trains: one rule, chosen by the validation split alone."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from ray_distill.errors import TrainingError
from ray_distill.losses.base import LossBatch, SparseTargets
from ray_distill.losses.cross_entropy import Hard
from ray_distill.losses.fused import Asked, Part
from ray_distill.losses.soft import Soft, forward_kl
from ray_distill.students.data.examples import Examples, TrainingSet
from ray_distill.students.data.token_examples import TokenSet
from ray_distill.students.engines.engine import Engine
from ray_distill.students.objective.weighted_losses import to_device
from ray_distill.students.order.cursor import Index
from ray_distill.students.order.micro_batches import Budget, micro_batches
from ray_distill.students.process_group import Ranks
from ray_distill.tasks.encoded import Batch

#: With fewer labelled validation rows than this, arms are judged by their divergence from the teacher.
MIN_LABELLED = 50


@dataclass(frozen=True, kw_only=True)
class Score:
    """A student's result on the validation split; less is better."""

    value: float
    """Mean NLL, or mean KL, in nats."""
    metrics: dict[str, float]


class Judge(Protocol):
    """How a bundle is judged on the validation split."""

    def score(self, engine: Engine, ranks: Ranks, budget: Budget) -> Score:
        """Measure the bundle as it is; every rank takes a share of the rows and all get the same score."""


@dataclass(frozen=True, kw_only=True)
class RowJudge:
    """Of classifiers: the validation rows that count, and by what."""

    data: TrainingSet
    rows: Index
    by_label: bool
    """True: NLL and accuracy on true labels; False: KL from the teacher and agreement with it."""

    def score(self, engine: Engine, ranks: Ranks, budget: Budget) -> Score:
        """See `Judge`."""

        def measure(inputs: Batch, losses: LossBatch) -> tuple[Tensor, ...]:
            return _measure(engine.forward(inputs).logits_BV.float(), losses, self.by_label)

        loss, correct, weight = measured(engine, self.data, self.rows, ranks, budget, measure)
        names = (
            ("validation_nll", "validation_accuracy") if self.by_label else ("validation_kl", "validation_agreement")
        )
        return Score(value=loss / weight, metrics={names[0]: loss / weight, names[1]: correct / weight})


@dataclass(frozen=True, kw_only=True)
class TokenJudge:
    """Of language models: NLL of the true tokens, by which the gate decides too; KL from the teacher is told beside
    it where the split is labelled."""

    data: TokenSet

    def score(self, engine: Engine, ranks: Ranks, budget: Budget) -> Score:
        """See `Judge`."""
        losses = (Hard(),) if self.data.distributions is None else (Hard(), Soft())

        def measure(inputs: Batch, found: LossBatch) -> tuple[Tensor, ...]:
            asked = Asked(batch=found, parts=tuple(Part(loss=loss, factor=1.0) for loss in losses))
            output = engine.forward(inputs, asked)
            sums = [loss(output, found) for loss in losses] if output.fused is None else list(output.fused[1])
            return (*sums, *(loss.weight(found) for loss in losses))

        rows = np.arange(self.data.rows, dtype=np.int64)
        found = measured(engine, self.data, rows, ranks, budget, measure)
        sums, weights = found[: len(losses)], found[len(losses) :]
        means = {
            name: total / weight
            for name, total, weight in zip(("validation_nll", "validation_kl"), sums, weights, strict=False)
            if weight
        }
        return Score(value=means["validation_nll"], metrics=means)


def choose_judge(data: TrainingSet | TokenSet) -> Judge:
    """Of classifiers true labels where at least `MIN_LABELLED` rows have one, else the teacher.

    Raises:
        TrainingError: neither is there.
    """
    if isinstance(data, TokenSet):
        return TokenJudge(data=data)
    labelled, taught = np.flatnonzero(data.labels >= 0), np.flatnonzero(data.distil)
    if len(labelled) >= MIN_LABELLED:
        return RowJudge(data=data, rows=labelled, by_label=True)
    if data.teaching is None or len(taught) == 0:
        raise TrainingError(
            f"the validation split has {len(labelled)} labelled rows (at least {MIN_LABELLED} are needed) and no "
            "teacher labels, so students cannot be compared; label it, or give it more labelled rows"
        )
    return RowJudge(data=data, rows=taught, by_label=False)


def measured(
    engine: Engine,
    data: Examples,
    rows: Index,
    ranks: Ranks,
    budget: Budget,
    measure: Callable[[Batch, LossBatch], tuple[Tensor, ...]],
) -> list[float]:
    """Sums over all rows and ranks of what a function measures of each micro-batch, in evaluation mode."""
    engine.train(False)
    found: list[list[float]] = []
    with torch.no_grad():
        for micro in micro_batches(
            rows,
            rank=ranks.rank,
            world=ranks.world,
            budget=budget,
            lengths_BF=None if data.lengths is None else data.lengths[rows],
        ):
            inputs, losses = data.batch(micro.rows, micro.real)
            found.append([float(value) for value in measure(inputs, to_device(losses, engine.device))])
    engine.train(True)
    return ranks.total([sum(column) for column in zip(*found, strict=True)], engine.device)


def _measure(logits_BV: Tensor, batch: LossBatch, by_label: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Weighted sums of the loss and of correct answers, and the weight."""
    weight_B = batch.example_weight_B
    if by_label:
        target_B = batch.labels_B.clamp(min=0)
        loss_B = functional.cross_entropy(logits_BV, target_B, reduction="none")
    else:
        assert batch.targets is not None
        target_B = _first_choice(batch.targets)
        loss_B = forward_kl(logits_BV, batch.targets)
    correct_B = (logits_BV.argmax(-1) == target_B).to(weight_B.dtype)
    return (loss_B * weight_B).sum(), (correct_B * weight_B).sum(), weight_B.sum()


def _first_choice(targets: SparseTargets) -> Tensor:
    return targets.ids_NK.gather(-1, targets.logp_NK.argmax(-1, keepdim=True)).squeeze(-1)
