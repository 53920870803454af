"""Class names, and labels as indices into them."""

import re
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ray_distill.errors import SnapshotError

_INTEGER = re.compile(r"0|-?[1-9]\d*")

#: Label of a row that has none; null in a snapshot.
UNLABELLED = -1
UNKNOWN = -2


def class_names(labels: pa.Array) -> tuple[str, ...]:
    """Return the sorted names in label texts: numerically if all are integers."""
    names = [name for name in labels.unique().to_pylist() if name is not None]
    if all(_INTEGER.fullmatch(name) for name in names):
        return tuple(sorted(names, key=int))
    return tuple(sorted(names))


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
    """Return the class index of each label text: a name first, else a number as index.

    Returns:
        ``[N]``: the index, `UNLABELLED` for null, `UNKNOWN` for what is neither a name nor an index.
    """
    encoded = labels.dictionary_encode()
    index = {name: at for at, name in enumerate(classes)}
    known = [_index(name, index) for name in encoded.dictionary.to_pylist()]
    lookup = np.array([*known, UNLABELLED], dtype=np.int32)
    result: npt.NDArray[np.int32] = lookup[encoded.indices.fill_null(len(known)).to_numpy(zero_copy_only=False)]
    return result


def _index(name: str, index: dict[str, int]) -> int:
    if name in index:
        return index[name]
    if _INTEGER.fullmatch(name) and len(name) < 10 and 0 <= int(name) < len(index):
        return int(name)
    return UNKNOWN
