"""Store rows of a snapshot with their teacher labels, and make tensors of selected rows.

A row has answered positions: a classifier's row has one, a language model's row has one for each token that is to be
predicted. Labels belong to (row, position), never to a place in a batch: batch size, packing and number of ranks may
differ between labelling and training. The sets of this module are in memory, as numpy, on every rank; `streaming` has
sets that do not fit into memory. The order of examples (`students.order`) selects the rows.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from ray_distill.labels.format.chunked_distributions import DistributionParts
from ray_distill.labels.model.distributions import Distributions
from ray_distill.labels.model.ragged import RaggedArray, gather_ranges
from ray_distill.labels.model.signal import Vectors
from ray_distill.losses.base import LossBatch
from ray_distill.students.data.answer_format import AnswerFormat
from ray_distill.students.data.sparse_targets import sparse_targets
from ray_distill.students.modules.student_module import PLACES
from ray_distill.students.order.cursor import Index
from ray_distill.tasks.encoded import Batch, Encoded

#: The weight of each row in the losses; booleans are 1 and 0.
RowWeights = npt.NDArray[np.float32] | npt.NDArray[np.bool_]


class Examples(Protocol):
    """Rows that a student trains on, in memory or streamed; rows are numbered from 0."""

    @property
    def rows(self) -> int:
        """Number of rows, R."""

    @property
    def labelled(self) -> npt.NDArray[np.bool_]:
        """``[R]``: whether losses on true labels weigh the row."""

    @property
    def distil(self) -> npt.NDArray[np.bool_]:
        """``[R]``: whether the teacher may teach the row."""

    @property
    def count(self) -> Index | None:
        """``[R]``: how often each row came, by which it is weighed; None = all rows weigh the same."""

    @property
    def lengths(self) -> npt.NDArray[np.int32] | None:
        """``[R, F]``: tokens of each row, by feature of token ids; None = no tokens, or not counted."""

    @property
    def widths(self) -> Mapping[int, int]:
        """Width of a teacher state by stored layer."""

    @property
    def drawn(self) -> bool:
        """Whether the teacher's classes were drawn."""

    def retained_mass(self, temperature: float, rows: Index) -> float:
        """Return the mean mass of the stored classes over labelled rows, at a declared temperature."""

    def ids_of(self, rows: Index) -> list[str]:
        """Return the ids of rows in the snapshot, as hexadecimal text."""

    def states(self, rows: Index) -> Mapping[int, Vectors]:
        """Return the teacher states of labelled rows, by stored layer."""

    def sampling_classes(self) -> RaggedArray:
        """Return the classes of each row, by which rows are sampled.

        A row whose classes are unknown has none.

        Raises:
            ConfigError: rows have no classes, or are not in memory.
        """

    def entropies(self) -> npt.NDArray[np.float64]:
        """Return ``[R]`` entropies of the teacher in nats; NaN = unknown.

        The entropy of a row is the mean over its positions.

        Raises:
            ConfigError: rows are not in memory.
        """

    def prepare(self, step: int, rows_of: Callable[[int], Index], stop: int) -> None:
        """Prepare the rows of a step for `batch`.

        Rows of later steps, before ``stop``, may be prefetched.
        """

    def batch(self, rows: Index, weight_B: RowWeights | None = None) -> tuple[Batch, LossBatch]:
        """Return the model inputs and the loss inputs of rows.

        ``weight_B`` has the weight of each row, 0 for padding; None = 1.
        """

    def close(self) -> None:
        """End prefetching, if there is any."""


