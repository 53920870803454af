"""Read the curves, rows and temperatures of judged arms, and the faults of their training."""

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pyarrow as pa

from ray_distill.artifacts import Calibration, EvalReport
from ray_distill.config import Campaign
from ray_distill.evaluation.measures.answer_tables import read_matrix
from ray_distill.evaluation.report.diagnosis import ArmCurve, diagnose
from ray_distill.models.core.checkpoint_files import read_facts
from ray_distill.runtime.stages.judge import Judged
from ray_distill.students.arms import ARMS
from ray_distill.students.export import exported_calibration
from ray_distill.students.telemetry.curves import curve_url, read_curve
from ray_distill.text import arm_name


def loss_history(curves: Sequence[ArmCurve]) -> dict[str, list[tuple[int, float]]]:
    """Return the training loss of each trained arm by step."""
    return {
        curve.arm: [(step, values["loss"]) for step, values in curve.steps.items()] for curve in curves if curve.steps
    }


def curves_of(report: EvalReport) -> list[ArmCurve]:
    """Return the curve of each trained arm; of several learning rates, that of the selected one."""
    found = []
    for arm in sorted(ARMS.keys() & report.models.keys()):
        facts = read_facts(report.models[arm].url)
        output = report.models[arm].url.rpartition("/")[0]
        rate = f"{arm}/rate-{facts['learning_rate']:g}"
        steps = read_curve(curve_url(output, arm)) or read_curve(curve_url(output, rate))
        found.append(ArmCurve(arm=arm, facts=facts, steps=steps))
    return found


def diagnosed(judged: Judged, config: Campaign) -> Judged:
    """Add findings about the training to the report's notes."""
    open_end = config.student.training.open_budget is not None
    more = diagnose(
        judged.report, curves_of(judged.report), open_end=open_end, teacher_entropy=_entropy_share(judged.predictions)
    )
    return replace(judged, report=judged.report.with_changes(notes=(*judged.report.notes, *more)))


def _entropy_share(predictions: pa.Table) -> float:
    """Return the mean entropy of the teacher's answers, as a share of that of equal classes.

    NaN where the predictions have none.
    """
    if "teacher_logp" not in predictions.column_names:
        return math.nan
    logp_NV = read_matrix(predictions, "teacher_logp")
    p_NV = np.exp(logp_NV)
    entropy_N = -np.where(p_NV > 0, p_NV * logp_NV, 0.0).sum(axis=1)
    return float(entropy_N.mean() / math.log(max(logp_NV.shape[1], 2)))


def rows_of(curve: ArmCurve) -> str:
    """Return how many rows taught an arm, and how often."""
    facts = curve.facts
    return (
        f"{arm_name(curve.arm)}: {facts['training_rows']:,} rows in {facts['steps']:,} steps of "
        f"{facts['global_batch']} ({facts['passes']:.3g} passes), {facts['rows_by_teacher']:,} of them by the teacher "
        f"and {facts['rows_by_true_labels']:,} by true labels"
    )


def calibrations(report: EvalReport) -> dict[str, Calibration]:
    """Return how temperatures were fitted, by arm; without arms that are exported as trained."""
    found = {arm: exported_calibration(report.models[arm].url) for arm in ARMS if arm in report.models}
    return {arm: calibration for arm, calibration in found.items() if calibration is not None}
