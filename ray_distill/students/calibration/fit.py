"""Fit one temperature to a model's logits: that at which probabilities have the least NLL.

They are the softmax or sigmoids of ``logits / T``. The NLL is convex in ``1 / T`` (Guo et al., ICML 2017), so a search
in ``log T`` has one minimum.

- *Few rows without a mistake* would give the model any confidence. Therefore `PRIOR_ROWS` further rows, which are as
  calibrated as the model is, join the fit, as Platt's pseudo-examples do. They keep the objective convex.
- *A temperature that chance explains* is left out: one fitted number lowers the NLL even where it is of no use. It must
  pass a likelihood-ratio test at 95 %, in which a row is one observation: answers of one row depend on each other, by
  which the ratio is divided (Kent, Biometrika 1982).
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt
from torch import Tensor

from ray_distill.artifacts import Calibration
from ray_distill.losses.base import LossBatch
from ray_distill.students.loop.validation import MIN_LABELLED

Floats = npt.NDArray[np.float64]

#: Bounds of the search; beyond them nearly all probabilities are 0 and 1, or equal.
LEAST, GREATEST = 0.05, 20.0
#: Rows that are as calibrated as the model is, which join the fit.
PRIOR_ROWS = 10.0
#: Half of the 95 % point of chi-squared with one degree of freedom: nats, over all rows, that chance explains.
CHANCE = 1.92
#: Step of log T in numerical derivatives.
_STEP = 1e-3
#: Accuracy of log T; the temperature itself is rounded to four digits, which rounding errors of logits do not change.
_TOLERANCE = 1e-6
_DIGITS = 4
#: Probabilities that are computed at a time, in float64.
_CELLS = 1 << 20


class Confidence(Protocol):
    """How a family's logits become probabilities; arrays are float64."""

    @property
    def averaged(self) -> bool:
        """Whether a row's loss is the mean over its classes, which are answers of their own."""

    def targets(self, logits_BV: Tensor, batch: LossBatch, *, truth: bool) -> Tensor:
        """Return the probability of each class, ``[B, V]``: true labels' 1 and 0, or the teacher's.

        Classes that the store does not have share their mass as the model's own probabilities do.

        Args:
            logits_BV: the model's, float64.
            batch: the rows.
            truth: True for true labels, which all rows have; False for the teacher's.
        """

    def probabilities(self, logits_NV: Floats) -> Floats:
        """Return the probability of each class, ``[N, V]``."""

    def losses(self, logits_NV: Floats, target_NV: Floats) -> Floats:
        """Return the cross-entropy with the targets, ``[N]``, in nats."""

    def calibration_error(self, logits_NV: Floats, target_NV: Floats, weight_N: Floats) -> float:
        """Return the calibration error that the family's evaluation measures."""


@dataclass(frozen=True, kw_only=True)
class Judged:
    """Logits of some rows of the calibration split, and what they should have been."""

    logits_NV: npt.NDArray[np.float32]
    target_NV: npt.NDArray[np.float32]
    weight_N: Floats
    """How often each row came."""
    against: Literal["true labels", "teacher"]

    @property
    def effective_rows(self) -> float:
        """Number of equally weighted rows that determine as much (Kish)."""
        return float(self.weight_N.sum() ** 2 / (self.weight_N**2).sum())


def fitted(judged: Judged | None, confidence: Confidence) -> Calibration:
    """Return the temperature of least NLL, or 1 with the reason.

    Args:
        judged: rows of the calibration split; None if there are too few.
        confidence: the family's probabilities.
    """
    if judged is None:
        return Calibration(
            temperature=1.0,
            reason=f"the calibration split has fewer than {MIN_LABELLED} rows with a true label or the teacher's",
        )
    temperature, reason = _fit(judged, confidence)
    before, after = (_measured(judged, confidence, at) for at in (1.0, temperature))
    return Calibration(
        temperature=temperature,
        against=judged.against,
        rows=len(judged.weight_N),
        nll_before=before[0],
        nll_after=after[0],
        ece_before=before[1],
        ece_after=after[1],
        reason=reason,
    )


