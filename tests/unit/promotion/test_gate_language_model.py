"""The gate of language models: NLL decides, and lower is better."""

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
from ray_distill.promotion.rules import gate_fingerprint

#: No default is in force.
NO_DEFAULTS = {"nll": None, "kl_from_teacher": None, "ece": None}
STUDENT = StudentRef(
    url="s",
    fingerprint="f",
    arm="student",
    labels=LabelSetRef(
        store="l", fingerprint="g", log_length=1, log_digest="d", snapshot=SnapshotRef(url="u", fingerprint="h")
    ),
)


def model(name, nll, ece=0.02, half=0.01, **more):
    efficiency = Efficiency(parameters=1, bytes_on_disk=1, latency_ms_p50=1, latency_ms_p95=1, examples_per_second=1)
    values = {"nll": nll, "ece": ece, "perplexity": 20.0, "accuracy": 0.4, "kl_from_teacher": 0.1, **more}
    return ModelReport(
        name=name,
        url=name,
        efficiency=efficiency,
        metrics={
            key: Estimate(value=value, low=value - half, high=value + half, n=50) for key, value in values.items()
        },
    )


def report(*models, **comparisons):
    return EvalReport(
        url="r",
        fingerprint="e",
        task="causal_lm",
        student=STUDENT,
        models={m.name: m for m in models},
        comparisons=comparisons,
    )


@pytest.mark.parametrize(
    ("nll", "ece", "verdict"),
    [(3.2, 0.02, Verdict.PROMOTE), (3.33, 0.02, Verdict.HOLD), (3.4, 0.02, Verdict.REJECT), (3.2, 0.2, Verdict.REJECT)],
)
def test_the_default_limits_hold_nll_to_the_teacher_s_over_nine_tenths(nll, ece, verdict):
    """The teacher's 3.0 allows 3.333; an ECE far above the teacher's is refused; accuracy is not asked for."""
    judged = report(model("teacher", 3.0), model("student", nll, ece=ece), model("baseline_hard_labels", 4.0))
    assert decide(judged, GateConfig()).verdict is verdict


@pytest.mark.parametrize(("student", "verdict"), [(2.9, Verdict.PROMOTE), (2.99, Verdict.HOLD), (3.1, Verdict.REJECT)])
def test_an_arm_is_beaten_by_a_lower_nll(student, verdict):
    """Lower beyond doubt, lower in doubt, higher; a better accuracy makes up for nothing."""
    judged = report(model("student", student, accuracy=0.9), model("baseline_hard_labels", 3.0))
    decision = decide(judged, GateConfig(limits=NO_DEFAULTS))
    assert decision.verdict is verdict
    assert 'nll minus that of "Baseline: true labels only" (baseline_hard_labels)' in decision.reasons[0]


def test_a_paired_difference_decides_where_there_is_one():
    """Two wide intervals that overlap do not hide a difference that the same documents show."""
    models = [model("student", 2.9, half=0.5), model("baseline_hard_labels", 3.0, half=0.5)]
    assert decide(report(*models), GateConfig(limits=NO_DEFAULTS)).verdict is Verdict.HOLD
    paired = Estimate(value=-0.1, low=-0.12, high=-0.08, n=50)
    assert (
        decide(report(*models, nll_minus_baseline_hard_labels=paired), GateConfig(limits=NO_DEFAULTS)).verdict
        is Verdict.PROMOTE
    )


def test_a_champion_that_is_nearer_the_teacher_keeps_its_place():
    """By default neither NLL nor KL may be worse than the champion's by more than a hundredth of a nat."""
    others = [model("teacher", 3.0), model("baseline_hard_labels", 4.0), model("champion", 3.1, kl_from_teacher=0.05)]
    decision = decide(report(model("student", 3.1, kl_from_teacher=0.2), *others), GateConfig())
    assert decision.verdict is Verdict.REJECT
    assert "kl_from_teacher minus the champion's" in decision.reasons[0]


def test_a_metric_at_a_bucket_of_positions_may_be_limited_against_another_model():
    """Its direction is the metric's own."""
    models = [
        model("teacher", 3.0),
        model("champion", 3.0, kl_from_teacher_at_0_15=0.5),
        model("student", 3.0, kl_from_teacher_at_0_15=0.2),
    ]
    gate = GateConfig(limits={**NO_DEFAULTS, "kl_from_teacher_at_0_15": Limit(margin=0.0)}, beat=())
    assert decide(report(*models), gate).verdict is Verdict.PROMOTE


def test_the_defaults_are_part_of_the_gate_s_fingerprint():
    """A default written out is the same gate; one without it is another."""
    written = GateConfig(limits={"ece": Limit(teacher_margin=0.02)})
    assert gate_fingerprint(GateConfig(), "causal_lm") == gate_fingerprint(written, "causal_lm")
    assert gate_fingerprint(GateConfig(), "causal_lm") != gate_fingerprint(GateConfig(limits=NO_DEFAULTS), "causal_lm")
    assert gate_fingerprint(GateConfig(), "causal_lm") != gate_fingerprint(GateConfig(), "text_classification")


def test_a_gap_is_best_at_0_and_cannot_be_held_against_another_model():
    """Gaps have no better side: a minimum and a maximum say what is meant."""
    judged = report(model("student", 3.0, entropy_gap=0.1), model("champion", 3.0, entropy_gap=0.1))
    both = GateConfig(limits={**NO_DEFAULTS, "entropy_gap": Limit(min=-0.2, max=0.2)}, beat=())
    assert decide(judged, both).verdict is Verdict.PROMOTE
    with pytest.raises(PromotionError, match="entropy_gap is best at 0: use min or max"):
        decide(judged, GateConfig(limits={"entropy_gap": Limit(margin=0.1)}, beat=()))


@pytest.mark.parametrize(
    ("name", "rule"), [("lm_eval_arith_acc", Limit(margin=0.0)), ("lm_eval_text_word_perplexity", Limit(margin=0.0))]
)
def test_a_benchmark_of_the_user_s_own_has_the_better_side_of_its_pattern(name, rule):
    """Names of benchmarks come from their files: more is better, except of perplexities and bits."""
    better, worse = (0.7, 0.6) if "acc" in name else (10.0, 11.0)
    limits = GateConfig(limits={**NO_DEFAULTS, name: rule}, beat=())
    judged = report(
        model("student", 3.0, half=0.0, **{name: better}), model("champion", 3.0, half=0.0, **{name: worse})
    )
    assert decide(judged, limits).verdict is Verdict.PROMOTE
    judged = report(
        model("student", 3.0, half=0.0, **{name: worse}), model("champion", 3.0, half=0.0, **{name: better})
    )
    assert decide(judged, limits).verdict is Verdict.REJECT
