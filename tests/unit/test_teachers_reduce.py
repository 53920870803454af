"""The reduction of logits against a dense float64 reference."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ray_distill.errors import TeacherRefused
from ray_distill.labels.signal import Distributions
from ray_distill.teachers import reduce
from ray_distill.teachers.base import Ask
from ray_distill.teachers.reduce import reduce_logits

TEMPERATURES = (1.0, 2.0, 0.5)


def _ask(estimator: str = "topk", k: int = 3) -> Ask:
    return Ask(estimator=estimator, k=k, temperatures=TEMPERATURES)


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


@given(rows=st.integers(1, 5), classes=st.integers(2, 40), k=st.integers(1, 45), scale=st.floats(0.01, 12),
       dense=st.booleans(), seed=st.integers(0, 1000))
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
    for ask in (_ask("dense"), _ask(k=4), _ask(k=9), _ask(k=2)):
        found = reduce_logits(logits_NV, ask)
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
    for ask in (_ask("dense"), _ask()):
        found = reduce_logits(logits_NV, ask)
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
    """By name, with what there is."""
    with pytest.raises(TeacherRefused, match="'sampled'.*dense or topk"):
        reduce_logits(torch.zeros(1, 3), _ask("sampled"))
