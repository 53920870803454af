"""Compute the cost of a campaign, and the number of requests after which it has paid.

Money is ``core_hours · price + accelerator_hours · price``: what was *reserved*, whether busy or not, for as long
as the stage ran. Storage and traffic are not priced; bytes written are recorded beside.
"""

import math
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from ray_distill.artifacts import Artifact, Number
from ray_distill.config import CostConfig

SECONDS_AN_HOUR = 3600.0


class StageCost(Artifact):
    """The cost of one stage; hours are reserved hours, ``money`` is in ``currency``."""

    stage: str
    wall_seconds: Number
    core_hours: Number
    accelerator_hours: Number
    bytes_written: int
    money: Number
    currency: str


class CostReport(Artifact):
    """A campaign's bill: its stages, the cost of serving, and the break-even in requests."""

    stages: tuple[StageCost, ...]
    total: StageCost
    per_million: dict[str, Number] = {}
    """Money for a million requests, by arm."""
    break_even_requests: int | None = None
    """None where serving the student is not cheaper than serving the teacher."""
    forecast: dict[str, Number] = {}
    """Seconds that `plan` forecast, by stage; empty without a plan."""


class Meter:
    """A running stage: add bytes that it writes, read ``so_far``, and ``cost`` after the block."""

    def __init__(self, price: Callable[[int], StageCost]) -> None:
        self.bytes_written = 0
        self._price = price
        self._cost: StageCost | None = None

    def wrote(self, size: int) -> None:
        """Count ``size`` more bytes."""
        self.bytes_written += size

    @property
    def cost(self) -> StageCost:
        """Return the stage's cost, which exists only after the block has ended."""
        assert self._cost is not None, "the stage is still running"
        return self._cost

    @property
    def so_far(self) -> StageCost:
        """Return the stage's cost until now, or in the end."""
        return self._cost or self._price(self.bytes_written)

    def stop(self) -> None:
        """Fix the cost; called by `metered`."""
        self._cost = self._price(self.bytes_written)


@contextmanager
def metered(
    stage: str, *, cores: float, accelerators: float, prices: CostConfig, clock: Callable[[], float] = time.monotonic
) -> Iterator[Meter]:
    """Meter a stage that reserves ``cores`` and ``accelerators`` while the block runs.

    The stage is metered whether it fails or not.
    """
    start = clock()

    def price(bytes_written: int) -> StageCost:
        return stage_cost(
            stage, clock() - start, cores=cores, accelerators=accelerators, bytes_written=bytes_written, prices=prices
        )

    meter = Meter(price)
    try:
        yield meter
    finally:
        meter.stop()


def stage_cost(
    stage: str, wall_seconds: float, *, cores: float, accelerators: float, bytes_written: int, prices: CostConfig
) -> StageCost:
    """Price a stage that reserved ``cores`` and ``accelerators`` for ``wall_seconds``."""
    core_hours = cores * wall_seconds / SECONDS_AN_HOUR
    accelerator_hours = accelerators * wall_seconds / SECONDS_AN_HOUR
    return StageCost(
        stage=stage,
        wall_seconds=wall_seconds,
        core_hours=core_hours,
        accelerator_hours=accelerator_hours,
        bytes_written=bytes_written,
        currency=prices.currency,
        money=core_hours * prices.core_hour + accelerator_hours * prices.accelerator_hour,
    )


def total(costs: Sequence[StageCost], *, currency: str) -> StageCost:
    """Sum of stages, as the stage ``campaign``; all must be in ``currency``."""
    strange = sorted({cost.currency for cost in costs} - {currency})
    assert not strange, f"cannot add {', '.join(strange)} to {currency}"
    return StageCost(
        stage="campaign",
        currency=currency,
        wall_seconds=sum(cost.wall_seconds for cost in costs),
        core_hours=sum(cost.core_hours for cost in costs),
        money=sum(cost.money for cost in costs),
        accelerator_hours=sum(cost.accelerator_hours for cost in costs),
        bytes_written=sum(cost.bytes_written for cost in costs),
    )


def cost_per_million_requests(
    examples_per_second: float, *, cores: float, accelerators: float, prices: CostConfig
) -> float:
    """Return the money for a million requests on a machine kept busy at the measured throughput."""
    hours = 1e6 / examples_per_second / SECONDS_AN_HOUR
    return hours * (cores * prices.core_hour + accelerators * prices.accelerator_hour)


def break_even_requests(
    campaign_money: float, *, teacher_cost_per_million: float, student_cost_per_million: float
) -> int | None:
    """Return the number of requests after which the student has saved the campaign's cost.

    None if it saves nothing.
    """
    saved = (teacher_cost_per_million - student_cost_per_million) / 1e6
    return math.ceil(campaign_money / saved) if saved > 0 else None


def paid_in_words(cost: CostReport, *, busy: bool) -> str:
    """Return the break-even as the predicate of a sentence about the campaign.

    Args:
        cost: the campaign's bill.
        busy: whether the throughputs, from which it follows, were measured on a busy machine.
    """
    source = ", by throughputs that were measured on a busy machine" if busy else ""
    if cost.break_even_requests is None:
        return f"never pays for itself: serving the student is not cheaper than serving the teacher{source}"
    return f"pays for itself after {cost.break_even_requests:,} requests{source}"


def cost_report(
    stages: Sequence[StageCost],
    examples_per_second: Mapping[str, float],
    *,
    cores: float,
    accelerators: float,
    prices: CostConfig,
    forecast: Mapping[str, float] | None = None,
) -> CostReport:
    """Return the campaign's bill; throughputs by arm, all on ``cores`` and ``accelerators``."""
    campaign = total(stages, currency=prices.currency)
    per_million = {
        arm: cost_per_million_requests(rate, cores=cores, accelerators=accelerators, prices=prices)
        for arm, rate in examples_per_second.items()
    }
    return CostReport(
        stages=tuple(stages),
        total=campaign,
        per_million=per_million,
        break_even_requests=break_even_requests(
            campaign.money,
            teacher_cost_per_million=per_million["teacher"],
            student_cost_per_million=per_million["student"],
        ),
        forecast=dict(forecast or {}),
    )


def cost_metrics(report: CostReport) -> dict[str, float]:
    """Return the bill as flat metrics with units in their names.

    Names are such as ``label_wall_seconds`` and ``campaign_cost_usd``.
    """
    unit = re.sub(r"[^a-z0-9]+", "_", report.total.currency.lower())
    metrics: dict[str, float] = {}
    for cost in (*report.stages, report.total):
        metrics |= stage_metrics(cost)
    metrics |= {f"{arm}_cost_per_million_requests_{unit}": money for arm, money in report.per_million.items()}
    if report.break_even_requests is not None:
        metrics["break_even_requests"] = float(report.break_even_requests)
    return metrics


def stage_metrics(cost: StageCost) -> dict[str, float]:
    """Return one stage's cost as flat metrics, as `cost_metrics`."""
    unit = re.sub(r"[^a-z0-9]+", "_", cost.currency.lower())
    return {
        f"{cost.stage}_wall_seconds": cost.wall_seconds,
        f"{cost.stage}_core_hours": cost.core_hours,
        f"{cost.stage}_accelerator_hours": cost.accelerator_hours,
        f"{cost.stage}_bytes_written": float(cost.bytes_written),
        f"{cost.stage}_cost_{unit}": cost.money,
    }
