"""Findings about a training and the settings that would change them: provoked, and absent in a healthy run."""

import math
from collections.abc import Callable

import pytest

from ray_distill.artifacts import Efficiency, Estimate, EvalReport, LabelSetRef, ModelReport, SnapshotRef, StudentRef
from ray_distill.evaluation.report.diagnosis import ArmCurve, diagnose

STEPS, PASSES = 100, 20


def curve(
    validation: Callable[[int], float],
    training: Callable[[int], float] = lambda step: 2 / step,
    *,
    arm: str = "student",
    rows: int = 5_000,
    decay_from: int = STEPS,
    best_step: int = STEPS,
) -> ArmCurve:
    """A hundred steps of two seconds, validated every five."""
    steps = {
        step: {"loss": training(step), "seconds_step": 2.0}
        | ({"validation_nll": validation(step), "validation_accuracy": 0.5} if step % 5 == 0 else {})
        for step in range(1, STEPS + 1)
    }
    facts = {
        "training_rows": rows,
        "steps": STEPS,
        "most_steps": STEPS,
        "decay_from": decay_from,
        "best_step": best_step,
        "passes": PASSES,
    }
    return ArmCurve(arm=arm, facts=facts, steps=steps)


def report(behind: float = 0.0) -> EvalReport:
    """A student whose accuracy is behind its teacher's by so much, give or take 0.01."""
    ref = StudentRef(
        url="u",
        fingerprint="f",
        arm="student",
        labels=LabelSetRef(
            store="", fingerprint="", log_length=0, log_digest="", snapshot=SnapshotRef(url="", fingerprint="")
        ),
    )
    return EvalReport(
        url="",
        fingerprint="",
        task="text_classification",
        student=ref,
        models={},
        comparisons={"accuracy_minus_teacher": Estimate(value=-behind, low=-behind - 0.01, high=0.01 - behind, n=100)},
    )


def flat(step: int) -> float:
    """Falls for a third of the steps, then stays."""
    return 0.5 + max(0.0, 1 - step / 30)


def found(*curves: ArmCurve, behind: float = 0.0, open_end: bool = True) -> list[str]:
    return diagnose(report(behind), curves, open_end=open_end)


def test_a_healthy_training_has_no_findings() -> None:
    """It has converged, learns from enough rows, and is as good as its teacher."""
    healthy = [curve(flat, arm=arm) for arm in ("student", "baseline_hard_labels", "baseline_teacher_hard_labels")]
    assert found(*healthy) == found(*healthy, open_end=False) == []
    assert found() == found(ArmCurve(arm="student", facts={}, steps={})) == []


@pytest.mark.parametrize(("open_end", "setting"), [(True, "budget (passes, examples)"), (False, "epochs")])
def test_a_student_that_still_improves_is_named_with_the_cost_of_more(open_end: bool, setting: str) -> None:
    """Its loss falls by a third in the last third of the steps: twice of them take 200 s more."""
    falls = 80 if open_end else STEPS
    (note,) = found(curve(lambda step: 100 / step, decay_from=falls), open_end=open_end)
    assert note.startswith("Validation losses still fell in the last third of 20 passes: the student (3")
    assert f"Raise student.training.{setting}: twice the steps take about 3 min 20 s more for each arm." in note


def test_a_run_that_reached_a_plateau_does_not_still_improve() -> None:
    """The fall of the rate always gains something; the training had stopped improving before it."""
    whole = curve(lambda step: 1.0 if step <= 80 else 0.5, decay_from=80)
    ended = ArmCurve(arm="student", facts={**whole.facts, "most_steps": 4 * STEPS}, steps=whole.steps)
    assert found(ended) == []
    assert found(whole) == [], "at its most steps, those at the full rate count"


def test_a_verdict_over_arms_that_have_not_all_converged_is_named() -> None:
    """One of two baselines still improves; where all do, the arms are alike."""
    slow = curve(lambda step: 100 / step, arm="baseline_teacher_hard_labels")
    (note,) = found(curve(flat), slow, open_end=False)
    assert "the baseline on the teacher's hard labels (3" in note
    assert "the verdict compares arms of which not all have converged" in note
    assert "converged" not in found(slow, open_end=False)[0]


def test_a_falling_rate_alone_is_no_sign_of_too_few_steps() -> None:
    """Epochs end with a fall of the rate, which gains a tenth here; and two validations are too few to compare."""
    assert found(curve(lambda step: 3.5 if step == 5 else 1.0 if step <= 60 else 0.9), open_end=False) == []
    few = {step: values for step, values in curve(lambda step: 100 / step).steps.items() if step % 25 == 0}
    assert found(ArmCurve(arm="student", facts=curve(flat).facts, steps=few), open_end=False) == []


@pytest.mark.parametrize("falls", [80, STEPS])
def test_a_loss_near_zero_that_halves_is_no_sign_of_too_few_steps(falls: int) -> None:
    """It fell from 2.5 to 0.03 and then to 0.015: six thousandths of what was learned."""
    small = curve(lambda step: 2.5 if step == 5 else 0.03 if step <= 53 else 0.015, decay_from=falls)
    assert found(small, open_end=falls < STEPS) == []


