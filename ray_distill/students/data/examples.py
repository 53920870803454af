"""Rows of a snapshot joined with their teacher labels, and the tensors of any choice of them.

These sets are in memory, as numpy, on every rank; `streaming` has those that are not. The order decides which rows are
taken.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import torch

from ray_distill.errors import ConfigError, TrainingError
from ray_distill.labels.model.ragged import gather_ranges
from ray_distill.labels.model.signal import DISTRIBUTIONS, Signal, Vectors
from ray_distill.losses.base import LossBatch
from ray_distill.students.data.soft_targets import Teaching, over_rows, remap, teaching_of
from ray_distill.students.order.cursor import Index
from ray_distill.tasks.encoded import Batch, Encoded
from ray_distill.tasks.inputs.modality import Processor
from ray_distill.tasks.task import Task

log = logging.getLogger(__name__)


class Examples(Protocol):
    """Rows that a student trains on, whatever their kind; rows are numbered from 0."""

    @property
    def rows(self) -> int:
        """Number of rows, R."""

    @property
    def labelled(self) -> npt.NDArray[np.bool_]:
        """``[R]``: losses on true labels weigh the row."""

    @property
    def distil(self) -> npt.NDArray[np.bool_]:
        """``[R]``: the teacher may teach the row."""

    @property
    def lengths(self) -> npt.NDArray[np.int32] | None:
        """``[R, F]``: tokens of each row, by feature of token ids; None where there are none, or where nobody asked."""

    @property
    def widths(self) -> Mapping[int, int]:
        """Numbers of a teacher state by stored layer."""

    @property
    def drawn(self) -> bool:
        """Whether the teacher's classes were drawn."""

    def retained_mass(self, temperature: float, rows: Index) -> float:
        """Mean mass of the stored classes at a declared temperature over rows the teacher has labelled."""

    def ids_of(self, rows: Index) -> list[str]:
        """Ids of rows in the snapshot, as hexadecimal text."""

    def states(self, rows: Index) -> Mapping[int, Vectors]:
        """Teacher states of rows the teacher has labelled, by stored layer."""

    def prepare(self, step: int, rows_of: Callable[[int], Index], stop: int) -> None:
        """Get ready for `batch` on the rows of a step; those of later steps, before ``stop``, may be read ahead."""

    def batch(self, rows: Index, real: npt.NDArray[np.bool_] | None = None) -> tuple[Batch, LossBatch]:
        """Model inputs and what the losses see of the given rows; rows that are not ``real`` get no weight."""

    def close(self) -> None:
        """End what reads ahead, if anything does."""


@dataclass(frozen=True, kw_only=True)
class TrainingSet:
    """Usable rows of one split, ascending by row id so that their order owes nothing to files.

    A row without teacher labels stays if it has a true label: ``distil`` is False there.
    """

    task: Task
    encoded: Encoded
    labels: npt.NDArray[np.int64]
    """``[R]`` student class ids, -1 where unknown."""
    distil: npt.NDArray[np.bool_]
    """``[R]``: the teacher may teach this row."""
    teaching: Teaching | None
    hidden: Mapping[int, Vectors]
    """Teacher states by stored layer; a row without teacher labels has none."""
    per_token: bool = False
    entropy: npt.NDArray[np.float32] | None = None
    """``[R]``: the teacher's, NaN where it has none; None of a part of a set, which need not know."""

    @property
    def rows(self) -> int:
        """Number of rows, R."""
        return self.encoded.rows

    @property
    def labelled(self) -> npt.NDArray[np.bool_]:
        """``[R]``: the true class is known."""
        return self.labels >= 0

    @cached_property
    def lengths(self) -> npt.NDArray[np.int32] | None:
        """``[R, F]``: tokens of each row; None of images."""
        return self.encoded.lengths

    @property
    def widths(self) -> dict[int, int]:
        """Numbers of a teacher state by stored layer."""
        return {layer: hidden.values.shape[1] for layer, hidden in self.hidden.items()}

    def ids_of(self, rows: Index) -> list[str]:
        """Ids of rows in the snapshot, as hexadecimal text."""
        return hex_ids(self.encoded.row_ids, rows)

    def entropies(self) -> npt.NDArray[np.float64]:
        """``[R]``: the teacher's entropy in nats; NaN where it has none."""
        return np.full(self.rows, np.nan) if self.entropy is None else self.entropy.astype(np.float64)

    def states(self, rows: Index) -> dict[int, Vectors]:
        """Teacher states of rows, by stored layer."""
        return {layer: hidden.take(rows) for layer, hidden in self.hidden.items()}

    def prepare(self, step: int, rows_of: Callable[[int], Index], stop: int) -> None:
        """Everything is in memory."""

    def close(self) -> None:
        """There is nothing to end."""

    @property
    def drawn(self) -> bool:
        """Whether the teacher's classes were drawn."""
        return self.teaching is not None and self.teaching.count_RK is not None

    def retained_mass(self, temperature: float, rows: Index) -> float:
        """Mean mass of the stored classes at a declared temperature over the given rows."""
        assert self.teaching is not None
        return self.teaching.retained_mass(temperature, rows)

    def batch(self, rows: Index, real: npt.NDArray[np.bool_] | None = None) -> tuple[Batch, LossBatch]:
        """Model inputs and what the losses see of the given rows; rows that are not ``real`` get no weight."""
        weight = np.ones(len(rows), np.float32) if real is None else real.astype(np.float32)
        hidden, mask = self._hidden(rows)
        loss_batch = LossBatch(
            labels_B=torch.from_numpy(self.labels[rows]),
            distil_B=torch.from_numpy(self.distil[rows]),
            targets=None if self.teaching is None else self.teaching.targets(rows),
            hidden=hidden,
            hidden_mask_BL=mask,
            example_weight_B=torch.from_numpy(weight),
        )
        return self.task.inputs.collate(self.encoded, rows), loss_batch

    def _hidden(self, rows: Index) -> tuple[dict[int, torch.Tensor], torch.Tensor | None]:
        padded = {layer: _pad_states(hidden, rows) for layer, hidden in self.hidden.items()}
        if not self.per_token:
            return {layer: states[:, 0] for layer, (states, _) in padded.items()}, None
        return {layer: states for layer, (states, _) in padded.items()}, next(iter(padded.values()))[1]


