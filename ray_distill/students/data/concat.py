"""Select rows of example sets, and join several sets into one.

A batch of streamed rows is joined from the rows of many units.
"""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from ray_distill.labels.format.chunked_distributions import DistributionParts
from ray_distill.labels.model.distributions import Distributions
from ray_distill.labels.model.ragged import RaggedArray, running
from ray_distill.labels.model.signal import concat_signals, signal_of
from ray_distill.students.data.examples import PositionExamples
from ray_distill.students.order.cursor import Index
from ray_distill.tasks.encoded import Encoded

#: Least bytes of a row's distributions at which joining sets without a copy is faster: for smaller rows, copying costs
#: less than finding the row in its set.
LARGE_ROW = 1024


def take_rows(data: PositionExamples, rows: Index) -> PositionExamples:
    """Return the given rows of a set, in the given order, copied."""
    have = data.stored[rows] >= 0
    own = data.stored[rows][have]
    return PositionExamples(
        format=data.format,
        encoded=data.encoded.take(rows),
        answered=data.answered.take(rows),
        truth=data.truth.take(rows),
        stored=np.where(have, np.cumsum(have) - 1, -1),
        distil=data.distil[rows],
        distributions=None if data.distributions is None else data.distributions.take(own),
        hidden={layer: hidden.take(own) for layer, hidden in data.hidden.items()},
        count=None if data.count is None else data.count[rows],
    )


def cheaply_joined(data: PositionExamples) -> bool:
    """Return whether `join_sets` copies little of a set: all except distributions of large rows."""
    return not data.hidden and _large([data.distributions])


def join_sets(parts: Sequence[PositionExamples]) -> PositionExamples:
    """Return all rows of several sets, one set after the other.

    Distributions of large rows are not copied.
    """
    if len(parts) == 1:
        return parts[0]
    bases = running(np.array([_labelled_rows(part) for part in parts]))
    stored = [np.where(part.stored >= 0, part.stored + base, -1) for part, base in zip(parts, bases, strict=False)]
    return PositionExamples(
        format=parts[0].format,
        encoded=_join_encoded([part.encoded for part in parts]),
        answered=RaggedArray.concat([part.answered for part in parts]),
        truth=RaggedArray.concat([part.truth for part in parts]),
        stored=np.concatenate(stored),
        distil=np.concatenate([part.distil for part in parts]),
        distributions=_join_distributions([part.distributions for part in parts if part.distributions is not None]),
        hidden=concat_signals([signal_of(hidden=part.hidden) for part in parts]).hidden,
        count=join_counts([(part.count, part.rows) for part in parts]),
    )


def join_counts(parts: Sequence[tuple[Index | None, int]]) -> Index | None:
    """Join the counts of several sets, each given with its number of rows.

    The result is None if every row came once.
    """
    if all(count is None for count, _ in parts):
        return None
    return np.concatenate([np.ones(rows, np.int64) if count is None else count for count, rows in parts])


def size_of(data: PositionExamples) -> int:
    """Return the bytes of a set's arrays."""
    ragged: list[RaggedArray] = [*data.encoded.features.values(), data.answered, data.truth, *data.hidden.values()]
    found = int(data.encoded.row_ids.nbytes) + data.stored.nbytes + data.distil.nbytes
    found += 0 if data.count is None else data.count.nbytes
    return found + sum(part.values.nbytes + part.offsets.nbytes for part in ragged) + _bytes(data.distributions)


def _bytes(found: Distributions | DistributionParts | None) -> int:
    if found is None:
        return 0
    if isinstance(found, DistributionParts):
        return found.part.nbytes + found.row.nbytes + sum(map(_bytes, found.parts))
    draws = () if found.draws is None else vars(found.draws).values()
    return sum(value.nbytes for value in (*vars(found).values(), *draws) if isinstance(value, np.ndarray))


def _large(parts: Sequence[Distributions | DistributionParts | None]) -> bool:
    """Return whether rows of these distributions are large on average."""
    found = [part for part in parts if part is not None]
    return sum(map(_bytes, found)) >= LARGE_ROW * max(sum(part.rows for part in found), 1)


def _join_distributions(parts: Sequence[Distributions | DistributionParts]) -> Distributions | DistributionParts | None:
    if not parts:
        return None
    whole = [part for part in parts if isinstance(part, Distributions)]
    if _large(parts) or len(whole) < len(parts):
        return DistributionParts.join(parts)
    return Distributions.concat([part for part in whole if part.rows] or whole[:1])


def _labelled_rows(part: PositionExamples) -> int:
    """Return the number of labelled rows in a set's labels; some may not be rows of the set."""
    return next((own.rows for own in (part.distributions, *part.hidden.values()) if own is not None), 0)


def _join_encoded(parts: Sequence[Encoded]) -> Encoded:
    return Encoded(
        row_ids=pa.concat_arrays([part.row_ids for part in parts]),
        features={name: RaggedArray.concat([part.features[name] for part in parts]) for name in parts[0].features},
    )
