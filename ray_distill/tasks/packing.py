"""Pack several documents into one row, each with positions of its own.

No token is spent on avoidable padding.
"""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import torch

from ray_distill.labels.model.ragged import gather_ranges
from ray_distill.tasks.encoded import Batch, Encoded

Index = npt.NDArray[np.int64]


def pack(lengths: Index, capacity: int) -> list[Index]:
    """Put documents into as few rows as is cheap to find out: first-fit decreasing.

    The longest document goes first, each into the first row that has room for it; it takes at most 11/9 of the fewest
    rows, and one more (Dósa 2007). Equal lengths are taken in order, so equal input gives equal rows.

    Args:
        lengths: ``[R]`` tokens of each document.
        capacity: most tokens of a row; a longer document has a row of its own.

    Returns:
        The documents of each row, ascending.
    """
    assert capacity >= 1, capacity
    if not len(lengths):
        return []
    rows = _first_fit(lengths, capacity)
    order = np.argsort(rows, kind="stable").astype(np.int64)
    return list(np.split(order, np.flatnonzero(np.diff(rows[order])) + 1))


def collate_packed(encoded: Encoded, index: Index, capacity: int) -> tuple[Batch, Index]:
    """Return tensors of the given documents, packed, and where each begins.

    There is no attention mask: models that keep documents apart see them end where positions begin again at 0, and
    what pads a row's end is one more document.

    Args:
        encoded: documents with ``input_ids``.
        index: ``[R]`` which ones.
        capacity: most tokens of a row; a longer document has a row of its own.

    Returns:
        ``input_ids`` and ``position_ids``, int64 ``[B, L]``, L tokens in the fullest row; and the place ``[R]`` of each
        document among the B·L tokens: its token t is at place + t.
    """
    tokens = encoded.features["input_ids"]
    offsets, flat = gather_ranges(tokens.offsets, index)
    lengths = np.diff(offsets)
    rows = pack(lengths, capacity)
    used = np.array([lengths[row].sum() for row in rows], np.int64)
    longest = int(used.max(initial=0))
    place = np.zeros(len(index), np.int64)
    for number, (row, starts) in enumerate(_starts(rows, lengths)):
        place[row] = number * longest + starts
    within = np.arange(len(flat)) - np.repeat(offsets[:-1], lengths)
    target = np.repeat(place, lengths) + within
    input_ids = np.full(len(rows) * longest, tokens.pad, np.int64)
    input_ids[target] = tokens.values[flat]
    positions = (np.arange(longest) - used[:, None]).reshape(-1)
    positions[target] = within
    shape = (len(rows), longest)
    return {
        "input_ids": torch.from_numpy(input_ids.reshape(shape)),
        "position_ids": torch.from_numpy(positions.reshape(shape)),
    }, place


def _first_fit(lengths: Index, capacity: int) -> Index:
    """Return the row of each document, the rows numbered as they were opened.

    The rows are the leaves of a binary tree whose nodes store the most room below them, so that the first row with
    enough is found in log(rows) steps.
    """
    needed = np.minimum(lengths, capacity)  # a longer one fills a row
    # two rows that follow each other have more than one row's capacity between them
    most = min(len(lengths), 2 * -(-int(needed.sum()) // capacity) + 1)
    leaves = 1 << (most - 1).bit_length()
    room = [capacity] * (2 * leaves)
    found = np.zeros(len(lengths), np.int64)
    for document in np.argsort(-lengths, kind="stable").tolist():
        need, node = int(needed[document]), 1
        while node < leaves:
            node = 2 * node if room[2 * node] >= need else 2 * node + 1
        found[document] = node - leaves
        room[node] -= need
        while node > 1:
            node //= 2
            room[node] = max(room[2 * node], room[2 * node + 1])
    return found


def _starts(rows: list[Index], lengths: Index) -> Iterator[tuple[Index, Index]]:
    """Return the documents of each row, and where in it they begin."""
    for row in rows:
        yield row, np.cumsum(lengths[row]) - lengths[row]