def test_a_training_of_a_few_epochs_is_unfinished_and_not_small() -> None:
    """Digits in three epochs: the falling rate gains a twentieth of the loss, a tenth of all that was learned."""
    losses = {5: 2.09, 20: 1.74, 40: 1.47, 65: 1.35, 80: 1.29}
    short = curve(
        lambda step: [loss for first, loss in losses.items() if step >= first][-1],
        training=lambda step: 1.0 if step <= 5 else 0.8,
    )
    (note,) = found(short, behind=0.1, open_end=False)
    assert "the student (4% of its loss)" in note and "Raise student.training.epochs" in note


def test_over_fitting_is_named_with_the_step_it_began_at() -> None:
    """The validation loss rises from step 30 on while the training loss falls."""

    def rising(step: int) -> float:
        return 0.5 + abs(step - 30) / 100

    (note,) = found(curve(rising, best_step=30))
    assert "The student over-fits since step 30 of 100: its validation loss rose from 0.5 to 1.2" in note
    assert "student.training.weight_decay" in note
    assert found(curve(rising, training=lambda step: 1.0, best_step=30)) == []
    assert found(curve(rising, best_step=STEPS)) == [], "one lucky loss is no over-fitting: later weights are exported"


def test_few_rows_are_named() -> None:
    """More inputs need no labels."""
    (note,) = found(curve(flat, rows=200))
    assert "The student was trained on 200 rows, each 20 times: more inputs without labels in snapshot.source" in note


def test_a_student_that_is_too_small_is_named_only_if_it_is_behind() -> None:
    """Its training loss stays at 80 % of that of the first pass, and it has stopped improving."""
    small = curve(flat, training=lambda step: 1.0 if step <= 5 else 0.8)
    (note,) = found(small, behind=0.1)
    assert "its training loss stays at 80% of that of its first pass" in note and "A larger student.model" in note
    assert found(small, behind=0.0) == found(curve(flat), behind=0.1) == []


def test_a_loss_that_is_no_number_is_no_finding() -> None:
    """Curves of an older form have no seconds and no losses."""
    bare = {step: {"validation_kl": 1.0, "loss": math.nan} for step in range(1, 10)}
    assert found(ArmCurve(arm="student", facts={"training_rows": 900, "steps": 9, "passes": 1}, steps=bare)) == []


def behind(arm: str, *, temperature: float = 1.0, entropy: float = 0.3, slow: bool = False, **accuracy: float) -> str:
    """The finding about a student that is 0.05 behind an arm, of models with these accuracies."""
    difference = Estimate(value=-0.05, low=-0.08, high=-0.02, n=100)
    models = {
        name: ModelReport(
            name=name,
            url="",
            metrics={"accuracy": Estimate(value=value, low=value - 0.01, high=value + 0.01, n=100)},
            efficiency=Efficiency(
                parameters=1, bytes_on_disk=1, latency_ms_p50=1, latency_ms_p95=1, examples_per_second=1
            ),
        )
        for name, value in accuracy.items()
    }
    made = report().with_changes(comparisons={f"accuracy_minus_{arm}": difference}, models=models)
    trained = curve((lambda step: 100 / step) if slow else flat)
    losses = {"losses": {"soft": {"temperature": temperature}}}
    trained = ArmCurve(arm="student", facts={**trained.facts, **losses}, steps=trained.steps)
    return diagnose(made, [trained], open_end=False, teacher_entropy=entropy)[-1]


def test_why_soft_labels_taught_less_is_named() -> None:
    """Arms that have not converged come first, then an almost one-hot teacher, then the temperature."""
    arm = "baseline_teacher_hard_labels"
    assert "not all arms have converged" in behind(arm, slow=True, entropy=0.01)
    assert "(1.0% of the greatest entropy), so that they add little at temperature 1: a higher" in behind(
        arm, entropy=0.01
    )
    assert "a lower one may do better" in behind(arm, temperature=8)
    assert "may be wrong where its choices are right" in behind(arm)
    assert "may be wrong" in behind(arm, entropy=math.nan), "an entropy that is not known is not small"


def test_why_true_labels_taught_more_is_named() -> None:
    """A teacher below its baseline is no teacher; above it, true labels should count more."""
    arm = "baseline_hard_labels"
    weak = behind(arm, teacher=0.7, baseline_hard_labels=0.8)
    assert "worse than the student that they made (accuracy 0.700 against 0.800): use a better teacher" in weak
    assert "raise student.losses.hard.weight" in behind(arm, teacher=0.9, baseline_hard_labels=0.8)


@pytest.mark.parametrize("arm", ["baseline_hard_labels", "baseline_teacher_hard_labels"])
def test_a_difference_that_chance_explains_is_not_explained(arm: str) -> None:
    """Its interval contains 0."""
    close = Estimate(value=-0.01, low=-0.03, high=0.01, n=100)
    made = report().with_changes(comparisons={f"accuracy_minus_{arm}": close})
    assert diagnose(made, [curve(flat)], open_end=True, teacher_entropy=0.01) == []
