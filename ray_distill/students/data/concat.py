"""Some rows of several sets as one set: what lies in units becomes a batch of rows of many units."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ray_distill.labels.format.chunked_distributions import DistributionParts
from ray_distill.labels.model.ragged import gather_ranges, running
from ray_distill.labels.model.signal import Vectors, concat_signals, signal_of
from ray_distill.students.data.examples import TrainingSet
from ray_distill.students.data.soft_targets import Teaching
from ray_distill.students.data.token_examples import TokenSet
from ray_distill.students.order.cursor import Index
from ray_distill.tasks.encoded import Encoded, Ragged

#: A set of either kind.
Rows = TrainingSet | TokenSet


def take_rows(data: Rows, rows: Index) -> Rows:
    """The given rows of a set, in the given order, copied."""
    if isinstance(data, TrainingSet):
        return TrainingSet(
            task=data.task,
            encoded=data.encoded.take(rows),
            labels=data.labels[rows],
            distil=data.distil[rows],
            teaching=None if data.teaching is None else _take_teaching(data.teaching, rows),
            hidden={layer: hidden.take(rows) for layer, hidden in data.hidden.items()},
            per_token=data.per_token,
        )
    have = data.stored[rows] >= 0
    own = data.stored[rows][have]
    return TokenSet(
        task=data.task,
        encoded=data.encoded.take(rows),
        answered=_take(data.answered, rows),
        truth=_take(data.truth, rows),
        stored=np.where(have, np.cumsum(have) - 1, -1),
        distil=data.distil[rows],
        distributions=None if data.distributions is None else data.distributions.take(own),
        packed=data.packed,
        hidden={layer: hidden.take(own) for layer, hidden in data.hidden.items()},
    )


def cheaply_joined(data: Rows) -> bool:
    """Whether `join_sets` copies little of a set: all but documents' distributions."""
    return isinstance(data, TokenSet) and not data.hidden


def join_sets(parts: Sequence[Rows]) -> Rows:
    """All rows of several sets of one kind, one set after the other; documents' distributions stay where they are."""
    if len(parts) == 1:
        return parts[0]
    classifying = [part for part in parts if isinstance(part, TrainingSet)]
    return (
        _join_training(classifying)
        if classifying
        else _join_tokens([part for part in parts if isinstance(part, TokenSet)])
    )


def _join_training(parts: Sequence[TrainingSet]) -> TrainingSet:
    first = parts[0]
    return TrainingSet(
        task=first.task,
        encoded=_join_encoded([part.encoded for part in parts]),
        per_token=first.per_token,
        entropy=None
        if any(part.entropy is None for part in parts)
        else np.concatenate([part.entropy for part in parts if part.entropy is not None]),
        labels=np.concatenate([part.labels for part in parts]),
        distil=np.concatenate([part.distil for part in parts]),
        teaching=_join_teaching([part.teaching for part in parts if part.teaching is not None]),
        hidden={layer: _join_hidden([part.hidden[layer] for part in parts]) for layer in first.hidden},
    )


def _join_tokens(parts: Sequence[TokenSet]) -> TokenSet:
    first = parts[0]
    distributions = [part.distributions for part in parts if part.distributions is not None]
    bases = running(np.array([_labelled_rows(part) for part in parts]))
    stored = [np.where(part.stored >= 0, part.stored + base, -1) for part, base in zip(parts, bases, strict=False)]
    return TokenSet(
        task=first.task,
        encoded=_join_encoded([part.encoded for part in parts]),
        packed=first.packed,
        answered=_join([part.answered for part in parts]),
        truth=_join([part.truth for part in parts]),
        stored=np.concatenate(stored),
        distil=np.concatenate([part.distil for part in parts]),
        distributions=DistributionParts.join(distributions) if distributions else None,
        hidden=concat_signals([signal_of(hidden=part.hidden) for part in parts]).hidden,
    )


