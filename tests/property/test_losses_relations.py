"""Losses of relations over drawn shapes, groups and masks, against float64 with loops over rows and tokens."""

import itertools
import math
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ray_distill.losses.base import LossBatch, StudentOutput
from ray_distill.losses.catalogue import LOSSES

LEAST = {"cka": 3, "rkd_distance": 2, "rkd_angle": 3}
LAYERS = {1: 6, 2: 9}


def huber(x: Tensor, y: Tensor) -> Tensor:
    apart = (x - y).abs()
    return torch.where(apart <= 1, 0.5 * apart**2, apart - 0.5)


def cka(x_nD: Tensor, y_nD: Tensor) -> Tensor:
    """Of feature by feature products, as the paper has it."""
    x, y = (states - states.mean(0) for states in (x_nD, y_nD))
    return 1 - (y.T @ x).square().sum() / ((x.T @ x).norm() * (y.T @ y).norm())


def rkd_distance(x_nD: Tensor, y_nD: Tensor) -> Tensor:
    pairs = list(itertools.permutations(range(len(x_nD)), 2))
    of = [torch.stack([(states[i] - states[j]).norm() for i, j in pairs]) for states in (x_nD, y_nD)]
    return huber(of[0] / of[0].mean(), of[1] / of[1].mean()).mean()


def rkd_angle(x_nD: Tensor, y_nD: Tensor) -> Tensor:
    def cosine(states: Tensor, i: int, j: int, k: int) -> Tensor:
        a, b = states[i] - states[j], states[k] - states[j]
        return (a @ b) / (a.norm() * b.norm())

    triples = list(itertools.permutations(range(len(x_nD)), 3))
    of = [torch.stack([cosine(states, *triple) for triple in triples]) for states in (x_nD, y_nD)]
    return huber(*of).mean()


GROUPED = {"cka": cka, "rkd_distance": rkd_distance, "rkd_angle": rkd_angle}


def relation(x_LD: Tensor, y_LD: Tensor, heads: int) -> Tensor:
    """One row's KL, token by token and head by head."""
    found = []
    for head in range(heads):
        x, y = (states.chunk(heads, -1)[head] for states in (x_LD, y_LD))
        for token in range(len(x)):
            q, p = ((states @ states[token] / states.shape[1] ** 0.5).softmax(-1) for states in (x, y))
            found.append((p * (p / q).log()).sum())
    return torch.stack(found).mean()


@dataclass(frozen=True)
class Case:
    """Rows of tokens in whatever form, and which rows count."""

    form: str
    """``pooled`` ``[B, D]``, ``padded`` ``[B, L, D]``, or ``flat`` ``[N, D]`` as of a language model."""
    lengths: list[int]
    group: int
    weight_R: Tensor
    distil_R: Tensor
    ours: dict[int, list[Tensor]]
    """By layer and row ``[L, D]``, float64."""
    theirs: dict[int, list[Tensor]]

    def states(self, rows: list[Tensor], dtype: torch.dtype) -> Tensor:
        if self.form == "pooled":
            return torch.stack([row[0] for row in rows]).to(dtype)
        if self.form == "flat":
            return torch.cat(rows).to(dtype)
        return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=7.0).to(dtype)

    def batch(self) -> LossBatch:
        length_R = torch.tensor(self.lengths)
        each = length_R if self.form == "flat" else torch.ones_like(length_R)
        mask = torch.arange(max(self.lengths)) < length_R.unsqueeze(-1)
        return LossBatch(
            labels_B=torch.full((int(each.sum()),), -1),
            distil_B=self.distil_R.repeat_interleave(each),
            example_weight_B=self.weight_R.repeat_interleave(each),
            hidden_mask_BL=mask if self.form == "padded" else None,
            hidden={layer: self.states(rows, torch.float32) for layer, rows in self.theirs.items()},
            row_B=torch.arange(len(each)).repeat_interleave(each) if self.form == "flat" else None,
        )

    def counted(self) -> list[int]:
        weights = self.weight_R * self.distil_R
        return [row for row, weight in enumerate(weights.tolist()) if weight and self.lengths[row]]


def rows_of(lengths: list[int], width: int, generator: torch.Generator) -> list[Tensor]:
    return [torch.randn(length, width, generator=generator).float().double() for length in lengths]


@st.composite
def cases(draw: st.DrawFn, *, forms: tuple[str, ...], multiple: int = 1) -> Case:
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    form, group = draw(st.sampled_from(forms)), draw(st.integers(3, 6))
    count = group * draw(st.integers(1, 3))
    least = {"pooled": 1, "padded": 1, "flat": 0}[form]
    longest = 1 if form == "pooled" else 5
    lengths = draw(st.lists(st.integers(least, longest), min_size=count, max_size=count))
    if not any(lengths):
        lengths[0] = 2
    widths = [multiple * draw(st.integers(2, 5)) for _ in range(2)]
    real = draw(st.integers(0, count))
    return Case(
        form=form,
        lengths=lengths,
        group=group,
        weight_R=(torch.arange(count) < real).float(),
        distil_R=torch.rand(count, generator=generator) < 0.8,
        ours={layer: rows_of(lengths, widths[0], generator) for layer in LAYERS},
        theirs={layer: rows_of(lengths, widths[1], generator) for layer in LAYERS.values()},
    )


def run(name: str, case: Case, **arguments: Any) -> tuple[float, float, dict[int, Tensor]]:
    """Weight, sum, and the gradients by layer, in float32."""
    loss = LOSSES[name](layers=LAYERS, **arguments)
    leaves = {layer: case.states(rows, torch.float32).requires_grad_() for layer, rows in case.ours.items()}
    batch = case.batch()
    value = loss(StudentOutput(logits_BV=torch.zeros(1, 2), states=leaves), batch)
    value.backward()
    return (
        float(loss.weight(batch)),
        float(value.detach()),
        {layer: leaf.grad for layer, leaf in leaves.items() if leaf.grad is not None},
    )


