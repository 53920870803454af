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

import numpy as np
import pyarrow as pa

from ray_distill.artifacts import Estimate
from ray_distill.errors import EvaluationError
from ray_distill.evaluation.measures.intervals import Floats, Ints, Resampling, Weighted, percentiles, resample
from ray_distill.tasks.answers.tokens import TOKENS

#: Positions (tokens from the document's first, 0) by bucket: from, and up to but without.
BUCKETS: Mapping[str, tuple[float, float]] = {
    "0_15": (0, 16),
    "16_63": (16, 64),
    "64_255": (64, 256),
    "256_1023": (256, 1024),
    "1024_up": (1024, np.inf),
}
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

    @property
    def has_teacher(self) -> bool:
        """Was there a teacher to be compared with?"""
        return BESIDE[0] in self.sums

    @property
    def width(self) -> int:
        """Sums of a document over all columns."""
        return sum(sums.shape[1] for sums in self.sums.values())


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

    bin_P = np.minimum((values["confidence"] * bins).astype(np.int64), bins - 1)
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
    documents = read_documents(answers, how.bins)
    weighted, weight_N = _weighted(documents), documents.weight_N
    values = weighted(weight_N[None, :])
    samples = resample([weighted], weight_N, how, widest=documents.width)[0]
    return {
        name: _estimate(float(value_1[0]), samples[name], len(weight_N), *_domain(name))
        for name, value_1 in values.items()
        if not np.isnan(value_1[0])
    }


def compare(student: pa.Table, other: pa.Table, how: Resampling) -> dict[str, Estimate]:
    """Return paired differences, student minus the other model, of every metric both have.

    Both are measured on the same documents.

    Raises:
        EvaluationError: the tables are of other documents or other tokens, or as `measure`.
    """
    if not student["row_id"].equals(other["row_id"]):
        raise EvaluationError(
            "a paired comparison needs the same documents in the same order: the two models' "
            f"predictions differ in their row ids ({student.num_rows} and {other.num_rows} rows)"
        )
    if not student["tokens"].equals(other["tokens"]):
        raise EvaluationError(
            "a paired comparison needs the same tokens: the two models answered other numbers of "
            "positions of the same documents; evaluate models of one tokenizer and one length"
        )
    pair = [read_documents(table, how.bins) for table in (student, other)]
    weighted, weight_N = [_weighted(item) for item in pair], pair[0].weight_N
    left, right = (item(weight.weight_N[None, :]) for item, weight in zip(weighted, pair, strict=True))
    left_B, right_B = resample(weighted, weight_N, how, widest=pair[0].width)
    differences = {}
    for name in left.keys() & right.keys():
        with np.errstate(invalid="ignore"):
            value, samples_B = float(left[name][0] - right[name][0]), left_B[name] - right_B[name]
        low, high = _domain(name)
        if not np.isnan([left[name][0], right[name][0]]).any():
            differences[name] = _estimate(value, samples_B, len(weight_N), low - high, high - low)
    return {name: differences[name] for name in left if name in differences}


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


def reliability(documents: Documents) -> tuple[Floats, Floats, Floats]:
    """Return mean confidence and accuracy of the non-empty bins, and every bin's token share."""
    tokens, confidence, correct = (documents.weight_N @ documents.sums[name] for name in _BINNED)
    some = tokens > 0
    return confidence[some] / tokens[some], correct[some] / tokens[some], tokens / tokens.sum()


def _finish(totals: Mapping[str, Floats]) -> dict[str, Floats]:
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


def _weighted(documents: Documents) -> Weighted:
    """Return the metrics of these documents as a function of their weights."""
    return lambda weight_BN: _finish(_totals(documents, weight_BN))


def _totals(documents: Documents, weight_BN: Floats) -> dict[str, Floats]:
    """Return weighted sums over documents, ``[B, width]`` by column."""
    with np.errstate(invalid="ignore"):  # 0 · inf where a resample leaves out an infinite loss
        return {name: weight_BN @ sums for name, sums in documents.sums.items()}


def _estimate(value: float, samples_B: Floats, n: int, low: float, high: float) -> Estimate:
    return percentiles(value, samples_B, n, low=low, high=high)


def _domain(name: str) -> tuple[float, float]:
    metric = TOKENS.metrics[name]
    return metric.low, metric.high


def _floats(predictions: pa.Table, name: str) -> Floats:
    """Return a column as float64 ``[N, width]``."""
    column = predictions[name].combine_chunks()
    if pa.types.is_fixed_size_list(column.type):
        return np.asarray(column.flatten().to_numpy(zero_copy_only=False), dtype=np.float64).reshape(len(column), -1)
    return np.asarray(column.to_numpy(zero_copy_only=False), dtype=np.float64)[:, None]
