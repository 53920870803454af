"""The review page: self-contained, escaped, complete, and silent about what was not measured."""

import re
from html.parser import HTMLParser

import numpy as np
import pyarrow as pa
import pytest

from ray_distill.artifacts import Calibration, Decision, Efficiency, LabelSetRef, SnapshotRef, StudentRef, Verdict
from ray_distill.config import CostConfig, DriftConfig, GateConfig
from ray_distill.evaluation.measures.cost import cost_report, stage_cost
from ray_distill.evaluation.measures.drift import DriftSample, compare
from ray_distill.evaluation.measures.intervals import Resampling
from ray_distill.evaluation.measures.robustness import measure_robustness
from ray_distill.evaluation.predict.rows import join_predictions
from ray_distill.evaluation.report import plots
from ray_distill.evaluation.report.assemble import Measured, judge
from ray_distill.evaluation.report.html import _cost_table, render_report, report_figures
from ray_distill.promotion.gate import decide
from ray_distill.tasks.answers.classes import CLASSES
from ray_distill.tasks.answers.classes.evaluation.measures import measure

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
RESAMPLING = Resampling(seed=0, bootstrap=100, bins=10)
SIGNALS = {"teacher": 6.0, "student": 5.2, "baseline_hard_labels": 3.2, "baseline_teacher_hard_labels": 4.8}


def log_softmax(logits):
    return logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)


def snapshot(n, classes):
    rng = np.random.default_rng(0)
    return pa.table(
        {
            "row_id": pa.array([i.to_bytes(16, "big") for i in range(n)], pa.binary(16)),
            "label": pa.array(rng.integers(classes, size=n), pa.int32()),
            "count": pa.array([1] * n, pa.int64()),
            "locale": rng.choice(["de", "en", "fr"], size=n),
        }
    )


def answers(rows, signal, classes):
    labels = rows["label"].to_numpy()
    noise = rows["noise"].to_numpy() if "noise" in rows.column_names else 0.0
    logits = np.random.default_rng(1).normal(size=(len(labels), classes))
    logits += (
        np.maximum(signal - noise, 0)[..., None] * np.eye(classes)[labels]
        if np.ndim(noise)
        else (signal * np.eye(classes)[labels])
    )
    logp = pa.array(list(log_softmax(logits).astype(np.float32)), pa.list_(pa.float32()))
    return pa.table({"row_id": rows["row_id"], "logp": logp})


def damage(strength):
    def corrupt(rows, severity, generator):
        return rows.append_column("noise", pa.array(strength * severity * generator.random(rows.num_rows)))

    return corrupt


def measured(rows, arm, signal, classes, robust):
    teacher = answers(rows, SIGNALS["teacher"], classes)
    size = 824_000 if arm == "teacher" else 10_234
    efficiency = Efficiency(
        parameters=size,
        bytes_on_disk=4 * size,
        latency_ms_p50=size / 4e5 + 0.2,
        latency_ms_p95=size / 3e5 + 0.3,
        examples_per_second=4e9 / (size + 1e5),
    )
    robustness = (
        measure_robustness(
            rows,
            {"blur": damage(1.0), "noise": damage(2.0), "shift": damage(0.5)},
            (1, 2, 3),
            answer=lambda table: {arm: join_predictions(table, answers(table, signal, classes))},
            measure=measure,
            metrics=CLASSES.robust,
            how=RESAMPLING,
        )[arm]
        if robust
        else {}
    )
    return Measured(
        url=arm,
        efficiency=efficiency,
        robustness=robustness,
        predictions=join_predictions(rows, answers(rows, signal, classes), teacher=teacher, slices=("locale",)),
    )


def everything(n=400, classes=10, robust=True):
    """A whole page's input: report, predictions and all extras."""
    rows = snapshot(n, classes)
    models = {arm: measured(rows, arm, signal, classes, robust) for arm, signal in SIGNALS.items()}
    report = judge(models, task="text_classification", student=STUDENT, url="r", how=RESAMPLING, slices=("locale",))
    return report, {arm: model.predictions for arm, model in models.items()}