def compare(
    case: Case, found: tuple[float, float, dict[int, Tensor]], wanted: tuple[float, Tensor], leaves: Any
) -> None:
    assert found[0] == wanted[0]
    if wanted[0] == 0:
        assert found[1] == 0 and all(float(gradient.abs().sum()) == 0 for gradient in found[2].values())
        return
    assert found[1] == pytest.approx(float(wanted[1].detach()), rel=1e-4, abs=1e-5)
    for layer, rows in leaves.items():
        exact = torch.autograd.grad(wanted[1], rows, retain_graph=True, materialize_grads=True)
        padded = case.states(list(exact), torch.float64)
        if case.form == "padded":
            padded = torch.nn.utils.rnn.pad_sequence(list(exact), batch_first=True)
        # Angles of rows that nearly coincide are steep: what float32 rounds away of a state is divided by its distance.
        assert float((found[2][layer].double() - padded).abs().max()) <= 1e-3 * max(float(padded.abs().max()), 1e-2)


@given(case=cases(forms=("pooled", "padded", "flat")), name=st.sampled_from(sorted(GROUPED)))
@settings(max_examples=120, deadline=None)
def test_group_relations_equal_float64_with_loops(case: Case, name: str) -> None:
    """Weight, value, gradient: rows that count, by blocks of G; too small a group is nothing; tokens are averaged."""
    leaves = {layer: [row.clone().requires_grad_() for row in rows] for layer, rows in case.ours.items()}
    weight, total = 0.0, torch.zeros((), dtype=torch.float64)
    for start in range(0, len(case.lengths), case.group):
        inside = [row for row in case.counted() if start <= row < start + case.group]
        if len(inside) < LEAST[name]:
            continue
        weight += len(inside)
        values = [
            GROUPED[name](
                torch.stack([leaves[ours][row].mean(0) for row in inside]),
                torch.stack([case.theirs[theirs][row].mean(0) for row in inside]),
            )
            for ours, theirs in LAYERS.items()
        ]
        total = total + len(inside) * torch.stack(values).mean()
    compare(case, run(name, case, group=case.group), (weight, total), leaves)


@given(case=cases(forms=("padded", "flat"), multiple=2), heads=st.sampled_from([1, 2]))
@settings(max_examples=80, deadline=None)
def test_token_relations_equal_float64_with_loops(case: Case, heads: int) -> None:
    """A row of one token is nothing; a classifier's row weighs 1, a language model's as many as it has positions."""
    leaves = {layer: [row.clone().requires_grad_() for row in rows] for layer, rows in case.ours.items()}
    weight, total = 0.0, torch.zeros((), dtype=torch.float64)
    for row in case.counted():
        if case.lengths[row] < 2:
            continue
        own = case.lengths[row] if case.form == "flat" else 1
        weight += own
        values = [relation(leaves[ours][row], case.theirs[theirs][row], heads) for ours, theirs in LAYERS.items()]
        total = total + own * torch.stack(values).mean()
    compare(case, run("relation", case, heads=heads), (weight, total), leaves)


def pooled(rows: int, *, group: int = 4, width: int = 3) -> Case:
    generator = torch.Generator().manual_seed(rows)
    return Case(
        "pooled",
        [1] * rows,
        group,
        torch.ones(rows),
        torch.ones(rows, dtype=torch.bool),
        {layer: rows_of([1] * rows, width, generator) for layer in LAYERS},
        {layer: rows_of([1] * rows, 5, generator) for layer in LAYERS.values()},
    )


@pytest.mark.parametrize("name", sorted(GROUPED))
def test_equal_relations_cost_nothing(name: str) -> None:
    """Turned, scaled and moved states have the same relations; these need no projection."""
    case = pooled(8)
    turn, _ = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(0)).double())
    moved = {theirs: [2.5 * row @ turn + 4 for row in case.ours[ours]] for ours, theirs in LAYERS.items()}
    assert run(name, replace(case, theirs=moved), group=4)[1] == pytest.approx(0, abs=1e-5)
    assert run(name, case, group=4)[1] > 0.01


@pytest.mark.parametrize("name", sorted(GROUPED))
def test_rows_that_are_equal_leave_finite_gradients(name: str) -> None:
    """Two rows alike, or all of them: no distance, no direction, no variance; and no NaN."""
    case = pooled(4)
    for same in ([0, 0, 1, 2], [0, 0, 0, 0]):
        alike = {layer: [rows[row] for row in same] for layer, rows in case.ours.items()}
        weight, value, gradients = run(name, replace(case, ours=alike), group=4)
        assert weight == 4 and math.isfinite(value)
        assert all(bool(gradient.isfinite().all()) for gradient in gradients.values())


def test_a_batch_that_is_not_made_of_groups_is_refused() -> None:
    """Six rows are no groups of four: never silently one of four and one of two."""
    with pytest.raises(ValueError, match="compares groups of 4 rows, and a micro-batch has 6"):
        run("cka", pooled(6), group=4)


def test_too_small_a_group_and_heads_that_do_not_divide_are_named() -> None:
    """When the loss is made, or when it first sees the states."""
    with pytest.raises(ValueError, match="'rkd_angle' needs a group of at least 3 rows, found 2"):
        LOSSES["rkd_angle"](layers=LAYERS, group=2)
    case = replace(pooled(4), form="padded")
    with pytest.raises(ValueError, match="has 2 heads, and states of width 3 do not divide"):
        run("relation", case, heads=2)
    with pytest.raises(ValueError, match="needs at least one pair of layers"):
        LOSSES["relation"](layers={})
