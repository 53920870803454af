"""The gate's truth table, rule by rule, and its sentences."""

import math

import pytest

from ray_distill.artifacts import (
    Efficiency,
    Estimate,
    EvalReport,
    LabelSetRef,
    ModelReport,
    SnapshotRef,
    StudentRef,
    Verdict,
)
from ray_distill.config import GateConfig, Limit
from ray_distill.errors import PromotionError
from ray_distill.promotion.gate import decide
from ray_distill.tasks.metrics import EFFICIENCY

STUDENT = StudentRef(
    url="s",
    fingerprint="f",
    arm="student",
    labels=LabelSetRef(
        store="l", fingerprint="g", log_length=1, log_digest="d", snapshot=SnapshotRef(url="u", fingerprint="h")
    ),
)


def estimate(value, half=0.0):
    return Estimate(value=value, low=value - half, high=value + half, n=100)


def model(name, latency=1.0, **metrics):
    efficiency = Efficiency(
        parameters=100,
        bytes_on_disk=400,
        latency_ms_p50=latency,
        latency_ms_p95=2 * latency,
        examples_per_second=1000 / latency,
    )
    return ModelReport(
        name=name,
        url=name,
        efficiency=efficiency,
        metrics={key: value if isinstance(value, Estimate) else estimate(value) for key, value in metrics.items()},
    )


def report(models, **comparisons):
    return EvalReport(
        url="r",
        fingerprint="e",
        task="text_classification",
        student=STUDENT,
        models={m.name: m for m in models},
        comparisons=comparisons,
    )


def gate(beat=(), **limits):
    return GateConfig(limits={name: Limit(**limit) for name, limit in limits.items()}, beat=beat)


@pytest.mark.parametrize(
    ("value", "half", "verdict"),
    [
        (0.95, 0.01, Verdict.PROMOTE),
        (0.91, 0.02, Verdict.HOLD),
        (0.89, 0.02, Verdict.REJECT),
        (0.90, 0.0, Verdict.PROMOTE),
        (0.95, math.nan, Verdict.HOLD),
    ],
)
def test_minimum(value, half, verdict):
    """Above it with the whole interval, above it in doubt, below it, exactly on it, without an interval."""
    judged = report([model("student", accuracy=estimate(value, half))])
    assert decide(judged, gate(accuracy={"min": 0.9})).verdict is verdict


@pytest.mark.parametrize(
    ("value", "half", "verdict"),
    [(0.03, 0.01, Verdict.PROMOTE), (0.045, 0.01, Verdict.HOLD), (0.06, 0.02, Verdict.REJECT)],
)
def test_maximum(value, half, verdict):
    """The same from the other side."""
    judged = report([model("student", ece=estimate(value, half))])
    assert decide(judged, gate(ece={"max": 0.05})).verdict is verdict


@pytest.mark.parametrize(("found", "shown"), [(None, "missing"), (math.nan, "nan"), (math.inf, "inf")])
@pytest.mark.parametrize("limit", [{"min": 0}, {"max": 9}, {"relative": 0.5}, {"margin": 1}])
def test_unmeasured_metric_is_rejected_by_name(found, shown, limit):
    """No rule is kept by a metric that is missing or not finite, and the reason names it."""
    metrics = {} if found is None else {"nll": Estimate(value=found)}
    decision = decide(report([model("student", **metrics), model("teacher", nll=1.0)]), gate(nll=limit))
    assert decision.verdict is Verdict.REJECT
    assert "nll" in decision.reasons[0] and shown in decision.reasons[0]


@pytest.mark.parametrize("arm", ["teacher", "champion"])
@pytest.mark.parametrize("metrics", [{}, {"accuracy": math.nan}])
def test_unmeasured_reference_is_rejected_by_name(arm, metrics):
    """A teacher or champion without the metric leaves the rule unmeasurable."""
    decision = decide(
        report([model("student", accuracy=0.9), model(arm, **metrics)]),
        gate(accuracy={"relative": 0.9} if arm == "teacher" else {"margin": 0.1}),
    )
    assert decision.verdict is Verdict.REJECT and f"the {arm}'s accuracy" in decision.reasons[0]


@pytest.mark.parametrize(
    ("difference", "half", "verdict"),
    [(-0.01, 0.005, Verdict.PROMOTE), (-0.01, 0.03, Verdict.HOLD), (-0.05, 0.005, Verdict.REJECT)],
)
def test_relative_uses_the_paired_difference(difference, half, verdict):
    """0.97 of a teacher at 0.95 leaves 0.0285 to lose; the paired interval decides, not the wide own ones."""
    models = [
        model("student", accuracy=estimate(0.95 + difference, 0.2)),
        model("teacher", accuracy=estimate(0.95, 0.2)),
    ]
    judged = report(models, accuracy_minus_teacher=estimate(difference, half))
    assert decide(judged, gate(accuracy={"relative": 0.97})).verdict is verdict


