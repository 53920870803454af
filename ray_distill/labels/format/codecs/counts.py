"""Store counts of draws as differences from the counts that the probabilities imply.

The difference is nearly always 0.

With ``r = p`` a class is drawn about N·p times, and stratified draws keep to that within one or two. The expected
number belongs to the bin that the probability is stored in, so the decoder has it before it reads the counts.
"""

import decimal
import functools

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ray_distill.errors import CorruptStore
from ray_distill.labels.format.codecs.base import cells
from ray_distill.labels.format.codecs.order import sorted_places
from ray_distill.labels.format.codecs.planes import chosen, escaped, plane, unescaped
from ray_distill.labels.model.ragged import Offsets, running

Counts = npt.NDArray[np.int64]
Bins = npt.NDArray[np.unsignedinteger]

#: The first value that two bits cannot represent, and the shifts of the four in a byte.
FULL, SHIFTS = 3, np.arange(0, 8, 2, dtype=np.uint8)


@functools.lru_cache(maxsize=8)
def expected_counts(power: float, levels: int, draws: int) -> Counts:
    """Return the expected number of draws of a probability in each bin, ``[levels+1]``.

    It is at least 1, because only drawn classes are stored.

    In decimal arithmetic, which rounds alike everywhere: an ``exp`` may differ in its last bit between processors, and
    a count decoded on another machine must be the one that was encoded.
    """
    with decimal.localcontext(prec=30):
        roots = [decimal.Decimal(2 * level - 1) / (2 * levels) for level in range(1, levels + 1)]
        found = [int((draws * root ** (1 / decimal.Decimal(power))).to_integral_value()) for root in roots]
    return np.array([0, *(max(1, count) for count in found)], dtype=np.int64)


def encode_counts(count: npt.NDArray[np.int32], bins: Bins, expected: Counts, offsets: Offsets) -> dict[str, pa.Array]:
    """Return columns ``count``, four differences a byte, and ``count.more``.

    ``count.more`` has the differences that do not fit into two bits.

    A row's differences stand in the order of their bins: rare classes, whose count is 1 almost surely, make long runs
    of zeros then.

    Args:
        count: ``[E]``.
        bins: ``[E]``, below ``len(expected)``.
        expected: by bin.
        offsets: of the rows' entries.
    """
    at = sorted_places(bins, offsets, len(expected))
    more = (count - expected[bins])[at]
    codes = np.where(more < 0, -2 * more - 1, 2 * more)  # 0 -1 1 -2 2 as 0 1 2 3 4
    beyond = codes >= FULL
    padded, places = _quads(offsets)
    bits = np.zeros(4 * int(padded[-1]), dtype=np.uint8)
    bits[places] = np.minimum(codes, FULL)
    return {
        "count": cells((bits.reshape(-1, 4) << SHIFTS).sum(axis=1, dtype=np.uint8), padded),
        **escaped("count.more", codes[beyond], chosen(beyond, offsets)),
    }


def decode_counts(table: pa.Table, bins: Bins, expected: Counts, offsets: Offsets) -> npt.NDArray[np.int32]:
    """Return the counts that `encode_counts` stored.

    Raises:
        CorruptStore: a column is missing or of another length, or a count is below 0.
    """
    padded, places = _quads(offsets)
    codes = (plane(table, "count", padded)[:, None] >> SHIFTS & FULL).reshape(-1)[places].astype(np.int64)
    beyond = codes == FULL
    codes[beyond] = unescaped(table, "count.more", chosen(beyond, offsets))
    count = np.empty(len(bins), dtype=np.int64)
    count[sorted_places(bins, offsets, len(expected))] = np.where(codes & 1, -(codes + 1) // 2, codes // 2)
    count += expected[bins]
    if len(count) and int(count.min()) < 0:
        raise CorruptStore(f"column count: found a count of {count.min()}, expected none below 0")
    return count.astype(np.int32)


def _quads(offsets: Offsets) -> tuple[Offsets, npt.NDArray[np.int64]]:
    """Return offsets of the rows' bytes at four entries a byte.

    Also return where each entry stands among the quarters of bytes.
    """
    padded = running(-(-np.diff(offsets) // 4))
    return padded, np.arange(offsets[-1]) + np.repeat(4 * padded[:-1] - offsets[:-1], np.diff(offsets))
