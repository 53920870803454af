"""What must hold of the gate whatever the report."""

import math

from hypothesis import given, settings
from hypothesis import strategies as st

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
from ray_distill.promotion.gate import SEVERITY, decide
from ray_distill.promotion.rules import limits_of, rules_of
from ray_distill.tasks.answers.classes import CLASSES

STUDENT = StudentRef(
    url="s",
    fingerprint="f",
    arm="student",
    labels=LabelSetRef(
        store="l", fingerprint="g", log_length=1, log_digest="d", snapshot=SnapshotRef(url="u", fingerprint="h")
    ),
)
METRICS = ("accuracy", "macro_f1", "nll", "ece")
ARMS = ("student", "teacher", "champion", "baseline_hard_labels")

share = st.floats(0.01, 1.0)
half = st.one_of(st.just(math.nan), st.floats(0, 0.3))


@st.composite
def estimates(draw, values=share):
    value, spread = draw(values), draw(half)
    return Estimate(value=value, low=value - spread, high=value + spread, n=50)


@st.composite
def reports(draw):
    efficiency = Efficiency(parameters=9, bytes_on_disk=9, latency_ms_p50=1, latency_ms_p95=2, examples_per_second=5)
    arms = ["student", *draw(st.lists(st.sampled_from(ARMS[1:]), unique=True))]
    models = {
        arm: ModelReport(
            name=arm, url=arm, efficiency=efficiency, metrics={name: draw(estimates()) for name in METRICS}
        )
        for arm in arms
    }
    comparisons = {}
    for arm in arms[1:]:
        for name in METRICS:
            if draw(st.booleans()):
                value = models["student"].metrics[name].value - models[arm].metrics[name].value
                comparisons[f"{name}_minus_{arm}"] = draw(estimates(st.just(value)))
    champion = {}
    if {"champion", "teacher"} <= models.keys() and draw(st.booleans()):
        for name in METRICS:
            value = models["champion"].metrics[name].value - models["teacher"].metrics[name].value
            champion[name] = draw(estimates(st.just(value)))
    return EvalReport(
        url="r",
        fingerprint="e",
        task="text_classification",
        student=STUDENT,
        models=models,
        comparisons=comparisons,
        champion_minus_teacher=champion,
    )


@st.composite
def gates(draw):
    """Limits of some metrics; null for the others, so that no default is in force."""
    limits = dict.fromkeys(METRICS)
    for name in draw(st.lists(st.sampled_from(METRICS), unique=True, min_size=1)):
        side = "min" if CLASSES.metrics[name].higher_is_better else "max"
        rules = draw(
            st.dictionaries(st.sampled_from([side, "margin", "relative", "teacher_margin"]), share, min_size=1)
        )
        # A margin as wide as the metric allows any value, and is refused.
        limits[name] = Limit(**{kind: min(value, 0.99) if "margin" in kind else value for kind, value in rules.items()})
    beat = tuple(draw(st.lists(st.sampled_from(ARMS[1:]), unique=True)))
    return GateConfig(limits=limits, beat=beat, replace_failing_champion=draw(st.booleans()))


def moved(estimate, by):
    return Estimate(value=estimate.value + by, low=estimate.low + by, high=estimate.high + by, n=estimate.n)


def improved(report, gain):
    by = {name: gain if CLASSES.metrics[name].higher_is_better else -gain for name in METRICS}
    student = report.models["student"]
    better = student.with_changes(metrics={name: moved(e, by[name]) for name, e in student.metrics.items()})
    comparisons = {key: moved(e, by[key.split("_minus_")[0]]) for key, e in report.comparisons.items()}
    return report.with_changes(models={**report.models, "student": better}, comparisons=comparisons)


@settings(max_examples=60, deadline=None)
@given(reports(), gates(), st.floats(0, 0.5))
def test_a_better_student_never_gets_a_worse_verdict(report, gate, gain):
    """Improving every metric of the student, all else equal, is never punished."""
    assert SEVERITY[decide(improved(report, gain), gate).verdict] >= SEVERITY[decide(report, gate).verdict]


@settings(max_examples=40, deadline=None)
@given(reports(), gates(), st.data())
def test_nan_is_always_rejected(report, gate, data):
    """Whatever else is good, a NaN in a metric that a limit names is REJECT, and the reason names the metric."""
    name = data.draw(st.sampled_from(sorted(limits_of(gate, report.task))))
    student = report.models["student"]
    broken = student.with_changes(metrics={**student.metrics, name: Estimate(value=math.nan)})
    decision = decide(report.with_changes(models={**report.models, "student": broken}), gate)
    assert decision.verdict is Verdict.REJECT
    assert any(name in reason and "nan" in reason for reason in decision.reasons)


@settings(max_examples=40, deadline=None)
@given(reports(), gates(), gates())
def test_asking_for_more_never_helps(report, gate, more):
    """A gate with further rules is never more lenient."""
    limits = {name: limit or more.limits[name] for name, limit in gate.limits.items()}
    beat = tuple(dict.fromkeys(gate.beat + more.beat))
    stricter = GateConfig(limits=limits, beat=beat, replace_failing_champion=gate.replace_failing_champion)
    assert SEVERITY[decide(report, stricter).verdict] <= SEVERITY[decide(report, gate).verdict]


@settings(max_examples=40, deadline=None)
@given(reports(), gates(), st.sampled_from(METRICS))
def test_naming_one_metric_leaves_the_rules_of_all_others(report, gate, name):
    """Whatever limit one metric is given, every default rule of the other metrics stays, and stands in the reasons."""
    changed = GateConfig(limits={name: gate.limits[name]}, beat=gate.beat)
    kept = [rule for rule in rules_of(GateConfig(), report.task) if rule.metric != name]
    assert kept and set(kept) <= set(rules_of(changed, report.task))
    reasons = decide(report, changed).reasons
    assert all(any(rule.metric in reason for reason in reasons) for rule in kept)


@settings(max_examples=40, deadline=None)
@given(reports(), gates())
def test_a_reject_is_a_rule_broken_over_its_whole_interval(report, gate):
    """Where every figure was measured and every interval is as wide as can be, nothing is rejected."""

    def widest(found):
        return Estimate(value=found.value, low=-9.0, high=9.0, n=found.n)

    models = {
        arm: model.with_changes(metrics={name: widest(found) for name, found in model.metrics.items()})
        for arm, model in report.models.items()
    }
    doubtful = report.with_changes(
        models=models,
        comparisons={key: widest(found) for key, found in report.comparisons.items()},
        champion_minus_teacher={},
    )
    compared = {"teacher", "champion", *gate.beat} <= models.keys()
    assert decide(doubtful, gate).verdict is not Verdict.REJECT or not compared


@settings(max_examples=20, deadline=None)
@given(reports(), gates())
def test_the_decision_survives_json(report, gate):
    """A report read back from its JSON gets the same decision."""
    assert decide(EvalReport.from_json(report.to_json()), gate) == decide(report, gate)
