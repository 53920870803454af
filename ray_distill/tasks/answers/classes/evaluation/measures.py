"""Measure a classifier's predictions, and paired differences between two classifiers.

Each number has a 95 % interval.

A class to which a model gives probability zero costs infinity: NLL and KL are then ``inf`` without an interval. Nothing
is clipped, because a clipped value would hide exactly the mistake it prices. Proportions have Wilson's intervals, the
rest bootstrapped ones: see `ray_distill.evaluation.measures.intervals`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from ray_distill.artifacts import Estimate
from ray_distill.errors import EvaluationError
from ray_distill.evaluation.measures.intervals import (
    Floats,
    Ints,
    Resampling,
    paired_proportions,
    percentiles,
    resample,
    wilson,
)
from ray_distill.tasks.answers.classes import CLASSES

#: Largest distance of a row's total probability from 1 (as a log) that is taken for rounding.
NORMALISATION_TOLERANCE = 1e-2


@dataclass(frozen=True, kw_only=True)
class Scores:
    """Predictions of N rows over V classes as arrays, checked and normalised."""

    weight_N: Floats
    label_N: Ints
    """-1 where unknown."""
    logp_NV: Floats
    teacher_logp_NV: Floats | None

    def take(self, keep_N: npt.NDArray[np.bool_]) -> "Scores":
        """Return the rows where ``keep_N`` is true."""
        teacher = None if self.teacher_logp_NV is None else self.teacher_logp_NV[keep_N]
        return Scores(
            weight_N=self.weight_N[keep_N],
            label_N=self.label_N[keep_N],
            logp_NV=self.logp_NV[keep_N],
            teacher_logp_NV=teacher,
        )

    @property
    def labelled(self) -> "Scores":
        """The rows whose true class is known."""
        return self.take(self.label_N >= 0)


@dataclass(frozen=True, kw_only=True)
class Column:
    """A value a row, summed (weighted) within groups: the raw material of every metric."""

    values_N: Floats
    group_N: Ints
    groups: int


#: Sums by column name, ``[B, groups]`` for B resamples.
Totals = Mapping[str, Floats]


@dataclass(frozen=True, kw_only=True)
class Summary:
    """Metrics that are functions of grouped sums, so that no Python loop touches rows.

    A resample changes only the sums.
    """

    columns: Mapping[str, Column]
    finish: Callable[[Totals], dict[str, Floats]]

    @property
    def widest(self) -> int:
        """Most groups of a column: the size that a resample is reduced to."""
        return max(column.groups for column in self.columns.values())

    def __call__(self, weight_BN: Floats) -> dict[str, Floats]:
        """Compute metrics of B weightings of the same rows, ``[B]`` each."""
        return self.finish({name: _grouped_sum(column, weight_BN) for name, column in self.columns.items()})


def measure(answers: pa.Table, how: Resampling) -> dict[str, Estimate]:
    """Return accuracy, macro-F1, NLL and ECE of labelled rows, and agreement and KL.

    Agreement and KL are measured where there is a teacher.

    Args:
        answers: ``row_id``, ``logp`` (list of V natural logs), ``count``, ``label`` (null = unknown) and,
            optionally, ``teacher_logp``.
        how: seed and number of resamples; equal-width bins of the top-label confidence in the calibration error
            (Guo et al. 2017).

    Returns:
        Estimates by metric name; NLL and ``kl_from_teacher`` = KL(teacher ‖ student) in nats. Macro-F1 is over
        the classes that occur among labels or predictions, as scikit-learn has it. Metrics that need labels or
        a teacher are left out where there is none.

    Raises:
        EvaluationError: no rows, or log-probabilities, counts or labels that cannot be.
    """
    scores = read_scores(answers)
    estimates: dict[str, Estimate] = {}
    for part, summary in _summaries(scores, how.bins):
        values = summary(part.weight_N[None, :])
        samples = resample([summary], part.weight_N, how, widest=summary.widest)[0]
        for name, value_1 in values.items():
            value, n = float(value_1[0]), len(part.weight_N)
            metric = CLASSES.metrics[name]
            if metric.proportion:
                estimates[name] = wilson(value, part.weight_N)
            else:
                estimates[name] = percentiles(value, samples[name], n, low=metric.low, high=metric.high)
    return estimates


def compare(student: pa.Table, other: pa.Table, how: Resampling) -> dict[str, Estimate]:
    """Return paired differences, student minus the other model, of every metric both have.

    Both are measured on the same rows.

    Raises:
        EvaluationError: the tables have different rows, or as `measure`.
    """
    if not student["row_id"].equals(other["row_id"]):
        raise EvaluationError(
            "a paired comparison needs the same rows in the same order: the two models' predictions "
            f"differ in their row ids ({student.num_rows} and {other.num_rows} rows)"
        )
    first, second = (_summaries(read_scores(table), how.bins) for table in (student, other))
    differences: dict[str, Estimate] = {}
    for (part, summary), (_, other_summary) in zip(first, second, strict=False):
        pair = [summary, other_summary]
        left, right = (item(part.weight_N[None, :]) for item in pair)
        left_B, right_B = resample(pair, part.weight_N, how, widest=max(item.widest for item in pair))
        for name in left:
            metric = CLASSES.metrics[name]
            value, span = float(left[name][0] - right[name][0]), metric.high - metric.low
            if metric.proportion:
                hits = [item.columns[name].values_N for item in pair]
                differences[name] = paired_proportions(hits[0], hits[1], part.weight_N)
            else:
                with np.errstate(invalid="ignore"):
                    samples_B = left_B[name] - right_B[name]
                differences[name] = percentiles(value, samples_B, len(part.weight_N), low=-span, high=span)
    return differences


def read_scores(predictions: pa.Table) -> Scores:
    """Check a predictions table and return it as arrays; errors as `measure`."""
    if predictions.num_rows == 0:
        raise EvaluationError("there are no predictions to measure: the split has no usable row")
    logp_NV = _log_probabilities(predictions, "logp")
    weight_N = predictions["count"].to_numpy().astype(np.float64)
    if not (weight_N > 0).all():
        raise EvaluationError(f"counts must be positive, found {weight_N.min():g}: the predictions table is damaged")
    label_N = np.full(len(weight_N), -1, dtype=np.int64)
    if "label" in predictions.column_names:
        label_N = pc.fill_null(predictions["label"], -1).to_numpy().astype(np.int64)
    if label_N.max() >= logp_NV.shape[1]:
        raise EvaluationError(f"label {label_N.max()} lies outside the model's {logp_NV.shape[1]} classes")
    teacher_NV = _log_probabilities(predictions, "teacher_logp") if "teacher_logp" in predictions.column_names else None
    if teacher_NV is not None and teacher_NV.shape != logp_NV.shape:
        raise EvaluationError(
            f"the teacher answers with {teacher_NV.shape[1]} classes, the model with "
            f"{logp_NV.shape[1]}: evaluate models of the same classes"
        )
    return Scores(weight_N=weight_N, label_N=label_N, logp_NV=logp_NV, teacher_logp_NV=teacher_NV)


def confidence_bins(scores: Scores, bins: int) -> Ints:
    """Return the equal-width bin of each row's top-label confidence, ``[N]``."""
    confidence_N = np.exp(scores.logp_NV.max(axis=1))
    bins_N: Ints = np.minimum((confidence_N * bins).astype(np.int64), bins - 1)
    return bins_N


