"""Has the traffic moved? Two samples of rows, several tests, one recommendation.

A finding raises the alarm only if it is both *sure* (its p-value, Holm-adjusted over all tests of the report, is
at most ``alpha``) and *large* (its effect reaches a threshold): with many rows everything differs a little.

    classes            Jensen–Shannon divergence of the mean teacher distributions; permutation test
    each statistic     Kolmogorov–Smirnov distance of its two distributions; asymptotic p-value
    embeddings         classifier two-sample test (Lopez-Paz and Oquab 2017): can a logistic regression predict, out of
                       fold, which sample an embedding is from? AUC; Mann–Whitney normal p-value

Rows weigh by count; the row is the unit that is permuted, and Kish's effective size enters the asymptotic ones.

The recommendation follows from `RULE`: a change of the inputs themselves, or two kinds of change at once, require a
new student; one kind alone requires teacher labels on the new rows, by which the present student can be judged
before a training run is paid for.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ray_distill.artifacts import Artifact, Document, Number
from ray_distill.config import DriftConfig
from ray_distill.errors import EvaluationError
from ray_distill.evaluation.measures.intervals import Floats, Ints, effective_size

#: Least Kolmogorov–Smirnov distance that matters: a tenth of the mass lies elsewhere.
MIN_KS = 0.1
MIN_ROWS = 20
FOLDS = 5
CHUNK_ELEMENTS = 4_000_000
_VERDICTS = {  # (sure, large)
    (True, True): "moved",
    (True, False): "moved, but too little to matter",
    (False, True): "may have moved, but the rows do not establish it",
    (False, False): "did not move",
}
RULE = (
    "retrain if the embeddings moved, or if both the classes and the input statistics did; relabel if only one of "
    "those two did; otherwise nothing"
)


@dataclass(frozen=True, kw_only=True)
class DriftSample:
    """N rows of one snapshot, as the teacher and simple statistics see them."""

    class_probs: Floats
    """``[N, V]``: the teacher's probabilities."""
    stats: Mapping[str, Floats]
    """``[N]`` each: statistics of the inputs, see `tasks.inputs.modality.Inputs.statistics`."""
    embeddings: npt.NDArray[np.floating] | None
    """``[N, D]``, or None where no hidden states were stored."""
    count: npt.NDArray[np.integer]
    """``[N]``: how often each row occurred."""


class Finding(Document):
    """One test: its statistic, adjusted p-value (how sure) and effect (how large).

    The effect is ``value``, to be compared with ``threshold``."""

    name: str
    statistic: str
    value: Number
    p_value: Number
    threshold: Number
    alarm: bool
    sentence: str


class DriftReport(Artifact):
    """All findings of a comparison.

    ``recommendation`` is ``nothing``, ``relabel`` or ``retrain`` by ``rule``.
    """

    alarm: bool
    findings: tuple[Finding, ...]
    recommendation: str
    rule: str
    rows_reference: int
    rows_current: int


@dataclass(frozen=True, kw_only=True)
class _Test:
    name: str
    statistic: str
    value: float
    p_value: float
    threshold: float


def compare(reference: DriftSample, current: DriftSample, config: DriftConfig, seed: int) -> DriftReport:
    """Test whether ``current`` differs from ``reference``.

    The seed fixes permutations, folds and subsamples.

    Raises:
        EvaluationError: fewer than 20 rows on a side, or samples that cannot be compared.
    """
    _check(reference, current)
    tests = list(_tests(reference, current, config, seed))
    adjusted = holm([test.p_value for test in tests])
    findings = tuple(_finding(test, p, config.alpha) for test, p in zip(tests, adjusted, strict=True))
    return DriftReport(
        alarm=any(finding.alarm for finding in findings),
        findings=findings,
        recommendation=_recommend(findings),
        rule=RULE,
        rows_reference=len(reference.count),
        rows_current=len(current.count),
    )


def holm(p_values: list[float]) -> list[float]:
    """Adjust p-values by Holm's step-down method: reject where the result is at most alpha."""
    order = np.argsort(p_values, kind="stable")
    factors = len(p_values) - np.arange(len(p_values))
    adjusted = np.empty(len(p_values))
    adjusted[order] = np.minimum(np.maximum.accumulate(np.asarray(p_values)[order] * factors), 1.0)
    return [float(p) for p in adjusted]


def jensen_shannon(p_V: Floats, q_V: Floats) -> Floats:
    """Return the Jensen–Shannon divergence in nats (0 … ln 2) over the last axis."""
    middle_V = (p_V + q_V) / 2
    return np.asarray((_relative_entropy(p_V, middle_V) + _relative_entropy(q_V, middle_V)) / 2)


