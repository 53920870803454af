"""Hidden states in fewer bytes: one byte with a scale for each vector, and a PCA basis fitted before the first unit."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ray_distill.errors import CorruptStore, LabelError
from ray_distill.labels.format.dtypes import narrow, widen
from ray_distill.labels.format.fitted_arrays import read_fits, write_fits
from ray_distill.labels.format.hidden_states import (
    basis_name,
    decode_hidden,
    encode_hidden,
    fit_basis,
    mean_name,
    project,
    relative_error,
)
from ray_distill.labels.model.part_specs import VectorsSpec
from ray_distill.labels.model.signal import Vectors
from ray_distill.storage import files


def states(count: int, width: int, rank: int, seed: int = 3, noise: float = 0.0) -> np.ndarray:
    """Vectors around a mean that vary in ``rank`` directions, each half as much as the one before."""
    random = np.random.default_rng(seed)
    directions = np.linalg.qr(random.normal(size=(width, rank)))[0]
    spread = random.normal(size=(count, rank)) * 2.0 ** -np.arange(rank)
    return (spread @ directions.T + 5 + noise * random.normal(size=(count, width))).astype(np.float32)


def stored(values: np.ndarray, dtype: str, fits=None) -> np.ndarray:
    """The values after a trip through a shard."""
    spec, fits = VectorsSpec(layer=1, dtype=dtype), fits or {}
    ids = np.array([number.to_bytes(16) for number in range(len(values))], dtype="S16")
    hidden = Vectors(offsets=np.arange(len(values) + 1), values=values)
    data = encode_hidden(ids, hidden, spec, fits)
    assert data == encode_hidden(ids, hidden, spec, fits)
    return decode_hidden(data, spec, fits, "shard")[1].values


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 6), st.integers(1, 9), st.floats(1e-30, 1e30), st.integers(0, 2**32 - 1))
def test_int8_is_off_by_half_a_step_of_its_own_vectors_scale(count, width, size, seed):
    """Whatever the vectors' sizes, no value is off by more than half of 1/127 of its vector's largest."""
    values = (np.random.default_rng(seed).normal(size=(count, width)) * size).astype(np.float32)
    step = np.abs(values).max(axis=1, initial=0, keepdims=True) / 127
    assert np.all(np.abs(stored(values, "int8") - values) <= step * 0.5001)


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 6), st.integers(1, 9), st.floats(1e-30, 1e30), st.integers(0, 2**32 - 1))
def test_float8_is_off_by_a_sixteenth_of_the_value_or_less(count, width, size, seed):
    """Small values keep their relative precision, down to where the steps end: 2^-10 of the scale then."""
    values = (np.random.default_rng(seed).normal(size=(count, width)) * size).astype(np.float32)
    scale = np.abs(values).max(axis=1, initial=0, keepdims=True) / 448
    off = np.abs(stored(values, "float8") - values)
    assert np.all(off <= np.maximum(np.abs(values) / 16, scale * 2.0**-10) * 1.0001)


def test_float8_is_the_standards():
    """Every code stands for what torch's E4M3 says, and every value, ties and subnormals too, is rounded as there."""
    codes = torch.arange(256).to(torch.uint8)
    known = codes.view(torch.float8_e4m3fn).float().numpy()
    numbers = np.flatnonzero(np.isfinite(known)).astype(np.uint8)
    np.testing.assert_array_equal(widen(numbers, "float8"), known[numbers])
    between = np.sort(known[np.isfinite(known)])
    between = (between[1:] + between[:-1]) / 2
    drawn = np.random.default_rng(0).uniform(-448, 448, 2000) * 2.0 ** -np.random.default_rng(1).integers(0, 18, 2000)
    values = np.concatenate([between, drawn]).astype(np.float32)
    expected = torch.from_numpy(values).to(torch.float8_e4m3fn).float().numpy()
    np.testing.assert_array_equal(widen(narrow(values, "float8"), "float8"), expected)


@pytest.mark.parametrize(("dtype", "kind"), [("bfloat16", torch.bfloat16), ("float8", torch.float8_e4m3fn)])
def test_the_stored_bits_are_torchs(dtype, kind):
    """Values of all sizes, signs and ties: the same bytes as torch's own conversion writes, negative zero too."""
    random = np.random.default_rng(2)
    drawn = random.uniform(-448, 448, 20_000) * 2.0 ** -random.integers(0, 30, 20_000)
    bits = (random.integers(0, 2**15, 5000) << 16 | 0x8000).astype(np.uint32)  # halfway between two of bfloat16
    ties = np.clip(np.nan_to_num(bits.view(np.float32)), -448, 448)
    values = np.concatenate([drawn, ties, -ties, [0.0, -0.0, 448.0, -448.0]]).astype(np.float32)
    expected = torch.from_numpy(values).to(kind).view(torch.uint8 if dtype == "float8" else torch.uint16)
    np.testing.assert_array_equal(narrow(values, dtype), expected.numpy())


