"""Estimate metrics that are functions of sums over rows, and their paired differences.

Proportions have Wilson's intervals, the rest bootstrapped ones: see `ray_distill.evaluation.measures.intervals`. The
family's metric table decides which, and gives the possible values.

A metric is left out where it has no value (NaN), because nothing it is about occurs. An infinite value is reported
without an interval: nothing is clipped, because a clipped value would hide exactly the mistake it prices.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Self

import numpy as np

from ray_distill.artifacts import Estimate
from ray_distill.evaluation.measures.intervals import (
    Floats,
    Ints,
    Resampling,
    Weighted,
    noise_of_gaps,
    paired_proportions,
    percentiles,
    resample,
    wilson,
)
from ray_distill.tasks.metrics import MetricTable


@dataclass(frozen=True, kw_only=True)
class Column:
    """Values of N rows that are summed, weighted, within groups; all metrics are made of them."""

    values: Floats
    """``[N]``, or K values a row, ``[N, K]``."""
    group: Ints | None = None
    """Group of each value, shaped as ``values``; None: value k of a row belongs to group k."""
    groups: int = 0
    """Number of groups; 0 where ``group`` is None, for K."""

    @property
    def size(self) -> int:
        """Most numbers that are in memory at once for one weighting."""
        return max(self.values.shape) if self.group is None else max(self.values.size, self.groups)

    def sums(self, weight_BN: Floats) -> Floats:
        """Return weighted sums within groups, ``[B, groups]``."""
        values_NK = self.values.reshape(len(self.values), -1)
        with np.errstate(invalid="ignore"):  # 0 · inf where a resample leaves out an infinite loss
            if self.group is None:
                return np.asarray(weight_BN @ values_NK)
            weighted_BNK = weight_BN[:, :, None] * values_NK
        cells_BNK = np.arange(len(weight_BN))[:, None, None] * self.groups + self.group.reshape(values_NK.shape)
        size = len(weight_BN) * self.groups
        flat = np.bincount(cells_BNK.ravel(), weights=weighted_BNK.ravel(), minlength=size)
        return flat.astype(np.float64, copy=False).reshape(len(weight_BN), self.groups)


#: Sums by column name, ``[B, groups]`` for B resamples.
Totals = Mapping[str, Floats]


@dataclass(frozen=True, kw_only=True)
class Summary:
    """Metrics that are functions of grouped sums, so that no Python loop touches rows.

    A resample changes only the sums.
    """

    columns: Mapping[str, Column]
    finish: Callable[[Totals], dict[str, Floats]]

    def __call__(self, weight_BN: Floats) -> dict[str, Floats]:
        """Compute metrics of B weightings of the same rows, ``[B]`` each."""
        return self.finish({name: column.sums(weight_BN) for name, column in self.columns.items()})


@dataclass(frozen=True, kw_only=True)
class Part:
    """The metrics that are measured over the same rows of one model's answers."""

    weight_N: Floats
    weighted: Weighted
    size: int
    """Most numbers that one weighting needs in memory at once; it bounds how many are computed together."""
    hits: Mapping[str, Floats] = field(default_factory=dict)
    """Of each metric that is a proportion, 1 where a row counts and 0 where not, ``[N]``."""

    @classmethod
    def of(cls, summary: Summary, weight_N: Floats, *, hits: Sequence[str] = ()) -> Self:
        """Return a summary's metrics; ``hits`` names its columns that are proportions."""
        return cls(
            weight_N=weight_N,
            weighted=summary,
            size=max(column.size for column in summary.columns.values()),
            hits={name: summary.columns[name].values for name in hits},
        )


def measure_parts(parts: Sequence[Part], table: MetricTable, how: Resampling) -> dict[str, Estimate]:
    """Return the estimates of all metrics that have a value, with their intervals."""
    estimates: dict[str, Estimate] = {}
    for part in parts:
        values = part.weighted(part.weight_N[None, :])
        samples = resample([part.weighted], part.weight_N, how, widest=part.size)[0]
        for name, value_1 in values.items():
            value, metric, n = float(value_1[0]), table[name], len(part.weight_N)
            if np.isnan(value):
                continue
            if metric.proportion:
                estimates[name] = wilson(value, part.weight_N)
            else:
                raised = noise_of_gaps(value, samples[name]) if metric.raised_by_noise else 0.0
                estimates[name] = percentiles(value, samples[name], n, low=metric.low, high=metric.high, raised=raised)
    return estimates


def compare_parts(
    first: Sequence[Part], second: Sequence[Part], table: MetricTable, how: Resampling
) -> dict[str, Estimate]:
    """Return paired differences, first minus second, of every metric that both models have.

    Part k of both is over the same rows; a part that only one model has is left out.
    """
    differences: dict[str, Estimate] = {}
    for pair in zip(first, second, strict=False):
        weight_N = pair[0].weight_N
        left, right = (part.weighted(weight_N[None, :]) for part in pair)
        left_B, right_B = resample(
            [part.weighted for part in pair], weight_N, how, widest=max(part.size for part in pair)
        )
        for name in left:
            if name not in right or np.isnan([left[name][0], right[name][0]]).any():
                continue
            metric = table[name]
            if metric.proportion:
                differences[name] = paired_proportions(pair[0].hits[name], pair[1].hits[name], weight_N)
                continue
            with np.errstate(invalid="ignore"):
                value, samples_B = float(left[name][0] - right[name][0]), left_B[name] - right_B[name]
            span, raised, lowered = metric.high - metric.low, 0.0, 0.0
            if metric.raised_by_noise:
                raised = noise_of_gaps(float(left[name][0]), left_B[name])
                lowered = noise_of_gaps(float(right[name][0]), right_B[name])
            differences[name] = percentiles(
                value, samples_B, len(weight_N), low=-span, high=span, raised=raised, lowered=lowered
            )
    return differences