def _summaries(scores: Scores, bins: int) -> list[tuple[Scores, Summary]]:
    """Yield the applicable summaries, each with its rows.

    Quality is of labelled rows, fidelity of all.
    """
    found = []
    labelled = scores.labelled
    if len(labelled.weight_N):
        found.append((labelled, _quality(labelled, bins)))
    if scores.teacher_logp_NV is not None:
        found.append((scores, _fidelity(scores.logp_NV, scores.teacher_logp_NV)))
    return found


def _quality(scores: Scores, bins: int) -> Summary:
    n, classes = scores.logp_NV.shape
    predicted_N = scores.logp_NV.argmax(axis=1)
    correct_N = (predicted_N == scores.label_N).astype(np.float64)
    gap_N = np.exp(scores.logp_NV.max(axis=1)) - correct_N
    ones_N, all_N = np.ones(n), np.zeros(n, dtype=np.int64)
    return Summary(
        finish=_finish_quality,
        columns={
            "weight": Column(values_N=ones_N, group_N=all_N, groups=1),
            "accuracy": Column(values_N=correct_N, group_N=all_N, groups=1),
            "nll": Column(values_N=-scores.logp_NV[np.arange(n), scores.label_N], group_N=all_N, groups=1),
            "gap": Column(values_N=gap_N, group_N=confidence_bins(scores, bins), groups=bins),
            "hits": Column(values_N=correct_N, group_N=scores.label_N, groups=classes),
            "labels": Column(values_N=ones_N, group_N=scores.label_N, groups=classes),
            "predicted": Column(values_N=ones_N, group_N=predicted_N, groups=classes),
        },
    )


