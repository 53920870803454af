"""The gate's truth table, rule by rule, and its sentences."""

import math

import numpy as np
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
from ray_distill.promotion.leads import standing
from ray_distill.promotion.rules import Rule
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


def report(models, champion_minus_teacher=None, **comparisons):
    return EvalReport(
        url="r",
        fingerprint="e",
        task="text_classification",
        student=STUDENT,
        models={m.name: m for m in models},
        comparisons=comparisons,
        champion_minus_teacher=champion_minus_teacher or {},
    )


#: No default is in force.
NO_DEFAULTS = {"accuracy": None, "ece": None}


def gate(beat=(), replace=True, **limits):
    own = {name: Limit(**limit) for name, limit in limits.items()}
    return GateConfig(limits={**NO_DEFAULTS, **own}, beat=beat, replace_failing_champion=replace)


@pytest.mark.parametrize(
    ("value", "half", "verdict"),
    [
        (0.95, 0.01, Verdict.PROMOTE),
        (0.91, 0.02, Verdict.HOLD),
        (0.89, 0.02, Verdict.HOLD),
        (0.87, 0.02, Verdict.REJECT),
        (0.90, 0.0, Verdict.PROMOTE),
        (0.95, math.nan, Verdict.HOLD),
        (0.85, math.nan, Verdict.HOLD),
    ],
)
def test_minimum(value, half, verdict):
    """Above it with the whole interval, above or below it in doubt, below it, exactly on it, without an interval."""
    judged = report([model("student", accuracy=estimate(value, half))])
    assert decide(judged, gate(accuracy={"min": 0.9})).verdict is verdict


@pytest.mark.parametrize(
    ("value", "half", "verdict"),
    [
        (0.03, 0.01, Verdict.PROMOTE),
        (0.045, 0.01, Verdict.HOLD),
        (0.06, 0.02, Verdict.HOLD),
        (0.08, 0.02, Verdict.REJECT),
    ],
)
def test_maximum(value, half, verdict):
    """The same from the other side."""
    judged = report([model("student", ece=estimate(value, half))])
    assert decide(judged, gate(ece={"max": 0.05})).verdict is verdict


@pytest.mark.parametrize(("found", "shown"), [(None, "missing"), (math.nan, "nan"), (math.inf, "inf")])
@pytest.mark.parametrize("limit", [{"min": 0}, {"max": 9}, {"relative": 0.5}, {"margin": 1}, {"teacher_margin": 1}])
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
        (-0.01, 0.05, Verdict.HOLD),
        (-0.06, 0.05, Verdict.REJECT),
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


def test_an_arm_that_could_not_be_trained_is_named_and_not_beaten():
    """Without true labels there is no baseline of them; alone, such a rule establishes nothing."""
    judged, absent = report([model("student", accuracy=0.9)]), {"hard": "there is no hard to beat"}
    found = decide(judged, gate(beat=("hard",), accuracy={"min": 0.5}), absent)
    assert found.verdict is Verdict.PROMOTE and "there is no hard to beat." in found.reasons
    assert decide(judged, gate(beat=("hard",)), absent).verdict is Verdict.HOLD


def test_the_worst_rule_decides_and_stands_first():
    """One REJECT among passes decides, and its reason comes first, with value, interval and limit."""
    student = model("student", accuracy=estimate(0.9, 0.01), ece=estimate(0.2, 0.02))
    judged = report([student, model("teacher", accuracy=0.9)], accuracy_minus_teacher=estimate(0.0, 0.001))
    decision = decide(judged, gate(accuracy={"relative": 0.97}, ece={"max": 0.1}))
    assert decision.verdict is Verdict.REJECT
    assert decision.reasons[0] == "ece 0.2000 [0.1800, 0.2200] breaks the maximum 0.1."
    assert decision.reasons[1] == (
        "accuracy 0.9000 [0.8900, 0.9100] keeps 0.8730, which is 0.97 of the teacher's 0.9000: accuracy minus the "
        "teacher's is +0.0000 [-0.0010, +0.0010] (on the same 100 rows), -0.0270 is allowed."
    )
    assert decision.report_fingerprint == "e" and decision.student == STUDENT


