"""Measure a classifier by class, and count the pairs of classes that it mistakes.

Memory grows with the labelled rows, not with the square of the number of classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ray_distill.artifacts import Estimate
from ray_distill.evaluation.measures.intervals import wilson
from ray_distill.tasks.answers.classes.evaluation.measures import Scores


@dataclass(frozen=True, kw_only=True)
class ClassQuality:
    """Results on one class that has labelled rows."""

    label: int
    recall: Estimate
    """Share of its rows that were predicted as it, by count; ``n`` is its number of rows."""
    precision: float
    """Share of the predictions of this class that are right, by count; NaN where it was never predicted."""

    @property
    def f1(self) -> float:
        """Harmonic mean of precision and recall; 0 where it was never predicted."""
        total = self.precision + self.recall.value
        return 2 * self.precision * self.recall.value / total if total > 0 else 0.0


@dataclass(frozen=True, kw_only=True)
class Confusion:
    """Rows of one class that were predicted as one other."""

    label: int
    predicted: int
    rows: int
    weight: float
    """Their sum of counts."""
    share: Estimate
    """Of the class's rows, by count."""


def class_qualities(labelled: Scores) -> list[ClassQuality]:
    """Return the classes that have labelled rows, the surest bad one first.

    The order is by the upper end of the interval of recall, so that one wrong row of one comes after thirty of sixty.
    """
    predicted_N, found = labelled.logp_NV.argmax(axis=1), []
    classes = labelled.logp_NV.shape[1]
    predicted_V = np.bincount(predicted_N, weights=labelled.weight_N, minlength=classes)
    hits_V = np.bincount(labelled.label_N, weights=labelled.weight_N * labelled.correct, minlength=classes)
    for label in np.unique(labelled.label_N):
        own = labelled.label_N == label
        weight_M = labelled.weight_N[own]
        recall = wilson(float(hits_V[label] / weight_M.sum()), weight_M)
        precision = float(hits_V[label] / predicted_V[label]) if predicted_V[label] else float("nan")
        found.append(ClassQuality(label=int(label), recall=recall, precision=precision))
    return sorted(found, key=lambda one: (_upper(one.recall), one.recall.value, -one.recall.n))


def confusions(labelled: Scores) -> list[Confusion]:
    """Return the pairs of classes that were mistaken, those of most weight first."""
    classes, predicted_N = labelled.logp_NV.shape[1], labelled.logp_NV.argmax(axis=1)
    wrong = np.flatnonzero(predicted_N != labelled.label_N)
    cells, inverse = np.unique(labelled.label_N[wrong] * classes + predicted_N[wrong], return_inverse=True)
    found = []
    for at, cell in enumerate(cells):
        label, predicted = divmod(int(cell), classes)
        rows = wrong[inverse == at]
        weight, own_M = float(labelled.weight_N[rows].sum()), labelled.weight_N[labelled.label_N == label]
        share = wilson(weight / float(own_M.sum()), own_M)
        found.append(Confusion(label=label, predicted=predicted, rows=len(rows), weight=weight, share=share))
    return sorted(found, key=lambda one: (-one.weight, -one.share.low if one.share.n > 1 else 0.0, one.label))


def _upper(recall: Estimate) -> float:
    """Return the upper end of an interval; 1 for a class of one row, which has none."""
    return recall.high if recall.n > 1 else 1.0


def total_weight(found: Sequence[Confusion]) -> float:
    """Return the sum of counts of all mistakes."""
    return sum(one.weight for one in found)
