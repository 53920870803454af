"""Which split a row belongs to: a function of the seed and of its id, its group or its time.

Split by id or by group, a row's split depends on that row alone, so a snapshot of more traffic moves no row
from test to train. Split by time, it depends on the others too: the newest rows are the test.

The same input in several groups is one row. It goes to the *earliest* of its groups' splits (train before
validation before calibration before test). So a later split has no row of an earlier split's group, and what
moves to an earlier split is what that split's own groups have anyway. Split by time, such a row has its earliest time.
"""

import hashlib
from collections.abc import Collection, Sequence

import numpy as np
import numpy.typing as npt

from ray_distill.config import Splits
from ray_distill.errors import SnapshotError
from ray_distill.snapshots.identity import Ids, id_order

SPLITS = ("train", "validation", "calibration", "test")

#: ``[N]``: index into `SPLITS`
SplitIndex = npt.NDArray[np.int8]


def split_by_id(ids: Ids, splits: Splits, seed: int) -> SplitIndex:
    """Split of each row by its id alone."""
    return _split_by_hash([bytes(value) for value in ids], b"split.id", splits, seed)


def split_by_group(groups: Sequence[str], splits: Splits, seed: int) -> SplitIndex:
    """Split of each group by its name alone."""
    return _split_by_hash([group.encode() for group in groups], b"split.group", splits, seed)


def split_by_time(micros: npt.NDArray[np.int64], ids: Ids, splits: Splits) -> SplitIndex:
    """Split by time: oldest rows to train, newest to test; equal times by id."""
    order = np.lexsort((*id_order(ids), micros))
    cuts = np.round(_bounds(splits) * len(order)).astype(np.int64)
    result = np.empty(len(order), dtype=np.int8)
    result[order] = np.searchsorted(cuts, np.arange(len(order)), side="right")
    return result


def check_none_empty(index: SplitIndex, splits: Splits, own: Collection[str] = ()) -> None:
    """Require every split to have rows, because later stages need them.

    Args:
        index: split of each row.
        splits: the configured shares.
        own: splits with a source of their own.

    Raises:
        SnapshotError: a split has no row; the message has the number of each.
    """
    counts = np.bincount(index, minlength=len(SPLITS))
    if counts.all():
        return
    found = ", ".join(
        f"{name} {count} ({'a source of its own' if name in own else f'share {getattr(splits, name):g}'})"
        for name, count in zip(SPLITS, counts, strict=True)
    )
    empty = ", ".join(name for name, count in zip(SPLITS, counts, strict=True) if not count)
    what = {"id": "rows", "group": "rows in more groups", "time": "rows"}[splits.by]
    raise SnapshotError(
        f"no row fell into the split {empty}; rows by split: {found}. Give more {what}, or raise the share in "
        f"snapshot.splits"
    )


def _split_by_hash(keys: Sequence[bytes], person: bytes, splits: Splits, seed: int) -> SplitIndex:
    salt = (seed % 2**64).to_bytes(8, "little")
    digests = b"".join(hashlib.blake2b(key, digest_size=8, person=person, salt=salt).digest() for key in keys)
    uniform = (np.frombuffer(digests, dtype="<u8") >> np.uint64(11)) * 2.0**-53
    return np.searchsorted(_bounds(splits), uniform, side="right").astype(np.int8)


def _bounds(splits: Splits) -> npt.NDArray[np.float64]:
    """Return upper bounds of the first three splits in [0, 1]."""
    return np.cumsum([getattr(splits, name) for name in SPLITS])[:-1]
