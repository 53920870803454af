"""Run the evaluation stage: judge the models; record metrics, plots, page and student."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ray_distill.artifacts import Decision, EvalReport, ModelReport, SnapshotRef, StudentRef
from ray_distill.config import Campaign
from ray_distill.config.identity import identity
from ray_distill.errors import ConfigError, EvaluationError, StorageError
from ray_distill.evaluation.measures.cost import CostReport, cost_metrics, cost_report
from ray_distill.evaluation.measures.drift import DriftReport
from ray_distill.evaluation.predict.texts import from_json, to_json
from ray_distill.evaluation.report.assemble import content_fingerprint
from ray_distill.evaluation.report.diagnosis import ArmCurve
from ray_distill.evaluation.report.html import render_report, report_figures
from ray_distill.evaluation.report.plots import figure_png
from ray_distill.fingerprint import fingerprint, sha256
from ray_distill.labels.store.label_store import open_store
from ray_distill.models.io.trained import verify_trained
from ray_distill.promotion.chain import champion, read_chain
from ray_distill.runtime.core import console
from ray_distill.runtime.core.connection import on_cluster
from ray_distill.runtime.core.session import Session, Stage
from ray_distill.runtime.core.task_progress import TaskProgress, followed
from ray_distill.runtime.forecast.plan_report import FORECAST_LOST
from ray_distill.runtime.stages import label
from ray_distill.runtime.stages.count_views import describe_views
from ray_distill.runtime.stages.judge import Judged, judge_students
from ray_distill.runtime.stages.read_training import calibrations, curves_of, diagnosed, loss_history, rows_of
from ray_distill.snapshots.labelled_rows import in_words
from ray_distill.snapshots.reader import open_snapshot
from ray_distill.storage import files
from ray_distill.storage.portable import movable, portable
from ray_distill.storage.scratch import Scratch
from ray_distill.storage.sealed import read_sealed
from ray_distill.tasks.catalogue import get_task
from ray_distill.tracking.base import Run

#: File of the texts that models wrote, beside the report and on the run.
_TEXTS = "generations.json"
#: File of the student's predictions, beside the report.
_PREDICTIONS = "predictions.parquet"
_JUDGE_AGAIN = "run `ray-distill evaluate`: it judges again"
#: Stage that costs nothing worth counting.
_DECIDING = "promote"


def evaluate(session: Session, students: Mapping[str, StudentRef]) -> EvalReport:
    """Judge the students of one training run; return the report, stored at ``report.url``."""
    config = session.config
    if "student" not in students:
        raise ConfigError(f"there is no arm `student` to evaluate, only {', '.join(sorted(students)) or 'none'}")
    present, own = champion(read_chain(session.url("promotion"))), students["student"].fingerprint
    now = None if present is None else present.fingerprint
    key = key_of(config, students)
    done = session.done("evaluate", key)
    # A student that has since become the champion is not judged again against itself.
    if done is not None and now in (done["champion"], own):
        report = EvalReport.from_dict(done["report"])
        try:
            check_report(report)
        except EvaluationError as error:
            console.report(
                f"evaluate: the report was changed after it was made, so all models are judged again: {error}"
            )
        else:
            console.report(f"evaluate: already judged, skipped ({report.url})", skipped="evaluate")
            return report
    resources = config.labels.resources
    with session.stage("evaluate", cores=resources.cpus, accelerators=resources.gpus) as stage:
        with followed(config.output_url) as watch:
            judged = on_cluster(
                judge_students,
                config,
                students["student"].labels.snapshot,
                dict(students),
                labelled_by=open_store(students["student"].labels.store).manifest.teacher,
                champion=present,
                threads=max(1, int(resources.cpus)),
                url=session.url("evaluations", fingerprint([key, now])[:12], "report.json"),
                cpus=resources.cpus,
                gpus=resources.gpus,
                what="evaluation",
                watch=watch,
                progress=TaskProgress(watch.url),
            )
        report = keep(diagnosed(judged, config), config)
        _record(session, stage, report)
    session.finish("evaluate", key, {"report": report.to_dict(), "champion": now})
    for note in report.notes:
        console.report(f"evaluate: {note}")
    return report


def key_of(config: Campaign, students: Mapping[str, StudentRef]) -> str:
    """Return the key of everything that decides a report."""
    settings = {
        "students": {arm: ref.fingerprint for arm, ref in students.items()},
        "seed": config.seed,
        "snapshot": students["student"].labels.snapshot.fingerprint,
        "task": config.task,
        "evaluation": identity(config.evaluation),
        "teacher": identity(config.labels.teacher),
        "resources": identity(config.labels.resources),
        "columns": identity(config.snapshot.columns),
        "slices": list(config.snapshot.test_slices),
    }
    return fingerprint(movable(settings, config.output_url))


def _record(session: Session, stage: Stage, report: EvalReport) -> None:
    """Record the metrics of every arm on the stage's run.

    The campaign's own run gets its metrics with the verdict.
    """
    opened = open_snapshot(report.student.labels.snapshot)
    for run in (stage.run, session.parent):
        label.record_snapshot(run, opened, "evaluation")
    for arm, model in report.models.items():
        stage.run.metrics({f"{arm}_{name}": value for name, value in model_metrics(model).items()})
    stage.run.metrics(model_metrics(report.models["student"]) | _robustness_metrics(report))


def log_student(session: Session, report: EvalReport) -> str | None:
    """Log the student as a model with signature, example and metrics.

    Returns:
        Its URI; None while the tracking server is unreachable.
    """
    example = example_of(session.config, report.student.labels.snapshot)
    with Scratch("model") as scratch:
        local = files.download_folder(report.student.url, scratch.path)
        verify_trained(local, report.student)  # the copy itself: what is logged is what was judged
        return session.parent.model(
            local,
            name="student",
            task=session.config.task,
            example=example,
            metrics=model_metrics(report.models["student"]),
        )


def example_of(config: Campaign, snapshot: SnapshotRef) -> list[Any]:
    """Return example inputs for a logged model: the family's own, else rows of the test split."""
    task = get_task(config.task)
    made_up = task.answers.serve.example(config)
    if made_up is not None:
        return list(made_up)
    rows = open_snapshot(snapshot).read("test", columns=[task.inputs.column])
    found: list[Any] = rows.slice(0, 2)[task.inputs.column].to_pylist()
    return found