def _labelled_rows(part: TokenSet) -> int:
    """Rows of a set's labels, of which some may be no rows of the set."""
    return next((own.rows for own in (part.distributions, *part.hidden.values()) if own is not None), 0)


def _join_encoded(parts: Sequence[Encoded]) -> Encoded:
    return Encoded(
        row_ids=pa.concat_arrays([part.row_ids for part in parts]),
        features={name: _join([part.features[name] for part in parts]) for name in parts[0].features},
    )


def size_of(data: Rows) -> int:
    """Bytes of a set's arrays."""
    ragged: list[Ragged | Vectors] = [*data.encoded.features.values(), *data.hidden.values()]
    found: list[Any] = [data.encoded.row_ids, data.distil]
    if isinstance(data, TrainingSet):
        found += [data.labels, *(() if data.teaching is None else vars(data.teaching).values())]
    else:
        ragged += [data.answered, data.truth]
        found += [data.stored, *(() if data.distributions is None else vars(data.distributions).values())]
    for part in ragged:
        found += [part.values, part.offsets]
    return sum(int(getattr(array, "nbytes", 0)) for array in found)


def _take_teaching(teaching: Teaching, rows: Index) -> Teaching:
    count, normaliser = teaching.count_RK, teaching.log_normaliser_R
    return Teaching(
        classes=teaching.classes,
        temperatures=teaching.temperatures,
        ids_RK=teaching.ids_RK[rows],
        logp_RK=teaching.logp_RK[rows],
        log_tail_RT=teaching.log_tail_RT[rows],
        count_RK=None if count is None else count[rows],
        log_normaliser_R=None if normaliser is None else normaliser[rows],
        draws=teaching.draws,
        exponent=teaching.exponent,
    )


def _join_teaching(parts: Sequence[Teaching]) -> Teaching | None:
    if not parts:
        return None
    first, width = parts[0], max(part.ids_RK.shape[1] for part in parts)
    counts = [part.count_RK for part in parts if part.count_RK is not None]
    normalisers = [part.log_normaliser_R for part in parts if part.log_normaliser_R is not None]
    return Teaching(
        classes=first.classes,
        temperatures=first.temperatures,
        ids_RK=_widened([part.ids_RK for part in parts], width, 0),
        logp_RK=_widened([part.logp_RK for part in parts], width, -np.inf),
        log_tail_RT=np.concatenate([part.log_tail_RT for part in parts]),
        count_RK=_widened(counts, width, 0) if counts else None,
        log_normaliser_R=np.concatenate(normalisers) if normalisers else None,
        draws=first.draws,
        exponent=first.exponent,
    )


def _widened(parts: Sequence[npt.NDArray[Any]], width: int, filler: float) -> npt.NDArray[Any]:
    """Matrices one below the other, filled up at the right to one width."""
    if all(part.shape[1] == width for part in parts):
        return np.concatenate(parts)
    return np.concatenate(
        [np.pad(part, ((0, 0), (0, width - part.shape[1])), constant_values=filler) for part in parts]
    )


def _take(feature: Ragged, rows: Index) -> Ragged:
    offsets, flat = gather_ranges(feature.offsets, rows)
    return Ragged(values=feature.values[flat], offsets=offsets, pad=feature.pad)


def _join(parts: Sequence[Ragged]) -> Ragged:
    return Ragged(
        values=np.concatenate([part.values for part in parts]),
        pad=parts[0].pad,
        offsets=_offsets([part.offsets for part in parts]),
    )


def _join_hidden(parts: Sequence[Vectors]) -> Vectors:
    """A part without a vector does not know how wide one is."""
    values = [part.values for part in parts if len(part.values)] or [parts[0].values]
    return Vectors(offsets=_offsets([part.offsets for part in parts]), values=np.concatenate(values))


def _offsets(parts: Sequence[Index]) -> Index:
    return running(np.concatenate([np.diff(offsets) for offsets in parts]))
