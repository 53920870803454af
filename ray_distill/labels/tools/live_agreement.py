"""Compare stored labels with the teacher's answers today.

The yardstick is how far the teacher differs from itself.

Batched inference is not bit-exact: the same rows in other batches give other last digits. So the teacher answers
twice, in different batches, and what lies between its two answers is the yardstick for what lies between one of them
and the store.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ray_distill.artifacts import Document
from ray_distill.labels.format import parquet_shards
from ray_distill.labels.format.fitted_arrays import Fits
from ray_distill.labels.format.hidden_states import decode_hidden, encode_hidden
from ray_distill.labels.model import rowids
from ray_distill.labels.model.distributions import Distributions, log_sigmoid
from ray_distill.labels.model.manifest import StoreManifest
from ray_distill.labels.model.ragged import owner
from ray_distill.labels.model.rowids import RowIds
from ray_distill.labels.model.signal import Signal, Vectors, signal_of

Floats = npt.NDArray[np.float64]

#: A row disagrees where it is further from the store than this many times the furthest that the teacher is from
#: itself …
FACTOR = 4.0
#: … and than this, whatever the noise: total variation of a distribution, relative distance of a hidden state.
LEAST_VARIATION, LEAST_DISTANCE = 1e-3, 1e-2


class Distance(Document):
    """Distances between two answers, over the sampled rows."""

    mean: float
    """Mean of the rows' distances."""
    largest: float
    """Distance of the row that is furthest apart."""


class LayerDistance(Document):
    """Distances between two answers in one hidden layer, relative to the teacher's vectors."""

    stored: Distance
    """Store to teacher, the worst vector of a row."""
    noise: Distance
    """Teacher to teacher in other batches, likewise."""


class Agreement(Document):
    """A comparison of sampled stored rows with the live teacher's answers."""

    rows: int
    """Sampled rows."""
    stored: Distance
    """Store to teacher: total variation of the distributions, the worst position of a row."""
    noise: Distance
    """Teacher to teacher in other batches, likewise."""
    hidden: dict[int, LayerDistance] = {}
    """One entry a layer."""
    disagree: tuple[str, ...] = ()
    """Ids of rows that differ by more than noise, or that the teacher cannot answer any more."""

    @property
    def ok(self) -> bool:
        """Return whether every row agrees."""
        return not self.disagree

    def to_dict(self) -> dict[str, Any]:
        """Return this agreement as plain JSON values, ``ok`` first."""
        return {"ok": self.ok, **super().to_dict()}


@dataclass(frozen=True, kw_only=True)
class Answer:
    """A signal and the rows it is for, ascending by id."""

    ids: RowIds
    signal: Signal


def as_stored(answer: Answer, manifest: StoreManifest, fits: Fits) -> Answer:
    """Return an answer as the store would return it.

    Otherwise the error of the stored form would be reported as a disagreement.
    """
    ids, signal = answer.ids, answer.signal
    data = parquet_shards.encode_labels(ids, signal.distributions, manifest.distributions, fits)
    specs = manifest.hidden
    hidden = {
        layer: decode_hidden(encode_hidden(ids, values, specs[layer], fits), specs[layer], fits, "answer")[1]
        for layer, values in signal.hidden.items()
    }
    return Answer(
        ids=ids,
        signal=signal_of(
            distributions=parquet_shards.decode_labels(data, manifest.distributions, fits, "answer")[1], hidden=hidden
        ),
    )


def compare(stored: Answer, live: Answer, again: Answer) -> Agreement:
    """Compare stored labels with two live answers; pure.

    Args:
        stored: the sampled rows from the store.
        live: the teacher's answers in the store's batches, `as_stored`; rows it cannot answer are left out.
        again: its answers in other batches, likewise.
    """
    both, twice = _common(stored, live), _common(again, live)
    far = {"labels": (_variations(*both), _variations(*twice))}
    far |= {f"{layer}": (_distances(both, layer), _distances(twice, layer)) for layer in stored.signal.hidden}
    wrong = np.zeros(len(both[0].ids), dtype=bool)
    for name, (found, noise) in far.items():
        least = LEAST_VARIATION if name == "labels" else LEAST_DISTANCE
        wrong |= found > max(least, FACTOR * float(noise.max(initial=0)))
    unanswered = stored.ids[~rowids.is_in(stored.ids, live.ids)]
    labels = far.pop("labels")
    return Agreement(
        rows=len(stored.ids),
        stored=_distance(labels[0]),
        noise=_distance(labels[1]),
        hidden={
            int(layer): LayerDistance(stored=_distance(found), noise=_distance(noise))
            for layer, (found, noise) in far.items()
        },
        disagree=tuple(rowids.hexadecimal(np.sort(np.concatenate([both[0].ids[wrong], unanswered])))),
    )


