"""The report: all models on the same rows, paired differences, plain-spoken notes, slices, robustness."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from ray_distill.artifacts import Efficiency, EvalReport, LabelSetRef, SnapshotRef, StudentRef
from ray_distill.errors import EvaluationError
from ray_distill.evaluation.measures.intervals import Resampling
from ray_distill.evaluation.measures.robustness import corrupted_views, measure_robustness
from ray_distill.evaluation.predict.rows import join_predictions
from ray_distill.evaluation.report.assemble import Measured, judge, unsteady_arms
from ray_distill.tasks.answers.classes import CLASSES
from ray_distill.tasks.answers.classes.evaluation.measures import measure

STUDENT = StudentRef(
    url="s",
    fingerprint="f",
    arm="student",
    labels=LabelSetRef(
        store="l", fingerprint="g", log_length=1, log_digest="d", snapshot=SnapshotRef(url="u", fingerprint="h")
    ),
)
EFFICIENCY = Efficiency(parameters=1, bytes_on_disk=4, latency_ms_p50=1, latency_ms_p95=2, examples_per_second=9)
RESAMPLING = Resampling(seed=0, bootstrap=100, bins=10)


def log_softmax(logits):
    return logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)


def snapshot(n=300, seed=0):
    rng = np.random.default_rng(seed)
    return pa.table(
        {
            "row_id": pa.array([i.to_bytes(16, "big") for i in range(n)], pa.binary(16)),
            "text": [f"row {i}" for i in range(n)],
            "label": pa.array(rng.integers(3, size=n), pa.int32()),
            "count": pa.array(rng.integers(1, 3, size=n), pa.int64()),
            "locale": ([None] * 20 + ["de"] * 40 + ["en"] * n)[:n],
        }
    )


def answers(rows, signal, seed=1):
    labels = rows["label"].to_numpy()
    strength = np.full(len(labels), float(signal)) if np.isscalar(signal) else signal
    logits = np.random.default_rng(seed).normal(size=(len(labels), 3)) + strength[:, None] * np.eye(3)[labels]
    logp = pa.array(list(log_softmax(logits).astype(np.float32)), pa.list_(pa.float32()))
    return pa.table({"row_id": rows["row_id"], "logp": logp})


def judged(rows, slices=(), **signals):
    teacher = answers(rows, signals["teacher"])
    models = {
        arm: Measured(
            url=arm,
            efficiency=EFFICIENCY,
            predictions=join_predictions(rows, answers(rows, signal), teacher=teacher, slices=slices),
        )
        for arm, signal in signals.items()
    }
    return judge(models, task="text_classification", student=STUDENT, url="r", how=RESAMPLING, slices=slices)


def test_the_report_holds_every_arm_and_its_paired_differences():
    """Differences are student minus arm; likeness to the teacher is not compared with the teacher itself."""
    report = judged(snapshot(), teacher=3.0, student=2.0, baseline_hard_labels=1.0)
    assert set(report.models) == {"teacher", "student", "baseline_hard_labels"}
    assert report.comparisons["accuracy_minus_teacher"].high < 0
    assert report.comparisons["accuracy_minus_baseline_hard_labels"].low > 0
    assert "agreement_minus_baseline_hard_labels" in report.comparisons
    assert "agreement_minus_teacher" not in report.comparisons
    assert report.models["teacher"].metrics["agreement"].value == 1
    assert EvalReport.from_json(report.to_json()) == report


@pytest.mark.parametrize(
    ("student", "hard", "words"),
    [
        (2.0, 2.0, "Soft labels did not beat hard teacher labels"),
        (1.0, 2.0, "Soft labels did worse than hard"),
        (2.0, 1.0, "Soft labels beat hard"),
    ],
)
def test_notes_say_whether_soft_labels_earned_their_place(student, hard, words):
    """An interval that holds 0 is 'did not beat', said plainly."""
    report = judged(snapshot(), teacher=3.0, student=student, baseline_teacher_hard_labels=hard)
    assert any(note.startswith(words) for note in report.notes)


def test_notes_name_weak_slices_small_splits_and_missing_labels():
    """A slice far below the whole, few rows, and no labels at all are each said."""
    rows = snapshot()
    weak = np.where(np.array(rows["locale"].to_pylist()) == "de", -3.0, 3.0)
    notes = judged(rows, slices=("locale",), teacher=3.0, student=weak).notes
    assert any("weaker on locale=de (40 rows)" in note for note in notes)
    assert any("Only 50 labelled rows" in note for note in judged(snapshot(50), teacher=3.0, student=2.0).notes)
    bare = rows.drop_columns("label")
    teacher = answers(rows, 1.0)
    same = Measured(url="m", efficiency=EFFICIENCY, predictions=join_predictions(bare, teacher, teacher=teacher))
    models = {"teacher": same, "student": same}
    report = judge(models, task="text_classification", student=STUDENT, url="r", how=RESAMPLING)
    assert any("No row of the test split has a true label" in note for note in report.notes)


def test_slices_need_thirty_rows():
    """Slices of 240 and 40 rows are reported, that of 20 is not."""
    report = judged(snapshot(), slices=("locale",), teacher=3.0, student=2.0)
    assert list(report.models["student"].slices) == ["locale=en", "locale=de"]
    assert report.models["student"].slices["locale=de"]["accuracy"].n == 40


def test_the_fingerprint_is_of_the_content():
    """Equal content gives an equal fingerprint, other predictions another one."""
    first, second = (judged(snapshot(), teacher=3.0, student=2.0) for _ in range(2))
    assert first.fingerprint == second.fingerprint
    assert first.fingerprint != judged(snapshot(), teacher=3.0, student=2.1).fingerprint


def test_a_report_needs_a_student():
    """Without a student there is nothing to judge."""
    with pytest.raises(EvaluationError, match="no student"):
        judged(snapshot(), teacher=3.0)


def shuffle_label(rows, severity, generator):
    """A corruption that leaves the signal to chance with the severity."""
    noise = pa.array(generator.normal(size=rows.num_rows) * severity)
    return rows.append_column("noise", noise)


def noisy_answers(rows):
    found = answers(rows, 3.0 - 1.2 * np.abs(rows["noise"].to_numpy()))
    return {"student": join_predictions(rows, found)}


def test_robustness_falls_with_severity_and_is_reproducible():
    """Accuracy and NLL by corruption and severity; the same seed damages the same rows alike."""
    rows = snapshot()
    options = {
        "answer": noisy_answers,
        "measure": measure,
        "how": replace(RESAMPLING, seed=4),
        "metrics": CLASSES.robust,
    }
    found = measure_robustness(rows, {"noise": shuffle_label}, (1, 3), **options)["student"]
    assert {name: set(found[name]) for name in found} == {"noise": {"1", "3"}}
    assert set(found["noise"]["1"]) == {"accuracy", "nll"}
    assert found["noise"]["1"]["accuracy"].value > found["noise"]["3"]["accuracy"].value
    assert found == measure_robustness(rows, {"noise": shuffle_label}, (1, 3), **options)["student"]


def test_damage_depends_on_rows_kind_severity_and_seed_only():
    """Another seed is other damage; adding a second corruption leaves the first as it was."""
    rows = snapshot(20)

    def noise(seed, names=("a",)):
        views = corrupted_views(rows, dict.fromkeys(names, shuffle_label), (1, 2), seed=seed)
        return {(name, severity): table["noise"].to_pylist() for name, severity, table in views}

    assert noise(0)["a", 1] == noise(0, ("a", "b"))["a", 1] != noise(1)["a", 1]
    assert noise(0, ("a", "b"))["a", 1] != noise(0, ("a", "b"))["b", 1]


def test_a_corruption_may_not_lose_rows():
    """Dropped rows would change what is compared."""
    with pytest.raises(EvaluationError, match="cut must keep rows"):
        list(corrupted_views(snapshot(5), {"cut": lambda rows, *_: rows.slice(1)}, (1,), seed=0))


def test_latencies_of_a_busy_machine_are_named():
    """The note has the spread and the limit; a report on an idle machine has no such note."""
    busy = EFFICIENCY.with_changes(latency_spread=0.6)
    rows = snapshot()
    teacher = answers(rows, 3.0)
    models = {
        arm: Measured(url=arm, efficiency=cost, predictions=join_predictions(rows, teacher, teacher=teacher))
        for arm, cost in (("teacher", EFFICIENCY), ("student", busy))
    }
    report = judge(models, task="text_classification", student=STUDENT, url="r", how=RESAMPLING)
    (note,) = [note for note in report.notes if "busy machine" in note]
    assert "those of the student by 60% between their quartiles (at most 25% on an idle one)" in note
    assert unsteady_arms(report) == ["student"]
    assert not any("busy" in note for note in judged(rows, teacher=3.0, student=2.0).notes)
