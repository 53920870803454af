"""Judge classifiers: one answered position a row.

Answers are compared with the row's label and the teacher's own distribution.
"""

from collections.abc import Mapping
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ray_distill.evaluation.measures.intervals import Floats
from ray_distill.evaluation.predict.panel import Panel
from ray_distill.evaluation.predict.rows import answer_every_row, answer_rows
from ray_distill.evaluation.predict.rows import no_extras as extras
from ray_distill.evaluation.predict.rows import time_rows as timed
from ray_distill.snapshots.reader import Snapshot
from ray_distill.tasks.answers.classes.evaluation.measures import compare, measure, read_scores
from ray_distill.tasks.answers.classes.evaluation.predictions import log_probabilities
from ray_distill.tasks.answers.classes.evaluation.remarks import remarks
from ray_distill.tasks.inputs.modality import Corruption

__all__ = [
    "COLUMNS",
    "answer",
    "answer_damaged",
    "compare",
    "confidence",
    "default_corruptions",
    "extras",
    "measure",
    "remarks",
    "timed",
    "trivial",
]

COLUMNS: tuple[str, ...] = ("label",)

#: By arm ``row_id``, ``logp``, ``count``, ``label`` and, beside a reference, ``teacher_logp``.
answer = partial(answer_rows, columns=log_probabilities)
#: The same on corrupted rows, without a reference.
answer_damaged = partial(answer_every_row, columns=log_probabilities)


def default_corruptions(possible: Mapping[str, Corruption]) -> Mapping[str, Corruption]:
    """Return all: a pass over classified rows is cheap."""
    return possible


def confidence(answers: pa.Table) -> Floats:
    """Return the probability of each row's likeliest class, ``[N]``."""
    return read_scores(answers).confidence


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
