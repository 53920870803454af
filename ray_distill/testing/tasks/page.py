"""Conformance of a task's review page: its words, tables and figures."""

from collections.abc import Mapping

import pyarrow as pa
from markupsafe import escape

from ray_distill.artifacts import Efficiency, EvalReport, LabelSetRef, SnapshotRef, StudentRef
from ray_distill.evaluation.report.assemble import Measured, judge
from ray_distill.evaluation.report.family_page import page_of
from ray_distill.evaluation.report.html import render_report, report_figures
from ray_distill.models.core.model import Model
from ray_distill.testing.tasks.case import TaskCase

#: What both models cost; pages show it, and nothing depends on it.
COSTS = Efficiency(
    parameters=1000, bytes_on_disk=4000, latency_ms_p50=1.0, latency_ms_p95=2.0, examples_per_second=100.0
)


def check_wording(case: TaskCase) -> None:
    """Require the page's words to be about metrics of the table, and captioned figures."""
    answers = case.task.answers
    report, _ = _report(case, {"teacher": case.teacher, "student": case.student})
    words, known = page_of(report).WORDING, {metric.name for metric in answers.metrics.metrics}
    shown = {*words.compared, *words.elsewhere, *(tile.metric for group in words.tiles for tile in group)}
    assert shown <= known, f"the page shows metrics that the table lacks: {sorted(shown - known)}"
    assert set(words.pair) <= words.captions.keys(), "figures without captions"


def check_page(case: TaskCase) -> None:
    """Require a page of a student with and without its teacher.

    It must show the heading of every metric that was measured, and the caption of every figure that was drawn.
    """
    for models in ({"student": case.student}, {"teacher": case.teacher, "student": case.student}):
        report, tables = _report(case, models)
        bins, words = case.config.evaluation.bins, page_of(report).WORDING
        drawn = report_figures(report, case.classes, tables, bins=bins)
        assert set(drawn) <= words.captions.keys(), (
            f"figures without captions: {sorted(set(drawn) - set(words.captions))}"
        )
        page = render_report(report, title="conformance", classes=case.classes, predictions=tables, bins=bins)
        captions = [words.captions[name] for name in drawn]
        metrics = [case.task.answers.metrics[name] for name in report.models["student"].metrics]
        for text in (*(metric.heading for metric in metrics), *captions):
            assert str(escape(text)) in page, f"the page of {', '.join(models)} does not show {text!r}"


def _report(case: TaskCase, models: Mapping[str, Model]) -> tuple[EvalReport, dict[str, pa.Table]]:
    """Return the report of some models, and the answers that it was made from."""
    tables = case.answers
    if "teacher" not in models:
        tables = case.task.answers.judge.answer(case.panel(reference=None, **models), case.counted)
    measured = {
        arm: Measured(url=f"memory:{arm}", predictions=table, efficiency=COSTS) for arm, table in tables.items()
    }
    report = judge(measured, task=case.config.task, student=_reference(), url="memory:report", how=case.how)
    return report, tables


def _reference() -> StudentRef:
    snapshot = SnapshotRef(url="memory:snapshot", fingerprint="snapshot")
    labels = LabelSetRef(store="memory:store", fingerprint="labels", snapshot=snapshot, log_length=1, log_digest="log")
    return StudentRef(url="memory:student", fingerprint="student", arm="student", labels=labels)