def _distance(far: Floats) -> Distance:
    return Distance(mean=float(far.mean()) if len(far) else 0.0, largest=float(far.max(initial=0)))


def _common(one: Answer, other: Answer) -> tuple[Answer, Answer]:
    """Return both answers cut to the rows that both have."""
    return _among(one, other.ids), _among(other, one.ids)


def _among(answer: Answer, ids: RowIds) -> Answer:
    at = np.flatnonzero(rowids.is_in(answer.ids, ids))
    return Answer(ids=answer.ids[at], signal=answer.signal.take(at))


def _variations(one: Answer, other: Answer) -> Floats:
    """Return ``[R]``: the largest total variation of a row's positions.

    1 where the positions are not the same.

    Taken over the classes that both store and one bucket for the rest: at the edge of a top-k, or of a draw, noise may
    swap a class for its equal.
    """
    first, second = one.signal.distributions, other.signal.distributions
    assert first is not None and second is not None
    rows = first.rows
    same = np.array([_places(first, row) == _places(second, row) for row in range(rows)], dtype=bool)
    first, second = first.take(np.flatnonzero(same)), second.take(np.flatnonzero(same))
    found = np.ones(rows)
    found[same] = _worst(_total_variation(first, second), first.row_offsets)
    return found


def _places(distributions: Distributions, row: int) -> list[int]:
    start, stop = distributions.row_offsets[row : row + 2]
    places: list[int] = distributions.position[start:stop].tolist()
    return places


def _total_variation(first: Distributions, second: Distributions) -> Floats:
    """Return ``[P]``: half of the sum of the differences.

    The sum is over common classes and one bucket for all others.

    Bernoulli classes give the largest difference of a class, because each is a distribution of its own.
    """
    positions = len(first.position)
    if first.log_odds is not None and second.log_odds is not None:
        apart = np.abs(np.exp(log_sigmoid(first.log_odds)) - np.exp(log_sigmoid(second.log_odds)))
        return _worst(apart, first.entry_offsets)
    keys, others = (owner(part.entry_offsets) * part.classes + part.ids for part in (first, second))
    _, at, to = np.intersect1d(keys, others, assume_unique=True, return_indices=True)
    position = owner(first.entry_offsets)[at]
    p, q = np.exp(first.logp[at].astype(np.float64)), np.exp(second.logp[to].astype(np.float64))
    each = np.bincount(position, np.abs(p - q), minlength=positions)
    rest = np.abs(np.bincount(position, p - q, minlength=positions))
    half: Floats = (each + rest) / 2
    return half


def _distances(pair: tuple[Answer, Answer], layer: int) -> Floats:
    """Return ``[R]``: the largest relative distance of a row's vectors.

    1 where their numbers differ.
    """
    first, second = (answer.signal.hidden[layer] for answer in pair)
    same = np.flatnonzero(np.diff(first.offsets) == np.diff(second.offsets))
    found, kept = np.ones(first.rows), first.take(same)
    found[same] = _worst(_relative(kept, second.take(same)), kept.offsets)
    return found


def _relative(one: Vectors, other: Vectors) -> Floats:
    size = np.linalg.norm(other.values.astype(np.float64), axis=1)
    far = np.linalg.norm(one.values.astype(np.float64) - other.values, axis=1)
    relative: Floats = far / np.maximum(size, np.finfo(np.float32).tiny)
    return relative


def _worst(values: Floats, offsets: npt.NDArray[np.int64]) -> Floats:
    """Return the largest value of each row; 0 of none."""
    found = np.zeros(len(offsets) - 1)
    np.maximum.at(found, owner(offsets), values)
    return found