def kolmogorov_smirnov(a_N: Floats, b_M: Floats, a_weight_N: Floats, b_weight_M: Floats) -> tuple[float, float]:
    """Return the weighted two-sample distance and its asymptotic p-value (Stephens 1970).

    The p-value is conservative where there are ties.
    """
    points = np.unique(np.concatenate([a_N, b_M]))
    distance = float(np.abs(_cumulative(a_N, a_weight_N, points) - _cumulative(b_M, b_weight_M, points)).max())
    a_size, b_size = effective_size(a_weight_N), effective_size(b_weight_M)
    root = math.sqrt(a_size * b_size / (a_size + b_size))
    return distance, _kolmogorov_tail((root + 0.12 + 0.11 / root) * distance)


def weighted_auc(low_N: Floats, high_M: Floats, low_weight_N: Floats, high_weight_M: Floats) -> float:
    """Return the probability that a score of ``high`` exceeds one of ``low``; ties count half."""
    order = np.argsort(low_N)
    below = np.concatenate([[0.0], np.cumsum(low_weight_N[order])])
    ranks_M = (
        below[np.searchsorted(low_N[order], high_M, "left")] + below[np.searchsorted(low_N[order], high_M, "right")]
    ) / 2
    return float((ranks_M * high_weight_M).sum() / (low_weight_N.sum() * high_weight_M.sum()))


def _check(reference: DriftSample, current: DriftSample) -> None:
    for name, sample in (("reference", reference), ("current", current)):
        if len(sample.count) < MIN_ROWS:
            raise EvaluationError(
                f"drift needs at least {MIN_ROWS} rows on each side, the {name} sample has "
                f"{len(sample.count)}: wait for more traffic"
            )
        if sample.embeddings is not None and not np.isfinite(sample.embeddings).all():
            raise EvaluationError(f"embeddings of the {name} sample are not finite: audit its label store")
    if reference.class_probs.shape[1] != current.class_probs.shape[1]:
        raise EvaluationError(
            f"the samples have {reference.class_probs.shape[1]} and {current.class_probs.shape[1]} "
            "classes: compare labels of one teacher"
        )
    if set(reference.stats) != set(current.stats):
        raise EvaluationError(
            f"the samples have different statistics, {sorted(reference.stats)} and "
            f"{sorted(current.stats)}: compare snapshots of one task"
        )
    shapes = [None if s.embeddings is None else s.embeddings.shape[1] for s in (reference, current)]
    if shapes[0] != shapes[1]:
        raise EvaluationError(
            f"the samples have embeddings of width {shapes[0]} and {shapes[1]}: take both from one "
            "layer, or from neither"
        )


def _tests(reference: DriftSample, current: DriftSample, config: DriftConfig, seed: int) -> Iterator[_Test]:
    number = 1 + len(reference.stats) + (reference.embeddings is not None)
    permutations = math.ceil(2 * number / config.alpha)  # the least p-value stays below alpha after the adjustment
    generator = np.random.default_rng(seed)
    weights = reference.count.astype(np.float64), current.count.astype(np.float64)
    value, p_value = _class_test(
        reference.class_probs, current.class_probs, *weights, generator=generator, permutations=permutations
    )
    yield _Test(
        name="classes",
        statistic="Jensen–Shannon divergence (nats)",
        value=value,
        p_value=p_value,
        threshold=config.min_classes_js,
    )
    for name in sorted(reference.stats):
        value, p_value = kolmogorov_smirnov(reference.stats[name], current.stats[name], *weights)
        yield _Test(
            name=f"input:{name}",
            statistic="Kolmogorov–Smirnov distance",
            value=value,
            p_value=p_value,
            threshold=MIN_KS,
        )
    if reference.embeddings is not None and current.embeddings is not None:
        value, p_value = _embedding_test(
            reference.embeddings, current.embeddings, *weights, generator=generator, max_rows=config.max_rows
        )
        yield _Test(
            name="embeddings",
            statistic="classifier two-sample AUC",
            value=value,
            p_value=p_value,
            threshold=config.min_auc,
        )


