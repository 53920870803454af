"""Cost adds up, is charged for failures too, and says when a campaign has paid."""

import pytest

from ray_distill.config import CostConfig
from ray_distill.evaluation.measures.cost import (
    CostReport,
    break_even_requests,
    cost_metrics,
    cost_per_million_requests,
    cost_report,
    metered,
    paid_in_words,
    stage_cost,
    total,
)

PRICES = CostConfig(accelerator_hour=2.0, core_hour=0.5, currency="USD")


def test_a_stage_is_priced_by_what_it_reserved():
    """Half an hour of two cores and one accelerator: 1 core hour, 0.5 accelerator hours."""
    clock = iter([100.0, 1900.0])
    with metered("label", cores=2, accelerators=1, prices=PRICES, clock=lambda: next(clock)) as meter:
        meter.wrote(10)
        meter.wrote(5)
    cost = meter.cost
    assert (cost.wall_seconds, cost.core_hours, cost.accelerator_hours) == (1800.0, 1.0, 0.5)
    assert cost.money == pytest.approx(1.5) and cost.bytes_written == 15 and cost.currency == "USD"


def test_a_running_stage_tells_what_it_has_taken_so_far():
    """Half-way half of it, and after its end what it took, whatever the clock says."""
    clock = iter([0.0, 900.0, 1800.0])
    with metered("train", cores=2, accelerators=1, prices=PRICES, clock=lambda: next(clock)) as meter:
        meter.wrote(10)
        half = meter.so_far
    assert (half.core_hours, half.accelerator_hours, half.bytes_written) == (0.5, 0.25, 10)
    assert half.money == pytest.approx(0.75)
    assert meter.so_far == meter.cost and meter.cost.core_hours == 1.0


def test_a_failed_stage_is_charged_too():
    """What a stage took before it failed was spent."""
    clock = iter([0.0, 3600.0])
    with (
        pytest.raises(RuntimeError),
        metered("train", cores=1, accelerators=0, prices=PRICES, clock=lambda: next(clock)) as meter,
    ):
        raise RuntimeError("lost worker")
    assert meter.cost.money == pytest.approx(0.5)


def test_totals_add_and_refuse_mixed_currencies():
    """The campaign is the sum of its stages, in one currency."""
    costs = [
        stage_cost("label", 3600, cores=1, accelerators=1, bytes_written=7, prices=PRICES),
        stage_cost("train", 1800, cores=2, accelerators=0, bytes_written=3, prices=PRICES),
    ]
    summed = total(costs, currency="USD")
    assert (summed.stage, summed.money, summed.bytes_written) == ("campaign", pytest.approx(3.0), 10)
    with pytest.raises(AssertionError, match="USD"):
        total(costs, currency="EUR")


def test_serving_cost_and_break_even():
    """At 100 examples a second a million take 2.78 hours; the saving pays for the campaign in whole requests."""
    assert cost_per_million_requests(100, cores=2, accelerators=0, prices=PRICES) == pytest.approx(1e4 / 3600)
    assert break_even_requests(10, teacher_cost_per_million=5, student_cost_per_million=1) == 2_500_000
    assert break_even_requests(10, teacher_cost_per_million=1, student_cost_per_million=1) is None


def test_metrics_carry_units():
    """Names say seconds, hours, bytes and the currency; absent break-even is left out, not faked."""
    stages = [stage_cost("label", 3600, cores=1, accelerators=0, bytes_written=7, prices=PRICES)]
    bill = cost_report(stages, {"teacher": 10.0, "student": 100.0}, cores=1, accelerators=0, prices=PRICES)
    metrics = cost_metrics(bill)
    assert metrics["label_wall_seconds"] == 3600 and metrics["campaign_cost_usd"] == pytest.approx(0.5)
    assert metrics["teacher_cost_per_million_requests_usd"] == pytest.approx(
        10 * metrics["student_cost_per_million_requests_usd"]
    )
    assert metrics["break_even_requests"] == bill.break_even_requests == 40_000
    assert CostReport.from_json(bill.to_json()) == bill
    dear = cost_report(stages, {"teacher": 10.0, "student": 1.0}, cores=1, accelerators=0, prices=PRICES)
    assert "break_even_requests" not in cost_metrics(dear)


def test_a_break_even_of_a_busy_machine_is_marked():
    """Terminal and page have the same words, with the number or the reason why there is none."""
    stages = [stage_cost("label", 3600, cores=1, accelerators=0, bytes_written=7, prices=PRICES)]
    rates = {"teacher": 10.0, "student": 100.0}
    bill = cost_report(stages, rates, cores=1, accelerators=0, prices=PRICES)
    assert paid_in_words(bill, busy=False) == "pays for itself after 40,000 requests"
    assert paid_in_words(bill, busy=True).endswith("requests, by throughputs that were measured on a busy machine")
    dear = cost_report(stages, rates | {"student": 1.0}, cores=1, accelerators=0, prices=PRICES)
    assert paid_in_words(dear, busy=True).startswith("never pays for itself: serving the student is not cheaper")
    assert "busy" in paid_in_words(dear, busy=True)