@dataclass(frozen=True, kw_only=True)
class PositionExamples:
    """Usable rows of one split, ascending by row id.

    Their order does not depend on files.

    There are R rows; row r has the answered positions ``answered.values[answered.offsets[r]:answered.offsets[r+1]]``. A
    row without teacher labels is kept if its truth is known; its ``distil`` is False.
    """

    format: AnswerFormat
    encoded: Encoded
    answered: RaggedArray
    """The answered positions of each row."""
    truth: RaggedArray
    """The truth at each answered position: a class ``[P]``, or 1 and 0 by class ``[P, V]``; -1 = unknown."""
    stored: Index
    """``[R]``: row of ``distributions`` and ``hidden``; -1 = the teacher has not labelled the row."""
    distil: npt.NDArray[np.bool_]
    """``[R]``: whether the teacher may teach this row."""
    distributions: Distributions | DistributionParts | None
    """Distributions over the student's classes; the ids of a position need not ascend."""
    hidden: Mapping[int, Vectors] = field(default_factory=dict)
    """Teacher states of labelled rows by stored layer: one state a row, or one a token."""
    count: Index | None = None
    """``[R]``: how often each row came, by which it is weighed; None = all rows weigh the same."""

    @property
    def rows(self) -> int:
        """Number of rows, R."""
        return self.encoded.rows

    @cached_property
    def labelled(self) -> npt.NDArray[np.bool_]:
        """``[R]``: whether the truth is known at some position of the row."""
        known, offsets = known_positions(self.truth), self.truth.offsets
        if known.all():  # saves the general path's eight bytes a position, much memory for documents
            return np.diff(offsets) > 0
        return np.diff(np.searchsorted(np.flatnonzero(known), offsets)) > 0

    @cached_property
    def lengths(self) -> npt.NDArray[np.int32] | None:
        """``[R, F]``: tokens of each row; for pairs, source and decoder tokens; None for images."""
        return self.encoded.lengths

    @property
    def widths(self) -> dict[int, int]:
        """Width of a teacher state by stored layer."""
        return {layer: hidden.values.shape[1] for layer, hidden in self.hidden.items()}

    @property
    def drawn(self) -> bool:
        """Whether the teacher's classes were drawn."""
        return self.distributions is not None and self.distributions.drawn

    def ids_of(self, rows: Index) -> list[str]:
        """Return the ids of rows in the snapshot, as hexadecimal text."""
        return [one.as_py().hex() for one in self.encoded.row_ids.take(pa.array(rows, pa.int64()))]

    def sampling_classes(self) -> RaggedArray:
        """See `Examples`."""
        return self.format.sampling_classes(self)

    def entropies(self) -> npt.NDArray[np.float64]:
        """See `Examples`."""
        found = np.full(self.rows, np.nan)
        have = np.flatnonzero(self.stored >= 0)
        if self.distributions is None or len(have) == 0:
            return found
        offsets, flat = gather_ranges(self.distributions.row_offsets, self.stored[have])
        owner = np.repeat(np.arange(len(have)), np.diff(offsets))
        sums = np.bincount(owner, weights=self.distributions.entropy[flat], minlength=len(have))
        with np.errstate(invalid="ignore"):  # a row without positions gives 0 / 0
            found[have] = sums / np.diff(offsets)
        return found

    def states(self, rows: Index) -> dict[int, Vectors]:
        """Return the teacher states of labelled rows, by stored layer."""
        return {layer: hidden.take(self.stored[rows]) for layer, hidden in self.hidden.items()}

    def retained_mass(self, temperature: float, rows: Index) -> float:
        """Return the mean mass of the stored classes over all positions of labelled rows."""
        found = self.distributions
        assert found is not None
        _, flat = gather_ranges(found.row_offsets, self.stored[rows])
        column = found.temperatures.index(temperature)
        return float(np.mean(-np.expm1(found.log_tail[flat, column].astype(np.float64))))

    def prepare(self, step: int, rows_of: Callable[[int], Index], stop: int) -> None:
        """Do nothing, because all rows are in memory."""

    def close(self) -> None:
        """Do nothing, because there is no prefetching to end."""

    def batch(self, rows: Index, weight_B: RowWeights | None = None) -> tuple[Batch, LossBatch]:
        """Return the model inputs and loss inputs of rows: N answered positions, row by row.

        Every position has the weight of its row. If a model answers at positions of its inputs, their flat indices are
        the entry `PLACES`.
        """
        offsets, flat = gather_ranges(self.answered.offsets, rows)
        counts, stored = np.diff(offsets), self.stored[rows]
        owner_N = np.repeat(np.arange(len(rows), dtype=np.int64), counts)
        position_N = self.answered.values[flat].astype(np.int64)
        weight_B = np.ones(len(rows), np.float32) if weight_B is None else weight_B.astype(np.float32)
        inputs, start_B = self.format.collate(self.encoded, rows)
        if start_B is not None:
            inputs = {**inputs, PLACES: torch.from_numpy(start_B[owner_N] + position_N)}
        hidden, mask = self._states(stored, owner_N, position_N)
        found = self.distributions
        return inputs, LossBatch(
            labels_B=torch.from_numpy(self.truth.values[flat].astype(np.int64)),
            targets=None if found is None else sparse_targets(found, stored, counts),
            distil_B=torch.from_numpy(self.distil[rows][owner_N]),
            example_weight_B=torch.from_numpy(weight_B[owner_N]),
            hidden=hidden,
            hidden_mask_BL=mask,
            row_B=None if start_B is None else torch.from_numpy(owner_N),
        )

    def _states(
        self, stored: Index, owner_N: Index, position_N: Index
    ) -> tuple[dict[int, torch.Tensor], torch.Tensor | None]:
        """Return teacher states in the format's layout, and the mask of padded sequences.

        The states of rows without labels are zeros.
        """
        if self.format.states == "sequence":
            padded = {layer: _padded(hidden, stored) for layer, hidden in self.hidden.items()}
            mask = next((inside for _, inside in padded.values()), None)
            return {layer: states for layer, (states, _) in padded.items()}, mask
        if self.format.states == "row":
            position_N = np.zeros_like(position_N)
        return {layer: _at(hidden, stored[owner_N], position_N) for layer, hidden in self.hidden.items()}, None


def known_positions(truth: RaggedArray) -> npt.NDArray[np.bool_]:
    """Return ``[P]``: whether the truth of a position is known."""
    known: npt.NDArray[np.bool_] = truth.values >= 0
    return known if known.ndim == 1 else np.asarray(known.all(axis=tuple(range(1, known.ndim))))


def _at(hidden: Vectors, stored_N: Index, position_N: Index) -> torch.Tensor:
    """Return the states at positions ``[N, D]``; zeros for rows that are not labelled."""
    have_N = stored_N >= 0
    states_ND = np.zeros((len(stored_N), hidden.values.shape[1]), np.float32)
    states_ND[have_N] = hidden.values[hidden.offsets[stored_N[have_N]] + position_N[have_N]]
    return torch.from_numpy(states_ND)


def _padded(hidden: Vectors, stored_B: Index) -> tuple[torch.Tensor, torch.Tensor]:
    """Return states ``[B, L, D]`` and the mask ``[B, L]``.

    States are zeros on padding and for rows without labels.
    """
    have_B = stored_B >= 0
    offsets, flat = gather_ranges(hidden.offsets, stored_B[have_B])
    lengths = np.zeros(len(stored_B), np.int64)
    lengths[have_B] = np.diff(offsets)
    inside = np.arange(int(lengths.max(initial=1))) < lengths[:, None]
    states = np.zeros((*inside.shape, hidden.values.shape[1]), dtype=np.float32)
    states[inside] = hidden.values[flat]
    return torch.from_numpy(states), torch.from_numpy(inside)
