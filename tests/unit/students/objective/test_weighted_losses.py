"""Terms of the loss: built from the configuration, and reduced over micro-batches."""

import numpy as np
import pytest
import torch

from ray_distill.config import LossConfig, Schedule
from ray_distill.errors import ConfigError, TrainingError
from ray_distill.losses import catalogue
from ray_distill.losses.base import LossBatch, SparseTargets, StudentOutput
from ray_distill.students.objective.weighted_losses import build_terms, combine, weights_of
from ray_distill.students.process_group import Ranks

ALONE = Ranks(rank=0, world=1)
CPU = torch.device("cpu")


def batch_of(generator: torch.Generator, labels: list[int]) -> tuple[torch.Tensor, LossBatch]:
    """Random logits and dense targets for some labels."""
    n = len(labels)
    logp = torch.randn(n, 3, generator=generator).log_softmax(-1)
    return torch.randn(n, 3, generator=generator), LossBatch(
        labels_B=torch.tensor(labels),
        distil_B=torch.ones(n, dtype=torch.bool),
        example_weight_B=torch.ones(n),
        targets=SparseTargets(
            classes=3,
            ids_NK=torch.arange(3).expand(n, 3),
            logp_NK=logp,
            temperatures=(1.0,),
            log_tail_NT=torch.full((n, 1), -torch.inf),
        ),
    )


def test_the_mean_is_global_however_labels_fall_into_micro_batches() -> None:
    """Two micro-batches with one and three labels: each label weighs the same, unlike a mean of means."""
    generator = torch.Generator().manual_seed(0)
    parts = [batch_of(generator, [0, -1, -1, -1]), batch_of(generator, [1, 2, 0, -1])]
    terms = build_terms(
        {"hard": LossConfig(weight=2.0)}, kinds=catalogue.LOSSES, steps=1, temperatures=(1.0,), layers={}
    )
    weights = weights_of(terms, [batch for _, batch in parts], ALONE, CPU)
    shares = [
        combine(terms, StudentOutput(logits_BV=logits), batch, step=0, weights=weights)[0] for logits, batch in parts
    ]
    logits, labels = torch.cat([logits for logits, _ in parts]), torch.cat([batch.labels_B for _, batch in parts])
    expected = 2 * torch.nn.functional.cross_entropy(logits[labels >= 0], labels[labels >= 0])
    assert weights == [4.0]
    assert float(sum(shares)) == pytest.approx(float(expected), rel=1e-6)


def test_a_term_nothing_carries_is_zero_and_differentiable() -> None:
    """A batch without true labels trains on the other terms; no 0/0."""
    logits, batch = batch_of(torch.Generator().manual_seed(1), [-1, -1])
    logits.requires_grad_(True)
    terms = build_terms(
        {"hard": LossConfig(), "soft": LossConfig()}, kinds=catalogue.LOSSES, steps=1, temperatures=(1.0,), layers={}
    )
    weights = weights_of(terms, [batch], ALONE, CPU)
    loss, parts = combine(terms, StudentOutput(logits_BV=logits), batch, step=0, weights=weights)
    loss.backward()
    assert weights == [0, 2] and float(parts[0]) == 0
    assert logits.grad is not None and bool(torch.isfinite(logits.grad).all()) and float(logits.grad.abs().sum()) > 0


def test_weights_follow_the_step() -> None:
    """A scheduled weight is applied at the step it is asked for."""
    logits, batch = batch_of(torch.Generator().manual_seed(2), [0])
    terms = build_terms(
        {"hard": LossConfig(weight=Schedule(linear=(1.0, 0.0)))},
        steps=11,
        temperatures=(1.0,),
        layers={},
        kinds=catalogue.LOSSES,
    )
    output = StudentOutput(logits_BV=logits)
    losses = [float(combine(terms, output, batch, step=step, weights=[1.0])[0]) for step in (0, 5, 10)]
    assert losses[1] == pytest.approx(losses[0] / 2) and losses[2] == 0


def test_wrong_configurations_are_named() -> None:
    """An unknown loss lists the known ones; an undeclared temperature the declared ones."""
    with pytest.raises(ConfigError, match=r"unknown loss .softt.; there are cka, hard, hidden, relation, rkd_angle"):
        build_terms({"softt": LossConfig()}, kinds=catalogue.LOSSES, steps=1, temperatures=(1.0,), layers={})
    with pytest.raises(ConfigError, match=r"student\.losses\.soft: temperature 3 is not declared.*declare 1, 2"):
        build_terms(
            {"soft": LossConfig(temperature=3)}, kinds=catalogue.LOSSES, steps=1, temperatures=(1.0, 2.0), layers={}
        )


def test_a_loss_that_does_not_fit_is_a_training_error() -> None:
    """A batch without hidden states names what is missing, and the step."""
    logits, batch = batch_of(torch.Generator().manual_seed(3), [0])
    terms = build_terms(
        {"hidden": LossConfig()}, kinds=catalogue.LOSSES, steps=1, temperatures=(1.0,), layers={"hidden": {1: 4}}
    )
    with pytest.raises(TrainingError, match="step 6: the loss 'hidden' pairs student layer 1 with teacher layer 4"):
        combine(terms, StudentOutput(logits_BV=logits), batch, step=6, weights=[1.0])


def test_sums_alone_are_plain_sums() -> None:
    """A process without a group is its own total."""
    assert ALONE.total([1.5, torch.tensor(2.0)], CPU) == [1.5, 2.0]
    assert ALONE.gather("x") == ["x"] and ALONE.share(3) == 3
    assert np.isfinite(ALONE.total([], CPU)).all()
