"""Distributions with the look of a language model's, for the codec's benchmark: Zipf's ids, a few nats of entropy."""

import numpy as np

from ray_distill.labels.format.codecs.compact import compact_options
from ray_distill.labels.model.distributions import Distributions
from ray_distill.labels.model.part_specs import AnswerSpace, DistributionsSpec
from ray_distill.labels.model.ragged import running


def spec_of(
    codec: tuple[str, int], classes: int, k: int, temperatures: tuple[float, ...] = (1.0,)
) -> DistributionsSpec:
    """Top-k distributions of a causal language model."""
    options = compact_options(temperatures, False) if codec[0] == "compact" else {}
    return DistributionsSpec(
        space=AnswerSpace(size=classes), estimator="topk", k=k, temperatures=temperatures, codec=codec, options=options
    )


def language_like(positions: int, classes: int, k: int, seed: int = 0, row: int = 200) -> Distributions:
    """Top-k distributions ``[positions]`` in rows of ``row`` tokens: class ids by Zipf's law in a shuffled order,
    log-probabilities that fall with the logarithm of the rank, sharper and flatter from position to position.
    """
    rng = np.random.default_rng(seed)
    names = rng.permutation(classes).astype(np.int32)
    ranks_PK = np.sort(np.floor(classes ** rng.random((positions, 4 * k))).astype(np.int64) - 1, axis=1)
    ids_PK = names[_distinct(ranks_PK, k, classes)]
    slope_P = rng.uniform(0.8, 2.5, (positions, 1))
    logit_PK = -slope_P * np.log(np.arange(1, k + 1)) + rng.normal(scale=0.3, size=(positions, k))
    tail_P = rng.beta(1, 9, positions).clip(1e-6, 0.99)
    logp_PK = logit_PK - np.log(np.exp(logit_PK).sum(axis=1, keepdims=True)) + np.log1p(-tail_P)[:, None]
    shuffled_PK = rng.permuted(logp_PK, axis=1)
    order_PK = np.argsort(ids_PK, axis=1)
    rows = running(np.full(positions // row, row))
    return Distributions(
        classes=classes,
        temperatures=(1.0,),
        row_offsets=rows,
        position=np.tile(np.arange(row, dtype=np.int32), positions // row),
        entry_offsets=np.arange(positions + 1, dtype=np.int64) * k,
        ids=np.take_along_axis(ids_PK, order_PK, axis=1).reshape(-1),
        logp=np.take_along_axis(shuffled_PK, order_PK, axis=1).reshape(-1).astype(np.float32),
        log_tail=np.log(tail_P).astype(np.float32)[:, None],
        entropy=(-np.exp(logp_PK) * logp_PK).sum(axis=1).astype(np.float32),
    )


def language_logits(seed: int, positions: int, classes: int) -> np.ndarray:
    """Logits ``[positions, classes]`` of a language model's kind: Zipf's law over all classes, noise of each position,
    scaled so that entropies are spread as SmolLM2's are (mean 2.8 nats: many near 0, some above 6).
    """
    rng = np.random.default_rng(seed)
    zipf_V = -np.log(np.random.default_rng(0).permutation(classes) + 2.7)
    logits_PV = zipf_V + rng.gumbel(scale=1.6, size=(positions, classes))
    entropy_P = 8.0 * rng.beta(1.0, 1.86, positions)
    low_P, high_P = np.full(positions, 0.2), np.full(positions, 30.0)
    for _ in range(14):  # entropy falls as the scale grows
        scale_P = np.sqrt(low_P * high_P)
        above_P = _entropy(logits_PV * scale_P[:, None]) > entropy_P
        low_P, high_P = np.where(above_P, scale_P, low_P), np.where(above_P, high_P, scale_P)
    return (logits_PV * np.sqrt(low_P * high_P)[:, None]).astype(np.float32)


def _entropy(logits_PV: np.ndarray) -> np.ndarray:
    shifted_PV = logits_PV - logits_PV.max(axis=1, keepdims=True)
    p_PV = np.exp(shifted_PV)
    total_P = p_PV.sum(axis=1)
    return np.log(total_P) - (p_PV * shifted_PV).sum(axis=1) / total_P


def _distinct(sorted_PM: np.ndarray, k: int, classes: int) -> np.ndarray:
    """k distinct ranks a position: every drawn rank is moved up past the one before it, then k of them are kept."""
    steps = np.arange(k)
    kept_PK = sorted_PM[:, :: sorted_PM.shape[1] // k][:, :k]
    return np.minimum(np.maximum.accumulate(kept_PK - steps, axis=1) + steps, classes - k + steps)
