"""Join rows of a snapshot with their teacher labels, by row id."""

import logging

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from ray_distill.errors import TrainingError
from ray_distill.labels.model.signal import DISTRIBUTIONS, Signal
from ray_distill.students.data.answer_format import AnswerFormat
from ray_distill.students.data.examples import PositionExamples
from ray_distill.students.order.cursor import Index
from ray_distill.tasks.encoded import Encoded
from ray_distill.tasks.inputs.modality import Processor
from ray_distill.tasks.task import Task

log = logging.getLogger(__name__)


def build_examples(
    table: pa.Table,
    *,
    answers: AnswerFormat,
    processor: Processor,
    labels: tuple[pa.Array, Signal] | None,
    excluded: pa.Array | None = None,
    name: str = "train",
    part: bool = False,
) -> PositionExamples:
    """Join rows of a snapshot with their teacher labels.

    Args:
        table: the rows: ``row_id``, the task's input column, the columns of the truth, and optionally ``count``, by
            which rows are weighed.
        answers: the rules for answered positions and matching labels.
        processor: the student's processor.
        labels: row ids and their signal, as returned by a label set; None = no teacher.
        excluded: ids of rows the teacher was trained on; it may not teach them.
        name: name of the split, for messages.
        part: the table has only some rows of the split: nothing is logged, and no row needs to be usable.

    Raises:
        ConfigError: labels and student do not match.
        TrainingError: no row is usable, or no usable row of the train split has labels.
    """
    encoded = encode_sorted(table, answers.task, processor, name, part=part)
    answered, stored = answers.positions(encoded), _stored(encoded.row_ids, labels)
    signal = answers.align(Signal() if labels is None else labels[1], stored, encoded, answered)
    found = PositionExamples(
        format=answers,
        encoded=encoded,
        answered=answered,
        truth=answers.truth(table, encoded),
        stored=stored,
        distil=(stored >= 0) & ~_is_in(encoded.row_ids, excluded),
        distributions=signal.distributions if DISTRIBUTIONS in signal.parts else None,
        hidden=signal.hidden,
        count=_counts(table, encoded.row_ids),
    )
    if not part:
        _report(name, found, labels is not None)
        if labels is not None and len(labels[0]) and not found.distil.any() and name == "train":
            raise TrainingError(f"none of the {found.rows} usable rows of the train split has teacher labels")
    return found


def encode_sorted(table: pa.Table, task: Task, processor: Processor, name: str, *, part: bool = False) -> Encoded:
    """Encode the usable rows, ascending by row id.

    Unusable rows are logged, unless the table is only a ``part`` of the split.

    Raises:
        TrainingError: no row is usable.
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


def _stored(row_ids: pa.Array, labels: tuple[pa.Array, Signal] | None) -> Index:
    """Return the row of the label set that belongs to each row; -1 = none."""
    if labels is None:
        return np.full(len(row_ids), -1, dtype=np.int64)
    return np.asarray(pc.fill_null(pc.index_in(row_ids, value_set=labels[0]), -1), dtype=np.int64)


def _counts(table: pa.Table, row_ids: pa.Array) -> Index | None:
    """Return how often each row came; None if the table has no counts, or only counts of 1."""
    if "count" not in table.column_names:
        return None
    place = pc.index_in(row_ids, value_set=table["row_id"].combine_chunks())
    found = np.asarray(table["count"].combine_chunks().take(place), dtype=np.int64)
    return None if (found == 1).all() else found


def _is_in(row_ids: pa.Array, values: pa.Array | None) -> npt.NDArray[np.bool_]:
    """Return which row ids are among the values."""
    if values is None or len(values) == 0:
        return np.zeros(len(row_ids), dtype=np.bool_)
    return np.asarray(pc.is_in(row_ids, value_set=values), dtype=np.bool_)


def _report(name: str, found: PositionExamples, taught: bool) -> None:
    """Log the sizes of a split, and how many of its rows have no labels."""
    log.info(
        "%s split: %d rows with %d answered positions, %d rows with true labels, %d distilled",
        name,
        found.rows,
        len(found.answered.values),
        int(found.labelled.sum()),
        int(found.distil.sum()),
    )
    missing = int((found.stored < 0).sum())
    if taught and missing:
        log.warning(
            "%d of %d %s rows have no teacher labels (quarantined, or labelled later than this label set): "
            "they are used only for their true labels",
            missing,
            found.rows,
            name,
        )
