"""The kinds of hidden matching beyond the reference tests: the PCA target and its scale, and which labels will do."""

import numpy as np
import pytest
import torch

from ray_distill.labels.format.hidden_states import basis_name, fit_basis, mean_name, project
from ray_distill.labels.model.signal import Vectors
from ray_distill.losses.base import Labels, LossBatch, StudentOutput
from ray_distill.losses.catalogue import LOSSES
from ray_distill.losses.hidden import HiddenMatch
from ray_distill.losses.soft import Soft
from ray_distill.students.objective.validate_losses import state_scales


def batch_of(states: torch.Tensor) -> LossBatch:
    n = len(states)
    return LossBatch(
        labels_B=torch.full((n,), -1),
        distil_B=torch.ones(n, dtype=torch.bool),
        example_weight_B=torch.ones(n),
        hidden={4: states},
    )


def test_pca_is_the_formula_of_states_on_a_basis() -> None:
    """``‖P h_s - Uᵀ(h_t - μ)‖² / RMS²`` (MATHS.md §5), against float64 from the teacher's own states; value and
    gradient. Who says nothing costs 1."""
    rng = np.random.default_rng(0)
    teacher_ND = (rng.normal(size=(40, 9)) * np.arange(1, 10) + 5).astype(np.float32)
    mean, basis, _ = fit_basis(teacher_ND, rank=4)
    stored = project(teacher_ND, 4, {mean_name(4): mean, basis_name(4): basis})
    scales = state_scales({4: Vectors(offsets=np.arange(41, dtype=np.int64), values=stored)})
    student = torch.from_numpy(rng.normal(size=(40, 4)).astype(np.float32)).requires_grad_()
    loss = HiddenMatch(layers={1: 4}, kind="pca", scales=scales)
    value = loss(StudentOutput(logits_BV=torch.zeros(40, 2), hidden={1: student}), batch_of(torch.from_numpy(stored)))
    value.backward()
    exact = student.detach().double().requires_grad_()
    target = torch.from_numpy((teacher_ND.astype(np.float64) - mean) @ basis.astype(np.float64))
    expected = ((exact - target).square().sum(-1) / target.square().sum(-1).mean()).sum()
    expected.backward()
    assert float(value.detach()) == pytest.approx(float(expected.detach()), rel=1e-5)
    assert student.grad is not None and exact.grad is not None
    assert float((student.grad - exact.grad).abs().max()) <= 1e-5 * float(exact.grad.abs().max())
    silent = StudentOutput(logits_BV=torch.zeros(40, 2), hidden={1: torch.zeros(40, 4)})
    assert float(loss(silent, batch_of(torch.from_numpy(stored)))) / 40 == pytest.approx(1, rel=1e-5)


@pytest.mark.parametrize("scales", [{}, {4: 0.0}])
def test_a_layer_without_a_size_is_named(scales: dict[int, float]) -> None:
    """Not measured, or all 0: nothing to divide by."""
    loss = HiddenMatch(layers={1: 4}, kind="pca", scales=scales)
    with pytest.raises(ValueError, match="divides by the size of teacher layer 4"):
        loss(StudentOutput(logits_BV=torch.zeros(2, 2), hidden={1: torch.zeros(2, 3)}), batch_of(torch.zeros(2, 3)))


def test_labels_that_will_not_do_are_refused_with_what_to_set() -> None:
    """No states, no basis, pooled where tokens are compared, drawn where that is biased."""
    hidden = Labels(hidden=True)
    for name in ("hidden", "cka", "rkd_distance", "rkd_angle", "relation"):
        with pytest.raises(ValueError, match=r"no hidden states are stored; set labels\.hidden\.layers"):
            LOSSES[name](layers={1: 4}).check(Labels())  # type: ignore[call-arg]
    HiddenMatch(layers={1: 4}).check(hidden)
    HiddenMatch(layers={1: 4}, kind="pca").check(Labels(hidden=True, basis=True))
    with pytest.raises(ValueError, match=r"needs states that are stored on a PCA basis; set labels\.hidden\.rank"):
        HiddenMatch(layers={1: 4}, kind="pca").check(hidden)
    with pytest.raises(ValueError, match=r"labels\.hidden\.pool is mean; set it to token"):
        LOSSES["relation"](layers={1: 4}).check(hidden)
    LOSSES["relation"](layers={1: 4}).check(Labels(hidden=True, pool="token"))
    with pytest.raises(ValueError, match="cannot be used with sampled or hybrid labels"):
        Soft(divergence="adaptive_kl").check(Labels(drawn=True))
    LOSSES["soft"]().check(Labels(drawn=True))
