"""Every loss and its gradient against a dense float64 autograd reference (MATHS.md §2, §3, §6)."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from ray_distill.losses.base import LossBatch, SparseTargets, StudentOutput
from ray_distill.losses.buckets import soften
from ray_distill.losses.catalogue import LOSSES
from ray_distill.losses.hidden import HiddenMatch
from ray_distill.losses.soft import Soft, forward_kl

TOLERANCE = 1e-5


def truncate(teacher_NV: Tensor, k: int, temperatures: tuple[float, ...] = (1.0, 2.0)) -> SparseTargets:
    """Top-k targets of float64 teacher logits, the tails as logsumexps over the complement, in float32."""
    logp_NV = functional.log_softmax(teacher_NV, -1)
    logp_NK, ids_NK = logp_NV.topk(k, -1)
    inside = torch.zeros(logp_NV.shape, dtype=torch.bool).scatter_(-1, ids_NK, True)
    tails = [
        functional.log_softmax(teacher_NV / t, -1).masked_fill(inside, -torch.inf).logsumexp(-1) for t in temperatures
    ]
    return SparseTargets(
        classes=teacher_NV.shape[1],
        ids_NK=ids_NK,
        logp_NK=logp_NK.float(),
        log_tail_NT=torch.stack(tails, -1).float(),
        temperatures=temperatures,
    )


def reference_kl(logits_NV: Tensor, teacher_NV: Tensor, ids_NK: Tensor, temperature: float) -> Tensor:
    """Forward KL over explicit buckets in float64: each stored class, and the sum of all the others."""
    p_NV, q_NV = (functional.softmax(z.double() / temperature, -1) for z in (teacher_NV, logits_NV))
    outside = torch.ones(p_NV.shape, dtype=torch.bool).scatter_(-1, ids_NK, False)
    p = torch.cat([p_NV.gather(-1, ids_NK), (p_NV * outside).sum(-1, keepdim=True)], -1)
    q = torch.cat([q_NV.gather(-1, ids_NK), (q_NV * outside).sum(-1, keepdim=True)], -1)
    present = p > 0
    return torch.where(present, p * (p.clamp(min=1e-300).log() - torch.where(present, q, 1.0).log()), 0.0).sum(-1)


def gradient(function: Callable[[Tensor], Tensor], at: Tensor) -> tuple[Tensor, Tensor]:
    """Value and gradient of a scalar function, in float64."""
    leaf = at.clone().requires_grad_(True)
    value = function(leaf)
    value.backward()
    assert leaf.grad is not None
    return value.detach().double(), leaf.grad.double()


def assert_close(found: Tensor, expected: Tensor) -> None:
    """Equal to a relative 1e-5 of the largest entry."""
    scale = float(expected.abs().max().clamp(min=1e-3))
    assert float((found - expected).abs().max()) <= TOLERANCE * scale


def batch_of(targets: SparseTargets | None, n: int, **changes: object) -> LossBatch:
    """A batch of n examples that all count, unlabelled."""
    values: dict[str, object] = {
        "labels_B": torch.full((n,), -1),
        "targets": targets,
        "distil_B": torch.ones(n, dtype=torch.bool),
        "example_weight_B": torch.ones(n),
        **changes,
    }
    return LossBatch(**values)  # type: ignore[arg-type]


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize(("classes", "k"), [(2, 1), (10, 3), (10, 10), (500, 64)])
def test_soft_equals_dense_reference(classes: int, k: int, temperature: float) -> None:
    """Value and gradient of the softened KL equal float64's, truncated or dense, times T²."""
    torch.manual_seed(classes + k)
    teacher, logits = torch.randn(6, classes).double() * 3, torch.randn(6, classes) * 2
    targets = truncate(teacher, k)
    found = gradient(lambda z: Soft(temperature=temperature)(StudentOutput(logits_BV=z), batch_of(targets, 6)), logits)
    expected = gradient(
        lambda z: temperature**2 * reference_kl(z, teacher, targets.ids_NK, temperature).sum(), logits.double()
    )
    for a, b in zip(found, expected, strict=True):
        assert_close(a, b)


def test_soft_gradient_is_the_published_formula() -> None:
    """On stored classes the gradient is q - p, outside q (1 - τp/τq) (MATHS.md §2)."""
    torch.manual_seed(0)
    teacher, logits = torch.randn(4, 9).double(), torch.randn(4, 9).double()
    targets = truncate(teacher, 3)
    _, found = gradient(lambda z: forward_kl(z, targets).sum(), logits)
    p, q = teacher.softmax(-1), logits.softmax(-1)
    inside = torch.zeros(4, 9, dtype=torch.bool).scatter_(-1, targets.ids_NK, True)
    tau_p, tau_q = (torch.where(inside, 0.0, x).sum(-1, keepdim=True) for x in (p, q))
    assert_close(found, torch.where(inside, q - p, q * (1 - tau_p / tau_q)))