def _finish_quality(totals: Totals) -> dict[str, Floats]:
    weight_B = totals["weight"][:, 0]
    seen_BV = totals["labels"] + totals["predicted"]
    f1_BV = 2 * totals["hits"] / np.where(seen_BV > 0, seen_BV, 1)
    return {
        "accuracy": totals["accuracy"][:, 0] / weight_B,
        "macro_f1": f1_BV.sum(axis=1) / (seen_BV > 0).sum(axis=1),
        "nll": totals["nll"][:, 0] / weight_B,
        "ece": np.abs(totals["gap"]).sum(axis=1) / weight_B,
    }


def _fidelity(logp_NV: Floats, teacher_NV: Floats) -> Summary:
    n = len(logp_NV)
    agree_N = (logp_NV.argmax(axis=1) == teacher_NV.argmax(axis=1)).astype(np.float64)
    with np.errstate(invalid="ignore"):
        terms_NV = np.where(np.isneginf(teacher_NV), 0.0, np.exp(teacher_NV) * (teacher_NV - logp_NV))
    kl_N = np.maximum(terms_NV.sum(axis=1), 0.0)
    columns = {"weight": np.ones(n), "agreement": agree_N, "kl_from_teacher": kl_N}
    all_N = np.zeros(n, dtype=np.int64)
    return Summary(
        columns={name: Column(values_N=values_N, group_N=all_N, groups=1) for name, values_N in columns.items()},
        finish=lambda totals: {
            name: totals[name][:, 0] / totals["weight"][:, 0] for name in ("agreement", "kl_from_teacher")
        },
    )


def _grouped_sum(column: Column, weight_BN: Floats) -> Floats:
    """Return weighted sums within groups, ``[B, groups]``."""
    resamples = len(weight_BN)
    with np.errstate(invalid="ignore"):  # 0 · inf where a resample leaves out an infinite loss
        values_BN = weight_BN * column.values_N
    if column.groups == 1:
        return np.asarray(values_BN.sum(axis=1, keepdims=True))
    cells_BN = np.arange(resamples)[:, None] * column.groups + column.group_N
    flat = np.bincount(cells_BN.ravel(), weights=values_BN.ravel(), minlength=resamples * column.groups)
    return flat.astype(np.float64, copy=False).reshape(resamples, column.groups)


def _log_probabilities(predictions: pa.Table, name: str) -> Floats:
    """Return a list column as float64 ``[N, V]``, each row normalised exactly."""
    lengths = pc.list_value_length(predictions[name])
    width = lengths[0].as_py()
    if not width or lengths.null_count or not pc.all(pc.equal(lengths, width)).as_py():
        raise EvaluationError(f"{name} must have the same number of classes in every row, at least one")
    flat = predictions[name].combine_chunks().flatten()
    values_NV = flat.to_numpy(zero_copy_only=False).astype(np.float64).reshape(-1, width)
    if np.isnan(values_NV).any():
        row = int(np.isnan(values_NV).any(axis=1).argmax())
        raise EvaluationError(f"{name} of row {row} is not a number: the model's logits are NaN or overflowed")
    total_N = np.logaddexp.reduce(values_NV, axis=1)
    wrong_N = ~(np.abs(total_N) <= NORMALISATION_TOLERANCE)
    if wrong_N.any():
        row = int(wrong_N.argmax())
        raise EvaluationError(
            f"{name} of row {row} sums to a log-probability of {total_N[row]:.4g}, expected 0: "
            "pass log-probabilities over all classes, not logits"
        )
    return np.asarray(values_NV - total_N[:, None])
