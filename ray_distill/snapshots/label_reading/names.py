"""Class names, and labels as indices into them."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ray_distill.errors import SnapshotError
from ray_distill.snapshots.label_reading.reading import sort_names

#: Label of a row that has none; null in a snapshot.
UNLABELLED = -1
UNKNOWN = -2


def class_names(labels: pa.Array) -> tuple[str, ...]:
    """Return the sorted names in label texts: numerically if all are integers."""
    return sort_names(name for name in labels.unique().to_pylist() if name is not None)


def check_classes(classes: Sequence[str]) -> None:
    """Require class names to be distinct and not empty.

    Raises:
        SnapshotError: names the first that is not.
    """
    for name in classes:
        if not name or list(classes).count(name) > 1:
            fault = "named twice" if name else "no name"
            raise SnapshotError(f"snapshot.classes: {name!r} is {fault}: correct the list")


def label_index(labels: pa.Array, classes: Sequence[str]) -> npt.NDArray[np.int32]:
    """Return the class index of each class name.

    Returns:
        ``[N]``: the index, `UNLABELLED` for null, `UNKNOWN` for a text that is not a class.
    """
    encoded = labels.dictionary_encode()
    index = {name: at for at, name in enumerate(classes)}
    known = [index.get(name, UNKNOWN) for name in encoded.dictionary.to_pylist()]
    lookup = np.array([*known, UNLABELLED], dtype=np.int32)
    result: npt.NDArray[np.int32] = lookup[encoded.indices.fill_null(len(known)).to_numpy(zero_copy_only=False)]
    return result