def extras(report):
    rng = np.random.default_rng(0)
    samples = [
        DriftSample(
            class_probs=rng.dirichlet(np.ones(4), size=100),
            embeddings=None,
            stats={"characters": rng.normal(size=100)},
            count=np.ones(100, dtype=np.int64),
        )
        for _ in range(2)
    ]
    prices = CostConfig()
    stages = [
        stage_cost(name, seconds, cores=2, accelerators=0, bytes_written=12_345_678, prices=prices)
        for name, seconds in (("snapshot", 3.2), ("label", 41.0), ("train", 95.5), ("evaluate", 12.0))
    ]
    rates = {arm: model.efficiency.examples_per_second for arm, model in report.models.items()}
    history = {
        arm: [(step, 2.3 * np.exp(-step / 150) + 0.2 + 0.1 * i) for step in range(0, 600, 20)]
        for i, arm in enumerate(a for a in report.models if a != "teacher")
    }
    return {
        "decision": decide(report, GateConfig()),
        "drift": compare(*samples, DriftConfig(), 0),
        "history": history,
        "cost": cost_report(stages, rates, cores=2, accelerators=0, prices=prices),
        "provenance": {"config": "3" * 32, "teacher": "4" * 32},
    }


class Page(HTMLParser):
    """Collects what a browser would fetch or run, and the headings."""

    def __init__(self):
        super().__init__()
        self.tags, self.links, self.headings, self.handlers = set(), [], [], []
        self._heading = False

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self._heading = tag == "h2"
        for name, value in attrs:
            if name in ("src", "href", "xlink:href", "data", "action"):
                self.links.append(value)
            if name.startswith("on"):
                self.handlers.append(name)

    def handle_data(self, data):
        if self._heading:
            self.headings.append(data)
            self._heading = False


def page_of(html):
    page = Page()
    page.feed(html)
    return page


@pytest.fixture(scope="module")
def full():
    report, predictions = everything()
    html = render_report(
        report, title="digits", classes=[str(i) for i in range(10)], predictions=predictions, bins=10, **extras(report)
    )
    return report, predictions, html


def test_the_page_is_self_contained(full):
    """No script, no handler, nothing fetched: every link stays on the page."""
    page = page_of(full[2])
    assert not page.tags & {"script", "link", "iframe", "object", "img"} and not page.handlers
    assert all(link.startswith("#") for link in page.links)
    assert not re.search(r"url\((?!['\"]?#)", full[2]) and "@import" not in full[2]


def test_the_page_shows_everything(full):
    """Every section, the verdict with its reasons, headline figures, intervals, and fingerprints."""
    report, _, html = full
    assert page_of(html).headings == [
        "What to notice",
        "Quality",
        "Differences on the same rows",
        "Classes, worst first",
        "Size and speed",
        "Errors and calibration",
        "Robustness",
        "Slices",
        "Training",
        "Drift",
        "Cost",
        "Provenance",
    ]
    accuracy = report.models["student"].metrics["accuracy"]
    for text in (
        f"{accuracy.value:.3f}",
        f"{accuracy.low:.3f} … {accuracy.high:.3f}",
        "10,234",
        "80.5× smaller",
        report.fingerprint,
        "f" * 32,
        "3" * 32,
        "recommendation",
        "The campaign pays for itself after",
    ):
        assert text in html
    assert html.count("<figure") == 5


def test_the_same_report_gives_the_same_page(full):
    """Nothing of the clock or of chance is in it."""
    report, predictions, html = full
    assert html == render_report(
        report, title="digits", classes=[str(i) for i in range(10)], predictions=predictions, bins=10, **extras(report)
    )