def test_softened_targets_keep_the_exact_mass_at_each_declared_temperature() -> None:
    """p_T on the stored classes equals the full softmax at T to 1e-6."""
    torch.manual_seed(1)
    teacher = torch.randn(5, 200).double() * 3
    targets = truncate(teacher, 20, (1.0, 2.0, 4.0))
    for temperature in targets.temperatures:
        logp, log_tail = soften(targets, temperature)
        dense = (teacher / temperature).softmax(-1)
        assert torch.allclose(logp.exp().double(), dense.gather(-1, targets.ids_NK), atol=1e-6)
        assert torch.allclose(logp.exp().sum(-1) + log_tail.exp(), torch.ones(5), atol=1e-6)


def test_undeclared_temperature_names_the_declared_ones() -> None:
    """Training at a temperature the labels do not declare is refused."""
    targets = truncate(torch.randn(2, 5).double(), 2)
    with pytest.raises(ValueError, match=r"temperature 3 is not declared.*declare 1, 2"):
        forward_kl(torch.zeros(2, 5), targets, 3.0)


def test_tiny_tails_do_not_cancel() -> None:
    """A teacher tail of 1e-12 and a student tail of 1e-9 keep the gradient of every tail class in float32.

    On the stored class q - p is a difference of two numbers near 1, exact to one rounding of 1.
    """
    teacher = torch.tensor([[30.0, 2.0, 2.0, 1.0]]).double()
    logits = torch.tensor([[20.0, 1.0, -1.0, -2.0]])
    targets = truncate(teacher, 1)
    found = gradient(lambda z: forward_kl(z, targets).sum(), logits)
    expected = gradient(lambda z: reference_kl(z, teacher, targets.ids_NK, 1.0).sum(), logits.double())
    assert torch.allclose(found[1][0, 1:], expected[1][0, 1:], rtol=TOLERANCE, atol=0)
    assert torch.allclose(found[1][0, :1], expected[1][0, :1], rtol=0, atol=1e-7)


def test_padding_entries_count_for_nothing() -> None:
    """Extra entries of -inf with any valid id, even a stored one, change neither value nor gradient."""
    torch.manual_seed(2)
    targets = truncate(torch.randn(3, 8).double(), 3)
    padded = SparseTargets(
        classes=8,
        temperatures=targets.temperatures,
        log_tail_NT=targets.log_tail_NT,
        ids_NK=torch.cat([targets.ids_NK, targets.ids_NK[:, :1], torch.full((3, 1), 7)], -1),
        logp_NK=torch.cat([targets.logp_NK, torch.full((3, 2), -torch.inf)], -1),
    )
    logits = torch.randn(3, 8)
    for a, b in zip(
        gradient(lambda z: forward_kl(z, padded, 2.0).sum(), logits),
        gradient(lambda z: forward_kl(z, targets, 2.0).sum(), logits),
        strict=True,
    ):
        assert torch.equal(a, b)


def test_nan_in_the_labels_is_not_hidden() -> None:
    """Only -inf means absent: a NaN probability or tail makes the loss NaN, which stops training."""
    targets = truncate(torch.randn(2, 5).double(), 2)
    for name in ("logp_NK", "log_tail_NT"):
        broken = getattr(targets, name).clone()
        broken[1] = torch.nan
        kl = forward_kl(torch.zeros(2, 5), replace(targets, **{name: broken}))
        assert torch.isfinite(kl[0]) and torch.isnan(kl[1])


def test_bfloat16_logits_are_raised_to_float32() -> None:
    """The divergence of bfloat16 logits is computed in float32."""
    targets = truncate(torch.randn(3, 8).double(), 3)
    assert forward_kl(torch.zeros(3, 8, dtype=torch.bfloat16), targets).dtype == torch.float32


def test_hard_counts_labelled_examples_only() -> None:
    """Unlabelled and padding examples have neither weight nor gradient; distil_B does not matter."""
    logits = torch.randn(4, 3)
    batch = batch_of(
        None,
        4,
        labels_B=torch.tensor([2, -1, 0, 1]),
        example_weight_B=torch.tensor([1.0, 1, 2, 0]),
        distil_B=torch.zeros(4, dtype=torch.bool),
    )
    loss = LOSSES["hard"]()
    value, grad = gradient(lambda z: loss(StudentOutput(logits_BV=z), batch), logits)
    logq = logits.double().log_softmax(-1)
    assert_close(value, -(logq[0, 2] + 2 * logq[2, 0]))
    assert float(loss.weight(batch)) == 3
    assert grad[1].abs().sum() == 0 and grad[3].abs().sum() == 0


