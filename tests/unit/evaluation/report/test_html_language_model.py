"""The review page of language models: NLL and the distance from the teacher, where classifiers have accuracy."""

from html.parser import HTMLParser

import numpy as np
import pyarrow as pa
import pytest

from ray_distill.artifacts import Decision, Efficiency, Estimate, LabelSetRef, SnapshotRef, StudentRef, Verdict
from ray_distill.config import CostConfig, GateConfig
from ray_distill.evaluation.measures.cost import cost_report, stage_cost
from ray_distill.evaluation.measures.intervals import Resampling
from ray_distill.evaluation.measures.robustness import measure_robustness
from ray_distill.evaluation.predict.texts import Written
from ray_distill.evaluation.report import plots
from ray_distill.evaluation.report.assemble import Measured, judge
from ray_distill.evaluation.report.html import render_report, report_figures
from ray_distill.promotion.gate import decide
from ray_distill.runtime.stages.promote import summary
from ray_distill.tasks.answers.tokens.evaluation.measures import measure, sum_by_document
from ray_distill.text import arm_name

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
BINS = 10
RESAMPLING = Resampling(seed=0, bootstrap=100, bins=BINS)
FAR = {"teacher": 0.0, "student": 0.12, "champion": 0.16, "baseline_hard_labels": 0.35}


def table(far, documents, damage=0.0):
    """Sums of documents of 20 to 400 tokens, from a model so far from its teacher."""
    rng = np.random.default_rng(7)
    lengths = rng.integers(20, 400, documents)
    document_P = np.repeat(np.arange(documents), lengths)
    position_P = np.concatenate([np.arange(length) for length in lengths])
    hard_P = (rng.normal(2.6, 0.4, documents)[document_P] + rng.normal(0, 0.3, len(document_P))) + damage
    kl_P = far * np.exp(rng.normal(0, 0.3, len(document_P))) * (1 + 2 / np.sqrt(1 + position_P))
    confidence_P = rng.beta(2, 3, len(document_P))
    values = {
        "nll": hard_P + kl_P,
        "entropy": hard_P + far / 2,
        "teacher_entropy": hard_P,
        "kl_from_teacher": kl_P,
        "confidence": confidence_P,
        "correct": rng.random(len(document_P)) < confidence_P - far / 3,
        "agreement": rng.random(len(document_P)) >= far,
        "tail_gap": far / 20 + 0 * kl_P,
    }
    sums = sum_by_document(
        {name: np.asarray(value, np.float64) for name, value in values.items()},
        document_P=document_P,
        position_P=position_P,
        documents=documents,
        bins=BINS,
    )
    return pa.table(
        {
            "row_id": pa.array([i.to_bytes(16, "big") for i in range(documents)], pa.binary(16)),
            "count": pa.array([1] * documents, pa.int64()),
            "source": rng.choice(["wiki", "code <b>"], size=documents),
            **sums,
        }
    )


def measured(arm, far, documents, robust):
    size = 134_515_008 if arm == "teacher" else 49_160_000
    efficiency = Efficiency(
        parameters=size,
        bytes_on_disk=4 * size,
        latency_ms_p50=size / 4e6,
        latency_ms_p95=size / 3e6,
        examples_per_second=4e9 / size,
    )
    damage = {
        kind: lambda rows, severity, _, by=by: rows.append_column("by", pa.array([by * severity] * len(rows)))
        for kind, by in (("typos", 0.2), ("case", 0.1))
    }
    robustness = (
        measure_robustness(
            table(far, documents).select(["row_id", "count"]),
            damage,
            (1, 2, 3),
            answer=lambda rows: {arm: table(far, documents, rows["by"][0].as_py())},
            measure=measure,
            metrics=("nll",),
            how=RESAMPLING,
        )[arm]
        if robust
        else {}
    )
    rate = efficiency.examples_per_second * 210
    return Measured(
        url=arm,
        predictions=table(far, documents),
        efficiency=efficiency,
        robustness=robustness,
        more={"tokens_per_second": Estimate(value=rate, low=rate, high=rate, n=documents)},
    )


def judged(documents=150, robust=True, arms=tuple(FAR)):
    models = {arm: measured(arm, FAR[arm], documents, robust) for arm in arms}
    report = judge(models, task="causal_lm", student=STUDENT, url="r", slices=("source",), how=RESAMPLING)
    return report, {"student": models["student"].predictions}


