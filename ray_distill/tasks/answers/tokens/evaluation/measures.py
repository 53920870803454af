"""Measure a language model's quality from sums a document.

Each number has a 95 % interval over documents.

Tokens within a document depend on each other, so the *document* is the sampling unit: intervals resample documents,
``n`` is a number of documents, and a document weighs its ``count``. Every mean is over tokens (Σ count · sum over
Σ count · tokens). A document's sums come from `predictions`; nothing here sees a distribution.

| column                                    | sum over the answered positions of the document                        |
|-------------------------------------------|------------------------------------------------------------------------|
| ``tokens``                                | 1                                                                      |
| ``nll``                                   | −log q(true next token), nats                                          |
| ``correct``                               | is the likeliest token the true one?                                   |
| ``entropy``                               | H(q), nats                                                             |
| ``bin_tokens``, ``_confidence``,``_correct`` | by equal-width bin of max q: 1, max q, correct; ``[bins]``          |
| ``kl_from_teacher``                       | KL(p ‖ q) over the whole vocabulary, nats                              |
| ``agreement``                             | is the likeliest token the teacher's?                                  |
| ``teacher_entropy``                       | H(p), nats                                                             |
| ``tail_gap``                              | mass of q outside the teacher's 64 likeliest tokens, less that of p    |
| ``bucket_…``                              | tokens, KL, both entropies and the tail gap by `BUCKETS`; ``[5]``      |

Where there is no teacher, the columns that need one are absent, and so are their metrics. An interval is left out
where it cannot be had: fewer than two documents, an infinite loss, or a bucket of positions that so few documents
reach that a resample may have none.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pyarrow as pa

from ray_distill.artifacts import Estimate
from ray_distill.errors import EvaluationError
from ray_distill.evaluation.measures.answer_tables import require_same_rows
from ray_distill.evaluation.measures.calibration import Curve, mean_curve, probability_bins
from ray_distill.evaluation.measures.intervals import Floats, Ints, Resampling
from ray_distill.evaluation.measures.summaries import Column, Part, Summary, Totals, compare_parts, measure_parts
from ray_distill.tasks.answers.tokens import POSITION_BUCKETS, TOKENS

#: Positions (tokens from the document's first, 0) by bucket: from, and up to but without.
BUCKETS: Mapping[str, tuple[float, float]] = dict(
    zip(POSITION_BUCKETS, pairwise((0, 16, 64, 256, 1024, np.inf)), strict=True)
)
#: The teacher's likeliest tokens, whose complement is the tail.
TAIL_TOP = 64

#: Sums of a model alone, sums beside its teacher, and those of them that are kept by bucket of positions.
ALONE = ("nll", "correct", "entropy")
BESIDE = ("kl_from_teacher", "agreement", "teacher_entropy", "tail_gap")
BUCKETED = ("entropy", "kl_from_teacher", "teacher_entropy", "tail_gap")
_BINNED = ("bin_tokens", "bin_confidence", "bin_correct")


@dataclass(frozen=True, kw_only=True)
class Documents:
    """Sums of N documents as arrays, checked."""

    weight_N: Floats
    sums: Mapping[str, Floats]
    """Sums by column, ``[N, width]``."""


def sum_by_document(
    values: Mapping[str, Floats], *, document_P: Ints, position_P: Ints, documents: int, bins: int
) -> dict[str, pa.Array]:
    """Sum values of P positions into the columns above, without ``row_id`` and ``count``; pure.

    Args:
        values: ``[P]`` by name: `ALONE`, ``confidence`` and, with a teacher, `BESIDE`.
        document_P: the document of each position, from 0.
        position_P: the token of its document at which it stands, from 0.
        documents: how many there are.
        bins: of the calibration histogram.
    """

    def cells(values_P: Floats, group_P: Ints, groups: int) -> pa.Array:
        flat = np.bincount(document_P * groups + group_P, weights=values_P, minlength=documents * groups)
        return pa.FixedSizeListArray.from_arrays(pa.array(flat.astype(np.float64)), groups)

    bin_P = probability_bins(values["confidence"], bins)
    bucket_P = np.searchsorted([start for start, _ in BUCKETS.values()], position_P, side="right") - 1
    ones_P = np.ones(len(document_P))
    columns = {"tokens": pa.array(np.bincount(document_P, minlength=documents).astype(np.int64))}
    columns |= {
        name: pa.array(np.bincount(document_P, weights=values[name], minlength=documents).astype(np.float64))
        for name in (*ALONE, *BESIDE)
        if name in values
    }
    for name, values_P in (("tokens", ones_P), ("confidence", values["confidence"]), ("correct", values["correct"])):
        columns[f"bin_{name}"] = cells(values_P, bin_P, bins)
    columns["bucket_tokens"] = cells(ones_P, bucket_P, len(BUCKETS))
    return columns | {
        f"bucket_{name}": cells(values[name], bucket_P, len(BUCKETS)) for name in BUCKETED if name in values
    }


def measure(answers: pa.Table, how: Resampling) -> dict[str, Estimate]:
    """Measure a language model's answers, and their likeness to the teacher where there is one.

    Args:
        answers: ``row_id``, ``count`` and the columns above, one row a document.
        how: seed and number of resamples; bins of the calibration histogram, as the table was made with.

    Returns:
        ``nll`` (nats a token), ``perplexity``, ``accuracy`` (of the next token), ``ece``; with a teacher also
        ``agreement``, ``kl_from_teacher`` (nats a token), ``entropy_gap`` (student's less teacher's, nats),
        ``tail_mass_gap``, and the last three as ``<name>_at_<bucket>`` for the buckets that have tokens.

    Raises:
        EvaluationError: no documents, or sums that cannot be.
    """
    return measure_parts([_part(read_documents(answers, how.bins))], TOKENS.metrics, how)


def compare(student: pa.Table, other: pa.Table, how: Resampling) -> dict[str, Estimate]:
    """Return paired differences, student minus the other model, of every metric both have.

    Both are measured on the same documents.

    Raises:
        EvaluationError: the tables are of other documents or other tokens, or as `measure`.
    """
    require_same_rows(student, other)
    if not student["tokens"].equals(other["tokens"]):
        raise EvaluationError(
            "a paired comparison needs the same tokens: the two models answered other numbers of "
            "positions of the same documents; evaluate models of one tokenizer and one length"
        )
    first, second = (_part(read_documents(table, how.bins)) for table in (student, other))
    return compare_parts([first], [second], TOKENS.metrics, how)


def read_documents(predictions: pa.Table, bins: int) -> Documents:
    """Check a predictions table and return it as arrays; errors as `measure`."""
    if predictions.num_rows == 0:
        raise EvaluationError("there are no predictions to measure: the split has no usable document")
    sums = {name: _floats(predictions, name) for name in predictions.column_names if is_sum(name)}
    missing = [name for name in ("tokens", *ALONE, *_BINNED, "bucket_tokens") if name not in sums]
    if missing:
        raise EvaluationError(f"the predictions of a language model lack {', '.join(missing)}: the table is damaged")
    if sums["bin_tokens"].shape[1] != bins:
        raise EvaluationError(
            f"the predictions were made with {sums['bin_tokens'].shape[1]} calibration bins, "
            f"{bins} are configured: evaluate again with evaluation.bins"
        )
    weight_N = predictions["count"].to_numpy().astype(np.float64)
    for name, values_N in (("count", weight_N), ("tokens", sums["tokens"])):
        if not (values_N > 0).all():
            raise EvaluationError(f"{name} must be positive, found {values_N.min():g}: the predictions are damaged")
    for name, values in sums.items():
        if np.isnan(values).any():
            row = int(np.isnan(values).any(axis=1).argmax())
            raise EvaluationError(f"{name} of document {row} is not a number: the model's logits are NaN or overflowed")
    return Documents(weight_N=weight_N, sums=sums)


def is_sum(column: str) -> bool:
    """Return whether a name is one of the columns above."""
    return column in ("tokens", *ALONE, *BESIDE) or column.startswith(("bin_", "bucket_"))


def reliability(documents: Documents) -> Curve:
    """Return mean confidence and accuracy of the non-empty bins, and every bin's token share."""
    tokens, confidence, correct = (documents.weight_N @ documents.sums[name] for name in _BINNED)
    return mean_curve(tokens, confidence, correct)


