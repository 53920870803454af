"""Losses of independent sigmoids where numbers are extreme, labels are missing, or shapes do not fit."""

import math
from dataclasses import fields, is_dataclass, replace

import pytest
import torch
from torch import Tensor

from ray_distill.losses.base import Loss, LossBatch, SparseTargets, StudentOutput
from ray_distill.losses.binary import CERTAIN, BinaryHard, BinarySoft, BinaryTeacherHard
from ray_distill.losses.divergences import DIVERGENCES

KINDS: tuple[type[Loss], ...] = (BinarySoft, BinaryHard, BinaryTeacherHard)


def targets_of(log_odds_NV: Tensor) -> SparseTargets:
    rows, classes = log_odds_NV.shape
    return SparseTargets(
        classes=classes,
        ids_NK=torch.arange(classes).expand(rows, classes),
        logp_NK=torch.nn.functional.logsigmoid(log_odds_NV),
        log_tail_NT=torch.full((rows, 1), -math.inf),
        temperatures=(1.0,),
        log_odds_NK=log_odds_NV,
    )


def batch_of(log_odds_NV: Tensor, labels_NV: Tensor | None = None) -> LossBatch:
    rows = len(log_odds_NV)
    return LossBatch(
        labels_B=torch.full(log_odds_NV.shape, -1) if labels_NV is None else labels_NV,
        targets=targets_of(log_odds_NV),
        distil_B=torch.ones(rows, dtype=torch.bool),
        example_weight_B=torch.ones(rows),
    )


def run(loss: Loss, logits_NV: Tensor, batch: LossBatch) -> tuple[float, Tensor]:
    leaf = logits_NV.clone().requires_grad_()
    value = loss(StudentOutput(logits_BV=leaf), batch)
    value.backward()
    assert leaf.grad is not None
    return float(value.detach()), leaf.grad


def test_a_certain_student_and_teacher_are_compared_exactly() -> None:
    """At z = ±80 the probability of the other answer is e^-80, and its logarithm is not lost."""
    batch = batch_of(torch.tensor([[80.0, -80.0]]))
    value, gradient = run(BinarySoft(), torch.tensor([[-80.0, 80.0]]), batch)
    assert value == pytest.approx(80.0) and gradient.tolist() == [[-0.5, 0.5]]
    same, nothing = run(BinarySoft(), torch.tensor([[80.0, -80.0]]), batch)
    assert same == 0 and nothing.abs().max() < 1e-30
    hard, slope = run(BinaryHard(), torch.tensor([[-80.0, 80.0]]), batch_of(torch.zeros(1, 2), torch.tensor([[1, 0]])))
    assert hard == pytest.approx(80.0) and slope.tolist() == [[-0.5, 0.5]]


@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize("temperature", [1.0, 2.0, 4.0])
def test_no_value_and_no_gradient_is_infinite(divergence: str, temperature: float) -> None:
    """Of every pair of log-odds from -80 to 80 and of certain teachers; a teacher's ±infinity counts as ±CERTAIN."""
    student, teacher = torch.tensor([-80.0, -20, 0, 20, 80]), torch.tensor([-math.inf, -80, 0, 80, math.inf])
    grid = torch.cartesian_prod(teacher, student)
    batch = batch_of(grid[:, :1])
    loss = BinarySoft(divergence=divergence, temperature=temperature)
    value, gradient = run(loss, grid[:, 1:], batch)
    assert math.isfinite(value) and bool(gradient.isfinite().all())
    clamped = batch_of(grid[:, :1].clamp(-CERTAIN * temperature, CERTAIN * temperature))
    assert value == run(loss, grid[:, 1:], clamped)[0]


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_a_student_that_is_right_learns_nothing(divergence: str) -> None:
    """Of every divergence the value and the gradient are 0 there."""
    z = torch.tensor([[-80.0, -3, 0, 0.5, 80]])
    value, gradient = run(BinarySoft(divergence=divergence, temperature=2.0), z, batch_of(z))
    assert value == pytest.approx(0, abs=1e-6) and float(gradient.abs().max()) < 1e-6


