"""Losses of independent sigmoids against explicit probabilities of yes and no in float64, over drawn shapes."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ray_distill.losses.base import LossBatch, SparseTargets, StudentOutput
from ray_distill.losses.binary import BinaryHard, BinarySoft, BinaryTeacherHard
from ray_distill.losses.divergences import DIVERGENCES

#: Probabilities of yes and no.
Answer = tuple[float, float]


def _kl(p: Answer, q: Answer) -> float:
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


def _mixed(p: Answer, q: Answer, share: float) -> Answer:
    return share * p[0] + (1 - share) * q[0], share * p[1] + (1 - share) * q[1]


REFERENCES: dict[str, Callable[[Answer, Answer, float], float]] = {
    "forward_kl": lambda p, q, _: _kl(p, q),
    "reverse_kl": lambda p, q, _: _kl(q, p),
    "jsd": lambda p, q, b: b * _kl(p, _mixed(p, q, b)) + (1 - b) * _kl(q, _mixed(p, q, b)),
    "skewed_kl": lambda p, q, a: _kl(p, _mixed(p, q, a)),
    "total_variation": lambda p, q, _: abs(p[0] - q[0]),
    "adaptive_kl": lambda p, q, _: (_kl(p, q) + _kl(q, p)) / 2,
}
PARAMETERS = {"jsd": "beta", "skewed_kl": "skew", "adaptive_kl": "head"}


def test_every_divergence_has_a_reference() -> None:
    """A new one needs a line here."""
    assert set(REFERENCES) == set(DIVERGENCES)


@dataclass(frozen=True)
class Case:
    """Teacher and student of N rows and V classes, in float64; classes are stored in another order."""

    teacher_NV: Tensor
    student_NV: Tensor
    labels_NV: Tensor
    weight_N: Tensor
    distil_N: Tensor
    order_V: Tensor

    def batch(self) -> LossBatch:
        rows, classes = self.teacher_NV.shape
        z_NV = self.teacher_NV[:, self.order_V].float()
        return LossBatch(
            labels_B=self.labels_NV,
            targets=SparseTargets(
                classes=classes,
                ids_NK=self.order_V.expand(rows, classes),
                logp_NK=torch.nn.functional.logsigmoid(z_NV),
                log_tail_NT=torch.full((rows, 1), -math.inf),
                temperatures=(1.0,),
                log_odds_NK=z_NV,
            ),
            distil_B=self.distil_N,
            example_weight_B=self.weight_N,
        )


@st.composite
def cases(draw: st.DrawFn) -> Case:
    rows, classes = draw(st.integers(1, 4)), draw(st.integers(1, 7))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    known_N1 = torch.rand(rows, 1, generator=generator) < 0.7
    return Case(
        teacher_NV=torch.randn(rows, classes, generator=generator).double().clamp(-3, 3)
        * draw(st.sampled_from([0.3, 1.0, 5.0])),
        student_NV=torch.randn(rows, classes, generator=generator).double().clamp(-3, 3)
        * draw(st.sampled_from([0.5, 4.0])),
        labels_NV=torch.where(known_N1, torch.randint(0, 2, (rows, classes), generator=generator), -1),
        weight_N=torch.tensor(draw(st.lists(st.sampled_from([0.0, 1.0, 2.5]), min_size=rows, max_size=rows))),
        distil_N=torch.rand(rows, generator=generator) < 0.7,
        order_V=torch.randperm(classes, generator=generator),
    )


def explicit(z: float) -> Answer:
    """Probabilities of yes and no; neither is a difference from 1."""
    return 1 / (1 + math.exp(-z)), 1 / (1 + math.exp(z))


def assert_close(found: Tensor, expected: Tensor, scale: float = 1.0) -> None:
    assert float((found.double() - expected).abs().max()) <= 2e-5 * max(float(expected.abs().max()), scale)


def both(loss: Callable[[Tensor], Tensor], logits: Tensor) -> tuple[Tensor, Tensor]:
    """Value and gradient."""
    leaf = logits.clone().requires_grad_()
    value = loss(leaf)
    value.backward()
    assert leaf.grad is not None
    return value.detach(), leaf.grad


def numerical(function: Callable[[Tensor], float], at_NV: Tensor, step: float = 1e-5) -> Tensor:
    """Central differences of a function of float64."""
    found_NV = torch.zeros_like(at_NV)
    for place in range(at_NV.numel()):
        aside = torch.zeros(at_NV.numel(), dtype=torch.float64)
        aside[place] = step
        aside = aside.view_as(at_NV)
        found_NV.view(-1)[place] = (function(at_NV + aside) - function(at_NV - aside)) / (2 * step)
    return found_NV


@given(
    case=cases(),
    divergence=st.sampled_from(sorted(REFERENCES)),
    temperature=st.sampled_from([0.5, 1.0, 2.0, 3.7]),
    parameter=st.sampled_from([0.1, 0.5, 0.8]),
)
@settings(max_examples=200, deadline=None)
def test_soft_is_the_mean_over_classes_of_two_bucket_divergences(
    case: Case, divergence: str, temperature: float, parameter: float
) -> None:
    """Times T², of rows that the teacher may teach; value and gradient, at any temperature."""

    def reference(student_NV: Tensor) -> float:
        total = 0.0
        for row in range(len(student_NV)):
            terms = [
                REFERENCES[divergence](explicit(z / temperature), explicit(s / temperature), parameter)
                for z, s in zip(case.teacher_NV[row].float().tolist(), student_NV[row].tolist(), strict=True)
            ]
            total += float(case.weight_N[row]) * bool(case.distil_N[row]) * sum(terms) / len(terms)
        return temperature**2 * total

    name = PARAMETERS.get(divergence)
    loss = BinarySoft(temperature=temperature, divergence={divergence: {name: parameter} if name else {}})
    student = case.student_NV.float()
    value, gradient = both(lambda z: loss(StudentOutput(logits_BV=z), case.batch()), student)
    assert_close(value, torch.tensor(reference(student.double())), temperature**2)
    if divergence != "total_variation":  # has a kink where teacher and student agree
        assert_close(gradient, numerical(reference, student.double()), temperature)
    assert float(loss.weight(case.batch())) == pytest.approx(float((case.weight_N * case.distil_N).sum()))


@given(case=cases())
@settings(max_examples=100, deadline=None)
def test_cross_entropies_are_of_each_answer(case: Case) -> None:
    """With true sets where they are known, and with the teacher's decisions at ½ where it may teach."""

    def reference(sets_NV: Tensor, weight_N: Tensor, student_NV: Tensor) -> float:
        total = 0.0
        for row in range(len(student_NV)):
            answers = [explicit(s) for s in student_NV[row].tolist()]
            logs = [-math.log(yes if chosen else no) for (yes, no), chosen in zip(answers, sets_NV[row], strict=True)]
            total += float(weight_N[row]) * sum(logs) / len(logs)
        return total

    known_N = (case.labels_NV >= 0).all(-1)
    student = case.student_NV.float()
    for loss, sets_NV, weight_N in (
        (BinaryHard(), case.labels_NV > 0, case.weight_N * known_N),
        (BinaryTeacherHard(), case.teacher_NV.float() >= 0, case.weight_N * case.distil_N),
    ):
        value, gradient = both(lambda z, loss=loss: loss(StudentOutput(logits_BV=z), case.batch()), student)  # type: ignore[misc]
        assert_close(value, torch.tensor(reference(sets_NV, weight_N, student.double())))
        chosen_NV = sets_NV.double()
        expected = (student.double().sigmoid() - chosen_NV) * weight_N[:, None].double() / student.shape[1]
        assert_close(gradient, expected)
        assert float(loss.weight(case.batch())) == pytest.approx(float(weight_N.sum()))