def model_metrics(model: ModelReport) -> dict[str, float]:
    """Return one model's figures as flat metrics.

    The ends of intervals are ``<name>_ci95_low`` and ``<name>_ci95_high``.
    """
    metrics: dict[str, float] = {}
    for name, estimate in model.metrics.items():
        metrics |= {name: estimate.value, f"{name}_ci95_low": estimate.low, f"{name}_ci95_high": estimate.high}
    cost = model.efficiency
    return metrics | {
        "parameters": float(cost.parameters),
        "size_bytes": float(cost.bytes_on_disk),
        "latency_ms_p50": cost.latency_ms_p50,
        "latency_ms_p95": cost.latency_ms_p95,
        "throughput_examples_per_second": cost.examples_per_second,
    }


def headline(model: ModelReport) -> dict[str, float]:
    """Return one model's figures without the ends of intervals, for the campaign's own run."""
    return {name: value for name, value in model_metrics(model).items() if "_ci95_" not in name}


def _robustness_metrics(report: EvalReport) -> dict[str, float]:
    return {
        f"{arm}_{corruption}_{severity}_{name}": estimate.value
        for arm, model in report.models.items()
        for corruption, by_severity in model.robustness.items()
        for severity, metrics in by_severity.items()
        for name, estimate in metrics.items()
    }


def campaign_costs(session: Session, report: EvalReport) -> CostReport:
    """Return the campaign's costs, up to the report.

    Promotion is left out: it takes seconds, and the page that states the costs is written while it runs. So page and
    terminal agree, and a campaign costs the same however often it is decided upon.
    """
    resources = session.config.labels.resources
    rates = {
        arm: model.efficiency.examples_per_second
        for arm, model in report.models.items()
        if arm in ("teacher", "student", "champion")
    }
    plan = session.url("state", "plan.json")
    forecast = read_sealed(plan, FORECAST_LOST)["stages"] if files.exists(plan) else []
    return cost_report(
        [cost for cost in session.costs() if cost.stage != _DECIDING],
        rates,
        cores=resources.cpus,
        accelerators=resources.gpus,
        prices=session.config.cost,
        forecast={one["stage"]: one["seconds"] for one in forecast},
    )


def keep(judged: Judged, config: Campaign) -> EvalReport:
    """Store what the review page shows, then the report with its digests; return the report.

    Shown are the student's predictions, and the texts that models wrote, if configured. Promotion renders the page.
    """
    sink = pa.BufferOutputStream()
    pq.write_table(judged.predictions, sink)
    kept = {_PREDICTIONS: sink.getvalue().to_pybytes()}
    if judged.written:
        kept[_TEXTS] = files.json_bytes(to_json(judged.written, new_tokens=config.evaluation.new_tokens))
    for name, data in kept.items():
        files.write_bytes(files.join(_folder(judged.report), name), data)
    report = judged.report.with_changes(files={name: sha256(data) for name, data in kept.items()})
    report = report.with_changes(fingerprint=content_fingerprint(report))
    files.write_json(report.url, portable(report.to_dict(), config.output_url))
    return report


