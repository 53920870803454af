"""Judge classifiers: one answered position a row.

Answers are compared with the row's label and the teacher's own distribution.
"""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ray_distill.config import Campaign
from ray_distill.errors import EvaluationError
from ray_distill.evaluation.predict.panel import Extras, Panel
from ray_distill.snapshots.reader import Snapshot
from ray_distill.tasks.answers.classes.evaluation.measures import compare, measure
from ray_distill.tasks.answers.classes.evaluation.predictions import accepted_by_all, join_predictions, predict_rows
from ray_distill.tasks.answers.classes.evaluation.predictions import time_rows as timed

__all__ = [
    "COLUMNS",
    "DAMAGED_BY_DEFAULT",
    "answer",
    "answer_damaged",
    "compare",
    "extras",
    "measure",
    "timed",
    "trivial",
]

COLUMNS: tuple[str, ...] = ("label",)
#: A pass over classified rows is cheap.
DAMAGED_BY_DEFAULT: bool = True


def answer(panel: Panel, rows: pa.Table, slices: Sequence[str] = ()) -> dict[str, pa.Table]:
    """Return by arm ``row_id``, ``logp``, ``count`` and ``label``.

    Beside a reference the tables have ``teacher_logp`` too.

    Raises:
        EvaluationError: models have other classes, or no row is accepted by all of them.
    """
    answers = predict_rows(panel, rows)
    rows = accepted_by_all(rows, (answer["row_id"].combine_chunks() for answer in answers.values()))
    if not rows.num_rows:
        raise EvaluationError("no row of the test split is accepted by all models: nothing can be compared")
    beside = None if panel.reference is None else answers[panel.reference]
    return {arm: join_predictions(rows, found, teacher=beside, slices=slices) for arm, found in answers.items()}


def answer_damaged(panel: Panel, rows: pa.Table) -> dict[str, pa.Table]:
    """Return answers on corrupted rows, without a reference.

    Raises:
        EvaluationError: a model rejects a row.
    """
    return {arm: join_predictions(rows, found) for arm, found in predict_rows(panel, rows).items()}


def trivial(panel: Panel, opened: Snapshot) -> dict[str, float]:
    """Return the accuracy, by count, of always predicting the train split's commonest class.

    It is measured on the calibration split.
    """
    splits = (opened.read(split, columns=["label", "count"]) for split in ("train", "calibration"))
    known, rows = (split.filter(pc.is_valid(split["label"])) for split in splits)
    if not known.num_rows or not rows.num_rows:
        return {}
    commonest = int(np.bincount(np.asarray(known["label"]), weights=np.asarray(known["count"])).argmax())
    right_N = np.asarray(rows["label"]) == commonest
    return {"accuracy": float(np.average(right_N, weights=np.asarray(rows["count"])))}


def extras(panel: Panel, rows: pa.Table, config: Campaign) -> Extras:
    """Return nothing: a classifier is measured by its answers alone."""
    return Extras()