def test_the_gradient_of_forward_kl_is_the_difference_of_probabilities() -> None:
    """T (q - p) / V at temperature T (MATHS.md §2, for two buckets)."""
    torch.manual_seed(0)
    teacher, student, temperature = torch.randn(3, 5), torch.randn(3, 5), 2.0
    _, gradient = run(BinarySoft(temperature=temperature), student, batch_of(teacher))
    expected = temperature * ((student / temperature).sigmoid() - (teacher / temperature).sigmoid()) / 5
    assert torch.allclose(gradient, expected, atol=1e-7)


def test_high_temperatures_compare_logits() -> None:
    """T² times the divergence tends to the mean of (z - s)² / 8, so that the scale stays (Hinton et al., §2.1)."""
    teacher, student = torch.tensor([[1.0, -2.0, 0.5]]), torch.tensor([[0.0, -1.0, 2.0]])
    value, _ = run(BinarySoft(temperature=100.0), student, batch_of(teacher))
    assert value == pytest.approx(float((teacher - student).square().mean()) / 8, rel=1e-2)


def test_rows_of_an_unknown_set_have_no_weight() -> None:
    """An empty set is known: all its classes are no."""
    labels = torch.tensor([[1, 0], [-1, -1], [0, 0]])
    batch = batch_of(torch.zeros(3, 2), labels)
    logits = torch.tensor([[2.0, -1.0], [3.0, 3.0], [1.0, 0.0]])
    value, gradient = run(BinaryHard(), logits, batch)
    terms = [math.log1p(math.exp(-2)) + math.log1p(math.exp(-1)), math.log1p(math.exp(1)) + math.log(2)]
    assert value == pytest.approx(sum(terms) / 2) and float(BinaryHard().weight(batch)) == 2
    assert gradient[1].tolist() == [0, 0]


def test_the_teacher_decides_at_one_half() -> None:
    """A probability of exactly ½ is a yes, as it is where answers are decided."""
    value, _ = run(BinaryTeacherHard(), torch.tensor([[4.0, 4.0]]), batch_of(torch.tensor([[0.0, -1e-6]])))
    assert value == pytest.approx((math.log1p(math.exp(-4)) + math.log1p(math.exp(4))) / 2)


def test_nan_in_the_labels_is_not_hidden() -> None:
    """It makes the loss NaN, which stops training."""
    value, _ = run(BinarySoft(), torch.zeros(1, 2), batch_of(torch.tensor([[0.0, math.nan]])))
    assert math.isnan(value)


def test_bfloat16_logits_are_raised_to_float32() -> None:
    """In every loss."""
    batch = batch_of(torch.zeros(2, 3), torch.ones(2, 3, dtype=torch.int64))
    for kind in KINDS:
        assert kind()(StudentOutput(logits_BV=torch.zeros(2, 3, dtype=torch.bfloat16)), batch).dtype == torch.float32


def test_labels_of_another_kind_are_refused() -> None:
    """One distribution a row has no log-odds, one class a row has no line of answers."""
    batch = batch_of(torch.zeros(2, 3))
    assert batch.targets is not None
    one = replace(batch, targets=replace(batch.targets, log_odds_NK=None), labels_B=torch.tensor([0, 1]))
    output = StudentOutput(logits_BV=torch.zeros(2, 3))
    for kind, name in ((BinarySoft, "soft"), (BinaryTeacherHard, "teacher_hard")):
        with pytest.raises(ValueError, match=f"the loss '{name}' compares yes or no by class"):
            kind()(output, one)
    with pytest.raises(ValueError, match=r"true labels of shape \(2, 3\), one a class, and found \(2,\)"):
        BinaryHard()(output, one)


@pytest.mark.parametrize(
    ("settings", "message"), [({"temperature": 0.0}, "greater than 0"), ({"divergence": "x"}, "is one of")]
)
def test_settings_out_of_range_are_refused(settings: dict[str, object], message: str) -> None:
    """When the loss is made, before the first row."""
    with pytest.raises(ValueError, match=message):
        BinarySoft(**settings)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", KINDS)
def test_a_public_name_of_a_loss_is_a_setting_or_declared(kind: type[Loss]) -> None:
    """A misspelt ``follows_label`` would be ignored in silence."""
    assert is_dataclass(kind)
    public = {attribute for attribute in dir(kind) if not attribute.startswith("_")}
    assert public - {field.name for field in fields(kind)} - set(dir(Loss)) - {"divergences"} == set()