def check_report(report: EvalReport) -> None:
    """Refuse a report that was changed, or whose predictions or texts were changed or lost.

    Raises:
        EvaluationError: names the report or the file.
    """
    if (found := content_fingerprint(report)) != report.fingerprint:
        raise EvaluationError(
            f"the report {report.url} was changed after the evaluation: its content has the fingerprint {found}, it "
            f"states {report.fingerprint}; {_JUDGE_AGAIN}"
        )
    for name in {_PREDICTIONS, *report.files}:
        _verified(report, name)


def publish(
    session: Session, run: Run, report: EvalReport, decision: Decision, *, more_notes: Sequence[str] = ()
) -> str:
    """Render the review page with the verdict; store it beside the report and on ``run``.

    ``more_notes`` are findings that follow the report's.

    Returns:
        The URL of the page.
    """
    config = session.config
    classes = open_snapshot(report.student.labels.snapshot).classes
    predictions = {"student": kept_predictions(report)}
    costs = campaign_costs(session, report)
    curves, texts = curves_of(report), kept_texts(report)
    history = loss_history(curves)
    page = render_report(
        report,
        title=config.campaign,
        classes=classes,
        predictions=predictions,
        bins=config.evaluation.bins,
        history=history,
        decision=decision,
        drift=_drift(session),
        cost=costs,
        provenance=_provenance(session, report, curves),
        more_notes=more_notes,
        calibrations=calibrations(report),
        written=from_json(texts) if texts else (),
    )
    url = files.join(_folder(report), "report.html")
    files.write_bytes(url, page.encode())
    with Scratch("report") as scratch:
        target = scratch.path
        (target / "report.html").write_text(page, encoding="utf-8")
        (target / "report.json").write_bytes(files.json_bytes(report.to_dict()))
        if texts:
            (target / _TEXTS).write_bytes(files.json_bytes(texts))
        plots = target / "plots"
        plots.mkdir()
        for name, figure in report_figures(
            report, classes, predictions, bins=config.evaluation.bins, history=history
        ).items():
            (plots / f"{name}.png").write_bytes(figure_png(figure))
        for item in sorted(target.iterdir()):
            run.artifact(item)
    run.metrics(cost_metrics(costs))
    run.metrics(headline(report.models["student"]))
    run.metrics({f"teacher_{name}": value for name, value in headline(report.models["teacher"]).items()})
    return url


def _folder(report: EvalReport) -> str:
    return report.url.rpartition("/")[0]


def _verified(report: EvalReport, name: str) -> bytes:
    """Return a file beside the report, which `keep` stored."""
    url = files.join(_folder(report), name)
    if name not in report.files:
        raise EvaluationError(f"the report {report.url} has no {name}; {_JUDGE_AGAIN}")
    try:
        data = files.read_bytes(url)
    except StorageError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            raise EvaluationError(f"{url} is missing: restore it, or {_JUDGE_AGAIN}") from error
        raise
    if sha256(data) != report.files[name]:
        raise EvaluationError(
            f"{url} is not the file of the report {report.url}: its digest is {sha256(data)}, the report has "
            f"{report.files[name]}; restore it, or {_JUDGE_AGAIN}"
        )
    return data


def kept_predictions(report: EvalReport) -> pa.Table:
    """Return the student's predictions that `keep` stored.

    Raises:
        EvaluationError: they are absent, or were changed.
    """
    return pq.read_table(pa.BufferReader(_verified(report, _PREDICTIONS)))


def kept_texts(report: EvalReport) -> dict[str, Any]:
    """Return the texts that `keep` stored; empty if the report has none.

    Errors are those of `kept_predictions`.
    """
    found: dict[str, Any] = json.loads(_verified(report, _TEXTS)) if _TEXTS in report.files else {}
    return found


def _drift(session: Session) -> DriftReport | None:
    """Return the drift report of the latest relabelling, or None if nothing was compared."""
    last = session.last("relabel")
    found = None if last is None else last["result"]["drift"]
    return None if found is None else DriftReport.from_dict(found)


def _provenance(session: Session, report: EvalReport, curves: Sequence[ArmCurve]) -> dict[str, str]:
    labels, labelled = report.student.labels, session.last("label")
    views = None if labelled is None else labelled["result"].get("views")
    chosen_by, manifest = session.config.student.model.chosen_by, open_snapshot(labels.snapshot).manifest
    return {
        "configuration": session.config.fingerprint,
        "snapshot": f"{labels.snapshot.fingerprint} at {labels.snapshot.url}",
        "labelled rows": in_words(manifest),
        "labels": f"{labels.fingerprint} at {labels.store}",
        "rows": "; ".join(map(rows_of, curves)),
        **describe_views(manifest, views),
        "student": f"{report.student.fingerprint} at {report.student.url}",
        **({} if chosen_by is None else {"student chosen by": chosen_by}),
        "evaluation": f"{report.fingerprint} at {report.url}",
    }