def test_a_gate_that_asks_nothing_holds():
    """Nothing asked is nothing shown."""
    decision = decide(report([model("student", accuracy=0.9)]), GateConfig(limits=NO_DEFAULTS, beat=()))
    assert decision.verdict is Verdict.HOLD
    assert decision.reasons[0].startswith("the gate has no rules")


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


@pytest.mark.parametrize(
    ("difference", "half", "verdict"),
    [(0.01, 0.005, Verdict.PROMOTE), (0.04, 0.02, Verdict.HOLD), (0.06, 0.02, Verdict.HOLD), (0.1, 0.02, "REJECT")],
)
def test_a_margin_to_the_teacher_is_judged_by_the_paired_difference(difference, half, verdict):
    """An ECE up to 0.05 above the teacher's passes by default, whatever the teacher's own is."""
    models = [model("student", ece=estimate(0.2 + difference, 0.2)), model("teacher", ece=estimate(0.2, 0.2))]
    judged = report(models, ece_minus_teacher=estimate(difference, half))
    decision = decide(judged, GateConfig(limits={"accuracy": None}, beat=()))
    assert decision.verdict == verdict
    assert f"ece minus the teacher's is {difference:+.4f} [" in decision.reasons[0]
    assert "which is the teacher's 0.2000 with a margin of 0.05" in decision.reasons[0]


def test_limits_add_to_the_defaults_by_metric_and_the_verdict_lists_all():
    """An ECE limit leaves the accuracy rule in force: a student 6 points below its teacher is still rejected."""
    models = [model("student", accuracy=0.86, ece=estimate(0.1, 0.01)), model("teacher", accuracy=0.92, ece=0.05)]
    judged = report(models, accuracy_minus_teacher=estimate(-0.06, 0.02))
    decision = decide(judged, GateConfig(limits={"ece": Limit(max=0.15)}, beat=()))
    assert decision.verdict is Verdict.REJECT
    rejected, first, ece, changed = decision.reasons
    assert rejected.startswith("accuracy 0.8600 breaks 0.8924, which is 0.97 of the teacher's 0.9200: accuracy minus")
    assert first == "accuracy 0.8600 is compared with no champion: this student would be the first."
    assert ece == "ece 0.1000 [0.0900, 0.1100] keeps the maximum 0.15."
    assert changed == "gate.limits sets aside the default limits of ece (teacher_margin 0.05; now max 0.15)."


def test_a_default_limit_is_dropped_by_null_and_named():
    """``accuracy: null`` is explicit, and the verdict says which rules are not in force."""
    models = [model("student", accuracy=0.5, ece=0.05), model("teacher", accuracy=0.9, ece=0.05)]
    decision = decide(report(models), GateConfig(limits={"accuracy": None}, beat=()))
    assert decision.verdict is Verdict.PROMOTE
    assert decision.reasons[-1] == (
        "gate.limits sets aside the default limits of accuracy (relative 0.97, margin 0.01)."
    )


def test_what_straddles_the_limit_is_held_with_the_rows_that_would_decide():
    """ECE 0.1004 [0.080, 0.121] against 0.1 on 500 rows is no proof of anything; a clearer value needs fewer rows."""
    found = Estimate(value=0.1004, low=0.0800, high=0.1210, n=500)
    decision = decide(report([model("student", ece=found)]), gate(ece={"max": 0.1}))
    assert decision.verdict is Verdict.HOLD
    assert "breaks the maximum 0.1, but not over its whole interval" in decision.reasons[0]
    assert "about 2,700,000 labelled rows would decide" in decision.reasons[0]
    clearer = Estimate(value=0.11, low=0.09, high=0.13, n=500)
    reason = decide(report([model("student", ece=clearer)]), gate(ece={"max": 0.1})).reasons[0]
    assert "about 4,100 labelled rows would decide, if the values stay as measured" in reason


def test_no_number_of_rows_decides_about_a_value_on_the_limit():
    """A difference of exactly 0 stays in doubt for ever."""
    judged = report([model("student", accuracy=0.9), model("hard", accuracy=0.9)], accuracy_minus_hard=estimate(0, 0.1))
    assert "no number of rows would decide" in decide(judged, gate(beat=("hard",))).reasons[0]


