"""The one table of metrics that gate, report, terminal, MLflow view and sweep read."""

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from math import inf
from typing import Literal

from ray_distill.text import number


@dataclass(frozen=True, kw_only=True)
class Metric:
    """One number that models are compared by."""

    name: str
    """Key in `EvalReport` and in MLflow; ``*`` stands for any text, of metrics whose names come from elsewhere."""
    heading: str
    """Column heading, with the unit."""
    short: str = ""
    """Heading where there is little room; default: ``heading``."""
    decimals: int = 3
    better: Literal["more", "less", "zero"]
    """``zero``: a gap, best at 0."""
    low: float = 0.0
    """Least possible value."""
    high: float = inf
    """Greatest possible value."""
    scale: float = 1.0
    """Factor from the value to the number under ``heading``, e.g. 1e-6 from bytes to MB."""
    proportion: bool = False
    """A share of rows: its interval is Wilson's, not the bootstrap's."""
    raised_by_noise: bool = False
    """A sum of absolute gaps, such as a calibration error: noise can only raise it, and few rows are noise."""
    of_teacher: bool = False
    """A distance to the teacher, which the teacher itself has none of."""
    buckets: tuple[str, ...] = ()
    """Parts of the rows that have a value of their own, under ``<name>_at_<bucket>``."""
    infinite: str = ""
    """A verb phrase that explains an infinite value by what the model did; such values are noted on the report."""

    def __post_init__(self) -> None:
        if not self.short:
            object.__setattr__(self, "short", self.heading)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of its values: the metric's own, and one for each bucket."""
        return (self.name, *(f"{self.name}_at_{bucket}" for bucket in self.buckets))

    def has(self, name: str) -> bool:
        """Return whether a value of this name is the metric's."""
        return name in self.names or fnmatchcase(name, self.name)

    @property
    def higher_is_better(self) -> bool | None:
        """Return whether more is better; None where 0 is best."""
        return None if self.better == "zero" else self.better == "more"

    @property
    def in_text(self) -> str:
        """The short heading without its unit, as it reads within a sentence."""
        words = self.short.partition(",")[0]
        return words if words[:2].isupper() else words[:1].lower() + words[1:]

    def show(self, value: float, *, sign: bool = False) -> str:
        """Return a value as it stands under the heading."""
        return number(value * self.scale, self.decimals, signed=sign)


@dataclass(frozen=True, kw_only=True)
class MetricTable:
    """Metrics in the order in which they are shown."""

    metrics: Sequence[Metric] = ()

    def find(self, name: str) -> Metric | None:
        """Return the metric of this name, or of a bucket; the first match counts."""
        return next((one for one in self.metrics if one.has(name)), None)

    def __getitem__(self, name: str) -> Metric:
        """Return the metric of this name, which is in the table."""
        found = self.find(name)
        if found is None:
            raise KeyError(name)
        return found

    @property
    def names(self) -> tuple[str, ...]:
        """Names in the order of the table."""
        return tuple(metric.name for metric in self.metrics)


_COSTS = (
    Metric(name="parameters", heading="Parameters", decimals=0, better="less"),
    Metric(name="bytes_on_disk", heading="On disk, MB", decimals=2, scale=1e-6, better="less"),
    Metric(name="latency_ms_p50", heading="Latency p50, ms", short="p50 ms", decimals=2, better="less"),
    Metric(name="latency_ms_p95", heading="Latency p95, ms", short="p95 ms", decimals=2, better="less"),
    Metric(name="latency_spread", heading="Spread of latencies", short="spread", decimals=2, better="less"),
)


def efficiency(unit: str, *more: Metric) -> MetricTable:
    """Return the table of size, speed and cost, of models that answer so many ``unit`` a second."""
    rate = Metric(
        name="examples_per_second", heading=f"Throughput, {unit}/s", short=f"{unit}/s", decimals=0, better="more"
    )
    return MetricTable(metrics=(*_COSTS, rate, *more))


#: Metrics of size, speed and cost, which all tasks share.
EFFICIENCY = efficiency("examples")