def _finish(totals: Totals) -> dict[str, Floats]:
    """Compute metrics of B weightings from their totals; NaN for an empty bucket."""
    tokens_B = totals["tokens"][:, 0]

    def mean(name: str) -> Floats:
        return np.asarray(totals[name][:, 0] / tokens_B)

    with np.errstate(over="ignore"):
        found = {
            "nll": mean("nll"),
            "perplexity": np.exp(mean("nll")),
            "accuracy": mean("correct"),
            "ece": np.abs(totals["bin_confidence"] - totals["bin_correct"]).sum(axis=1) / tokens_B,
        }
    if BESIDE[0] not in totals:
        return found
    found |= {
        "agreement": mean("agreement"),
        "kl_from_teacher": mean("kl_from_teacher"),
        "entropy_gap": mean("entropy") - mean("teacher_entropy"),
        "tail_mass_gap": mean("tail_gap"),
    }
    by_bucket = {
        "kl_from_teacher": totals["bucket_kl_from_teacher"],
        "tail_mass_gap": totals["bucket_tail_gap"],
        "entropy_gap": totals["bucket_entropy"] - totals["bucket_teacher_entropy"],
    }
    with np.errstate(invalid="ignore"):
        for name, sums in by_bucket.items():
            means = sums / np.where(totals["bucket_tokens"] > 0, totals["bucket_tokens"], np.nan)
            found |= {f"{name}_at_{bucket}": means[:, i] for i, bucket in enumerate(BUCKETS)}
    return found


def _part(documents: Documents) -> Part:
    """Return the metrics of these documents as a function of their weights."""
    columns = {name: Column(values=sums) for name, sums in documents.sums.items()}
    return Part.of(Summary(columns=columns, finish=_finish), documents.weight_N)


def _floats(predictions: pa.Table, name: str) -> Floats:
    """Return a column as float64 ``[N, width]``."""
    column = predictions[name].combine_chunks()
    if pa.types.is_fixed_size_list(column.type):
        return np.asarray(column.flatten().to_numpy(zero_copy_only=False), dtype=np.float64).reshape(len(column), -1)
    return np.asarray(column.to_numpy(zero_copy_only=False), dtype=np.float64)[:, None]
