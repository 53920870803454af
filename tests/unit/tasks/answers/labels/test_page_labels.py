"""The review page of multi-label models: quality by label, calibration of all decisions, and what was not measured."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy.special import expit

from ray_distill.artifacts import Efficiency, EvalReport, LabelSetRef, SnapshotRef, StudentRef, Verdict
from ray_distill.config import GateConfig
from ray_distill.evaluation.measures.intervals import Floats, Resampling
from ray_distill.evaluation.measures.robustness import measure_robustness
from ray_distill.evaluation.predict.rows import join_predictions
from ray_distill.evaluation.report.assemble import Measured, judge
from ray_distill.evaluation.report.html import render_report, report_figures
from ray_distill.promotion.gate import decide
from ray_distill.tasks.answers.labels import LABELS, page
from ray_distill.tasks.answers.labels.evaluation.measures import measure, read_scores
from ray_distill.tasks.answers.labels.sets import label_matrix, set_column
from ray_distill.testing.labels import row_id

NAMES = ["animals", "cars", "<b>space</b>", "politics", "a name that is rather longer than the others"]
HOW = Resampling(seed=0, bootstrap=100, bins=10)
SIGNALS = {"teacher": 4.0, "student": 3.0, "baseline_hard_labels": 1.5, "baseline_teacher_hard_labels": 2.5}
STUDENT = StudentRef(
    url="s3://runs/student",
    fingerprint="f" * 32,
    arm="student",
    labels=LabelSetRef(
        store="s3://labels",
        fingerprint="1" * 32,
        log_length=1,
        log_digest="d",
        snapshot=SnapshotRef(url="u", fingerprint="2" * 32),
    ),
)


def snapshot(rows: int, classes: int) -> pa.Table:
    rng = np.random.default_rng(0)
    truth = rng.random((rows, classes)) < np.linspace(0.05, 0.5, classes)
    return pa.table(
        {
            "row_id": pa.array([row_id(number) for number in range(rows)], pa.binary(16)),
            "label": set_column(truth),
            "count": pa.array([1] * rows, pa.int64()),
            "locale": rng.choice(["de", "en"], size=rows),
        }
    )


def answers(rows: pa.Table, signal: float, classes: int) -> pa.Table:
    """Return answers that are right to a degree, less so where rows are damaged."""
    truth = label_matrix(rows["label"], classes)
    noise = rows["noise"].to_numpy() if "noise" in rows.column_names else np.zeros(rows.num_rows)
    z: Floats = np.random.default_rng(1).normal(size=truth.shape) * 1.5 + np.maximum(signal - noise, 0)[:, None] * (
        truth - 0.6
    )
    thresholds = np.linspace(0.3, 0.6, classes)
    return pa.table(
        {
            "row_id": rows["row_id"],
            "log_odds": pa.array(list(z.astype(np.float32)), pa.list_(pa.float32())),
            "decided": set_column(expit(z) >= thresholds),
        },
        metadata={"thresholds": json.dumps(thresholds.tolist())},
    )


def damage(strength: float) -> Callable[[pa.Table, int, np.random.Generator], pa.Table]:
    def corrupt(rows: pa.Table, severity: int, generator: np.random.Generator) -> pa.Table:
        return rows.append_column("noise", pa.array(strength * severity * generator.random(rows.num_rows)))

    return corrupt


def measured(rows: pa.Table, arm: str, classes: int) -> Measured:
    own, teacher = (answers(rows, SIGNALS[name], classes) for name in (arm, "teacher"))
    size = 824_000 if arm == "teacher" else 10_234
    return Measured(
        url=arm,
        efficiency=Efficiency(
            parameters=size, bytes_on_disk=4 * size, latency_ms_p50=1.2, latency_ms_p95=2.0, examples_per_second=1e4
        ),
        robustness=measure_robustness(
            rows,
            {"typos": damage(1.0), "case": damage(2.0)},
            (1, 2, 3),
            answer=lambda table: {arm: join_predictions(table, answers(table, SIGNALS[arm], classes))},
            measure=measure,
            metrics=LABELS.robust,
            how=HOW,
        )[arm],
        predictions=join_predictions(rows, own, teacher=teacher, slices=("locale",)),
    )


def everything(rows: pa.Table, classes: int) -> tuple[EvalReport, dict[str, pa.Table]]:
    models = {arm: measured(rows, arm, classes) for arm in SIGNALS}
    report = judge(models, task="text_multi_label", student=STUDENT, url="r", how=HOW, slices=("locale",))
    return report, {"student": models["student"].predictions}


def render(report: EvalReport, predictions: dict[str, pa.Table], names: list[str]) -> str:
    return render_report(
        report, title="digests", classes=names, predictions=predictions, bins=10, decision=decide(report, GateConfig())
    )


@pytest.fixture(scope="module")
def full() -> tuple[EvalReport, dict[str, pa.Table]]:
    return everything(snapshot(400, len(NAMES)), len(NAMES))


def test_the_page_has_every_metric_and_a_line_a_label(full: tuple[EvalReport, dict[str, pa.Table]]) -> None:
    """Headings come from the metric table; names of labels are escaped; slices, damage and the verdict are there."""
    report, predictions = full
    html = render(report, predictions, NAMES)
    for metric in LABELS.metrics.metrics:
        assert f">{metric.heading}<" in html
    for text in (
        "<h2>Labels</h2>",
        "<h2>Decided sets</h2>",
        "Threshold",
        "locale=de",
        "&lt;b&gt;space",
        "0.600",
        "Same set as teacher",
        "typos",
    ):
        assert text in html, text
    assert "<b>space" not in html
    drawn = report_figures(report, NAMES, predictions, bins=10)
    assert set(drawn) == {"map", "labels", "reliability", "robustness"}
    assert {"map", "nll"} <= set(report.models["student"].robustness["typos"]["3"])


def test_the_gate_judges_by_precision_and_calibration(full: tuple[EvalReport, dict[str, pa.Table]]) -> None:
    """The default limits are on mAP against the teacher's and on ECE; the student beats the baseline on mAP."""
    decision = decide(full[0], GateConfig())
    assert any("mAP" in reason or "map" in reason for reason in decision.reasons), decision.reasons
    assert decision.verdict in Verdict


