"""The one table of metrics that gate, report, terminal, MLflow view and sweep read."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class Metric:
    """One number that models are compared by."""

    name: str
    """Key in `EvalReport` and in MLflow."""
    heading: str
    """Column heading, with the unit."""
    decimals: int = 3
    better: Literal["more", "less", "zero"]
    """``zero``: a gap, best at 0."""
    low: float = 0.0
    """Least possible value."""
    high: float = inf
    """Greatest possible value."""
    proportion: bool = False
    """A share of rows: its interval is Wilson's, not the bootstrap's."""


@dataclass(frozen=True, kw_only=True)
class MetricTable:
    """Metrics in the order in which they are shown."""

    metrics: Sequence[Metric]

    def find(self, name: str) -> Metric | None:
        """Return the metric of this name; a metric at a bucket, ``<name>_at_<bucket>``, is the metric."""
        stem = name.split("_at_")[0]
        return next((metric for metric in self.metrics if metric.name == stem), None)


#: Metrics of size, speed and cost, which all tasks share.
EFFICIENCY = MetricTable(
    metrics=(
        Metric(name="parameters", heading="Parameters", decimals=0, better="less"),
        Metric(name="bytes_on_disk", heading="Size", decimals=0, better="less"),
        Metric(name="latency_ms_p50", heading="p50 ms", decimals=2, better="less"),
        Metric(name="latency_ms_p95", heading="p95 ms", decimals=2, better="less"),
        Metric(name="examples_per_second", heading="Examples/s", decimals=0, better="more"),
    )
)
