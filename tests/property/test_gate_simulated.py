"""How often the gate is wrong, by simulation: the paired intervals and its verdicts at small numbers of rows."""

import numpy as np
import pyarrow as pa
import pytest

from ray_distill.artifacts import Efficiency, EvalReport, LabelSetRef, ModelReport, SnapshotRef, StudentRef, Verdict
from ray_distill.config import GateConfig, Limit
from ray_distill.evaluation.measures.intervals import Resampling, paired_proportions, wilson
from ray_distill.promotion.gate import decide
from ray_distill.tasks.answers.classes.evaluation.measures import compare, measure

STUDENT = StudentRef(
    url="s",
    fingerprint="f",
    arm="student",
    labels=LabelSetRef(
        store="l", fingerprint="g", log_length=1, log_digest="d", snapshot=SnapshotRef(url="u", fingerprint="h")
    ),
)
COST = Efficiency(parameters=1, bytes_on_disk=1, latency_ms_p50=1, latency_ms_p95=1, examples_per_second=1)


def report(metrics, **comparisons):
    models = {arm: ModelReport(name=arm, url=arm, metrics=found, efficiency=COST) for arm, found in metrics.items()}
    return EvalReport(
        url="r", fingerprint="e", task="text_classification", student=STUDENT, models=models, comparisons=comparisons
    )


def verdicts_on_accuracy(rows, teacher, student, together, times, seed):
    """The share of each verdict for models of these true accuracies, both right with the probability ``together``."""
    generator, gate = np.random.default_rng(seed), GateConfig(limits={"accuracy": Limit(relative=0.97), "ece": None})
    gate = gate.model_copy(update={"beat": ()})
    cells = [together, teacher - together, student - together, 1 - teacher - student + together]
    weight_N, found = np.ones(rows), []
    for both, only_teacher, only_student, _ in generator.multinomial(rows, cells, size=times):
        teacher_N, student_N = np.zeros(rows), np.zeros(rows)
        teacher_N[: both + only_teacher] = 1
        student_N[:both] = 1
        student_N[both + only_teacher : both + only_teacher + only_student] = 1
        metrics = {
            arm: {"accuracy": wilson(float(right_N.mean()), weight_N)}
            for arm, right_N in (("teacher", teacher_N), ("student", student_N))
        }
        paired = paired_proportions(student_N, teacher_N, weight_N)
        found.append(decide(report(metrics, accuracy_minus_teacher=paired), gate).verdict)
    return {verdict: found.count(verdict) / times for verdict in Verdict}


@pytest.mark.parametrize("rows", [60, 200, 1000])
def test_a_student_on_the_limit_is_rarely_promoted_and_rarely_rejected(rows: int) -> None:
    """At exactly 0.97 of the teacher's accuracy either error has at most about 2.5 %, whatever the number of rows."""
    share = verdicts_on_accuracy(rows, teacher=0.9, student=0.873, together=0.84, times=400, seed=1)
    assert share[Verdict.PROMOTE] <= 0.05 and share[Verdict.REJECT] <= 0.05


def test_few_rows_hold_what_many_rows_decide() -> None:
    """A student as good as its teacher is held on 60 rows, promoted on 2,000; one 8 points below is rejected there."""
    good, bad = {"student": 0.9, "together": 0.86}, {"student": 0.82, "together": 0.79}
    few, many = (verdicts_on_accuracy(n, teacher=0.9, times=100, seed=2, **good) for n in (60, 2000))
    assert few[Verdict.HOLD] > 0.7 and few[Verdict.REJECT] < 0.03 and many[Verdict.PROMOTE] > 0.95
    few, many = (verdicts_on_accuracy(n, teacher=0.9, times=100, seed=3, **bad) for n in (60, 2000))
    assert few[Verdict.PROMOTE] == 0 and many[Verdict.REJECT] > 0.95


def answers(odds_N, label_N):
    """A table of answers of two classes with these log-odds."""
    logp_N2 = -np.logaddexp(0, np.stack([odds_N, -odds_N], axis=1))
    return pa.table(
        {
            "row_id": pa.array([at.to_bytes(16, "big") for at in range(len(odds_N))], pa.binary(16)),
            "count": pa.array(np.ones(len(odds_N), np.int64)),
            "label": pa.array(label_N),
            "logp": pa.array(logp_N2.tolist(), pa.list_(pa.float64())),
        }
    )


#: True calibration error of a model whose log-odds are 1.42 times the true ones, of which the spread is 2.
OVERCONFIDENT, TRUE_ECE = 1.42, 0.05


@pytest.mark.parametrize("rows", [60, 200])
def test_noise_in_a_calibrated_teacher_promotes_no_overconfident_student(rows: int) -> None:
    """The teacher is calibrated, so all of its ECE is noise; the student is over the margin by a hair.

    The plain difference of both estimates is far below 0.05: with an interval around it, every third one passed.
    """
    generator, how, times = np.random.default_rng(5), Resampling(seed=1, bootstrap=100), 60
    gate = GateConfig(limits={"accuracy": None}, beat=())
    covered, promoted, calibrated = 0, 0, 0
    for _ in range(times):
        odds_N = generator.normal(0, 2, rows)
        label_N = (generator.random(rows) < 1 / (1 + np.exp(-odds_N))).astype(np.int64)
        teacher, student = answers(odds_N, label_N), answers(OVERCONFIDENT * odds_N, label_N)
        paired = compare(student, teacher, how)["ece"]
        metrics = {
            arm: {"ece": measure(table, how)["ece"]} for arm, table in (("student", student), ("teacher", teacher))
        }
        promoted += decide(report(metrics, ece_minus_teacher=paired), gate).verdict is Verdict.PROMOTE
        covered += paired.low <= TRUE_ECE <= paired.high
        calibrated += metrics["teacher"]["ece"].low <= 0.005
    assert covered >= 0.9 * times and promoted <= 0.1 * times
    assert calibrated >= 0.85 * times, "a calibrated model's interval reaches down to 0"