def test_figures_have_the_student_beside_its_teacher(full: tuple[EvalReport, dict[str, pa.Table]]) -> None:
    """One point a label of each; a label without rows has none."""
    scores = read_scores(full[1]["student"]).labelled
    (axes,) = page.precision_figure(scores, NAMES).axes
    teacher, student = (np.asarray(line.get_xdata(), float) for line in axes.lines)
    assert len(teacher) == len(student) == len(NAMES) and teacher.mean() > student.mean()
    claimed, found, share = page.reliability(scores, 10)
    assert np.corrcoef(claimed, found)[0, 1] > 0.9 and share.sum() == pytest.approx(1)


def test_thresholds_are_stored_with_the_predictions(
    full: tuple[EvalReport, dict[str, pa.Table]], tmp_path: Path
) -> None:
    """The page is drawn from a Parquet file when a student is promoted."""
    pq.write_table(full[1]["student"], tmp_path / "predictions.parquet")
    found = read_scores(pq.read_table(tmp_path / "predictions.parquet"))
    assert found.threshold_V == pytest.approx(np.linspace(0.3, 0.6, len(NAMES)))


def test_many_labels_still_make_a_readable_page() -> None:
    """The figure and the table show the labels with most rows, and the table says how many there are."""
    names = [f"label {number}" for number in range(130)]
    report, predictions = everything(snapshot(150, 130), 130)
    (axes,) = page.precision_figure(read_scores(predictions["student"]).labelled, names).axes
    assert len(axes.get_yticks()) == page.FIGURE_LABELS
    _, section = page.sections(report, predictions=predictions, names=names, bins=10)
    assert "100 labels with most rows, of 130" in section.explained and len(section.table["rows"]) == 100
    assert section.table["rows"][-1]["name"] == "label 129"


def test_a_page_without_true_labels_has_likeness_to_the_teacher_only() -> None:
    """No figure and no table that needs the truth, and a note that none is known."""
    rows = snapshot(50, 3)
    rows = rows.set_column(1, "label", pa.nulls(50, pa.list_(pa.int32())))
    report, predictions = everything(rows, 3)
    html = render(report, predictions, ["a", "b", "c"])
    assert "<h2>Labels</h2>" not in html and "Same set as teacher" in html
    assert "No row of the test split has a true label" in html
    assert set(report.models["student"].metrics) == {"agreement", "kl_from_teacher"}
