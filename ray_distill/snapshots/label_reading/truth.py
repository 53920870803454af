"""The kinds of truth that a snapshot can have in its column ``label``, by name."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from ray_distill.snapshots import merge
from ray_distill.snapshots.label_reading import class_sets
from ray_distill.snapshots.label_reading.names import UNLABELLED, class_names, label_index
from ray_distill.snapshots.label_reading.reading import (
    LabelRules,
    Reading,
    count_values,
    is_unknown,
    read_labels,
    to_names,
)
from ray_distill.snapshots.manifest import Truth
from ray_distill.snapshots.rows import Reason, Rows, Why
from ray_distill.snapshots.sources import label_columns


@dataclass(frozen=True, kw_only=True)
class TruthKind:
    """How labels of one kind are read, checked and merged."""

    absent: pa.DataType
    """Type of the column before names become indices."""
    convert: Callable[[pa.ChunkedArray, str], tuple[pa.Array, Why]]
    """(source column, its name) -> names of classes, null where unknown; and a reason a row that is not usable."""
    read: Callable[[Rows, LabelRules], tuple[Rows, Reading]]
    """(rows, rules) -> the rows with names of classes as labels, marked where the label is not usable; and how."""
    names: Callable[[pa.Array], tuple[str, ...]]
    """Return the sorted class names in the column."""
    merge: Callable[[merge.Copies, pa.Array, Sequence[str], str], tuple[pa.Array, merge.Index]]
    """(copies, column, classes, policy) -> the column ``label`` of merged inputs; and the runs with conflicts."""


def count_classes(labels: pa.ChunkedArray, classes: int) -> npt.NDArray[np.int64]:
    """Return ``[classes]``: rows by class; a row with a set counts for each of its classes."""
    index = labels.drop_null()
    index = pc.list_flatten(index) if pa.types.is_list(index.type) else index
    result: npt.NDArray[np.int64] = np.bincount(index.to_numpy(), minlength=classes)
    return result


def _read_class(rows: Rows, rules: LabelRules) -> tuple[Rows, Reading]:
    labels = rows.table.column("label").combine_chunks()
    values = count_values(labels)
    if rules.known is None:
        label_columns.refuse_arrays(tuple(values))
    reading = read_labels(values, rules)
    unknown = is_unknown(labels, reading)
    return rows.with_labels(to_names(labels, reading)).mark(unknown, Reason.UNKNOWN_LABEL), reading


def _merge_class(
    copies: merge.Copies, labels: pa.Array, classes: Sequence[str], policy: str
) -> tuple[pa.Array, merge.Index]:
    merged, conflicts = merge.merge_labels(copies, label_index(labels, classes), classes, policy)
    return pa.array(merged, mask=merged == UNLABELLED), conflicts


_CLASS = TruthKind(
    absent=pa.large_string(), convert=label_columns.to_class, read=_read_class, names=class_names, merge=_merge_class
)

TRUTHS: Mapping[Truth, TruthKind] = {
    "class": _CLASS,
    "classes": TruthKind(
        absent=label_columns.NAMES,
        convert=label_columns.to_classes,
        read=class_sets.read_sets,
        names=class_sets.find_names,
        merge=class_sets.merge_sets,
    ),
    "none": TruthKind(
        absent=pa.large_string(),
        convert=label_columns.no_labels,
        read=_read_class,
        names=class_names,
        merge=_merge_class,
    ),
}
