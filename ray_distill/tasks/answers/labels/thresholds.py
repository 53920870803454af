"""Fit the threshold of each label, which turns its probability into a decision.

A threshold is chosen by F1 on rows that are not trained on. The best of many thresholds on few positive rows is best by
chance (Yang, "A study on thresholding strategies for text categorization", SIGIR 2001), so that rare labels keep ½.
"""

import numpy as np
import numpy.typing as npt

from ray_distill.tasks.answers.labels.evaluation.predictions import DEFAULT_THRESHOLD, probabilities

#: With fewer rows that have a label, or that lack it, its threshold is `DEFAULT_THRESHOLD`.
MIN_ROWS = 10

Floats = npt.NDArray[np.float64]
Sets = npt.NDArray[np.bool_]
Counts = npt.NDArray[np.int64]


def fit_thresholds(log_odds_NV: npt.NDArray[np.float32], sets_NV: Sets, count_N: Counts | None = None) -> Floats:
    """Return the threshold of each label ``[V]``.

    It is `best_threshold`, or ½ if fewer than `MIN_ROWS` rows have the label or lack it.

    Args:
        log_odds_NV: the model's.
        sets_NV: whether a label applies.
        count_N: how often each row came, by which F1 weighs it; None = once.
    """
    probability_NV = probabilities(log_odds_NV.astype(np.float64))
    positive_V = sets_NV.sum(axis=0)
    enough_V = np.minimum(positive_V, len(sets_NV) - positive_V) >= MIN_ROWS
    found = np.full(sets_NV.shape[1], DEFAULT_THRESHOLD)
    for label in np.flatnonzero(enough_V):
        found[label] = best_threshold(probability_NV[:, label], sets_NV[:, label], count_N)
    return found


def best_threshold(probability_N: Floats, true_N: Sets, count_N: Counts | None = None) -> float:
    """Return the threshold with the greatest F1; of several, ½ or else the one nearest to it.

    A label applies where its probability is at least the threshold. A threshold lies in the middle between two
    neighbouring probabilities of the rows, or between 0 and the least of them.

    Args:
        probability_N: of the label, in [0, 1].
        true_N: whether it applies; True somewhere.
        count_N: how often each row came; None = once.
    """
    count_N = np.ones(len(true_N), np.int64) if count_N is None else count_N
    order_N = np.argsort(-probability_N, kind="stable")
    sorted_N = probability_N[order_N]
    last_K = np.flatnonzero(np.append(sorted_N[1:] != sorted_N[:-1], True))
    below_K = np.append(sorted_N, 0.0)[last_K + 1]
    middle_K = (sorted_N[last_K] + below_K) / 2
    between_K = np.where(middle_K > below_K, middle_K, sorted_N[last_K])  # no number lies between two neighbours
    candidate_K = np.append(between_K, DEFAULT_THRESHOLD)
    rows_K = np.append(last_K + 1, (probability_N >= DEFAULT_THRESHOLD).sum())
    hits_K, decided_K = (np.append(0, np.cumsum(each_N[order_N]))[rows_K] for each_N in (true_N * count_N, count_N))
    f1_K = 2 * hits_K / (decided_K + (true_N * count_N).sum())
    best = np.flatnonzero(f1_K == f1_K.max())
    return float(candidate_K[best[np.abs(candidate_K[best] - DEFAULT_THRESHOLD).argmin()]])
