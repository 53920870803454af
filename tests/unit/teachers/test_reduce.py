"""The reduction of logits against a dense float64 reference."""

import hashlib
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from ray_distill.errors import TeacherRefused
from ray_distill.labels.model.distributions import Distributions
from ray_distill.teachers import reduce
from ray_distill.teachers.base import LabelRequest
from ray_distill.teachers.draw import pick
from ray_distill.teachers.largest import largest
from ray_distill.teachers.reduce import reduce_logits

TEMPERATURES = (1.0, 2.0, 0.5)


def _ask(estimator: str = "topk", k: int = 3) -> LabelRequest:
    return LabelRequest(estimator=estimator, k=k, temperatures=TEMPERATURES)


def _check(found: Distributions, logits_NV: torch.Tensor) -> None:
    """Every stored number equals what float64 gives, for whichever ids were stored."""
    exact_NV = logits_NV.double().log_softmax(-1)
    ids_NK = torch.from_numpy(found.ids.reshape(len(exact_NV), -1).astype(np.int64))
    assert (ids_NK.diff(dim=1) > 0).all()
    np.testing.assert_allclose(found.logp, exact_NV.gather(1, ids_NK).reshape(-1), rtol=2e-6, atol=2e-6)
    entropy_N = torch.special.entr(exact_NV.exp()).sum(-1)
    np.testing.assert_allclose(found.entropy, entropy_N, rtol=1e-5, atol=1e-6)
    outside = torch.ones_like(exact_NV, dtype=torch.bool).scatter(1, ids_NK, False)
    for column, temperature in enumerate(found.temperatures):
        scaled_NV = (exact_NV / temperature).log_softmax(-1)
        tail_N = scaled_NV.masked_fill(~outside, -torch.inf).logsumexp(-1)
        np.testing.assert_allclose(found.log_tail[:, column], tail_N, rtol=2e-6, atol=4e-6)


@given(
    rows=st.integers(1, 5),
    classes=st.integers(2, 40),
    k=st.integers(1, 45),
    scale=st.floats(0.01, 12),
    dense=st.booleans(),
    seed=st.integers(0, 1000),
)
@settings(max_examples=80, deadline=None)
def test_every_stored_number_is_that_of_float64(
    rows: int, classes: int, k: int, scale: float, dense: bool, seed: int
) -> None:
    """Log-probabilities, tails at each temperature and entropy, dense and top-k, k beyond V included."""
    logits_NV = scale * torch.randn(rows, classes, generator=torch.Generator().manual_seed(seed))
    found = reduce_logits(logits_NV, _ask("dense" if dense else "topk", k))
    _check(found, logits_NV)
    assert found.classes == classes and found.rows == rows
    assert np.diff(found.entry_offsets).tolist() == [classes if dense else min(k, classes)] * rows
    top_NK = logits_NV.topk(min(k, classes)).indices.sort().values
    assert dense or found.ids.reshape(rows, -1).tolist() == top_NK.tolist()


def test_a_tiny_tail_is_exact() -> None:
    """At a mass of 8e-9 the difference 1 - Σp is lost in float32; the complement's logsumexp is not."""
    logits_NV = torch.full((1, 1000), -25.54)
    logits_NV[0, :3] = torch.tensor([0.0, -1.0, -2.0])
    found = reduce_logits(logits_NV, _ask())
    _check(found, logits_NV)
    mass = float(np.exp(np.float64(found.log_tail[0, 0])))
    lost = abs(float(1 - np.exp(found.logp).sum(dtype=np.float32)) - mass) / mass
    assert 4e-9 < mass < 9e-9 and lost > 0.5


