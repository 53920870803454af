"""Judge language models: an answer at every position.

Answers are compared with the true token and the teacher's own answer.
"""

from collections.abc import Mapping

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ray_distill.artifacts import Estimate
from ray_distill.config import Campaign
from ray_distill.evaluation.measures.intervals import Floats, Ints, Resampling
from ray_distill.evaluation.predict.panel import SHOWN_ARMS, Extras, Panel
from ray_distill.evaluation.predict.rows import no_remarks as remarks
from ray_distill.evaluation.predict.texts import Written
from ray_distill.snapshots.reader import Snapshot
from ray_distill.tasks.answers.tokens.evaluation.generated_targets import measure_targets, write_targets
from ray_distill.tasks.answers.tokens.evaluation.harness import run_harness
from ray_distill.tasks.answers.tokens.evaluation.measures import compare, measure
from ray_distill.tasks.answers.tokens.evaluation.overlap import measure_overlap
from ray_distill.tasks.answers.tokens.evaluation.predictions import encode_for_all, predict_documents
from ray_distill.tasks.answers.tokens.evaluation.predictions import predict_documents as answer
from ray_distill.tasks.answers.tokens.evaluation.predictions import time_documents as timed
from ray_distill.tasks.answers.tokens.evaluation.side_by_side import choose_prompts, write_side_by_side
from ray_distill.tasks.inputs.modality import Corruption
from ray_distill.tasks.inputs.pair import DECODER

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

COLUMNS: tuple[str, ...] = ()
#: Train documents in which the commonest token is counted.
COUNTED_DOCUMENTS = 1000


def default_corruptions(possible: Mapping[str, Corruption]) -> Mapping[str, Corruption]:
    """Return none: each costs three more passes over the test split."""
    return {}


def answer_damaged(panel: Panel, rows: pa.Table) -> dict[str, pa.Table]:
    """Return answers on corrupted documents.

    Documents of which too little is left are omitted for all models.

    A corrupted text has other tokens than the clean one, so its NLL is compared between models, not with that of the
    clean text.
    """
    return predict_documents(panel, rows)


def confidence(answers: pa.Table) -> Floats:
    """Return the probability of the likeliest token, ``[N]``: a mean over positions."""
    sums_NB, tokens_N = answers["bin_confidence"].combine_chunks(), np.asarray(answers["tokens"], np.float64)
    return np.asarray(np.asarray(sums_NB.flatten()).reshape(len(tokens_N), -1).sum(axis=1) / tokens_N)


def trivial(panel: Panel, opened: Snapshot) -> dict[str, float]:
    """Return the accuracy of always predicting the train split's commonest true token.

    It is measured on the calibration split.
    """
    columns = ["row_id", panel.task.inputs.column]
    known = _true_tokens(panel, opened.read("train", columns=columns).slice(0, COUNTED_DOCUMENTS))
    found = _true_tokens(panel, opened.read("calibration", columns=columns))
    if not len(known) or not len(found):
        return {}
    return {"accuracy": float((found == np.bincount(known).argmax()).mean())}


def extras(panel: Panel, rows: pa.Table, config: Campaign) -> Extras:
    """Continue prompts, run benchmarks and write targets of sources, as configured.

    Raises:
        EvaluationError, ModelError: a prompt, a benchmark or a model cannot be used.
    """
    shown = panel.only(SHOWN_ARMS)
    written, benchmarks = _continue(shown, rows, config), _benchmark(shown, config)
    targets = _targets(panel, rows, config)
    arms = benchmarks.keys() | targets.keys()
    return Extras(figures={arm: {**benchmarks.get(arm, {}), **targets.get(arm, {})} for arm in arms}, written=written)


def _true_tokens(panel: Panel, rows: pa.Table) -> Ints:
    """Return the true tokens of some documents, one after the other."""
    encoded = panel.task.inputs.encode(rows, next(iter(panel.models.values())).processor)
    if not encoded.rows:
        return np.zeros(0, np.int64)
    return np.asarray(panel.task.answers.store.truth(encoded).values, np.int64)


def _continue(panel: Panel, rows: pa.Table, config: Campaign) -> tuple[Written, ...]:
    settings = config.evaluation
    if not settings.prompts:
        return ()
    documents = rows[panel.task.inputs.column]
    prompts = choose_prompts(panel.models, settings.prompts, documents, new_tokens=settings.new_tokens)
    return write_side_by_side(panel.models, prompts, new_tokens=settings.new_tokens)


def _benchmark(panel: Panel, config: Campaign) -> dict[str, dict[str, Estimate]]:
    settings = config.evaluation.lm_eval
    return {} if settings is None else run_harness(panel.models, settings, seed=config.seed, batch=panel.batch)


def _targets(panel: Panel, rows: pa.Table, config: Campaign) -> dict[str, dict[str, Estimate]]:
    """Measure encoder-decoders' targets of the first usable sources against the references."""
    settings = config.evaluation
    if panel.task.inputs.answering != DECODER or not settings.written:
        return {}
    usable = encode_for_all(panel.models, rows, task=panel.task).row_ids
    sources = rows.filter(pc.is_in(rows["row_id"].cast(pa.binary(16)), value_set=usable)).slice(0, settings.written)
    how = Resampling(seed=config.seed, bootstrap=settings.bootstrap, bins=panel.bins)
    measures = (measure_targets, measure_overlap) if settings.overlap else (measure_targets,)
    return {
        arm: {name: found for measured in measures for name, found in measured(texts, how).items()}
        for arm, texts in write_targets(panel.models, sources, task=panel.task, batch=panel.batch).items()
    }
