"""Assemble the judgement: measures of all models on the same rows, differences and notes."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.compute as pc

from ray_distill.artifacts import Efficiency, Estimate, EvalReport, ModelReport, StudentRef
from ray_distill.errors import EvaluationError
from ray_distill.evaluation.measures.efficiency import UNSTEADY, is_unsteady
from ray_distill.evaluation.measures.intervals import Resampling
from ray_distill.evaluation.measures.power import established
from ray_distill.evaluation.measures.robustness import Robustness
from ray_distill.fingerprint import fingerprint
from ray_distill.storage.portable import portable
from ray_distill.tasks.answers.family import Answers
from ray_distill.tasks.catalogue import get_task
from ray_distill.tasks.metrics import Metric
from ray_distill.text import has_interval

#: Rows below which a slice is not reported, and most slices reported (the largest).
MIN_SLICE_ROWS = 30
MAX_SLICES = 20
#: Labelled rows below which the report notes that its intervals are wide.
FEW_ROWS = 200


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One model's predictions on the test split, which ``measure`` reads, and its running cost."""

    url: str
    predictions: pa.Table
    efficiency: Efficiency
    robustness: Robustness = field(default_factory=dict)
    more: Mapping[str, Estimate] = field(default_factory=dict)
    """Figures that ``predictions`` do not contain (tokens a second, benchmarks); they join the metrics."""


def judge(
    models: Mapping[str, Measured],
    *,
    task: str,
    student: StudentRef,
    url: str,
    how: Resampling,
    slices: Sequence[str] = (),
    names: Sequence[str] = (),
) -> EvalReport:
    """Assemble the report of a student beside its teacher, baselines and champion.

    Args:
        models: by arm (see `EvalReport`), all predicted on the same rows in the same order.
        task: the task that all of them serve, by name.
        student: the reference the verdict will be about.
        url: where the report will be written.
        how: seed, number of resamples and bins of all intervals.
        slices: columns of the predictions by which quality is reported too.
        names: of the classes, for findings about them.

    Raises:
        EvaluationError: no student among the models, or predictions that cannot be measured or paired.
    """
    if "student" not in models:
        raise EvaluationError(f"there is no student to judge, only {', '.join(sorted(models))}")
    answers = get_task(task).answers
    reports = {arm: _model_report(arm, model, answers, how=how, slices=slices) for arm, model in models.items()}
    report = EvalReport(
        url=url,
        fingerprint="",
        task=task,
        student=student,
        models=reports,
        comparisons=_comparisons(models, how, answers),
        champion_minus_teacher=_champion_minus_teacher(models, how, answers),
    )
    compared = {arm: models[arm].predictions for arm in ("student", "teacher") if arm in models}
    report = report.with_changes(notes=(*_notes(report), *answers.judge.remarks(compared, names)))
    return report.with_changes(fingerprint=content_fingerprint(report))


def content_fingerprint(report: EvalReport) -> str:
    """Return the fingerprint that a report's content has, wherever its output lies."""
    content = {name: value for name, value in report.to_dict().items() if name not in ("url", "fingerprint")}
    return fingerprint(portable(content, report.output))


def _model_report(
    arm: str, model: Measured, answers: Answers, *, how: Resampling, slices: Sequence[str]
) -> ModelReport:
    measure = answers.judge.measure
    return ModelReport(
        name=arm,
        url=model.url,
        metrics={**measure(model.predictions, how), **model.more},
        efficiency=model.efficiency,
        robustness=model.robustness,
        slices={name: measure(part, how) for name, part in _slices(model.predictions, slices)},
    )


def _slices(predictions: pa.Table, columns: Sequence[str]) -> Iterator[tuple[str, pa.Table]]:
    """Yield the largest slices of enough rows, ``column=value``; null is a value too.

    The largest comes first.
    """
    found = []
    for column in columns:
        counted = pc.value_counts(predictions[column].combine_chunks()).to_pylist()
        found += [(-c["counts"], column, c["values"]) for c in counted if c["counts"] >= MIN_SLICE_ROWS]
    for _, column, value in sorted(found, key=lambda item: (item[0], item[1], str(item[2])))[:MAX_SLICES]:
        chosen = pc.is_null(predictions[column]) if value is None else pc.equal(predictions[column], value)
        yield f"{column}={'(none)' if value is None else value}", predictions.filter(chosen)