def build_set(
    table: pa.Table,
    *,
    task: Task,
    processor: Processor,
    student_classes: Sequence[str],
    snapshot_classes: Sequence[str],
    labels: tuple[pa.Array, Signal] | None,
    store_classes: Sequence[str],
    excluded: pa.Array | None = None,
    per_token: bool = False,
    name: str = "train",
    part: bool = False,
) -> TrainingSet:
    """Join rows of a snapshot (``row_id``, the task's input column, ``label``) with their teacher labels.

    Args:
        table: the rows.
        task: encodes and collates.
        processor: the student's.
        student_classes: class names in the order of the student's logits.
        snapshot_classes: class names that ``label`` counts in.
        labels: row ids and their signal, as a label set reads them; None = no teacher.
        store_classes: class names that the signal counts in.
        excluded: ids of rows the teacher was trained on; it may not teach them.
        per_token: hidden states are one a token, not one a row.
        name: of the split, for messages.
        part: these are but some rows of the split: nothing is logged, and none need be usable.

    Raises:
        ConfigError: class names do not match.
        TrainingError: no usable row is left.
    """
    encoded = encode_sorted(table, task, processor, name, part=part)
    at = pc.index_in(table["row_id"].combine_chunks(), value_set=encoded.row_ids)
    labels_R = _labels_of(table, at, encoded.rows, remap(snapshot_classes, student_classes, "the snapshot"))
    position = positions_in(encoded.row_ids, labels)
    signal = None if labels is None else _aligned(labels[1], position, task, encoded)
    distil = (position >= 0) & ~is_in(encoded.row_ids, excluded)
    found = TrainingSet(
        task=task,
        encoded=encoded,
        labels=labels_R,
        distil=distil,
        per_token=per_token,
        teaching=teaching_of(signal, position, store_classes, student_classes),
        entropy=None
        if signal is None or DISTRIBUTIONS not in signal.parts
        else over_rows(signal.distributions.entropy, position, np.nan),
        hidden={} if signal is None else {layer: _spread(h, position) for layer, h in signal.hidden.items()},
    )
    if per_token:
        _check_tokens(found)
    if not part:
        _explain(name, found, position)
    return found


def encode_sorted(table: pa.Table, task: Task, processor: Processor, name: str, *, part: bool = False) -> Encoded:
    """Features of the usable rows, ascending by row id; the others are logged, unless this is a ``part`` of a split.

    Raises:
        TrainingError: none is usable.
    """
    order = pc.sort_indices(table["row_id"].combine_chunks())
    encoded = task.inputs.encode(table.take(order), processor)
    if part:
        return encoded
    if encoded.rejected:
        first = encoded.rejected[0]
        log.warning(
            "%d rows of the %s split cannot be used by the student and are left out; the first, %s: %s",
            len(encoded.rejected),
            name,
            first.row_id.hex(),
            first.reason,
        )
    if encoded.rows == 0:
        raise TrainingError(
            f"the {name} split has no usable row: {table.num_rows} rows were read; "
            "give it a larger share in snapshot.splits, or mend the source"
        )
    return encoded