def test_teacher_hard_learns_the_first_choice() -> None:
    """The target is the teacher's most probable class, on rows it may teach."""
    teacher, logits = torch.randn(5, 6).double(), torch.randn(5, 6)
    distil = torch.tensor([True, True, False, True, True])
    batch = batch_of(truncate(teacher, 2), 5, distil_B=distil)
    loss = LOSSES["teacher_hard"]()
    found = gradient(lambda z: loss(StudentOutput(logits_BV=z), batch), logits)
    expected = gradient(
        lambda z: (functional.cross_entropy(z, teacher.argmax(-1), reduction="none") * distil).sum(), logits.double()
    )
    for a, b in zip(found, expected, strict=True):
        assert_close(a, b)
    assert float(loss.weight(batch)) == 4


@pytest.mark.parametrize("kind", ["mse", "cosine"])
def test_hidden_equals_reference(kind: str) -> None:
    """Pooled states: mean over the pairs of layers, weighted by example."""
    torch.manual_seed(3)
    ours, theirs, weight = torch.randn(2, 4, 7), torch.randn(2, 4, 7), torch.tensor([1.0, 0, 2, 1])
    batch = batch_of(None, 4, hidden={6: theirs[0], 12: theirs[1]}, example_weight_B=weight)
    loss = HiddenMatch(layers={1: 6, 2: 12}, kind=kind)  # type: ignore[arg-type]

    def reference(x: Tensor) -> Tensor:
        a, b = x, theirs.double()
        each = ((a - b) ** 2).mean(-1) if kind == "mse" else 1 - (a * b).sum(-1) / (a.norm(dim=-1) * b.norm(dim=-1))
        return (each.mean(0) * weight).sum()

    found = gradient(lambda x: loss(StudentOutput(logits_BV=torch.zeros(4, 2), hidden={1: x[0], 2: x[1]}), batch), ours)
    for a, b in zip(found, gradient(reference, ours.double()), strict=True):
        assert_close(a, b)


def test_hidden_of_tokens_averages_over_real_tokens() -> None:
    """States one a token: padding does not count, and a long example weighs no more than a short one."""
    ours, theirs = torch.zeros(2, 3, 4), torch.ones(2, 3, 4)
    theirs[0, 1:] = 100
    mask = torch.tensor([[True, False, False], [True, True, True]])
    batch = batch_of(None, 2, hidden={5: theirs}, hidden_mask_BL=mask)
    output = StudentOutput(logits_BV=torch.zeros(2, 2), hidden={1: ours})
    assert float(HiddenMatch(layers={1: 5}, kind="mse")(output, batch)) == pytest.approx(2.0)


def test_hidden_names_what_does_not_fit() -> None:
    """A missing layer and unequal widths are told with both sides."""
    loss = HiddenMatch(layers={1: 5})
    output = StudentOutput(logits_BV=torch.zeros(2, 2), hidden={1: torch.zeros(2, 4)})
    with pytest.raises(ValueError, match=r"student gave layers \[1\], the labels have layers \[6\]"):
        loss(output, batch_of(None, 2, hidden={6: torch.zeros(2, 4)}))
    with pytest.raises(ValueError, match=r"\(2, 4\), teacher layer 5 of shape \(2, 8\)"):
        loss(output, batch_of(None, 2, hidden={5: torch.zeros(2, 8)}))


@pytest.mark.parametrize("name", ["soft", "teacher_hard", "hidden"])
def test_rows_the_teacher_was_trained_on_are_not_distilled(name: str) -> None:
    """distil_B False: no weight, no gradient, in every loss that follows the teacher."""
    batch = batch_of(
        truncate(torch.randn(3, 4).double(), 2),
        3,
        distil_B=torch.tensor([False, True, False]),
        hidden={2: torch.randn(3, 5)},
    )
    loss = LOSSES[name](layers={1: 2}) if name == "hidden" else LOSSES[name]()
    logits, states = torch.randn(3, 4, requires_grad=True), torch.randn(3, 5, requires_grad=True)
    loss(StudentOutput(logits_BV=logits, hidden={1: states}), batch).backward()
    grad = states.grad if name == "hidden" else logits.grad
    assert grad is not None
    assert float(loss.weight(batch)) == 1
    assert grad[[0, 2]].abs().sum() == 0 and grad[1].abs().sum() > 0


def test_losses_without_targets_say_who_asks() -> None:
    """A batch without distributions cannot be distilled from."""
    output = StudentOutput(logits_BV=torch.zeros(2, 2))
    for name in ("soft", "teacher_hard"):
        with pytest.raises(ValueError, match=f"the loss '{name}' needs the teacher's distributions"):
            LOSSES[name]()(output, batch_of(None, 2))
