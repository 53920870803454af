"""Measure a classifier's predictions, and paired differences between two classifiers.

Each number has a 95 % interval.

A class to which a model gives probability zero costs infinity: NLL and KL are then ``inf`` without an interval. Nothing
is clipped, because a clipped value would hide exactly the mistake it prices.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from ray_distill.artifacts import Estimate
from ray_distill.errors import EvaluationError
from ray_distill.evaluation.measures.answer_tables import read_beside, read_matrix, read_weights, require_same_rows
from ray_distill.evaluation.measures.calibration import probability_bins
from ray_distill.evaluation.measures.intervals import Floats, Ints, Resampling
from ray_distill.evaluation.measures.summaries import Column, Part, Summary, Totals, compare_parts, measure_parts
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

    @property
    def confidence(self) -> Floats:
        """Probability of the top class, ``[N]``."""
        return np.asarray(np.exp(self.logp_NV.max(axis=1)))

    @property
    def correct(self) -> Floats:
        """1 where the top class is the true one, else 0, ``[N]``."""
        return np.asarray(self.logp_NV.argmax(axis=1) == self.label_N, dtype=np.float64)


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
    return measure_parts(_parts(read_scores(answers), how.bins), CLASSES.metrics, how)


def compare(student: pa.Table, other: pa.Table, how: Resampling) -> dict[str, Estimate]:
    """Return paired differences, student minus the other model, of every metric both have.

    Both are measured on the same rows.

    Raises:
        EvaluationError: the tables have different rows, or as `measure`.
    """
    require_same_rows(student, other)
    first, second = (_parts(read_scores(table), how.bins) for table in (student, other))
    return compare_parts(first, second, CLASSES.metrics, how)


def read_scores(predictions: pa.Table) -> Scores:
    """Check a predictions table and return it as arrays; errors as `measure`."""
    weight_N = read_weights(predictions)
    logp_NV = _normalised(read_matrix(predictions, "logp"), "logp")
    label_N = np.full(len(weight_N), -1, dtype=np.int64)
    if "label" in predictions.column_names:
        label_N = pc.fill_null(predictions["label"], -1).to_numpy().astype(np.int64)
    if label_N.max() >= logp_NV.shape[1]:
        raise EvaluationError(f"label {label_N.max()} lies outside the model's {logp_NV.shape[1]} classes")
    teacher_NV = read_beside(predictions, "teacher_logp", logp_NV)
    teacher_NV = None if teacher_NV is None else _normalised(teacher_NV, "teacher_logp")
    return Scores(weight_N=weight_N, label_N=label_N, logp_NV=logp_NV, teacher_logp_NV=teacher_NV)


def _parts(scores: Scores, bins: int) -> list[Part]:
    """Return the applicable parts: quality is of labelled rows, fidelity of all."""
    found, labelled = [], scores.labelled
    if len(labelled.weight_N):
        found.append(Part.of(_quality(labelled, bins), labelled.weight_N, hits=["accuracy"]))
    if scores.teacher_logp_NV is not None:
        found.append(Part.of(_fidelity(scores.logp_NV, scores.teacher_logp_NV), scores.weight_N, hits=["agreement"]))
    return found


def _quality(scores: Scores, bins: int) -> Summary:
    n, classes = scores.logp_NV.shape
    correct_N, ones_N = scores.correct, np.ones(n)
    return Summary(
        finish=_finish_quality,
        columns={
            "weight": Column(values=ones_N),
            "accuracy": Column(values=correct_N),
            "nll": Column(values=-scores.logp_NV[np.arange(n), scores.label_N]),
            "gap": Column(
                values=scores.confidence - correct_N, group=probability_bins(scores.confidence, bins), groups=bins
            ),
            "hits": Column(values=correct_N, group=scores.label_N, groups=classes),
            "labels": Column(values=ones_N, group=scores.label_N, groups=classes),
            "predicted": Column(values=ones_N, group=scores.logp_NV.argmax(axis=1), groups=classes),
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
    agree_N = (logp_NV.argmax(axis=1) == teacher_NV.argmax(axis=1)).astype(np.float64)
    with np.errstate(invalid="ignore"):
        terms_NV = np.where(np.isneginf(teacher_NV), 0.0, np.exp(teacher_NV) * (teacher_NV - logp_NV))
    kl_N = np.maximum(terms_NV.sum(axis=1), 0.0)
    columns = {"weight": np.ones(len(logp_NV)), "agreement": agree_N, "kl_from_teacher": kl_N}
    return Summary(
        columns={name: Column(values=values_N) for name, values_N in columns.items()},
        finish=lambda totals: {
            name: totals[name][:, 0] / totals["weight"][:, 0] for name in ("agreement", "kl_from_teacher")
        },
    )


def _normalised(values_NV: Floats, name: str) -> Floats:
    """Return log-probabilities of each row normalised exactly.

    Raises:
        EvaluationError: they are far from it.
    """
    total_N = np.logaddexp.reduce(values_NV, axis=1)
    wrong_N = ~(np.abs(total_N) <= NORMALISATION_TOLERANCE)
    if wrong_N.any():
        row = int(wrong_N.argmax())
        raise EvaluationError(
            f"{name} of row {row} sums to a log-probability of {total_N[row]:.4g}, expected 0: "
            "pass log-probabilities over all classes, not logits"
        )
    return np.asarray(values_NV - total_N[:, None])