def test_a_code_of_no_number_is_corrupt():
    """127 and 255 are NaN, which no writer stores."""
    with pytest.raises(CorruptStore, match="stands for no number"):
        widen(np.array([1, 127], np.uint8), "float8")


@pytest.mark.parametrize("dtype", ["int8", "float8"])
def test_a_vector_of_zeros_stays_one(dtype):
    """Its scale is 0, and nothing is divided by it."""
    np.testing.assert_array_equal(stored(np.zeros((2, 3), np.float32), dtype), 0)


@pytest.mark.parametrize("dtype", ["int8", "float8"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_has_no_scale(bad, dtype):
    """A scale that is not a number would spoil the whole vector unseen."""
    with pytest.raises(LabelError, match="NaN or infinite"):
        stored(np.array([[1.0, bad]], np.float32), dtype)


def test_a_basis_of_the_true_rank_loses_nothing():
    """States of 3 directions come back whole from 3 numbers each."""
    values = states(50, 16, 3)
    mean, basis, kept = fit_basis(values, rank=3)
    fits = {mean_name(1): mean, basis_name(1): basis}
    found = stored(values, "float32", fits)
    assert found.shape == (50, 3) and kept == pytest.approx(1.0, abs=1e-6)
    np.testing.assert_allclose(found @ basis.T + mean, values, atol=1e-5)
    np.testing.assert_allclose(basis.T @ basis, np.eye(3), atol=1e-5)
    np.testing.assert_allclose(found, project(values, 1, fits))


@pytest.mark.parametrize("variance", [0.5, 0.9, 0.99, 1.0])
def test_the_fewest_components_that_keep_the_variance_are_kept(variance):
    """One component fewer would keep less than was asked for; what was kept is what numpy's own SVD says."""
    values = states(80, 12, 6, noise=0.01)
    _, basis, kept = fit_basis(values, variance=variance)
    power = np.linalg.svd(values.astype(np.float64) - values.mean(0, dtype=np.float64), compute_uv=False) ** 2
    share = np.cumsum(power) / power.sum()
    rank = basis.shape[1]
    assert kept == pytest.approx(share[rank - 1], abs=1e-9) and kept >= variance - 1e-9
    assert rank == 1 or share[rank - 2] < variance


def test_too_few_vectors_for_a_rank_are_refused():
    """A basis beyond the data would be noise that looks like a basis."""
    with pytest.raises(LabelError, match="rank 5 needs more than 5 vectors"):
        fit_basis(states(5, 16, 3), rank=5)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8", "float8"])
def test_the_measured_error_is_the_error(dtype):
    """What stands in the manifest is what decoding loses; projection counts, and float32 loses nothing."""
    values = states(60, 12, 6)
    spec = VectorsSpec(layer=1, dtype=dtype)
    plain = relative_error(values, spec, {})
    expected = np.square(stored(values, dtype) - values).sum() / np.square(values).sum()
    assert plain == pytest.approx(float(expected), rel=1e-3, abs=1e-12) and (plain == 0) == (dtype == "float32")
    mean, basis, kept = fit_basis(values, rank=2)
    projected = relative_error(values, spec, {mean_name(1): mean, basis_name(1): basis})
    lost = (1 - kept) * np.square(values - values.mean(0)).sum() / np.square(values).sum()
    assert projected == pytest.approx(float(lost), rel=0.05)


def test_fits_are_read_back_and_verified(tmp_path):
    """A store's arrays come back bit for bit; a changed or missing file is named, and written twice is one."""
    url = str(tmp_path)
    fits = {"ids": np.arange(7, dtype=np.int32), "hidden.1.mean": np.ones(3, np.float32)}
    digests = write_fits(url, fits)
    assert digests == write_fits(url, fits)
    for name, array in read_fits(url, digests).items():
        np.testing.assert_array_equal(array, fits[name])
        assert array.dtype == fits[name].dtype
    path = tmp_path / "fits" / f"{digests['ids'].removeprefix('sha256:')}.npy"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    other = files.join(str(tmp_path), ".")  # another URL of the same store: a process reads each array once
    with pytest.raises(CorruptStore, match="the manifest names"):
        read_fits(other, digests)
    path.unlink()
    with pytest.raises(CorruptStore, match="missing"):
        read_fits(other, digests)


def test_a_vector_of_another_width_than_the_basis_is_corrupt():
    """A shard that was written without the store's basis is not read as if it had been."""
    values = states(10, 8, 3)
    ids = np.array([number.to_bytes(16) for number in range(10)], dtype="S16")
    spec, hidden = VectorsSpec(layer=1), Vectors(offsets=np.arange(11), values=values)
    mean, basis, _ = fit_basis(values, rank=2)
    with pytest.raises(CorruptStore, match="shard: column values: vectors of 8 values, the store's basis has 2"):
        decode_hidden(encode_hidden(ids, hidden, spec, {}), spec, {mean_name(1): mean, basis_name(1): basis}, "shard")
