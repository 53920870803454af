"""Logistic regression on few rows: convex and deterministic.

Its regularisation is cross-validated.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ray_distill.errors import ModelError

#: Inverse strengths tried.
STRENGTHS = (1.0, 10.0, 100.0, 1000.0)
_FOLDS = 3
_ITERATIONS = 1000
#: Tolerance of the gradient; scikit-learn's own stops where the weakest regularisation has not converged.
_TOLERANCE = 1e-6


@dataclass(frozen=True, kw_only=True)
class LinearHead:
    """Weights of a fitted head, float32."""

    weight_VD: Tensor
    bias_V: Tensor
    facts: Mapping[str, Any]
    """Plain JSON on the fit, for readers of the head's file."""


@dataclass(frozen=True, kw_only=True)
class LogisticFit:
    """Weights float32, the chosen inverse strength, and each one's cross-validated NLL (nats)."""

    weight_VD: Tensor
    bias_V: Tensor
    strength: float
    validation_nll: dict[str, float]


def require_every_class(labels_R: npt.NDArray[np.int64], classes: Sequence[str]) -> None:
    """Refuse labels of fewer than two classes, or without a row of some class.

    Raises:
        ModelError: names the classes without rows.
    """
    if len(classes) < 2:
        raise ModelError(f"cannot fit a head: there is nothing to decide between {', '.join(classes) or 'no classes'}")
    counts = np.bincount(labels_R, minlength=len(classes)) if len(labels_R) else np.zeros(len(classes), np.int64)
    missing = [name for name, count in zip(classes, counts, strict=False) if count == 0]
    if missing or len(counts) != len(classes):
        raise ModelError(
            f"cannot fit a head: of {len(labels_R)} labelled rows none is of the class "
            f"{', '.join(missing[:5])}; label some, or leave the class out of snapshot.classes"
        )


def fit_classes(vectors_RD: Tensor, *, labels_R: npt.NDArray[np.int64], classes: int, seed: int) -> LinearHead:
    """Fit one multinomial regression; arguments as `fit_logistic`."""
    fit = fit_logistic(vectors_RD, labels_R, classes=classes, seed=seed)
    return LinearHead(
        weight_VD=fit.weight_VD,
        bias_V=fit.bias_V,
        facts={"regularisation": fit.strength, "validation_nll": fit.validation_nll},
    )


def require_both_answers(labels_RV: npt.NDArray[np.int64], classes: Sequence[str]) -> None:
    """Refuse classes that fewer than two rows have, or that fewer than two lack.

    Each fold needs both answers.

    Args:
        labels_RV: 1 where a row has the class, else 0.
        classes: names of the classes.

    Raises:
        ModelError: names the classes.
    """
    rows, with_V = len(labels_RV), labels_RV.sum(axis=0)
    wrong = [
        f"{name!r} ({count} of {rows})"
        for name, count in zip(classes, with_V.tolist(), strict=True)
        if min(count, rows - count) < 2
    ]
    if wrong or not classes:
        raise ModelError(
            f"cannot fit a head: at least two labelled rows with and two without each class are needed; found "
            f"{', '.join(wrong[:5]) or 'no classes'}; label more rows, or leave the class out of snapshot.classes"
        )


def fit_each(vectors_RD: Tensor, *, labels_RV: npt.NDArray[np.int64], seed: int) -> LinearHead:
    """Fit one regression a class, each with its own regularisation; ``labels_RV`` is 1 or 0."""
    fits = [fit_logistic(vectors_RD, labels_R, classes=2, seed=seed) for labels_R in labels_RV.T]
    # A fit of two classes has a row each; their difference is the log odds of the second.
    return LinearHead(
        weight_VD=torch.stack([fit.weight_VD[1] - fit.weight_VD[0] for fit in fits]),
        bias_V=torch.stack([fit.bias_V[1] - fit.bias_V[0] for fit in fits]),
        facts={
            "regularisation": [fit.strength for fit in fits],
            "validation_nll": [fit.validation_nll for fit in fits],
        },
    )


def fit_logistic(vectors_RD: Tensor, labels_R: npt.NDArray[np.int64], *, classes: int, seed: int) -> LogisticFit:
    """Fit with the C of `STRENGTHS` that is best out of sample.

    The fit minimises ``sum of NLL + |weight|² / 2C``.

    Args:
        vectors_RD: float embeddings.
        labels_R: class indices; each of the V classes has at least one row.
        classes: number of classes V, at least 2.
        seed: decides the folds.
    """
    from sklearn.linear_model import LogisticRegressionCV  # seconds to import, and absent from vLLM's environment

    folds_R = _folds(labels_R, seed)
    model = LogisticRegressionCV(
        Cs=STRENGTHS,
        cv=[(np.flatnonzero(folds_R != fold), np.flatnonzero(folds_R == fold)) for fold in range(_FOLDS)],
        l1_ratios=(0.0,),
        scoring="neg_log_loss",
        tol=_TOLERANCE,
        max_iter=_ITERATIONS,
        use_legacy_attributes=False,
    ).fit(vectors_RD.double().numpy(), labels_R)
    weight_VD, bias_V = torch.from_numpy(model.coef_).float(), torch.from_numpy(model.intercept_).float()
    if classes == 2:  # one row decides between two classes: half of it for each has the same probabilities
        weight_VD, bias_V = torch.cat([-weight_VD, weight_VD]) / 2, torch.cat([-bias_V, bias_V]) / 2
    nll = -np.asarray(model.scores_).reshape(_FOLDS, len(STRENGTHS)).mean(axis=0)
    return LogisticFit(
        weight_VD=weight_VD.contiguous(),
        bias_V=bias_V.contiguous(),
        strength=float(np.squeeze(model.C_)),
        validation_nll={
            f"{strength:g}": round(float(score), 6) for strength, score in zip(STRENGTHS, nll, strict=True)
        },
    )


def _folds(labels_R: npt.NDArray[np.int64], seed: int) -> npt.NDArray[np.int64]:
    """Return a fold for each row; classes are spread evenly over the folds.

    The number of a class's rows has no effect on that.
    """
    order = np.random.default_rng(seed).permutation(len(labels_R))
    order = order[np.argsort(labels_R[order], kind="stable")]
    folds = np.empty(len(labels_R), dtype=np.int64)
    folds[order] = np.arange(len(labels_R)) % _FOLDS
    return folds