def render(report, predictions, **extras):
    return render_report(report, title="smol", classes=(), predictions=predictions, bins=BINS, **extras)


def extras(report):
    prices = CostConfig()
    stages = [
        stage_cost(name, seconds, cores=2, accelerators=1, bytes_written=12_345_678, prices=prices)
        for name, seconds in (("label", 410.0), ("train", 955.0))
    ]
    rates = {arm: model.efficiency.examples_per_second for arm, model in report.models.items()}
    history = {arm: [(step, 2.3 * np.exp(-step / 150) + 0.2) for step in range(0, 600, 20)] for arm in ("student",)}
    return {
        "decision": decide(report, GateConfig()),
        "history": history,
        "cost": cost_report(stages, rates, cores=2, accelerators=1, prices=prices),
    }


class Page(HTMLParser):
    """Headings, and the text of every cell."""

    def __init__(self, html):
        super().__init__()
        self.headings, self.tags, self.cells, self._in = [], set(), [], ""
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self._in = tag

    def handle_data(self, data):
        {"h2": self.headings, "th": self.cells, "td": self.cells}.get(self._in, []).append(data)
        self._in = ""


@pytest.fixture(scope="module")
def full():
    report, predictions = judged()
    return report, predictions, render(report, predictions, **extras(report))


def test_the_page_shows_what_language_models_are_judged_by(full):
    """Sections, headline figures with intervals, every measure with its heading, and five figures."""
    report, _, html = full
    page = Page(html)
    assert page.headings == [
        "What to notice",
        "Quality",
        "Differences on the same rows",
        "Size and speed",
        "Distance from the teacher, and calibration",
        "Robustness",
        "Slices",
        "Training",
        "Cost",
        "Provenance",
    ]
    assert {
        "NLL, nats",
        "Perplexity",
        "Next-token accuracy",
        "ECE",
        "Agreement with teacher",
        "KL from teacher, nats",
        "Entropy gap, nats",
        "Tail-mass gap",
        "Tokens/s",
        "Throughput, documents/s",
        "Documents",
    } <= set(page.cells)
    metrics = report.models["student"].metrics
    for name in ("nll", "kl_from_teacher", "entropy_gap", "tail_mass_gap"):
        assert f"{metrics[name].value:.3f}" in html and f"{metrics[name].low:.3f} … {metrics[name].high:.3f}" in html
    assert "Tokens read a second" in html and "2.7× faster" in html
    assert html.count("<figure") == 5 and "NLL in nats a token, slices" in html


def test_a_gap_has_no_good_side(full):
    """Less NLL than the baseline is green; of a gap, 0 is best, so its difference has no colour."""
    html = full[2]
    row = html[html.index("minus Baseline: true labels only") :]
    cells = row[: row.index("</tr>")].split("<td")[1:]
    tones = ["good" if "good" in cell else "bad" if "bad" in cell else "" for cell in cells]
    assert tones == ["good", "good", "good", "good", "", ""]


def test_the_same_report_gives_the_same_page_with_names_escaped(full):
    """Nothing of the clock or of chance is in it, and no slice becomes markup."""
    report, predictions, html = full
    assert html == render(report, predictions, **extras(report))
    assert "b" in Page(html).tags  # of the tiles
    assert "source=code &lt;b&gt;" in html and "code <b>" not in html


def test_distance_by_position_is_drawn_for_buckets_that_hold_tokens(full):
    """Four buckets of documents shorter than 400 tokens; not the teacher, which is 0 from itself."""
    report, predictions, _ = full
    figures = report_figures(report, (), predictions, bins=BINS)
    assert set(figures) == {"nll", "positions", "reliability", "robustness"}
    axes = figures["positions"].axes
    assert [tick.get_text() for tick in axes[-1].get_xticklabels()] == ["0–15", "16–63", "64–255", "256–1023"]
    assert [text.get_text() for text in figures["positions"].legends[0].get_texts()] == [
        arm_name(arm) for arm in ("student", "champion", "baseline_hard_labels")
    ]
    assert all(plots.figure_png(figure).startswith(b"\x89PNG") for figure in figures.values())


