"""Distributions over a vocabulary that is padded differently: the numbers."""

import numpy as np
import pyarrow as pa
import pytest
import torch

from ray_distill.errors import LabelError
from ray_distill.labels.model.distributions import Distributions
from ray_distill.labels.model.shared_classes import over_classes
from ray_distill.losses.base import LossBatch, StudentOutput
from ray_distill.losses.soft import Soft
from ray_distill.students.data.sparse_targets import sparse_targets
from ray_distill.students.objective.weighted_losses import to_device
from ray_distill.teachers.base import LabelRequest
from ray_distill.teachers.reduce import reduce_logits

TEMPERATURES = (1.0, 2.0, 4.0)
ROWS, WIDE, NARROW = 5, 12, 9


def _logits() -> torch.Tensor:
    return 3 * torch.randn(ROWS, WIDE, generator=torch.Generator().manual_seed(1))


def _labels(logits: torch.Tensor, estimator: str = "dense", k: int = 4) -> Distributions:
    request = LabelRequest(estimator=estimator, k=k, draws=8, temperatures=TEMPERATURES)
    return reduce_logits(logits, request, pa.array([bytes([row]) * 16 for row in range(ROWS)], pa.binary(16)))


def _divergence(labels: Distributions, student: torch.Tensor, temperature: float) -> float:
    batch = LossBatch(
        labels_B=torch.full((ROWS,), -1),
        targets=sparse_targets(labels, np.arange(ROWS, dtype=np.int64), np.ones(ROWS, np.int64)),
        distil_B=torch.ones(ROWS, dtype=torch.bool),
        example_weight_B=torch.ones(ROWS),
    )
    loss = Soft(temperature=temperature)(StudentOutput(logits_BV=student), to_device(batch, torch.device("cpu")))
    return float(loss) / temperature**2


def test_dense_labels_over_fewer_classes_are_those_of_a_teacher_without_the_others() -> None:
    """Given one of the remaining classes, at each temperature: what a teacher whose head was cut would answer."""
    logits = _logits()
    found, expected = over_classes(_labels(logits), NARROW), _labels(logits[:, :NARROW])
    assert found.classes == NARROW and found.ids.tolist() == expected.ids.tolist()
    np.testing.assert_allclose(found.logp, expected.logp, atol=1e-6)
    np.testing.assert_allclose(found.entropy, expected.entropy, atol=1e-5)
    assert np.isneginf(found.log_tail).all()
    student = torch.randn(ROWS, NARROW, generator=torch.Generator().manual_seed(2))
    for temperature in TEMPERATURES:
        assert _divergence(found, student, temperature) == pytest.approx(
            _divergence(expected, student, temperature), rel=1e-5
        )


@pytest.mark.parametrize("k", [1, 4, 8])
def test_mass_of_classes_left_out_moves_to_the_tail_at_each_temperature(k: int) -> None:
    """The stored classes that remain keep their probabilities, and everything else is in the tail: sums of
    probabilities, computed here from the whole distribution."""
    logits = _logits()
    found = over_classes(_labels(logits, "topk", k), NARROW)
    assert (found.ids < NARROW).all()
    for row in range(ROWS):
        ids = found.ids[slice(*found.entry_offsets[row : row + 2])].astype(np.int64)
        logp = found.logp[slice(*found.entry_offsets[row : row + 2])]
        np.testing.assert_allclose(logp, logits.log_softmax(-1)[row, ids], atol=1e-5)
        for column, temperature in enumerate(TEMPERATURES):
            outside = 1 - float((logits[row] / temperature).softmax(-1)[ids].sum())
            assert np.exp(found.log_tail[row, column]) == pytest.approx(outside, abs=1e-5)


def test_a_position_that_stores_all_that_remains_is_given_one_of_them() -> None:
    """Three classes of twelve, k 6: no class is left that a tail could stand for."""
    logits = _logits()
    logits[:, 3:] -= torch.arange(WIDE - 3)[None] * 5 + 20  # so that the likeliest are the first
    found, expected = over_classes(_labels(logits, "topk", 6), 3), _labels(logits[:, :3])
    np.testing.assert_allclose(found.logp, expected.logp, atol=1e-5)
    assert np.isneginf(found.log_tail).all()


@pytest.mark.parametrize("estimator", ["dense", "topk", "sampled", "hybrid"])
def test_further_classes_get_no_mass_of_the_teacher(estimator: str) -> None:
    """A student of a wider head learns the same distribution; what it gives to the padding costs it."""
    labels = _labels(_logits()[:, :NARROW], estimator)
    found = over_classes(labels, WIDE)
    assert found.classes == WIDE and found.ids is labels.ids and found.log_tail is labels.log_tail
    student = torch.randn(ROWS, WIDE, generator=torch.Generator().manual_seed(2))
    without = student.clone()
    without[:, NARROW:] = -1e4
    assert _divergence(found, without, 1.0) == pytest.approx(_divergence(labels, student[:, :NARROW], 1.0), rel=1e-5)
    if estimator == "dense":
        assert _divergence(found, student, 1.0) > _divergence(found, without, 1.0)


@pytest.mark.parametrize("estimator", ["sampled", "hybrid"])
def test_draws_over_fewer_classes_are_refused(estimator: str) -> None:
    """Draws estimate sums over all classes: without some of them the estimate is of another teacher."""
    with pytest.raises(LabelError, match="drawn labels over 12 classes cannot be put over 9"):
        over_classes(_labels(_logits(), estimator), NARROW)


def test_labels_of_the_classes_alone_stay_as_they_are() -> None:
    """Where no class that is left out was stored, nothing moves: its mass was in the tail already."""
    logits = _logits()
    logits[:, NARROW:] = -20.0
    labels = _labels(logits, "topk", 4)
    found = over_classes(labels, NARROW)
    assert found.ids.tolist() == labels.ids.tolist()
    np.testing.assert_array_equal(found.logp, labels.logp)
    np.testing.assert_array_equal(found.log_tail, labels.log_tail)
