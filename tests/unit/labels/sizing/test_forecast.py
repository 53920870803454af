"""Forecasts and the choice of a form, from numbers that are known: no teacher, no cluster."""

import numpy as np
import pytest
import torch

from ray_distill.labels.format import parquet_shards
from ray_distill.labels.format.hidden_states import encode_hidden
from ray_distill.labels.model import rowids
from ray_distill.labels.model.distributions import Distributions
from ray_distill.labels.sizing import options
from ray_distill.labels.sizing.forecast import SizeLine, break_even, forecast_bytes, forecast_seconds, measure_sizes
from ray_distill.labels.sizing.options import Option
from ray_distill.teachers.base import LabelRequest
from ray_distill.teachers.reduce import reduce_logits
from ray_distill.testing.labels import fake_manifest, fake_teacher, row_id


def logits(positions: int = 200, classes: int = 40, seed: int = 0) -> torch.Tensor:
    """Peaked ones, float32."""
    return 3 * torch.from_numpy(np.random.default_rng(seed).standard_normal((positions, classes)).astype(np.float32))


def wide(values: torch.Tensor, k: int) -> Distributions:
    """A wide answer of the k likeliest at T = 1 and 2."""
    return reduce_logits(values, LabelRequest(estimator="topk", k=k, temperatures=(1.0, 2.0)))


def test_a_size_line_passes_through_what_was_measured_and_goes_on_straight() -> None:
    """100 bytes of overhead and 10 a row: exact between and beyond; nothing for no rows."""
    line = SizeLine(rows=(10, 20, 40), sizes=(200.0, 300.0, 500.0))
    assert [line.at(rows) for rows in (0, 5, 10, 15, 40, 400)] == pytest.approx([0, 150, 200, 250, 500, 4100])
    assert SizeLine(rows=(4,), sizes=(40.0,)).at(8) == 80


def test_the_bytes_of_units_that_were_not_encoded_are_within_five_percent() -> None:
    """From 200 rows to 1,000 others in units of 64, 100 and 333, labels and hidden states."""
    manifest = fake_manifest(estimator="topk", layers=(1,))
    every = [row_id(number) for number in range(1200)]
    sample = np.sort(rowids.from_bytes(every[:200]))
    sizes = measure_sizes(
        sample, fake_teacher(rowids.to_arrow(sample), manifest), manifest=manifest, fits={}, units=[100]
    )
    for size in (64, 100, 333):
        units = [np.sort(rowids.from_bytes(every[start : start + size])) for start in range(200, 1200 - size, size)]
        found = forecast_bytes(sizes, [len(unit) for unit in units])
        real = hidden = 0
        for unit in units:
            signal = fake_teacher(rowids.to_arrow(unit), manifest)
            real += len(parquet_shards.encode_labels(unit, signal.distributions, manifest.distributions, {}))
            hidden += len(encode_hidden(unit, signal.hidden[1], manifest.hidden[1], {}))
        assert found.labels == pytest.approx(real, rel=0.05)
        assert found.hidden[1] == pytest.approx(hidden, rel=0.05)
        assert found.total == found.labels + found.hidden[1]


def test_rows_that_cannot_be_labelled_take_no_bytes() -> None:
    """Half of the rows, half of the bytes that rows take."""
    manifest = fake_manifest()
    ids = np.sort(rowids.from_bytes(row_id(number) for number in range(64)))
    sizes = measure_sizes(ids, fake_teacher(rowids.to_arrow(ids), manifest), manifest=manifest, fits={}, units=[64])
    assert forecast_bytes(sizes, [64], kept=0.5).labels == forecast_bytes(sizes, [32]).labels
    assert forecast_bytes(sizes, []).total == 0


def test_the_forecast_of_time_is_what_is_done_once_and_the_rows_at_the_rehearsed_pace() -> None:
    """100 rows at 50 a second after 3 s; nothing to label takes no time but that."""
    assert forecast_seconds(once=3.0, rows=100, rows_per_second=50.0) == 5.0
    assert forecast_seconds(once=0.0, rows=0, rows_per_second=0.0) == 0.0


def test_break_even_counts_passes() -> None:
    """Labelling for 10 and reading for 1 against a teacher of 3 a pass: five passes pay it back."""
    money = {"label_money": 10.0, "label_hours": 1.0, "read_money": 1.0, "read_hours": 0.1}
    found = break_even(passes=6, **money, teacher_money=3.0, teacher_hours=0.3)
    assert found.passes_to_pay == pytest.approx(5) and found.offline_pays
    assert (found.offline_money, found.online_money) == pytest.approx((16, 18))
    assert not break_even(passes=4, **money, teacher_money=3.0, teacher_hours=0.3).offline_pays
    assert break_even(passes=9, **money, teacher_money=1.0, teacher_hours=0.3).passes_to_pay is None


