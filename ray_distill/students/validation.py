"""How every arm of a campaign is judged while it trains: one rule, chosen by the validation split alone."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from ray_distill.errors import TrainingError
from ray_distill.losses.base import LossBatch, SparseTargets
from ray_distill.losses.soft import forward_kl
from ray_distill.students.batches import TrainingSet
from ray_distill.students.engine import Engine
from ray_distill.students.ranks import Ranks
from ray_distill.students.sampler import Index, micro_batches
from ray_distill.students.terms import to_device

#: With fewer labelled validation rows than this, arms are judged by their divergence from the teacher.
MIN_LABELLED = 50


@dataclass(frozen=True, kw_only=True)
class Judge:
    """The validation rows that count, and by what."""

    data: TrainingSet
    rows: Index
    by_label: bool
    """True: NLL and accuracy on true labels; False: KL from the teacher and agreement with it."""


@dataclass(frozen=True, kw_only=True)
class Score:
    """A student's result on the validation split; less is better."""

    value: float
    """Mean NLL, or mean KL, in nats."""
    metrics: dict[str, float]


def choose_judge(data: TrainingSet) -> Judge:
    """True labels where at least `MIN_LABELLED` rows have one, else the teacher.

    Raises:
        TrainingError: neither is there.
    """
    labelled, taught = np.flatnonzero(data.labels >= 0), np.flatnonzero(data.distil)
    if len(labelled) >= MIN_LABELLED:
        return Judge(data=data, rows=labelled, by_label=True)
    if data.teaching is None or len(taught) == 0:
        raise TrainingError(
            f"the validation split has {len(labelled)} labelled rows (at least {MIN_LABELLED} are needed) and no "
            "teacher labels, so students cannot be compared; label it, or give it more labelled rows")
    return Judge(data=data, rows=taught, by_label=False)


def validate(engine: Engine, judge: Judge, ranks: Ranks, *, batch: int) -> Score:
    """Measure the bundle as it is; every rank takes a share of the rows and all get the same score."""
    engine.train(False)
    sums = [0.0, 0.0, 0.0]
    with torch.no_grad():
        for micro in micro_batches(judge.rows, rank=ranks.rank, world=ranks.world, micro_batch=batch):
            inputs, loss_batch = judge.data.batch(micro.rows, micro.real)
            logits_BV = engine.forward(inputs).logits_BV.float()
            added = _measure(logits_BV, to_device(loss_batch, engine.device), judge.by_label)
            sums = [total + float(value) for total, value in zip(sums, added, strict=True)]
    engine.train(True)
    loss, correct, weight = ranks.total(sums, engine.device)
    names = ("validation_nll", "validation_accuracy") if judge.by_label else ("validation_kl", "validation_agreement")
    return Score(value=loss / weight, metrics={names[0]: loss / weight, names[1]: correct / weight})


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
