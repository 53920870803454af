"""Measure a multi-label model's answers, and paired differences between two models.

Every metric has a 95 % interval by resampling of rows; `subset_accuracy` and `agreement` are shares of rows, and have
Wilson's. Metrics follow scikit-learn with ``sample_weight`` = ``count``, except where a label has nothing to measure:

- ``map``: the mean of ``average_precision_score`` over labels that apply to some row; the others have no precision.
- ``macro_f1``: the mean over labels that occur in a true or decided set (``zero_division=nan``).
- ``micro_f1``: over all decisions together; left out where no label occurs at all.
- ``nll`` and ``kl_from_teacher``: means over rows *and* labels, in nats a label: a sum would grow with their number.
- ``ece``: the calibration error of each sigmoid, in equal-width bins of its probability, averaged over labels.
- ``agreement``: the share of rows for which the model decides exactly the teacher's set. The share of equal decisions
  would be near 1 for any model where labels are rare.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ray_distill.artifacts import Estimate
from ray_distill.errors import EvaluationError
from ray_distill.evaluation.measures.answer_tables import read_beside, read_matrix, read_weights, require_same_rows
from ray_distill.evaluation.measures.calibration import probability_bins
from ray_distill.evaluation.measures.intervals import Floats, Ints, Resampling, Weighted
from ray_distill.evaluation.measures.summaries import Column, Part, Summary, Totals, compare_parts, measure_parts
from ray_distill.labels.model.distributions import log_sigmoid
from ray_distill.tasks.answers.labels import LABELS
from ray_distill.tasks.answers.labels.evaluation.predictions import probabilities, thresholds_of
from ray_distill.tasks.answers.labels.sets import UNKNOWN, greatest, label_matrix

Sets = npt.NDArray[np.int8]


@dataclass(frozen=True, kw_only=True)
class Scores:
    """Answers of N rows over V labels as arrays, checked."""

    weight_N: Floats
    truth_NV: Sets
    """1 where a label applies, else 0; -1 in the whole line of a row that is not labelled."""
    log_odds_NV: Floats
    decided_NV: Sets
    threshold_V: Floats
    teacher_log_odds_NV: Floats | None
    teacher_decided_NV: Sets | None

    @property
    def labelled(self) -> "Scores":
        """The rows whose true set is known."""
        keep_N = self.truth_NV[:, 0] != UNKNOWN
        teacher = self.teacher_log_odds_NV, self.teacher_decided_NV
        log_odds_NV, decided_NV = (None if values is None else values[keep_N] for values in teacher)
        return replace(
            self,
            weight_N=self.weight_N[keep_N],
            truth_NV=self.truth_NV[keep_N],
            log_odds_NV=self.log_odds_NV[keep_N],
            decided_NV=self.decided_NV[keep_N],
            teacher_log_odds_NV=log_odds_NV,
            teacher_decided_NV=decided_NV,
        )


@dataclass(frozen=True, kw_only=True)
class LabelQuality:
    """Quality of one label over the labelled rows; NaN where there is nothing to measure."""

    rows: int
    """Rows to which it applies."""
    average_precision: float
    f1: float
    ece: float
    threshold: float


def measure(answers: pa.Table, how: Resampling) -> dict[str, Estimate]:
    """Return the metrics of labelled rows, and agreement and KL where there is a teacher.

    Args:
        answers: ``row_id``, ``log_odds`` (list of V), ``decided`` (list of indices), ``count``, ``label`` (list of
            indices, null = unknown) and, optionally, ``teacher_log_odds`` and ``teacher_decided``.
        how: seed and number of resamples; bins of the calibration error.

    Returns:
        Estimates by metric name. Metrics that need labels or a teacher are left out where there is none.

    Raises:
        EvaluationError: no rows, or log-odds, counts or labels that cannot be.
    """
    return measure_parts(_parts(read_scores(answers), how.bins), LABELS.metrics, how)


def compare(student: pa.Table, other: pa.Table, how: Resampling) -> dict[str, Estimate]:
    """Return paired differences, student minus the other model, of every metric both have.

    Both are measured on the same rows.

    Raises:
        EvaluationError: the tables have different rows, or as `measure`.
    """
    require_same_rows(student, other)
    first, second = (_parts(read_scores(table), how.bins) for table in (student, other))
    return compare_parts(first, second, LABELS.metrics, how)


def read_scores(answers: pa.Table) -> Scores:
    """Check a table of answers and return it as arrays; errors as `measure`."""
    weight_N = read_weights(answers)
    log_odds_NV = read_matrix(answers, "log_odds")
    teacher_NV = read_beside(answers, "teacher_log_odds", log_odds_NV)
    classes = log_odds_NV.shape[1]
    truth_NV = np.full(log_odds_NV.shape, UNKNOWN, np.int8)
    if "label" in answers.column_names:
        truth_NV = _sets(answers, "label", classes)
    return Scores(
        weight_N=weight_N,
        truth_NV=truth_NV,
        log_odds_NV=log_odds_NV,
        decided_NV=_sets(answers, "decided", classes),
        threshold_V=thresholds_of(answers, classes),
        teacher_log_odds_NV=teacher_NV,
        teacher_decided_NV=None if teacher_NV is None else _sets(answers, "teacher_decided", classes),
    )


def label_qualities(scores: Scores, bins: int) -> list[LabelQuality]:
    """Return the quality of each label over the labelled rows."""
    labelled = scores.labelled
    weight_1N, columns = labelled.weight_N[None, :], _columns(labelled, bins)
    by_label = _by_label({name: column.sums(weight_1N) for name, column in columns.items()})
    precision_V = average_precisions(labelled.truth_NV, labelled.log_odds_NV)(weight_1N)[0]
    return [
        LabelQuality(
            rows=int(labelled.truth_NV[:, label].sum()),
            average_precision=float(precision_V[label]),
            f1=float(by_label["f1"][0, label]),
            ece=float(by_label["ece"][0, label]),
            threshold=float(labelled.threshold_V[label]),
        )
        for label in range(labelled.truth_NV.shape[1])
    ]


def average_precisions(truth_NV: Sets, score_NV: Floats) -> Callable[[Floats], Floats]:
    """Return the average precision of labels, ``[B, V]``, as a function of weights ``[B, N]``.

    It depends on the order of rows by score, so it follows from no sums: rows are sorted once, and each weighting costs
    a pass over them. Equal scores share one threshold, as in scikit-learn. NaN where no row of positive weight has the
    label.
    """
    ranked = [Ranking.of(truth_NV[:, label] == 1, score_NV[:, label]) for label in range(truth_NV.shape[1])]
    return lambda weight_BN: np.stack([ranking.precision(weight_BN) for ranking in ranked], axis=1)


@dataclass(frozen=True, kw_only=True)
class Ranking:
    """Rows by descending score of one label, and where among them the H rows are that have it."""

    order_N: Ints
    place_H: Ints
    """Places of the rows that have the label, ascending."""
    end_H: Ints
    """The last place with the same score as each of them."""
    last_H: Ints
    """Which of them is the last with the same score."""

    @classmethod
    def of(cls, hit_N: npt.NDArray[np.bool_], score_N: Floats) -> "Ranking":
        """Sort the rows; ``hit_N`` marks those that have the label."""
        order_N = np.argsort(-score_N, kind="stable")
        ascending_N, place_H = -score_N[order_N], np.flatnonzero(hit_N[order_N])
        end_H = np.searchsorted(ascending_N, ascending_N[place_H], side="right") - 1
        last_H = np.searchsorted(place_H, end_H, side="right") - 1
        return cls(order_N=order_N, place_H=place_H, end_H=end_H, last_H=last_H)

    def precision(self, weight_BN: Floats) -> Floats:
        """Return the mean over rows with the label of the precision at their score, ``[B]``."""
        sorted_BN = weight_BN[:, self.order_N]
        weight_BH = sorted_BN[:, self.place_H]
        found_BH = np.cumsum(weight_BH, axis=1)[:, self.last_H]
        taken_BH = np.cumsum(sorted_BN, axis=1)[:, self.end_H]
        share_BH = found_BH / np.where(taken_BH > 0, taken_BH, 1)
        return _ratio((weight_BH * share_BH).sum(axis=1), weight_BH.sum(axis=1))


def _parts(scores: Scores, bins: int) -> list[Part]:
    """Return the applicable parts: quality is of labelled rows, fidelity of all."""
    found, labelled = [], scores.labelled
    if len(labelled.weight_N):
        sums = Part.of(
            Summary(columns=_columns(labelled, bins), finish=_finish_quality),
            labelled.weight_N,
            hits=["subset_accuracy"],
        )
        precisions = average_precisions(labelled.truth_NV, labelled.log_odds_NV)
        found.append(replace(sums, weighted=_with_precision(sums.weighted, precisions)))
    if scores.teacher_log_odds_NV is not None:
        found.append(Part.of(_fidelity(scores), scores.weight_N, hits=["agreement"]))
    return found


def _with_precision(weighted: Weighted, precisions: Callable[[Floats], Floats]) -> Weighted:
    return lambda weight_BN: {"map": _mean_over_labels(precisions(weight_BN)), **weighted(weight_BN)}


def _columns(labelled: Scores, bins: int) -> dict[str, Column]:
    truth_NV, decided_NV, z_NV = labelled.truth_NV, labelled.decided_NV, labelled.log_odds_NV
    rows, classes = truth_NV.shape
    p_NV = probabilities(z_NV)
    return {
        "weight": Column(values=np.ones(rows)),
        "subset_accuracy": Column(values=(truth_NV == decided_NV).all(axis=1).astype(np.float64)),
        "nll": Column(values=-log_sigmoid(np.where(truth_NV == 1, z_NV, -z_NV)).mean(axis=1)),
        "hits": Column(values=(truth_NV * decided_NV).astype(np.float64)),
        "labels": Column(values=truth_NV.astype(np.float64)),
        "decided": Column(values=decided_NV.astype(np.float64)),
        "gap": Column(
            values=p_NV - truth_NV,
            group=np.arange(classes) * bins + probability_bins(p_NV, bins),
            groups=classes * bins,
        ),
    }


def _finish_quality(totals: Totals) -> dict[str, Floats]:
    weight_B, by_label = totals["weight"][:, 0], _by_label(totals)
    hits_B, seen_B = (sum_BV.sum(axis=1) for sum_BV in (totals["hits"], totals["labels"] + totals["decided"]))
    return {
        "micro_f1": _ratio(2 * hits_B, seen_B),
        "macro_f1": _mean_over_labels(by_label["f1"]),
        "subset_accuracy": totals["subset_accuracy"][:, 0] / weight_B,
        "nll": totals["nll"][:, 0] / weight_B,
        "ece": by_label["ece"].mean(axis=1),
    }


def _by_label(totals: Totals) -> Mapping[str, Floats]:
    """Return F1 and calibration error of each label, ``[B, V]``."""
    weight_B1, gap_BG = totals["weight"], np.abs(totals["gap"])
    resamples, classes = totals["hits"].shape
    return {
        "f1": _ratio(2 * totals["hits"], totals["labels"] + totals["decided"]),
        "ece": gap_BG.reshape(resamples, classes, -1).sum(axis=2) / weight_B1,
    }


def _fidelity(scores: Scores) -> Summary:
    teacher_NV, own_NV = scores.teacher_log_odds_NV, scores.log_odds_NV
    assert teacher_NV is not None
    agree_N = (scores.decided_NV == scores.teacher_decided_NV).all(axis=1).astype(np.float64)
    kl_N = (_divergence(teacher_NV, own_NV) + _divergence(-teacher_NV, -own_NV)).mean(axis=1)
    columns = {"weight": np.ones(len(own_NV)), "agreement": agree_N, "kl_from_teacher": np.maximum(kl_N, 0.0)}
    return Summary(
        columns={name: Column(values=values_N) for name, values_N in columns.items()},
        finish=lambda totals: {
            name: totals[name][:, 0] / totals["weight"][:, 0] for name in ("agreement", "kl_from_teacher")
        },
    )


def _divergence(teacher_NV: Floats, own_NV: Floats) -> Floats:
    """Return ``p (log p − log q)`` of the answers with these log-odds; 0 where p is 0."""
    logp_NV, logq_NV = log_sigmoid(teacher_NV), log_sigmoid(own_NV)
    with np.errstate(invalid="ignore"):
        return np.where(np.isneginf(logp_NV), 0.0, np.exp(logp_NV) * (logp_NV - logq_NV))


def _ratio(part: Floats, whole: Floats) -> Floats:
    """Return ``part / whole``; NaN where the whole is 0."""
    return part / np.where(whole > 0, whole, np.nan)


def _mean_over_labels(values_BV: Floats) -> Floats:
    """Return the mean over the labels that have a value, ``[B]``; NaN where none has."""
    return _ratio(np.nansum(values_BV, axis=1), (~np.isnan(values_BV)).sum(axis=1).astype(np.float64))


def _sets(answers: pa.Table, name: str, classes: int) -> Sets:
    """Return a column of sets as a matrix.

    Raises:
        EvaluationError: a label that the model does not have.
    """
    if greatest(answers[name]) >= classes:
        raise EvaluationError(f"{name} {greatest(answers[name])} lies outside the model's {classes} labels")
    return label_matrix(answers[name], classes)