def test_without_prices_hours_decide() -> None:
    """One hour of labelling against 0.3 a pass less 0.1 of reading."""
    found = break_even(
        passes=6, label_money=0, label_hours=1, read_money=0, read_hours=0.1, teacher_money=0, teacher_hours=0.3
    )
    assert found.passes_to_pay == pytest.approx(5) and found.offline_pays


@pytest.mark.parametrize("k_wide", [40, 30])
def test_the_mass_kept_and_the_nats_lost_are_those_of_the_full_distribution(k_wide: int) -> None:
    """Against dense float64: the sum of the k largest at each temperature, and the KL to an even rest."""
    values = logits()
    p = torch.softmax(values.double(), -1).sort(dim=-1, descending=True).values.numpy()
    soft = torch.softmax(values.double() / 2, -1).sort(dim=-1, descending=True).values.numpy()
    for point in options.curve(wide(values, k_wide)):
        kept = p[:, : point.k].sum(1)
        assert point.mass["1"] == pytest.approx(kept.mean(), abs=1e-6)
        assert point.low["1"] == pytest.approx(np.quantile(kept, 0.05), abs=1e-5)
        assert point.mass["2"] == pytest.approx(soft[:, : point.k].sum(1).mean(), abs=1e-6)
        rest = p[:, point.k :]
        even = np.broadcast_to(rest.mean(1, keepdims=True), rest.shape) if rest.shape[1] else rest
        assert point.nats == pytest.approx((rest * np.log(rest / even)).sum(1).mean() if rest.size else 0, abs=2e-6)


def test_the_smallest_k_is_the_first_within_the_target() -> None:
    """Each k loses no more than the one before; none within a target that the wide answer cannot reach."""
    answer = wide(logits(), 40)
    lost = {k: options.kept(answer, k).nats for k in range(1, 41)}
    found = options.smallest_k(answer, 1e-2)
    assert found is not None and lost[found] <= 1e-2 < lost[found - 1]
    assert options.smallest_k(answer, 1e-12) in (39, 40)
    assert options.smallest_k(wide(logits(), 4), 1e-12) is None


@pytest.mark.parametrize("k", [1, 7, 40])
def test_a_truncated_wide_answer_is_what_the_teacher_would_have_given(k: int) -> None:
    """Ids, values and tails of a direct top-k."""
    direct, cut = wide(logits(), k), options.truncate(wide(logits(), 40), k)
    np.testing.assert_array_equal(cut.ids, direct.ids)
    np.testing.assert_array_equal(cut.logp, direct.logp)
    np.testing.assert_allclose(np.exp(cut.log_tail), np.exp(direct.log_tail), atol=1e-6)


def test_the_noise_of_draws_is_what_redrawing_finds() -> None:
    """``E‖ŵ − p‖²`` of independent draws; stratified ones have no more."""
    values, draws = logits(positions=30, classes=12), 8
    p = torch.softmax(values.double(), -1).numpy()
    random = np.random.default_rng(0)
    found = np.mean(
        [
            np.square(np.stack([random.multinomial(draws, row / row.sum()) for row in p]) / draws - p).sum(1)
            for _ in range(400)
        ]
    )
    assert options.noise_of_draws(wide(values, 12), 0, draws) == pytest.approx(found, rel=0.05)
    assert options.noise_of_draws(wide(values, 12), 4, draws) < options.noise_of_draws(wide(values, 12), 0, draws)


def option(estimator: str, size: float, nats: float, draws: int = 0) -> Option:
    return Option(
        estimator=estimator,
        encoding="compact",
        k=0,
        draws=draws,
        bytes_a_position=size,
        nats=nats,
        noise=0.0,
        total_bytes=0,
    )


def test_the_smallest_form_within_the_target_is_recommended() -> None:
    """Draws only where nothing else is within it; the least loss where nothing at all is."""
    dense, topk, drawn = option("dense", 900, 1e-5), option("topk", 90, 5e-4), option("sampled", 40, 1e-4, draws=50)
    assert options.recommend([dense, topk, drawn], 1e-3) == topk
    assert options.recommend([dense, topk, drawn], 1e-4) == dense
    assert options.recommend([topk, drawn], 2e-4) == drawn
    assert options.recommend([dense, topk, drawn], 1e-9) == dense


def test_ranks_keep_their_share_of_the_variance() -> None:
    """States of three directions need three components, or fewer for less."""
    random = np.random.default_rng(0)
    states = (random.standard_normal((100, 3)) * [10, 3, 1]) @ random.standard_normal((3, 16))
    found = options.ranks(states.astype(np.float32), (0.5, 0.999999))
    assert found[0.5] == 1 and found[0.999999] <= 3
    assert options.ranks(states[:1].astype(np.float32)) == {}