def test_text_from_outside_is_escaped():
    """Titles, class names in any script, slice values, reasons and facts cannot become markup or formulas."""
    report, predictions = everything(n=60, classes=3, robust=False)
    evil = "<script>alert('$x$')</script>-->"
    decision = Decision(verdict=Verdict.REJECT, reasons=(evil,), student=STUDENT, report_fingerprint="e")
    html = render_report(
        report,
        title=evil,
        classes=[evil, "雪", "$1 & co"],
        predictions=predictions,
        bins=5,
        decision=decision,
        provenance={evil: evil},
    )
    page = page_of(html)
    assert "script" not in page.tags and html.count("&lt;script&gt;") >= 5
    assert "雪" in html and "$1 &amp; co" in html and "<!--" not in html


def test_temperatures_stand_on_the_page():
    """One line an arm, with figures before and after; a remark only where there is one; further notes at the end."""
    report, predictions = everything(n=60, classes=3, robust=False)
    fitted = Calibration(
        temperature=1.37,
        where="head",
        against="true labels",
        rows=160,
        nll_before=0.5012,
        nll_after=0.4101,
        ece_before=0.2034,
        ece_after=0.0456,
    )
    kept = Calibration(temperature=1.0, reason="the calibration split has <few> rows")
    shown = {"student": fitted, "baseline_hard_labels": kept}
    about = {"title": "t", "classes": list("abc"), "predictions": predictions, "bins": 5}
    html = render_report(report, **about, calibrations=shown, more_notes=["Over-compression: so it is."])
    assert "Temperatures" in page_of(html).headings and "Remark" in html
    assert all(text in html for text in ("1.37", "0.2034", "0.0456", "0.5012", "0.4101", "160", "&lt;few&gt;"))
    assert html.index("Over-compression: so it is.") < html.index("<h2>Quality")
    assert "Remark" not in render_report(report, **about, calibrations={"student": fitted})
    assert "Temperatures" not in render_report(report, **about)


def test_what_was_not_measured_has_no_section():
    """Without labels, drift, cost, history and verdict the page is shorter, not broken."""
    rows = snapshot(60, 3).drop_columns("label")
    logp = answers(snapshot(60, 3), 3.0, 3)
    model = Measured(
        url="m",
        predictions=join_predictions(rows, logp, teacher=logp),
        efficiency=Efficiency(parameters=1, bytes_on_disk=1, latency_ms_p50=1, latency_ms_p95=1, examples_per_second=1),
    )
    report = judge({"student": model}, task="text_classification", student=STUDENT, url="r", how=RESAMPLING)
    html = render_report(report, title="bare", classes=list("abc"), predictions={"student": model.predictions}, bins=5)
    assert page_of(html).headings == ["What to notice", "Quality", "Size and speed", "Provenance"]
    assert "<figure" not in html and "agreement" in html


def test_figures_can_be_saved_as_png(full):
    """Tracking stores the same figures as PNG."""
    report, predictions, _ = full
    figures = report_figures(report, [str(i) for i in range(10)], predictions, bins=10)
    assert set(figures) == {"accuracy", "confusion", "reliability", "robustness"}
    assert plots.figure_png(figures["confusion"]).startswith(b"\x89PNG")


def test_the_bill_stands_beside_the_forecast_of_a_plan() -> None:
    """A column of what `plan` forecast, only where there was a plan."""
    stages = [
        stage_cost(name, 41.0, cores=2, accelerators=0, bytes_written=0, prices=CostConfig())
        for name in ("label", "write")
    ]
    rates = {"teacher": 1.0, "student": 2.0}
    without, planned = (
        cost_report(stages, rates, cores=1, accelerators=0, prices=CostConfig(), forecast=forecast)
        for forecast in (None, {"label": 40.0})
    )
    assert len(_cost_table(without)["headings"]) == 6
    table = _cost_table(planned)
    assert table["headings"][-1] == "Forecast by plan, s"
    assert [row["cells"][-1]["value"] for row in table["rows"]] == ["40.0", "–", "–"]
