"""A teacher's distributions over a classifier's rows, as the losses take them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ray_distill.errors import ConfigError, TrainingError
from ray_distill.labels.model.distributions import Distributions
from ray_distill.labels.model.signal import DISTRIBUTIONS, Signal
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


def teaching_of(
    signal: Signal | None, position: Index, store_classes: Sequence[str], student_classes: Sequence[str]
) -> Teaching | None:
    """Distributions of the labelled rows spread over all rows; the others get a harmless uniform one."""
    if signal is None or DISTRIBUTIONS not in signal.parts:
        return None
    if set(store_classes) != set(student_classes):
        raise ConfigError(
            f"the label store has the classes {_names(store_classes)}, the student {_names(student_classes)}: "
            "a distribution can only be taught over the same classes; use a student with the store's class names"
        )
    found = signal.distributions
    if not np.array_equal(found.row_offsets, np.arange(found.rows + 1)):
        raise TrainingError("the labels have several positions a row: classification needs exactly one")
    columns = _pad_entries(found, remap(store_classes, student_classes, "the label store"))
    width = columns["ids_RK"].shape[1]
    columns["log_tail_RT"] = found.log_tail
    filler: dict[str, npt.ArrayLike] = {"ids_RK": np.arange(width), "logp_RK": -np.log(width), "log_tail_RT": -np.inf}
    if found.draws is not None:  # one entry, so that a batch is as wide as its labelled rows alone ask for
        filler["logp_RK"] = np.where(np.arange(width) == 0, 0, -np.inf)
        columns["log_normaliser_R"] = found.draws.log_normaliser
    fields: dict[str, Any] = {
        name: over_rows(values, position, filler.get(name, 0)) for name, values in columns.items()
    }
    if found.draws is not None:
        fields |= {"draws": found.draws.number, "exponent": found.draws.exponent}
    return Teaching(classes=found.classes, temperatures=found.temperatures, **fields)


def remap(source: Sequence[str], target: Sequence[str], side: str) -> Index:
    """For each class of ``source`` its index in ``target``, by name.

    Raises:
        ConfigError: a class of ``source`` is not in ``target``; both sides are named.
    """
    index = {name: i for i, name in enumerate(target)}
    missing = [name for name in source if name not in index]
    if missing:
        raise ConfigError(
            f"{side} has classes the student does not: {_names(missing)}; the student has {_names(target)}. "
            "Classes are matched by name: use a student with the same class names"
        )
    return np.array([index[name] for name in source], dtype=np.int64)


def over_rows(values: npt.NDArray[Any], position: Index, filler: npt.ArrayLike) -> npt.NDArray[Any]:
    """Values of the labelled rows spread over all rows."""
    spread = np.empty((len(position), *values.shape[1:]), values.dtype)
    spread[:] = filler
    spread[position >= 0] = values
    return spread


def _pad_entries(found: Distributions, to_student: Index) -> dict[str, npt.NDArray[Any]]:
    """Ragged entries as ``[P, K]``, K the greatest number at a position, by field of `Teaching`."""
    lengths = np.diff(found.entry_offsets)
    width = int(lengths.max(initial=1))
    inside = np.arange(width) < lengths[:, None]
    padded: dict[str, npt.NDArray[Any]] = {
        "ids_RK": np.zeros(inside.shape, np.int32),
        "logp_RK": np.full(inside.shape, -np.inf, np.float32),
    }
    padded["ids_RK"][inside], padded["logp_RK"][inside] = to_student[found.ids], found.logp
    if found.draws is not None:
        padded["count_RK"] = np.zeros(inside.shape, np.int32)
        padded["count_RK"][inside] = found.draws.count
    return padded


def _names(names: Sequence[str]) -> str:
    shown = ", ".join(repr(name) for name in names[:8])
    return shown + (f" and {len(names) - 8} more" if len(names) > 8 else "")