def test_a_student_alone_has_a_page():
    """Without a teacher's column, other arms, damage or verdict the page is shorter, not broken."""
    rows = table(0.1, 5).drop_columns(["kl_from_teacher", "agreement", "teacher_entropy", "tail_gap"])
    rows = rows.drop_columns([name for name in rows.column_names if name.startswith(("bucket_e", "bucket_k"))])
    rows = rows.drop_columns(["bucket_teacher_entropy", "bucket_tail_gap"])
    model = Measured(
        url="m",
        predictions=rows,
        efficiency=Efficiency(parameters=1, bytes_on_disk=1, latency_ms_p50=1, latency_ms_p95=1, examples_per_second=1),
    )
    report = judge({"student": model}, task="causal_lm", student=STUDENT, url="r", how=RESAMPLING)
    assert set(report_figures(report, (), {"student": rows}, bins=BINS)) == {"nll", "reliability"}
    page = Page(render(report, {"student": rows}))
    assert "Differences on the same rows" not in page.headings and "Throughput, documents/s" in page.cells


def test_what_models_wrote_is_shown_escaped_and_only_where_there_is_some(full):
    """Prompt, answers in the tables' order, what did follow; no text becomes markup; without it there is no trace."""
    report, predictions, without = full
    evil = "<script>alert(1)</script>\n  two  "
    html = render(
        report,
        predictions,
        written=[
            Written(prompt=evil, answers={"student": "I", "teacher": evil}, reference="so"),
            Written(prompt="p", answers={"student": " ", "teacher": "b"}),
        ],
    )
    page = Page(html)
    assert "What they write" in page.headings and "script" not in page.tags and html.count("&lt;script&gt;") == 2
    section = html[html.index("What they write") : html.index("<h2>Robustness")]
    names = [part.partition("</dt>")[0] for part in section.split("<dt>")[1:]]
    assert names == ["Teacher", "Student", "What did follow", "Teacher", "Student"] and "(nothing)" in section
    assert "What they write" not in without and ".written" not in without


def test_benchmarks_have_a_table_of_the_models_that_ran_them(full):
    """One row a figure, one column a model; no section without them."""
    report, predictions, without = full
    scored = {f"lm_eval_{name}": Estimate(value=0.25, low=0.2, high=0.3, n=9) for name in ("even_acc", "odd_acc")}
    models = {
        arm: model.with_changes(metrics=model.metrics | (scored if arm in ("teacher", "student") else {}))
        for arm, model in report.models.items()
    }
    html = render(report.with_changes(models=models), predictions)
    section = html[html.index("<h2>Benchmarks") : html.index("<h2>Size and speed")]
    assert "even_acc" in section and section.count("0.200 … 0.300") == 4 and "Champion" not in section
    assert "Benchmarks" not in without


def test_the_targets_that_models_write_have_a_table(full):
    """Exact matches, word error rate and overlaps of targets stand where they were measured, and only there."""
    report, predictions, without = full
    more = {name: Estimate(value=0.25, low=0.2, high=0.3, n=9) for name in ("exact_match", "word_error_rate", "chrf")}
    models = {arm: model.with_changes(metrics=model.metrics | more) for arm, model in report.models.items()}
    html = render(report.with_changes(models=models), predictions)
    section = html[html.index("<h2>Written targets") : html.index("<h2>Size and speed")]
    assert all(heading in section for heading in ("Exact match", "Word error rate", "chrF")) and "ROUGE-1" not in html
    assert html.count("Exact match") == 1 and "Written targets" not in without


def test_the_run_s_table_shows_what_decides(full):
    """MLflow's description of the run: NLL with interval, KL, ECE and agreement; not the accuracy of classifiers."""
    report = full[0]
    text = summary(
        report, Decision(verdict=Verdict.HOLD, reasons=("so",), student=STUDENT, report_fingerprint="e"), "s3://page"
    )
    metrics = report.models["student"].metrics
    assert (
        "| Model | NLL, nats (95 % interval) | KL from teacher, nats | ECE | Agreement with teacher | Parameters |"
        in text
    )
    row = next(line for line in text.splitlines() if line.startswith("| Student"))
    assert row.startswith(
        f"| Student | {metrics['nll'].value:.4f} ({metrics['nll'].low:.4f}–{metrics['nll'].high:.4f})"
        f" | {metrics['kl_from_teacher'].value:.4f} | {metrics['ece'].value:.4f}"
        f" | {metrics['agreement'].value:.4f} | 49,160,000 |"
    )