def _class_test(
    a_NV: Floats,
    b_MV: Floats,
    a_weight_N: Floats,
    b_weight_M: Floats,
    *,
    generator: np.random.Generator,
    permutations: int,
) -> tuple[float, float]:
    """Return the divergence of the weighted mean distributions, and its p-value by permutation.

    The p-value is the share of random divisions that diverge as much.
    """
    mass = np.concatenate([a_NV * a_weight_N[:, None], b_MV * b_weight_M[:, None]])
    table = np.column_stack([mass, np.concatenate([a_weight_N, b_weight_M])])  # [N+M, V+1]: last column = weight
    side = np.arange(len(table)) < len(a_NV)
    observed = float(_divergence(side[None, :], table)[0])
    chunk, reached = max(1, CHUNK_ELEMENTS // len(table)), 0
    for start in range(0, permutations, chunk):
        sides = np.tile(side, (min(chunk, permutations - start), 1))
        diverged = _divergence(generator.permuted(sides, axis=1), table)
        reached += int((diverged >= observed - 1e-15).sum())
    return observed, (reached + 1) / (permutations + 1)


def _divergence(side_BN: npt.NDArray[np.bool_], table: Floats) -> Floats:
    first = side_BN.astype(np.float64) @ table
    second = table.sum(axis=0) - first
    return jensen_shannon(first[:, :-1] / first[:, -1:], second[:, :-1] / second[:, -1:])


def _relative_entropy(p_V: Floats, q_V: Floats) -> Floats:
    ratio_V = np.divide(p_V, q_V, out=np.ones_like(p_V), where=p_V > 0)
    return np.asarray((p_V * np.log(ratio_V)).sum(axis=-1))


def _cumulative(values_N: Floats, weight_N: Floats, points: Floats) -> Floats:
    order = np.argsort(values_N)
    cumulative = np.concatenate([[0.0], np.cumsum(weight_N[order])])
    return np.asarray(cumulative[np.searchsorted(values_N[order], points, "right")] / cumulative[-1])


def _kolmogorov_tail(x: float) -> float:
    """Return P(K > x) of Kolmogorov's distribution."""
    if x < 0.2:
        return 1.0  # 1 - 5e-13 and more
    k = np.arange(1, 101)
    return float(np.clip(2 * ((-1.0) ** (k - 1) * np.exp(-2 * (k * x) ** 2)).sum(), 0.0, 1.0))


def _embedding_test(
    a_ND: npt.NDArray[np.floating],
    b_MD: npt.NDArray[np.floating],
    a_weight_N: Floats,
    b_weight_M: Floats,
    *,
    generator: np.random.Generator,
    max_rows: int,
) -> tuple[float, float]:
    """Return the mean out-of-fold AUC and its one-sided p-value."""
    keep_a, keep_b = (generator.permutation(len(x))[:max_rows] for x in (a_ND, b_MD))
    features = np.concatenate([a_ND[keep_a], b_MD[keep_b]]).astype(np.float64)
    weight = np.concatenate([a_weight_N[keep_a], b_weight_M[keep_b]])
    current = np.arange(len(features)) >= len(keep_a)
    spread = features.std(axis=0)
    features = (features - features.mean(axis=0)) / np.where(spread > 0, spread, 1.0)
    fold = _folds(features, generator)
    results = [_fold_auc(features, current, weight, fold == f) for f in range(FOLDS)]
    pairs, aucs, variances = (np.array(column) for column in zip(*(r for r in results if r), strict=True))
    share = pairs / pairs.sum()
    auc, deviation = float((share * aucs).sum()), math.sqrt((share**2 * variances).sum())
    return auc, 0.5 * math.erfc((auc - 0.5) / deviation / math.sqrt(2))


def _folds(features: Floats, generator: np.random.Generator) -> Ints:
    """Return a random fold a row; equal rows share one.

    Otherwise a row seen on both sides could be memorised.
    """
    unique, inverse = np.unique(features, axis=0, return_inverse=True)
    fold: Ints = generator.permutation(len(unique))[inverse.reshape(-1)] % FOLDS
    return fold


def _fold_auc(
    features: Floats, current: npt.NDArray[np.bool_], weight: Floats, tested: npt.NDArray[np.bool_]
) -> tuple[float, float, float] | None:
    """Return effective pairs, AUC and its variance without drift on the held-out rows.

    None where one side has no rows.
    """
    from sklearn.linear_model import LogisticRegression  # takes seconds, and few processes get here

    test = [tested & ~current, tested & current]
    train = ~tested
    if not all(side.any() for side in test) or len(np.unique(current[train])) < 2:
        return None
    model = LogisticRegression(max_iter=500).fit(features[train], current[train], sample_weight=weight[train])
    scores = [model.decision_function(features[side]) for side in test]
    sizes = [effective_size(weight[side]) for side in test]
    pairs = sizes[0] * sizes[1]
    auc = weighted_auc(scores[0], scores[1], weight[test[0]], weight[test[1]])
    return pairs, auc, (sum(sizes) + 1) / (12 * pairs)


def _finding(test: _Test, p_value: float, alpha: float) -> Finding:
    sure, large = p_value <= alpha, test.value >= test.threshold
    sentence = (
        f"{test.name} {_VERDICTS[sure, large]}: {test.statistic} {test.value:.4f} (threshold "
        f"{test.threshold:g}), adjusted p = {p_value:.2g}"
    )
    return Finding(
        name=test.name,
        statistic=test.statistic,
        value=test.value,
        p_value=p_value,
        threshold=test.threshold,
        alarm=sure and large,
        sentence=sentence,
    )


def _recommend(findings: tuple[Finding, ...]) -> str:
    kinds = {finding.name.split(":")[0] for finding in findings if finding.alarm}
    if "embeddings" in kinds or len(kinds) == 2:
        return "retrain"
    return "relabel" if kinds else "nothing"
