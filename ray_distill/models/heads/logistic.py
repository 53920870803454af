"""Multinomial logistic regression on few rows: convex, deterministic, its regularisation cross-validated."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

#: Inverse strengths tried, weakest last; each starts from the one before.
STRENGTHS = (1.0, 10.0, 100.0, 1000.0)
_FOLDS = 3
_ITERATIONS = 200


@dataclass(frozen=True, kw_only=True)
class LogisticFit:
    """Weights float32, the chosen inverse strength, and the cross-validated NLL (nats) of each one tried."""

    weight_VD: Tensor
    bias_V: Tensor
    strength: float
    validation_nll: dict[str, float]


def fit_logistic(vectors_RD: Tensor, labels_R: npt.NDArray[np.int64], *, classes: int, seed: int) -> LogisticFit:
    """Fit; minimises ``sum of NLL + |weight|² / 2C`` with C of `STRENGTHS` that is best out of sample.

    Args:
        vectors_RD: float embeddings.
        labels_R: class indices.
        classes: number of classes V.
        seed: decides the folds.
    """
    x, y = vectors_RD.double(), torch.from_numpy(labels_R)
    folds = torch.from_numpy(_folds(labels_R, seed))
    scores = dict.fromkeys(STRENGTHS, 0.0)
    for fold in range(_FOLDS):
        held = folds == fold
        for strength, parameters in zip(STRENGTHS, _path(x[~held], y[~held], classes, STRENGTHS), strict=True):
            scores[strength] += _nll(parameters, x[held], y[held]).item() / len(y)
    best = min(STRENGTHS, key=lambda strength: (scores[strength], strength))
    final = _path(x, y, classes, STRENGTHS[: STRENGTHS.index(best) + 1])[-1].float()
    return LogisticFit(
        weight_VD=final[:, :-1].contiguous(),
        bias_V=final[:, -1].contiguous(),
        strength=best,
        validation_nll={f"{strength:g}": round(score, 6) for strength, score in scores.items()},
    )


def _folds(labels_R: npt.NDArray[np.int64], seed: int) -> npt.NDArray[np.int64]:
    """A fold for each row, classes spread evenly over the folds."""
    order = np.random.default_rng(seed).permutation(len(labels_R))
    order = order[np.argsort(labels_R[order], kind="stable")]
    folds = np.empty(len(labels_R), dtype=np.int64)
    folds[order] = np.arange(len(labels_R)) % _FOLDS
    return folds


def _path(x_RD: Tensor, y_R: Tensor, classes: int, strengths: tuple[float, ...]) -> list[Tensor]:
    """Solutions ``[V, D+1]`` (bias last) for rising strengths, each started from the one before."""
    parameters = torch.zeros(classes, x_RD.shape[1] + 1, dtype=torch.float64, requires_grad=True)
    found = []
    for strength in strengths:
        optimizer = torch.optim.LBFGS(
            [parameters], max_iter=_ITERATIONS, tolerance_grad=1e-6, line_search_fn="strong_wolfe"
        )

        def closure(optimizer: torch.optim.LBFGS = optimizer, strength: float = strength) -> Tensor:
            optimizer.zero_grad()
            penalty = parameters[:, :-1].square().sum() / (2 * strength)
            loss = (_nll(parameters, x_RD, y_R) + penalty) / max(len(y_R), 1)
            loss.backward()  # type: ignore[no-untyped-call]
            return loss

        optimizer.step(closure)  # type: ignore[no-untyped-call]
        found.append(parameters.detach().clone())
    return found


def _nll(parameters_VD: Tensor, x_RD: Tensor, y_R: Tensor) -> Tensor:
    logits_RV = x_RD @ parameters_VD[:, :-1].T + parameters_VD[:, -1]
    return torch.nn.functional.cross_entropy(logits_RV, y_R, reduction="sum")