def test_nothing_outside_is_minus_infinity() -> None:
    """Dense and k ≥ V store everything; so does a top-k of which all others have no mass."""
    logits_NV = torch.tensor([[1.0, 2.0, -torch.inf, -torch.inf]])
    for request in (_ask("dense"), _ask(k=4), _ask(k=9), _ask(k=2)):
        found = reduce_logits(logits_NV, request)
        assert (found.log_tail == -np.inf).all() and np.isfinite(found.entropy).all()
        assert np.isclose(np.exp(found.logp).sum(), 1)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_reduced_in_float32(dtype: torch.dtype) -> None:
    """The logits' own rounding is all that is lost."""
    logits_NV = (4 * torch.randn(3, 50, generator=torch.Generator().manual_seed(0))).to(dtype)
    found = reduce_logits(logits_NV, _ask(k=8))
    _check(found, logits_NV)
    assert found.logp.dtype == found.log_tail.dtype == found.entropy.dtype == np.float32
    assert found.ids.dtype == np.int32


def test_rows_that_are_not_finite_stay_recognisable() -> None:
    """NaN and +inf logits come out as NaN in that row alone, dense and top-k."""
    logits_NV = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
    logits_NV[1, 2], logits_NV[3, 0] = torch.nan, torch.inf
    for request in (_ask("dense"), _ask()):
        found = reduce_logits(logits_NV, request)
        broken = np.isnan(found.logp.reshape(4, -1)).any(1)
        assert broken.tolist() == np.isnan(found.entropy).tolist() == [False, True, False, True]


