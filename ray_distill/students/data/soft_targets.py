"""A teacher's distributions over a classifier's rows, as the losses take them."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ray_distill.losses.base import SparseTargets
from ray_distill.students.order.cursor import Index


@dataclass(frozen=True, kw_only=True)
class Teaching:
    """Teacher distributions of R rows, one position a row, padded to K stored classes; student class ids."""

    classes: int
    temperatures: tuple[float, ...]
    ids_RK: npt.NDArray[np.int32]
    logp_RK: npt.NDArray[np.float32]
    """-inf on padding."""
    log_tail_RT: npt.NDArray[np.float32]
    count_RK: npt.NDArray[np.int32] | None = None
    """How often an entry was drawn, 0 where it is exact or padding; None where nothing was drawn."""
    log_normaliser_R: npt.NDArray[np.float32] | None = None
    """Of the draws' proposal; given exactly where counts are."""
    draws: int = 0
    exponent: float = 1.0

    def targets(self, rows: Index) -> SparseTargets:
        """The given rows as tensors; drawn entries only as wide as these rows need, whatever the others have."""
        logp_NK, width = self.logp_RK[rows], self.logp_RK.shape[1]
        if self.count_RK is not None:
            width = int(np.isfinite(logp_NK).sum(axis=1).max(initial=1))

        def entries(values_NK: npt.NDArray[Any]) -> torch.Tensor:
            return torch.from_numpy(np.ascontiguousarray(values_NK[:, :width]))

        return SparseTargets(
            classes=self.classes,
            temperatures=self.temperatures,
            ids_NK=entries(self.ids_RK[rows]),
            logp_NK=entries(logp_NK),
            log_tail_NT=torch.from_numpy(self.log_tail_RT[rows]),
            count_NK=None if self.count_RK is None else entries(self.count_RK[rows]),
            log_normaliser_N=None if self.log_normaliser_R is None else torch.from_numpy(self.log_normaliser_R[rows]),
            draws=self.draws,
            exponent=self.exponent,
        )

    def retained_mass(self, temperature: float, rows: Index) -> float:
        """Mean mass of the stored classes at a declared temperature over the given rows."""
        column = self.temperatures.index(temperature)
        return float(np.mean(-np.expm1(self.log_tail_RT[rows, column].astype(np.float64))))