def champion_case(student, champion, half=0.01, ece=0.05, champion_ece=0.05):
    """A teacher at 0.95; accuracies of student and champion, with paired intervals of ``half``."""
    models = [
        model("student", accuracy=student, ece=ece),
        model("champion", accuracy=champion, ece=champion_ece),
        model("teacher", accuracy=0.95, ece=0.05),
    ]
    return report(
        models,
        champion_minus_teacher={"accuracy": estimate(champion - 0.95, half)},
        accuracy_minus_teacher=estimate(student - 0.95, half),
        accuracy_minus_champion=estimate(student - champion, half),
    )


@pytest.mark.parametrize(
    ("student", "champion", "replace", "verdict"),
    [
        (0.88, 0.80, True, Verdict.PROMOTE),
        (0.88, 0.80, False, Verdict.REJECT),
        (0.805, 0.80, True, Verdict.REJECT),
        (0.92, 0.80, False, Verdict.HOLD),
        (0.88, 0.92, True, Verdict.REJECT),
    ],
)
def test_a_student_that_beats_a_failing_champion_may_replace_it(student, champion, replace, verdict):
    """Beyond doubt better than a champion that breaks the rule; switched off; in doubt; a champion that breaks none."""
    decision = decide(champion_case(student, champion), gate(replace=replace, accuracy={"relative": 0.97}))
    assert decision.verdict is verdict
    named = [reason for reason in decision.reasons if "the champion breaks the gate's rules itself" in reason]
    assert len(named) == (champion == 0.80)
    assert not named or "accuracy 0.8000 breaks 0.9215, which is 0.97 of the teacher's" in named[0]


def test_only_what_the_champion_breaks_too_is_excused():
    """A better accuracy makes up for no calibration that is worse than the champion's, and for no missing figure."""
    rules = gate(accuracy={"relative": 0.97}, ece={"max": 0.1})
    worse = champion_case(0.88, 0.80, ece=0.3, champion_ece=0.05)
    assert decide(worse, rules).verdict is Verdict.REJECT
    both = champion_case(0.88, 0.80, ece=0.3, champion_ece=0.2)
    assert decide(both, rules).verdict is Verdict.REJECT
    better = champion_case(0.88, 0.80, ece=0.15, champion_ece=0.2)
    assert decide(better, rules).verdict is Verdict.PROMOTE
    missing = champion_case(0.88, 0.80, ece=math.nan, champion_ece=0.2)
    assert decide(missing, rules).verdict is Verdict.REJECT


def test_a_comparison_with_the_teacher_is_not_compared_with_the_teacher():
    """Agreement and KL are distances to the teacher already: such a limit is a mistake of the configuration."""
    judged = report([model("student", agreement=0.9), model("teacher", agreement=1.0)])
    with pytest.raises(PromotionError, match="agreement is itself a comparison with the teacher"):
        decide(judged, gate(agreement={"teacher_margin": 0.1}))


@pytest.mark.parametrize("share", [0.5, 0.97])
def test_the_interval_of_a_share_of_the_teacher_is_that_of_the_rows(share):
    """Half-widths of student, teacher and their paired difference give that of student - share · teacher."""
    generator = np.random.default_rng(3)
    teacher_N = generator.normal(1.0, 0.3, 2000)
    student_N = 0.8 * teacher_N + generator.normal(0.0, 0.2, 2000)

    def mean(values_N):
        return Estimate(
            value=values_N.mean(), low=values_N.mean() - half(values_N), high=values_N.mean() + half(values_N)
        )

    def half(values_N):
        return 1.96 * values_N.std() / math.sqrt(len(values_N))

    models = [model("student", macro_f1=mean(student_N)), model("teacher", macro_f1=mean(teacher_N))]
    judged = report(models, macro_f1_minus_teacher=mean(student_N - teacher_N))
    lead = standing(judged, "student", Rule(metric="macro_f1", kind="relative", limit=share)).lead
    assert lead.value - lead.low == pytest.approx(half(student_N - share * teacher_N), rel=1e-6)
    assert lead.high - lead.value == pytest.approx(half(student_N - share * teacher_N), rel=1e-6)