def _labels_of(table: pa.Table, at: pa.Array, rows: int, to_student: Index) -> Index:
    """True labels as student class ids in the order of the encoded rows."""
    found = np.full(rows, -1, dtype=np.int64)
    if "label" not in table.column_names:
        return found
    raw = np.asarray(pc.fill_null(table["label"].combine_chunks(), -1), dtype=np.int64)
    place = np.asarray(pc.fill_null(at, -1), dtype=np.int64)
    use = (place >= 0) & (raw >= 0)
    found[place[use]] = to_student[raw[use]]
    return found


def positions_in(row_ids: pa.Array, labels: tuple[pa.Array, Signal] | None) -> Index:
    """Where each row stands in the label set; -1 = nowhere."""
    if labels is None:
        return np.full(len(row_ids), -1, dtype=np.int64)
    return np.asarray(pc.fill_null(pc.index_in(row_ids, value_set=labels[0]), -1), dtype=np.int64)


def _aligned(signal: Signal, position: Index, task: Task, encoded: Encoded) -> Signal:
    """The signal of the labelled rows, in the order of the encoded rows, at the student's positions."""
    have = np.flatnonzero(position >= 0)
    features = {}
    for name, feature in encoded.features.items():
        offsets, flat = gather_ranges(feature.offsets, have)
        features[name] = replace(feature, values=feature.values[flat], offsets=offsets)
    labelled = Encoded(row_ids=encoded.row_ids.take(pa.array(have)), features=features)
    return task.answers.store.align(signal.take(position[have]), labelled)


def _check_tokens(found: TrainingSet) -> None:
    """Refuse states one a token where the student cuts a text into another number of tokens."""
    tokens = found.encoded.features.get("input_ids")
    if tokens is None:
        return
    ours = np.diff(tokens.offsets)
    for layer, hidden in found.hidden.items():
        theirs = np.diff(hidden.offsets)
        wrong = np.flatnonzero((theirs > 0) & (theirs != ours))
        if len(wrong):
            raise ConfigError(
                f"labels.hidden.pool is token, but row {found.encoded.row_ids[int(wrong[0])].as_py().hex()} has "
                f"{theirs[wrong[0]]} states in teacher layer {layer} and {ours[wrong[0]]} tokens in the student "
                f"({len(wrong)} such rows): the tokenizers differ; store pooled states (mean, cls or last)"
            )


def hex_ids(row_ids: pa.Array, rows: Index) -> list[str]:
    """Some of the ids, as hexadecimal text."""
    return [one.as_py().hex() for one in row_ids.take(pa.array(rows, pa.int64()))]


def is_in(row_ids: pa.Array, values: pa.Array | None) -> npt.NDArray[np.bool_]:
    """Which row ids are among the values."""
    if values is None or len(values) == 0:
        return np.zeros(len(row_ids), dtype=np.bool_)
    return np.asarray(pc.is_in(row_ids, value_set=values), dtype=np.bool_)


def _spread(hidden: Vectors, position: Index) -> Vectors:
    """Hidden states of the labelled rows over all rows; the others have no vector."""
    lengths = np.zeros(len(position), dtype=np.int64)
    lengths[position >= 0] = np.diff(hidden.offsets)
    offsets = np.zeros(len(position) + 1, dtype=np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return Vectors(offsets=offsets, values=hidden.values)


def _pad_states(hidden: Vectors, rows: Index) -> tuple[torch.Tensor, torch.Tensor]:
    """States ``[B, L, D]`` with zeros on padding, and the mask ``[B, L]``."""
    offsets, flat = gather_ranges(hidden.offsets, rows)
    lengths = np.diff(offsets)
    inside = np.arange(int(lengths.max(initial=1))) < lengths[:, None]
    states = np.zeros((*inside.shape, hidden.values.shape[1]), dtype=np.float32)
    states[inside] = hidden.values[flat]
    return torch.from_numpy(states), torch.from_numpy(inside)


def _explain(name: str, found: TrainingSet, position: Index) -> None:
    missing = int((position < 0).sum())
    log.info(
        "%s split: %d rows, %d with true labels, %d distilled",
        name,
        found.rows,
        int((found.labels >= 0).sum()),
        int(found.distil.sum()),
    )
    if 0 < missing < found.rows:
        log.warning(
            "%d of %d %s rows have no teacher labels (quarantined, or labelled later than this label set): "
            "they are used only for their true label",
            missing,
            found.rows,
            name,
        )