def _comparisons(models: Mapping[str, Measured], how: Resampling, answers: Answers) -> dict[str, Estimate]:
    """Return paired differences, student minus each model, keyed ``<metric>_minus_<arm>``."""
    student, result = models["student"].predictions, {}
    for arm, model in models.items():
        if arm == "student":
            continue
        for name, difference in answers.judge.compare(student, model.predictions, how).items():
            if not (arm == "teacher" and answers.metrics[name].of_teacher):
                result[f"{name}_minus_{arm}"] = difference
    return result


def _champion_minus_teacher(models: Mapping[str, Measured], how: Resampling, answers: Answers) -> dict[str, Estimate]:
    """Return paired differences, champion minus teacher, by which the gate judges the champion."""
    if not {"champion", "teacher"} <= models.keys():
        return {}
    found = answers.judge.compare(models["champion"].predictions, models["teacher"].predictions, how)
    return {name: difference for name, difference in found.items() if not answers.metrics[name].of_teacher}


def _notes(report: EvalReport) -> Iterator[str]:
    """Yield findings that a reviewer must see, whatever the verdict."""
    metrics, answers = report.models["student"].metrics, get_task(report.task).answers
    metric = answers.metrics[answers.headline]
    name = metric.name
    if name not in metrics:
        yield "No row of the test split has a true label: only the likeness to the teacher was measured."
    elif (loss := report.comparisons.get(f"{name}_minus_teacher")) is not None and has_interval(loss):
        yield established(loss, answers)
    if name in metrics and metrics[name].n < FEW_ROWS:
        yield (
            f"Only {metrics[name].n} {answers.rows} were measured: intervals are wide, small differences cannot be "
            "measured."
        )
    for arm, text in (
        ("baseline_teacher_hard_labels", "Soft labels {} hard teacher labels"),
        ("baseline_hard_labels", "Distillation {} training on the true labels alone"),
    ):
        difference = report.comparisons.get(f"{name}_minus_{arm}")
        if difference is not None:
            yield f"{text.format(_outcome(difference, metric))}: {metric.in_text} {_signed(difference)}."
    yield from _busy(report)
    yield from _infinite(report, answers)
    yield from _remarks(report, metric)


def unsteady_arms(report: EvalReport) -> list[str]:
    """Return which of teacher and student were timed on a busy machine."""
    return [
        arm for arm in ("teacher", "student") if arm in report.models and is_unsteady(report.models[arm].efficiency)
    ]


def _busy(report: EvalReport) -> Iterator[str]:
    busy = {arm: report.models[arm].efficiency.latency_spread for arm in unsteady_arms(report)}
    if busy:
        found = " and ".join(f"those of the {arm} by {spread:.0%}" for arm, spread in busy.items())
        yield (
            f"Latencies were measured on a busy machine: repeated requests vary, {found} between their quartiles "
            f"(at most {UNSTEADY:.0%} on an idle one). Compare sizes, not speed, or evaluate again."
        )


def _infinite(report: EvalReport, answers: Answers) -> Iterator[str]:
    for arm, model in report.models.items():
        for metric in answers.metrics.metrics:
            if metric.infinite and model.metrics.get(metric.name, Estimate(value=0.0)).value == math.inf:
                yield f"{arm} {metric.infinite}: its {metric.in_text} is infinite."


def _remarks(report: EvalReport, metric: Metric) -> Iterator[str]:
    name = metric.name
    ceiling = report.comparisons.get(f"{name}_minus_ceiling_true_labels")
    if ceiling is not None and _outcome(ceiling, metric) == "did worse than":
        yield f"More true labels would still help: {metric.in_text} {_signed(ceiling)} against the ceiling."
    overall = report.models["student"].metrics.get(name)
    for where, metrics in report.models["student"].slices.items():
        part = metrics.get(name)
        if part is not None and overall is not None and _worse(part, overall.value, metric):
            yield (
                f"The student is weaker on {where} ({part.n} rows): {metric.in_text} {part.value:.3f} "
                f"[{part.low:.3f}, {part.high:.3f}] against {overall.value:.3f} on all."
            )


def _worse(part: Estimate, overall: float, metric: Metric) -> bool:
    """Return whether a slice's whole interval is on the worse side of the value on all rows."""
    return part.high < overall if metric.higher_is_better else part.low > overall


def _outcome(difference: Estimate, metric: Metric) -> str:
    low, high = difference.low, difference.high
    if not metric.higher_is_better:
        low, high = -high, -low
    if low > 0:
        return "beat"
    return "did worse than" if high < 0 else "did not beat"


def _signed(difference: Estimate) -> str:
    if math.isnan(difference.low):
        return f"{difference.value:+.4f} (no interval)"
    return f"{difference.value:+.4f} [{difference.low:+.4f}, {difference.high:+.4f}]"
