"""Decide whether a teacher still suits newer traffic, from its answers to samples.

One sample is of newer traffic, the other of the reference.

With true labels the quality decides: a metric between 0 and 1 (accuracy, mAP) may fall by ``max_teacher_loss``. Without
them the confidence decides, by the difference of mean confidences (Guillory et al. 2021): a calibrated teacher is right
as often as it is confident, so a fall of its confidence estimates the fall of its accuracy. Harder traffic lowers the
confidence too: where there is a champion, its disagreement with the teacher must have risen as well.

Where the truth follows from the input, as of language models, nothing is decided: harder texts lower both numbers, and
the teacher's distribution is as much the label of a hard text as of an easy one. The numbers are reported all the same.

A change counts only beyond doubt: its whole 95 % interval lies beyond the limit. The samples are independent, so the
interval of their difference follows from the intervals of both (Zou and Donner 2008).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from ray_distill.artifacts import Artifact, Document, Estimate, Number
from ray_distill.config import DriftConfig
from ray_distill.evaluation.measures.drift import MIN_ROWS
from ray_distill.evaluation.measures.intervals import Z95, Floats, effective_size


@dataclass(frozen=True, kw_only=True)
class TrustSample:
    """Numbers of the teacher's answers to some rows of one snapshot."""

    rows: int
    quality: Mapping[str, Estimate]
    """Metrics between 0 and 1 of the rows with a true label, of which more is better, the most important first."""
    confidence: Estimate
    disagreement: Estimate | None
    """Share of answers that the champion gives otherwise; None without a champion."""

    @property
    def labelled(self) -> int:
        """Rows with a true label."""
        return max((found.n for found in self.quality.values()), default=0)


class TrustFinding(Document):
    """One number on the reference and on newer traffic."""

    name: str
    reference: Estimate
    current: Estimate
    change: Estimate
    """Newer traffic less reference, with the interval of the difference."""
    limit: Number
    """The change for the worse that is tolerated, as a positive number."""
    broken: bool
    """The whole interval of the change is beyond the limit."""
    sentence: str


class TeacherTrust(Artifact):
    """Whether the teacher's labels of newer traffic can be used."""

    by: Literal["labels", "confidence"]
    """What decided: true labels of newer rows, or the teacher's confidence."""
    rows: int
    """Newer rows that were answered."""
    labelled: int
    """Those of them that have a true label."""
    fails: bool
    findings: tuple[TrustFinding, ...]


def compare_trust(
    reference: TrustSample, current: TrustSample, config: DriftConfig, *, decisive: bool = True
) -> TeacherTrust:
    """Decide whether the teacher still suits newer traffic; pure.

    Labels decide where both samples have at least 20 labelled rows, else confidence. On fewer than 20 rows the teacher
    does not fail, nor where the comparison is not ``decisive``.
    """
    common = [name for name in current.quality if name in reference.quality]
    if common and min(reference.labelled, current.labelled) >= MIN_ROWS:
        name = common[0]
        loss = config.max_teacher_loss
        findings = [_finding(name, reference.quality[name], current.quality[name], limit=loss, better="more")]
        return _trust("labels", current, findings, fails=decisive and findings[0].broken)
    loss, enough = config.max_confidence_loss, decisive and min(reference.rows, current.rows) >= MIN_ROWS
    findings = [_finding("confidence", reference.confidence, current.confidence, limit=loss, better="more")]
    before, now = reference.disagreement, current.disagreement
    if before is not None and now is not None:
        findings.append(_finding("disagreement with the champion", before, now, limit=0.0, better="less"))
    return _trust("confidence", current, findings, fails=enough and all(found.broken for found in findings))


def mean_estimate(value_N: Floats, weight_N: Floats) -> Estimate:
    """Return a weighted mean in 0 … 1 with its normal interval at Kish's effective size."""
    mean, size = float(np.average(value_N, weights=weight_N)), effective_size(weight_N)
    if size <= 1:
        return Estimate(value=mean, n=len(value_N))
    spread = float(np.average((value_N - mean) ** 2, weights=weight_N)) * size / (size - 1)
    half = Z95 * math.sqrt(spread / size)
    return Estimate(value=mean, low=max(0.0, mean - half), high=min(1.0, mean + half), n=len(value_N))


def difference(current: Estimate, reference: Estimate) -> Estimate:
    """Return the difference of two independent estimates.

    Its interval is NaN where one of them has none.
    """
    value = current.value - reference.value
    below = math.hypot(current.value - current.low, reference.high - reference.value)
    above = math.hypot(current.high - current.value, reference.value - reference.low)
    return Estimate(value=value, low=value - below, high=value + above, n=min(current.n, reference.n))


def _trust(
    by: Literal["labels", "confidence"], current: TrustSample, findings: list[TrustFinding], *, fails: bool
) -> TeacherTrust:
    return TeacherTrust(by=by, rows=current.rows, labelled=current.labelled, fails=fails, findings=tuple(findings))


def _finding(
    name: str, reference: Estimate, current: Estimate, *, limit: float, better: Literal["more", "less"]
) -> TrustFinding:
    change = difference(current, reference)
    broken = change.high < -limit if better == "more" else change.low > limit
    sentence = (
        f"the teacher's {name} is {current.value:.3f} on {current.n:,} newer rows, {reference.value:.3f} on "
        f"{reference.n:,} of the reference: {change.value:+.3f} [{change.low:+.3f}, {change.high:+.3f}]"
    )
    return TrustFinding(
        name=name, reference=reference, current=current, change=change, limit=limit, broken=broken, sentence=sentence
    )
