"""Judge multi-label models: a set of labels a row.

Answers are compared with the row's true set and the teacher's own probabilities.
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
from ray_distill.evaluation.predict.rows import no_remarks as remarks
from ray_distill.evaluation.predict.rows import time_rows as timed
from ray_distill.snapshots.reader import Snapshot
from ray_distill.tasks.answers.labels.evaluation.measures import Sets, compare, measure, read_scores
from ray_distill.tasks.answers.labels.evaluation.predictions import decisions, probabilities
from ray_distill.tasks.answers.labels.sets import label_matrix
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

#: By arm ``row_id``, ``log_odds``, ``decided``, ``count``, ``label`` and, beside a reference, ``teacher_…``.
answer = partial(answer_rows, columns=decisions)
#: The same on corrupted rows, without a reference.
answer_damaged = partial(answer_every_row, columns=decisions)


def default_corruptions(possible: Mapping[str, Corruption]) -> Mapping[str, Corruption]:
    """Return all: a pass over rows that are answered once is cheap."""
    return possible


def confidence(answers: pa.Table) -> Floats:
    """Return the mean over labels of the probability of the likelier answer, yes or no, ``[N]``."""
    found_NV = probabilities(read_scores(answers).log_odds_NV)
    return np.asarray(np.maximum(found_NV, 1 - found_NV).mean(axis=1))


def trivial(panel: Panel, opened: Snapshot) -> dict[str, float]:
    """Return the scores, by count, of always giving the train split's commonest set.

    They are measured on the calibration split: the share of rows with that set, and its micro-F1; and the mAP of equal
    scores for all rows, which is the mean share of rows that a label applies to.
    """
    (known_NV, known_N), (truth_NV, weight_N) = (_labelled(panel, opened, split) for split in ("train", "calibration"))
    if not len(known_N) or not len(weight_N):
        return {}
    sets, inverse_N = np.unique(known_NV, axis=0, return_inverse=True)
    commonest_V = sets[np.bincount(inverse_N.ravel(), weights=known_N).argmax()]
    share_V, hits = weight_N @ truth_NV / weight_N.sum(), float(weight_N @ (truth_NV @ commonest_V))
    found = {"subset_accuracy": float(np.average((truth_NV == commonest_V).all(axis=1), weights=weight_N))}
    if seen := float(weight_N @ (truth_NV.sum(axis=1) + commonest_V.sum())):
        found["micro_f1"] = 2 * hits / seen
    if share_V.any():
        found["map"] = float(share_V[share_V > 0].mean())
    return found


def _labelled(panel: Panel, opened: Snapshot, split: str) -> tuple[Sets, Floats]:
    """Return the known sets of a split and their counts, ``[N, V]`` and ``[N]``."""
    rows: pa.Table = opened.read(split, columns=["label", "count"])
    rows = rows.filter(pc.is_valid(rows["label"]))
    return label_matrix(rows["label"], len(panel.classes)), np.asarray(rows["count"], np.float64)
