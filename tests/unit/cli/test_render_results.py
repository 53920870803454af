"""Results at a terminal: the models side by side by what their task is judged by."""

import pytest

from ray_distill.artifacts import Efficiency, Estimate, EvalReport, LabelSetRef, ModelReport, SnapshotRef, StudentRef
from ray_distill.cli.render_results import show_report, show_sweep
from ray_distill.evaluation.sweep.compare import SweepResult, TrialResult
from ray_distill.tasks.catalogue import get_task

STUDENT = StudentRef(
    url="s",
    fingerprint="f",
    arm="student",
    labels=LabelSetRef(
        store="l", fingerprint="g", log_length=1, log_digest="d", snapshot=SnapshotRef(url="u", fingerprint="h")
    ),
)


def report(task, **metrics):
    cost = Efficiency(
        parameters=1_234_567, bytes_on_disk=4_938_268, latency_ms_p50=1.5, latency_ms_p95=2.5, examples_per_second=640
    )
    measured = {
        name: Estimate(value=value, low=value - 0.01, high=value + 0.01, n=99) for name, value in metrics.items()
    }
    models = {arm: ModelReport(name=arm, url=arm, metrics=measured, efficiency=cost) for arm in ("teacher", "student")}
    return EvalReport(url="r", fingerprint="e", task=task, student=STUDENT, models=models)


@pytest.mark.parametrize("task", ["causal_lm", "seq2seq"])
def test_language_models_are_shown_by_their_nll(task):
    """NLL, which decides their gate, comes first with its interval, then KL; the costs follow, tokens a second too."""
    text = show_report(
        report(task, nll=2.5, kl_from_teacher=0.25, ece=0.04, agreement=0.7, perplexity=12.2, tokens_per_second=9876.5)
    )
    heading, *rows = [line for line in text.splitlines() if line.strip()]
    assert heading.split("  ")[0] == "" and heading.index("NLL, nats (95 % interval)") < heading.index("KL, nats")
    assert "documents/s" in heading and "Tokens/s" in heading
    student = next(row for row in rows if row.startswith("Student"))
    assert "2.5000 [2.4900, 2.5100]" in student and "0.2500" in student and "9,876" in student and "4.94" in student


def test_classifiers_are_shown_by_their_accuracy():
    """Accuracy with its interval first; a metric that was not measured is a dash."""
    text = show_report(report("image_classification", accuracy=0.9, ece=0.04))
    heading, *rows = [line for line in text.splitlines() if line.strip()]
    assert "Accuracy (95 % interval)" in heading and "Macro-F1" in heading and "NLL" not in heading
    assert "0.9000 [0.8900, 0.9100]" in rows[-1] and "–" in rows[-1].split() and "1,234,567" in rows[-1]


@pytest.mark.parametrize("task", ["text_classification", "causal_lm"])
def test_every_brief_metric_has_a_column(task):
    """The terminal reads the task's table, so that a metric added there is shown."""
    heading = show_report(report(task)).splitlines()[0]
    assert all(metric.short in heading for metric in get_task(task).answers.brief)


def test_no_command_opens_runs_that_were_not_recorded():
    """Where tracking is off, the terminal states it in place of the tracking UI's command."""
    trial = TrialResult(number=1, name="one", verdict="finished", changes={}, metrics={"validation_nll": 0.5})
    sweep = SweepResult(
        url="u", objective="validation_nll", more_is_better=False, trials=(trial,), best=1, validation_rows=9
    )
    off = show_sweep(sweep.with_changes(tracking_uri="none", review="none"))
    assert off.endswith("review    nothing was recorded, because tracking is off")
    on = show_sweep(sweep.with_changes(tracking_uri="http://mlflow", review="http://mlflow/#/7"))
    assert on.endswith("review    python -m webbrowser http://mlflow\n          then http://mlflow/#/7")
