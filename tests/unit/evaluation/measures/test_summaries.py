"""Sums over rows within groups, and metrics that have no value, are infinite or are shared by one model only."""

import math

import numpy as np
import pytest

from ray_distill.evaluation.measures.intervals import Resampling
from ray_distill.evaluation.measures.summaries import Column, Part, Summary, compare_parts, measure_parts
from ray_distill.tasks.metrics import Metric, MetricTable

HOW = Resampling(seed=3, bootstrap=50)
TABLE = MetricTable(
    metrics=(
        Metric(name="share", heading="share", better="more", high=1.0, proportion=True),
        Metric(name="mean", heading="mean", better="less"),
        Metric(name="absent", heading="absent", better="more"),
    )
)


def part(values: list[float], **more: float) -> Part:
    """Return the mean of some values, and constants."""
    ones_N, values_N = np.ones(len(values)), np.array(values)
    summary = Summary(
        columns={
            "weight": Column(values=ones_N),
            "mean": Column(values=values_N),
            "share": Column(values=(values_N > 1).astype(float)),
        },
        finish=lambda totals: (
            {name: totals[name][:, 0] / totals["weight"][:, 0] for name in ("mean", "share")}
            | {name: np.full(len(totals["weight"]), value) for name, value in more.items()}
        ),
    )
    return Part.of(summary, ones_N, hits=["share"])


def test_values_are_summed_within_groups() -> None:
    """One value a row or several, with groups of their own or one group a place; weights multiply."""
    weight_BN = np.array([[1.0, 1.0, 1.0], [0.0, 2.0, 1.0]])
    values_N = np.array([1.0, 10.0, 100.0])
    assert Column(values=values_N).sums(weight_BN).tolist() == [[111.0], [120.0]]
    grouped = Column(values=values_N, group=np.array([2, 0, 2]), groups=3)
    assert grouped.sums(weight_BN).tolist() == [[10.0, 0.0, 101.0], [20.0, 0.0, 100.0]]
    pairs_NK = np.array([[1.0, 2.0], [10.0, 20.0], [100.0, 200.0]])
    assert Column(values=pairs_NK).sums(weight_BN).tolist() == [[111.0, 222.0], [120.0, 240.0]]
    scattered = Column(values=pairs_NK, group=np.array([[0, 1], [1, 1], [0, 0]]), groups=2)
    assert scattered.sums(weight_BN).tolist() == [[301.0, 32.0], [300.0, 60.0]]
    assert (scattered.size, grouped.size, Column(values=pairs_NK).size) == (6, 3, 3)


def test_a_metric_without_a_value_is_left_out_and_an_infinite_one_has_no_interval() -> None:
    """NaN is nothing to report; infinity is."""
    found = measure_parts([part([1.0, 2.0, math.inf], absent=math.nan)], TABLE, HOW)
    assert set(found) == {"mean", "share"}
    assert found["mean"].value == math.inf and math.isnan(found["mean"].low)
    assert 0 < found["share"].low < 2 / 3 < found["share"].high < 1


def test_only_what_both_models_have_is_compared() -> None:
    """The difference is the first model's less the second's, over the same rows."""
    first, second = part([1.0, 2.0, 6.0], absent=1.0), part([1.0, 1.0, 1.0])
    found = compare_parts([first], [second], TABLE, HOW)
    assert set(found) == {"mean", "share"}
    assert found["mean"].value == pytest.approx(2.0) and found["share"].value == pytest.approx(2 / 3)
    assert compare_parts([first], [part([1.0, 2.0, 3.0], absent=math.nan)], TABLE, HOW).keys() == {"mean", "share"}
    assert compare_parts([first, first], [second], TABLE, HOW) == found