def _fit(judged: Judged, confidence: Confidence) -> tuple[float, str]:
    """Return the temperature, and a remark on it: why it is 1, or that it is a bound."""
    prior = PRIOR_ROWS / judged.effective_rows
    found = math.exp(_least(lambda x: _mean_loss(judged, confidence, math.exp(x), prior), LEAST, GREATEST))
    bound = next((end for end in (LEAST, GREATEST) if abs(math.log(found / end)) < 10 * _TOLERANCE), None)
    temperature = bound or float(f"{found:.{_DIGITS}g}")
    gain = _mean_loss(judged, confidence, 1.0) - _mean_loss(judged, confidence, temperature)
    answers = judged.logits_NV.shape[1] if confidence.averaged else 1
    if not gain * answers * judged.effective_rows > CHANCE * _dependence(judged, confidence, temperature, answers):
        return 1.0, f"{temperature:g} would lower the NLL by {max(gain, 0.0):.4f}, which chance explains"
    return temperature, "" if bound is None else f"a bound of the search, {LEAST:g} to {GREATEST:g}"


def _dependence(judged: Judged, confidence: Confidence, temperature: float, answers: int) -> float:
    """Return the variance of a row's score, over that of independent answers; at least 1."""
    squares = curvature = 0.0
    for logits_NV, target_NV, weight_N in _chunks(judged):
        less_N, here_N, more_N = (
            answers * confidence.losses(logits_NV / (temperature * math.exp(step)), target_NV)
            for step in (-_STEP, 0.0, _STEP)
        )
        squares += float(((more_N - less_N) / (2 * _STEP)) ** 2 @ weight_N)
        curvature += float((more_N - 2 * here_N + less_N) / _STEP**2 @ weight_N)
    return max(1.0, squares / curvature) if curvature > 0 else 1.0


class _Objective(Protocol):
    def __call__(self, x: float) -> float: ...


def _least(objective: _Objective, low: float, high: float) -> float:
    """Return the logarithm at which a function with one minimum is least, by golden section."""
    left, right, ratio = math.log(low), math.log(high), (math.sqrt(5) - 1) / 2
    inner, outer = right - ratio * (right - left), left + ratio * (right - left)
    at_inner, at_outer = objective(inner), objective(outer)
    while right - left > _TOLERANCE:
        if at_inner <= at_outer:
            right, outer, at_outer = outer, inner, at_inner
            inner = right - ratio * (right - left)
            at_inner = objective(inner)
        else:
            left, inner, at_inner = inner, outer, at_outer
            outer = left + ratio * (right - left)
            at_outer = objective(outer)
    return (left + right) / 2


def _mean_loss(judged: Judged, confidence: Confidence, temperature: float, prior: float = 0.0) -> float:
    """Return the mean NLL at a temperature, in nats.

    ``prior`` is the weight, beside 1 for the rows, of rows as calibrated as the model.
    """
    total = 0.0
    for logits_NV, target_NV, weight_N in _chunks(judged):
        losses_N = confidence.losses(logits_NV / temperature, target_NV)
        if prior:
            losses_N = losses_N + prior * confidence.losses(
                logits_NV / temperature, confidence.probabilities(logits_NV)
            )
        total += float(losses_N @ weight_N)
    return total / float(judged.weight_N.sum()) / (1 + prior)


def _measured(judged: Judged, confidence: Confidence, temperature: float) -> tuple[float, float]:
    """Return NLL and calibration error at a temperature."""
    logits_NV = judged.logits_NV.astype(np.float64) / temperature
    error = confidence.calibration_error(logits_NV, judged.target_NV.astype(np.float64), judged.weight_N)
    return round(_mean_loss(judged, confidence, temperature), 6), round(error, 6)


def _chunks(judged: Judged) -> Iterator[tuple[Floats, Floats, Floats]]:
    rows = max(1, _CELLS // judged.logits_NV.shape[1])
    for start in range(0, len(judged.weight_N), rows):
        part = slice(start, start + rows)
        logits_NV, target_NV = (matrix[part].astype(np.float64) for matrix in (judged.logits_NV, judged.target_NV))
        yield logits_NV, target_NV, judged.weight_N[part]