@given(case=cases(), divergence=st.sampled_from(sorted(REFERENCES)))
@settings(max_examples=60, deadline=None)
def test_yes_and_no_are_alike(case: Case, divergence: str) -> None:
    """A label and its opposite teach the same: all log-odds with the other sign give the same value."""
    loss = BinarySoft(divergence=divergence, temperature=2.0)
    turned = Case(-case.teacher_NV, -case.student_NV, case.labels_NV, case.weight_N, case.distil_N, case.order_V)
    values = [float(loss(StudentOutput(logits_BV=c.student_NV.float()), c.batch())) for c in (case, turned)]
    assert values[0] == pytest.approx(values[1], rel=1e-6, abs=1e-9)


@given(case=cases(), divergence=st.sampled_from(sorted(REFERENCES)))
@settings(max_examples=60, deadline=None)
def test_the_number_of_classes_does_not_change_the_scale(case: Case, divergence: str) -> None:
    """Every class twice, or rows in another division, is the same loss."""
    loss = BinarySoft(divergence=divergence)
    twice = Case(
        torch.cat([case.teacher_NV] * 2, 1),
        torch.cat([case.student_NV] * 2, 1),
        torch.cat([case.labels_NV] * 2, 1),
        case.weight_N,
        case.distil_N,
        torch.arange(2 * case.teacher_NV.shape[1]),
    )
    one, two = (float(loss(StudentOutput(logits_BV=c.student_NV.float()), c.batch())) for c in (case, twice))
    assert one == pytest.approx(two, rel=1e-5, abs=1e-7) and one >= 0