@pytest.mark.parametrize(("latency", "verdict"), [(0.5, Verdict.PROMOTE), (0.51, Verdict.REJECT)])
def test_relative_divides_where_lower_is_better(latency, verdict):
    """relative 2 on a latency asks for half the teacher's; figures of efficiency are exact, so there is no HOLD."""
    judged = report([model("student", latency=latency), model("teacher", latency=1.0)])
    assert decide(judged, gate(latency_ms_p50={"relative": 2})).verdict is verdict


def test_relative_without_a_pair_is_cautious():
    """Without a paired difference the two intervals combine: in doubt where a pair would have decided."""
    judged = report([model("student", nll=estimate(0.5, 0.1)), model("teacher", nll=estimate(0.5, 0.1))])
    assert decide(judged, gate(nll={"relative": 0.9})).verdict is Verdict.HOLD
    assert decide(judged, gate(nll={"relative": 0.5})).verdict is Verdict.PROMOTE


@pytest.mark.parametrize(
    ("difference", "half", "verdict"),
    [
        (0.02, 0.005, Verdict.PROMOTE),
        (0.02, 0.06, Verdict.HOLD),
        (0.06, 0.005, Verdict.REJECT),
        (-0.5, 0.1, Verdict.PROMOTE),
    ],
)
def test_margin_is_non_inferiority_and_knows_the_better_side(difference, half, verdict):
    """An NLL up to 0.05 worse than the champion's passes, when its interval says so."""
    judged = report(
        [model("student", nll=1 + difference), model("champion", nll=1.0)],
        nll_minus_champion=estimate(difference, half),
    )
    assert decide(judged, gate(nll={"margin": 0.05})).verdict is verdict


def test_margin_without_a_champion_is_kept_and_said():
    """The first student has nobody to lose to."""
    decision = decide(report([model("student", accuracy=0.9)]), gate(accuracy={"margin": 0.0}))
    assert decision.verdict is Verdict.PROMOTE and "first" in decision.reasons[0]


@pytest.mark.parametrize(
    ("difference", "half", "verdict"),
    [
        (0.02, 0.01, Verdict.PROMOTE),
        (0.02, 0.02, Verdict.HOLD),
        (0.0, 0.0, Verdict.HOLD),
        (-0.01, 0.05, Verdict.REJECT),
        (0.02, math.nan, Verdict.HOLD),
    ],
)
def test_beat(difference, half, verdict):
    """To beat an arm is to exceed it with the whole interval."""
    judged = report(
        [model("student", accuracy=0.9 + difference), model("hard", accuracy=0.9)],
        accuracy_minus_hard=estimate(difference, half),
    )
    assert decide(judged, gate(beat=("hard",))).verdict is verdict


def test_beating_an_arm_nobody_measured_is_rejected():
    """An absent arm is not beaten."""
    decision = decide(report([model("student", accuracy=0.9)]), gate(beat=("hard",)))
    assert decision.verdict is Verdict.REJECT and "hard" in decision.reasons[0]


def test_the_worst_rule_decides_and_stands_first():
    """One REJECT among passes decides, and its reason comes first, with value, interval and limit."""
    student = model("student", accuracy=estimate(0.9, 0.01), ece=estimate(0.2, 0.02))
    judged = report([student, model("teacher", accuracy=0.9)], accuracy_minus_teacher=estimate(0.0, 0.001))
    decision = decide(judged, gate(accuracy={"relative": 0.97}, ece={"max": 0.1}))
    assert decision.verdict is Verdict.REJECT
    assert decision.reasons[0] == "ece 0.2000 [0.1800, 0.2200] breaks the maximum 0.1."
    assert decision.reasons[1].startswith("accuracy 0.9000 [0.8900, 0.9100] keeps 0.8730, which is 0.97 of")
    assert decision.report_fingerprint == "e" and decision.student == STUDENT


def test_a_gate_that_asks_nothing_holds():
    """Nothing asked is nothing shown."""
    decision = decide(report([model("student", accuracy=0.9)]), GateConfig(limits={}, beat=()))
    assert decision.verdict is Verdict.HOLD


def test_a_report_without_a_student_is_an_error():
    """There is nothing to decide."""
    with pytest.raises(PromotionError, match="has no model `student`"):
        decide(report([model("teacher", accuracy=0.9)]), GateConfig())


@pytest.mark.parametrize("rule", [{"min": 0.5}, {"relative": 0.5}])
def test_an_unknown_metric_is_refused_with_the_known_names(rule):
    """A limit on a metric that the task does not have is a mistake in the configuration, measured or not."""
    judged = report([model("student", charm=1.0), model("teacher", charm=1.0)])
    with pytest.raises(
        PromotionError, match=r"gate\.limits\.charm: text_classification has no such metric; it has acc"
    ):
        decide(judged, gate(charm=rule))


def test_every_efficiency_figure_has_a_direction():
    """The table covers all that a report measures."""
    assert set(Efficiency.model_fields) == set(EFFICIENCY.names)