def test_slices_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reduction row by row equals reduction at once, bit for bit; no rows give no rows."""
    logits_NV = torch.randn(7, 30, generator=torch.Generator().manual_seed(0))
    whole = reduce_logits(logits_NV, _ask())
    monkeypatch.setattr(reduce, "_SLICE", 60)
    parts = reduce_logits(logits_NV, _ask())
    for name in ("ids", "logp", "log_tail", "entropy", "row_offsets"):
        assert np.array_equal(getattr(whole, name), getattr(parts, name)), name
    assert reduce_logits(logits_NV[:0], _ask()).rows == 0


def test_other_estimators_are_refused() -> None:
    """By name, with what there is; draws without row ids or without a number too."""
    with pytest.raises(TeacherRefused, match="'guessed': use dense, topk, sampled or hybrid"):
        reduce_logits(torch.zeros(1, 3), _ask("guessed"))
    with pytest.raises(TeacherRefused, match="1 rows of logits came with no row ids; pass the id of every row"):
        reduce_logits(torch.zeros(1, 3), _drawing("sampled"))
    with pytest.raises(TeacherRefused, match="needs at least one draw.*found 0 draws"):
        reduce_logits(torch.zeros(1, 3), _drawing("sampled", draws=0), _ids(1))


def _drawing(estimator: str, *, draws: int = 12, exponent: float = 1.0, seed: int = 0, k: int = 4) -> LabelRequest:
    return LabelRequest(estimator=estimator, k=k, temperatures=TEMPERATURES, draws=draws, exponent=exponent, seed=seed)


def _ids(rows: int) -> pa.Array:
    return pa.array([hashlib.md5(bytes([row])).digest() for row in range(rows)], pa.binary(16))


def _same(found: Distributions, expected: Distributions) -> bool:
    """Equal bit for bit, draws included."""
    assert found.draws is not None and expected.draws is not None
    return all(
        np.array_equal(getattr(found, name), getattr(expected, name))
        for name in ("entry_offsets", "ids", "logp", "log_tail", "entropy")
    ) and all(
        np.array_equal(getattr(found.draws, name), getattr(expected.draws, name))
        for name in ("count", "log_normaliser")
    )


@given(
    rows=st.integers(1, 4),
    classes=st.integers(2, 40),
    k=st.integers(1, 45),
    scale=st.floats(0.01, 12),
    hybrid=st.booleans(),
    exponent=st.sampled_from([0.0, 0.5, 1.0, 1.5]),
    seed=st.integers(-3, 2**63),
)
@settings(max_examples=60, deadline=None)
def test_drawn_entries_are_those_of_float64(
    rows: int, classes: int, k: int, scale: float, hybrid: bool, exponent: float, seed: int
) -> None:
    """Ids ascend, Σ_S p + τ = 1 at every T, counts sum to the draws, the head is exact, Z is the proposal's."""
    generator = torch.Generator().manual_seed(seed % 1000)
    logits_NV = scale * torch.randn(rows, classes, generator=generator)
    request = _drawing("hybrid" if hybrid else "sampled", k=k, exponent=exponent, seed=seed)
    found = reduce_logits(logits_NV, request, _ids(rows))
    exact_NV = logits_NV.double().log_softmax(-1).numpy()
    for row in range(rows):
        one = found.take([row])
        assert one.draws is not None and (np.diff(one.ids) > 0).all()
        np.testing.assert_allclose(one.logp, exact_NV[row, one.ids], rtol=3e-6, atol=3e-6)
        for column, temperature in enumerate(TEMPERATURES):
            p = np.exp(exact_NV[row] / temperature)
            mass = p[one.ids].sum() / p.sum() + np.exp(np.float64(one.log_tail[0, column]))
            assert abs(mass - 1) < 1e-5
        head = np.argsort(-exact_NV[row])[: k if hybrid else 0]
        assert set(one.ids[one.draws.count == 0]) == set(head)
        outside = np.delete(exact_NV[row], head)
        assert one.draws.count.sum() == (12 if len(outside) else 0)
        with np.errstate(divide="ignore"):
            log_z = np.log(np.exp(exponent * outside).sum())
        np.testing.assert_allclose(one.draws.log_normaliser, log_z, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("estimator", ["sampled", "hybrid"])
def test_draws_belong_to_the_row(estimator: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another order, another batch or another slice gives a row the same entries bit for bit; another seed does not."""
    logits_NV = 2 * torch.randn(9, 40, generator=torch.Generator().manual_seed(0))
    ids, request = _ids(9), _drawing(estimator, exponent=0.5)
    whole = reduce_logits(logits_NV, request, ids)
    order = np.array([4, 8, 0, 2, 6, 1, 7, 3, 5])
    assert _same(reduce_logits(logits_NV[order], request, ids.take(pa.array(order))), whole.take(order))
    assert _same(reduce_logits(logits_NV[3:5], request, ids[3:5]), whole.take([3, 4]))
    other = reduce_logits(logits_NV, _drawing(estimator, exponent=0.5, seed=1), ids)
    assert not np.array_equal(other.ids, whole.ids)
    monkeypatch.setattr(reduce, "_SLICE", 80)
    assert _same(reduce_logits(logits_NV, request, ids), whole)


@pytest.mark.parametrize("estimator", ["sampled", "hybrid"])
def test_half_precision_is_drawn_in_float32(estimator: str) -> None:
    """bf16 logits give what the same numbers in float32 give."""
    logits_NV = torch.randn(5, 40, generator=torch.Generator().manual_seed(0)).bfloat16()
    request = _drawing(estimator)
    found = reduce_logits(logits_NV, request, _ids(5))
    assert _same(found, reduce_logits(logits_NV.float(), request, _ids(5))) and found.logp.dtype == np.float32


@pytest.mark.parametrize("estimator", ["sampled", "hybrid"])
def test_rows_that_cannot_be_drawn_from_do_not_spread(estimator: str) -> None:
    """A NaN row comes out as NaN alone; classes without mass are never drawn; no rows give no rows."""
    logits_NV = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))
    logits_NV[1, 2], logits_NV[2, 4:], logits_NV[3] = torch.nan, -torch.inf, -torch.inf
    logits_NV[3, 5] = 0.0
    found = reduce_logits(logits_NV, _drawing(estimator, exponent=0.0), _ids(4))
    assert np.isnan(found.entropy).tolist() == [False, True, False, False]
    assert np.isnan(found.take([1]).logp).any() and np.isnan(found.take([1]).log_tail).all()
    assert not np.isnan(found.take([0, 2, 3]).log_tail).any()
    for row in (2, 3):
        one = found.take([row])
        assert one.draws is not None and np.isfinite(one.logp[one.draws.count > 0]).all()
    assert reduce_logits(logits_NV[:0], _drawing(estimator), _ids(0)).rows == 0


def test_hybrid_that_holds_every_class_is_dense() -> None:
    """With k ≥ V nothing is drawn and nothing is outside."""
    logits_NV = torch.randn(3, 6, generator=torch.Generator().manual_seed(0))
    found, dense = reduce_logits(logits_NV, _drawing("hybrid", k=6), _ids(3)), reduce_logits(logits_NV, _ask("dense"))
    assert np.array_equal(found.logp, dense.logp) and np.array_equal(found.log_tail, dense.log_tail)
    assert found.draws is not None and not found.draws.count.any()


class _Largest(TorchDispatchMode):
    """Remembers the most elements any operation gave."""

    elements = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = function(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else (out,):
            self.elements = max(self.elements, tensor.numel() if isinstance(tensor, torch.Tensor) else 0)
        return out


@pytest.mark.parametrize("estimator", ["topk", "sampled", "hybrid"])
def test_no_second_copy_of_all_logits_is_made(estimator: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """No operation gives more elements than a slice has and, for blocks to be whole, a few classes a row; bf16 too."""
    monkeypatch.setattr(reduce, "_SLICE", 2000)
    logits_NV = torch.zeros(64, 500, dtype=torch.bfloat16)
    with _Largest() as largest:
        found = reduce_logits(logits_NV, _drawing(estimator), _ids(64))
    assert found.rows == 64 and 0 < largest.elements <= 2000 + 4 * 12


@given(
    rows=st.integers(1, 3),
    classes=st.integers(1, 700),
    draws=st.integers(1, 40),
    holes=st.floats(0, 0.95),
    seed=st.integers(0, 2**32 - 1),
)
@settings(max_examples=60, deadline=None)
def test_a_point_hits_the_class_whose_interval_holds_it(
    rows: int, classes: int, draws: int, holes: float, seed: int
) -> None:
    """Blocks and what is within them give the class that the plain running sum gives, up to float64's rounding; classes
    without weight are never hit, and points at 0 and next to 1 hit the first and the last that have any.
    """
    rng = np.random.default_rng(seed)
    weight_NV = rng.exponential(size=(rows, classes)) * (rng.random((rows, classes)) >= holes)
    weight_NV[:, rng.integers(classes)] = 1.0
    weight_NV = weight_NV.astype(np.float32)
    points_ND = np.sort(rng.random((rows, draws)), axis=1)
    points_ND[:, 0], points_ND[:, -1] = 0.0, 1 - 2.0**-53
    found_ND, total_N = (tensor.numpy() for tensor in pick(torch.from_numpy(weight_NV), torch.from_numpy(points_ND)))
    cdf_NV = weight_NV.astype(np.float64).cumsum(axis=1)
    np.testing.assert_allclose(total_N, cdf_NV[:, -1], rtol=1e-12)
    assert (np.take_along_axis(weight_NV, found_ND, axis=1) > 0).all() and (np.diff(found_ND, axis=1) >= 0).all()
    at_ND, above_ND = points_ND * cdf_NV[:, -1:], np.take_along_axis(cdf_NV, found_ND, axis=1)
    below_ND = above_ND - np.take_along_axis(weight_NV, found_ND, axis=1)
    slack = 1e-12 * cdf_NV[:, -1:]
    assert (below_ND <= at_ND + slack).all() and (at_ND <= above_ND + slack).all()


@given(
    rows=st.integers(1, 3),
    classes=st.sampled_from([40, 512, 1024, 1031]),
    k=st.integers(1, 40),
    equal=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
@settings(max_examples=60, deadline=None)
def test_the_largest_classes_are_found_in_two_steps(rows: int, classes: int, k: int, equal: bool, seed: int) -> None:
    """Whatever their number divides by, the values at the indices are those that a plain selection finds, ties too."""
    values_NV = torch.randn(rows, classes, generator=torch.Generator().manual_seed(seed))
    values_NV = values_NV.round() if equal else values_NV
    at_NK = largest(values_NV, k)
    assert [len(set(row)) for row in at_NK.tolist()] == [k] * rows
    expected_NK = values_NV.topk(k).values
    assert torch.equal(values_NV.gather(1, at_NK).sort(descending=True).values, expected_NK)
