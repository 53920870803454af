"""Convert stored distributions to the tensors that losses read."""

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ray_distill.labels.format.chunked_distributions import DistributionParts
from ray_distill.labels.model.distributions import Distributions
from ray_distill.losses.base import SparseTargets
from ray_distill.students.order.cursor import Index


def sparse_targets(labels: Distributions | DistributionParts, stored: Index, counts: Index) -> SparseTargets:
    """Convert the distributions of rows to tensors, padded to the widest position.

    Args:
        labels: distributions of the rows that the teacher has labelled.
        stored: ``[B]`` row of ``labels``; -1 = the teacher has not labelled the row, whose positions get a harmless
            uniform distribution, or a probability of ½ by class.
        counts: ``[B]`` number of positions of each row.
    """
    have = stored >= 0
    found = labels.take(stored[have])
    have_N = None if have.all() else np.repeat(have, counts)
    draws = found.draws
    ids_PK, logp_PK, *count_PK = padded(found)
    width, log_odds = ids_PK.shape[1], found.log_odds

    def over_all(values: npt.NDArray[Any], filler: Any) -> torch.Tensor:
        return torch.from_numpy(values if have_N is None else _spread(values, have_N, filler))

    return SparseTargets(
        classes=found.classes,
        temperatures=found.temperatures,
        ids_NK=over_all(ids_PK, np.arange(width)),
        logp_NK=over_all(logp_PK, -np.log(width if log_odds is None else 2)),
        log_tail_NT=over_all(found.log_tail, -np.inf),
        log_odds_NK=None if log_odds is None else over_all(log_odds.reshape(ids_PK.shape), 0.0),
        count_NK=None if draws is None else over_all(count_PK[0], 0),
        log_normaliser_N=None if draws is None else over_all(draws.log_normaliser, 0.0),
        draws=0 if draws is None else draws.number,
        exponent=1.0 if draws is None else draws.exponent,
    )


def padded(found: Distributions) -> list[npt.NDArray[Any]]:
    """Return ids, log-probabilities and, for drawn entries, counts as ``[P, K]``.

    K is the number of entries of the widest position. Absent entries have class 0, log-probability -inf and count 0.
    """
    columns: list[tuple[npt.NDArray[Any], Any]] = [(found.ids, 0), (found.logp, -np.inf)]
    if found.draws is not None:
        columns.append((found.draws.count, 0))
    width = found.width
    if width:
        return [values.reshape(-1, width) for values, _ in columns]
    lengths = np.diff(found.entry_offsets)
    inside = np.arange(int(lengths.max(initial=1))) < lengths[:, None]
    matrices = [np.full(inside.shape, empty, values.dtype) for values, empty in columns]
    for matrix, (values, _) in zip(matrices, columns, strict=True):
        matrix[inside] = values
    return matrices


def _spread(values: npt.NDArray[Any], have_N: npt.NDArray[np.bool_], filler: Any) -> npt.NDArray[Any]:
    """Spread the values of labelled positions over all positions; the others get ``filler``."""
    spread = np.empty((len(have_N), *values.shape[1:]), values.dtype)
    spread[:] = filler
    spread[have_N] = values
    return spread
