"""Measure the overlap of generated texts with references: ROUGE and chrF.

Each has a 95 % interval over documents.

ROUGE-1, ROUGE-2 and ROUGE-L (Lin 2004) are means over documents of the F1 of `rouge_score`, 0 to 1, stems compared: its
tokenizer reads English letters and digits alone, so where no reference has any, the three are left out. chrF (Popović
2015) is that of `sacrebleu`'s defaults, 0 to 100: F2 of character n-grams up to 6, from counts summed over documents,
in any script. A document weighs its ``count``; intervals resample documents.
"""

import importlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from ray_distill.artifacts import Estimate
from ray_distill.errors import EvaluationError
from ray_distill.evaluation.measures.intervals import Floats, Resampling, Weighted, percentiles, resample
from ray_distill.tasks.answers.tokens import TOKENS

ROUGE = {"rouge1": "rouge1", "rouge2": "rouge2", "rouge_l": "rougeL"}
#: Longest n-gram of chrF, and how much more recall counts than precision.
ORDER, BETA = 6, 2


@dataclass(frozen=True, kw_only=True)
class Overlaps:
    """Contributions of N documents to the measures."""

    weight_N: Floats
    rouge: Mapping[str, Floats]
    """F1 of each document by measure, ``[N]``; empty where no reference has a word of ROUGE's."""
    counts_NO3: Floats
    """``[N, ORDER, 3]``: n-grams of the answer, of the reference, and of both, by order."""


def measure_overlap(predictions: pa.Table, how: Resampling) -> dict[str, Estimate]:
    """Measure ROUGE and chrF of generated texts.

    Args:
        predictions: ``row_id``, ``count``, ``written`` and ``reference`` (strings), one row a document.
        how: seed and number of resamples.

    Raises:
        EvaluationError: no documents, a missing text, or the optional packages are not installed.
    """
    overlaps = read_overlaps(predictions)
    weighted, weight_N = _weighted(overlaps), overlaps.weight_N
    values, samples = weighted(weight_N[None, :]), resample([weighted], weight_N, how, widest=3 * ORDER)[0]
    n = len(weight_N)
    return {
        name: percentiles(float(value_1[0]), samples[name], n, low=0.0, high=TOKENS.metrics[name].high)
        for name, value_1 in values.items()
    }


def compare_overlap(student: pa.Table, other: pa.Table, how: Resampling) -> dict[str, Estimate]:
    """Return paired differences, student minus the other model, on the same documents.

    Raises:
        EvaluationError: the tables are of other documents or references, or as `measure_overlap`.
    """
    for column in ("row_id", "reference"):
        if not student[column].equals(other[column]):
            raise EvaluationError(
                "a paired comparison needs the same documents in the same order: the two models' "
                f"texts differ in {column} ({student.num_rows} and {other.num_rows} rows)"
            )
    pair = [read_overlaps(table) for table in (student, other)]
    left, right = (_finish(item, item.weight_N[None, :]) for item in pair)
    weighted, weight_N = [_weighted(item) for item in pair], pair[0].weight_N
    left_B, right_B = resample(weighted, weight_N, how, widest=3 * ORDER)
    return {
        name: percentiles(
            float(left[name][0] - right[name][0]),
            left_B[name] - right_B[name],
            len(weight_N),
            low=-TOKENS.metrics[name].high,
            high=TOKENS.metrics[name].high,
        )
        for name in left
    }


def read_overlaps(predictions: pa.Table) -> Overlaps:
    """Count the overlap of every document; errors as `measure_overlap`."""
    if not predictions.num_rows:
        raise EvaluationError("there are no generated texts to measure: the split has no usable document")
    for name in ("written", "reference"):
        if predictions[name].null_count:
            raise EvaluationError(
                f"{name} is missing in {predictions[name].null_count} of {predictions.num_rows} "
                "documents: leave them out for all models"
            )
    answers, references = (predictions[name].to_pylist() for name in ("written", "reference"))
    grams = _package("sacrebleu.metrics.helpers", "sacrebleu").extract_all_char_ngrams
    counts = [
        _matches(grams(answer, ORDER, False), grams(reference, ORDER, False))
        for answer, reference in zip(answers, references, strict=True)
    ]
    return Overlaps(
        weight_N=predictions["count"].to_numpy().astype(np.float64),
        counts_NO3=np.array(counts, np.float64),
        rouge=_rouge(answers, references),
    )


def _rouge(answers: Sequence[str], references: Sequence[str]) -> dict[str, Floats]:
    tokenizer = _package("rouge_score.tokenizers", "rouge-score").DefaultTokenizer(use_stemmer=True)
    if not any(tokenizer.tokenize(reference) for reference in references):
        return {}
    scorer = _package("rouge_score.rouge_scorer", "rouge-score").RougeScorer([*ROUGE.values()], tokenizer=tokenizer)
    found = [scorer.score(reference, answer) for answer, reference in zip(answers, references, strict=True)]
    return {name: np.array([item[rouge].fmeasure for item in found]) for name, rouge in ROUGE.items()}


def _matches(answers: Sequence[Counter[str]], references: Sequence[Counter[str]]) -> list[tuple[int, int, int]]:
    """Count n-grams by order: of the answer, of the reference, of both.

    The answer's are none where the reference is too short.
    """
    return [
        (sum(mine.values()) if its else 0, sum(its.values()), sum((mine & its).values()))
        for mine, its in zip(answers, references, strict=True)
    ]


def _weighted(overlaps: Overlaps) -> Weighted:
    """Return the measures of these documents as a function of their weights."""
    return lambda weight_BN: _finish(overlaps, weight_BN)


def _finish(overlaps: Overlaps, weight_BN: Floats) -> dict[str, Floats]:
    """Compute measures of B weightings of the documents."""
    total_B = weight_BN.sum(axis=1)
    found = {name: weight_BN @ value_N / total_B for name, value_N in overlaps.rouge.items()}
    return found | {"chrf": _chrf(np.einsum("bn,nok->bok", weight_BN, overlaps.counts_NO3))}


def _chrf(counts_BO3: Floats) -> Floats:
    """Compute chrF of summed counts.

    It is the F of the mean precision and recall over the orders that both sides have.
    """
    answer_BO, reference_BO, both_BO = np.moveaxis(counts_BO3, -1, 0)
    some_BO = (answer_BO > 0) & (reference_BO > 0)
    orders_B = np.maximum(some_BO.sum(axis=1), 1)
    precision_B, recall_B = (
        np.where(some_BO, both_BO / np.maximum(side_BO, 1e-300), 0.0).sum(axis=1) / orders_B
        for side_BO in (answer_BO, reference_BO)
    )
    below_B = BETA**2 * precision_B + recall_B
    return np.asarray(100 * (1 + BETA**2) * precision_B * recall_B / np.where(below_B > 0, below_B, 1.0))


def _package(module: str, name: str) -> Any:
    """Import a module of an optional package.

    Raises:
        EvaluationError: it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise EvaluationError(
            f"ROUGE and chrF need the optional package {name}: pip install 'ray-distill[seq2seq]', "
            "on every machine that evaluates"
        ) from error
