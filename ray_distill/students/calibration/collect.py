"""Run a trained arm over rows of the calibration split, and fit its temperature.

One rank does it. Units are read one after the other; what stays of them is at most `MOST_ROWS` rows of logits.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ray_distill.artifacts import Calibration
from ray_distill.config import TrainingConfig
from ray_distill.losses.base import LossBatch
from ray_distill.models.core.forward import forward
from ray_distill.models.core.model import Model
from ray_distill.models.heads.temperature import tempered
from ray_distill.students.calibration.fit import Confidence, Judged, fitted
from ray_distill.students.data.examples import PositionExamples
from ray_distill.students.engines.engine import training_device
from ray_distill.students.loop.validation import MIN_LABELLED
from ray_distill.students.order.cursor import Index
from ray_distill.students.order.micro_batches import Budget, micro_batches

#: Rows that are read at most, the first by id: ids are hashes, so these are drawn at random. One number needs no more.
MOST_ROWS = 10_000
#: Logits that are kept at most: fewer rows of very many classes.
_MOST_CELLS = 1 << 24

#: Gives a trained model its temperature: the model, possibly the same one changed in place, and how that was fitted.
Calibrate = Callable[[Model], tuple[Model, Calibration]]
#: Yields the units of the calibration split with their labels.
Units = Callable[[], Iterator[PositionExamples]]


def calibrator(
    how: Literal["temperature", "none"], confidence: Confidence | None, units: Units, training: TrainingConfig
) -> Calibrate | None:
    """Return what gives every arm its temperature; None = they keep their probabilities.

    Args:
        how: ``student.calibrate``.
        confidence: the family's probabilities; None if it has none to calibrate.
        units: the calibration split.
        training: the training settings.
    """
    if how == "none" or confidence is None:
        return None
    return partial(calibrated, units=units, confidence=confidence, training=training)


def calibrated(
    model: Model, units: Units, confidence: Confidence, training: TrainingConfig
) -> tuple[Model, Calibration]:
    """Return a trained model with its temperature, and how that was fitted.

    True labels decide where `MIN_LABELLED` rows have one, else the teacher's distributions. Rows weigh as often as they
    came, if training weighs them so.

    Args:
        model: the model with the weights that are exported; its module may be changed in place.
        units: the calibration split.
        confidence: the family's probabilities.
        training: the training settings, which have the sizes of forward passes and the device.
    """
    found = fitted(collect(model, units, confidence, training), confidence)
    done = tempered(model, found.temperature)
    where = "" if found.temperature == 1 else ("head" if done.temperature == 1 else "decision")
    return done, found.with_changes(where=where)


def collect(model: Model, units: Units, confidence: Confidence, training: TrainingConfig) -> Judged | None:
    """Return logits and targets of calibration rows; None for fewer than `MIN_LABELLED`."""
    most = max(MIN_LABELLED, min(MOST_ROWS, _MOST_CELLS // model.class_count))
    known, taught, seen = _Kept(truth=True), _Kept(truth=False), 0
    for data in units():
        rows = np.flatnonzero(data.labelled | data.distil)[: most - seen]
        seen += len(rows)
        for at, logits_BV, batch in run_rows(model, data, rows, training):
            known.add(data.labelled[rows[at]], logits_BV, batch, confidence)
            taught.add(data.distil[rows[at]], logits_BV, batch, confidence)
        if seen >= most:
            break
    enough = next((kept for kept in (known, taught) if kept.rows >= MIN_LABELLED), None)
    return None if enough is None else enough.judged()


@torch.inference_mode()
def run_rows(
    model: Model, data: PositionExamples, rows: Index, training: TrainingConfig
) -> Iterator[tuple[Index, Tensor, LossBatch]]:
    """Run the model over rows, on the device of training; yield parts of them.

    A part has the places of its rows among ``rows``, their logits (float64, on the CPU), and their batch, in which a
    row weighs as often as it came. Each row is in one part.
    """
    module, lengths = model.module.to(training_device(training)).eval(), data.lengths
    lengths = None if lengths is None else lengths[rows]
    budget = Budget.of(training)
    if budget.tokens:
        budget = replace(budget, tokens=max(budget.tokens, budget.least(lengths)))
    places = np.arange(len(rows), dtype=np.int64)
    for micro in micro_batches(places, rank=0, world=1, budget=budget, lengths_BF=lengths):
        at = micro.rows[micro.real]
        weight_B = None if data.count is None else data.count[rows[at]].astype(np.float32)
        inputs, batch = data.batch(rows[at], weight_B)
        yield at, forward(module, inputs).logits_BV.double().cpu(), batch


class _Kept:
    """Logits, targets and weights of the rows that one side has labelled."""

    def __init__(self, *, truth: bool):
        self._truth, self.rows = truth, 0
        self._parts: list[tuple[npt.NDArray[np.float32], npt.NDArray[np.float32], npt.NDArray[np.float32]]] = []

    def add(self, own_B: npt.NDArray[np.bool_], logits_BV: Tensor, batch: LossBatch, confidence: Confidence) -> None:
        """Add those rows of a part that this side has labelled."""
        if not own_B.any():
            return
        target_BV, weight_B = confidence.targets(logits_BV, batch, truth=self._truth), batch.example_weight_B
        self._parts.append((_rows(logits_BV, own_B), _rows(target_BV, own_B), _rows(weight_B, own_B)))
        self.rows += int(own_B.sum())

    def judged(self) -> Judged:
        """Return all rows."""
        logits_NV, target_NV, weight_N = (np.concatenate(column) for column in zip(*self._parts, strict=True))
        return Judged(
            logits_NV=logits_NV,
            target_NV=target_NV,
            weight_N=weight_N.astype(np.float64),
            against="true labels" if self._truth else "teacher",
        )


def _rows(values: Tensor, own_B: npt.NDArray[np.bool_]) -> npt.NDArray[np.float32]:
    found: npt.NDArray[np.float32] = values.float().numpy()[own_B]
    return found
