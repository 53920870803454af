"""Read several teachers as one: the weighted mean of their labels of the same rows.

The mean is exact, entropy included, if every teacher stores all classes. With truncated distributions it is exact on
the classes that all of them store, and the mean mass of everything else is the tail's: what a teacher gave a class that
it did not store need not be guessed. So it stays a distribution over K+1 buckets (MATHS.md §2), of smaller K. One class
more is kept: the likeliest by what is known, if not all store it, so that the first choice is right wherever it can be
determined; its mass in the other sets is in the tail.
"""

import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import reduce

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ray_distill.errors import StoreMismatch
from ray_distill.labels.model import rowids
from ray_distill.labels.model.distributions import Distributions
from ray_distill.labels.model.manifest import StoreManifest
from ray_distill.labels.model.ragged import running
from ray_distill.labels.model.rowids import RowIds
from ray_distill.labels.model.signal import Signal, signal_of
from ray_distill.labels.store.reader import READERS, LabelSet

log = logging.getLogger(__name__)

Index = npt.NDArray[np.int64]
Weights = npt.NDArray[np.float64]


class AveragedLabels:
    """Several label sets, read as one.

    Rows, positions and hidden states are the first set's, distributions are means.

    If another set has not labelled a row, or its teacher was fitted on it, the mean is over the rest.

    Args:
        sets: of one task and the same classes.
        weights: one a set, positive; they need not sum to 1.
        fitted: for each set the ids, ascending, of rows that its teacher was fitted on; default: of none. The first
            one's rows stay: who reads the set leaves them out.

    Raises:
        StoreMismatch: the sets cannot be averaged.
    """

    def __init__(
        self, sets: Sequence[LabelSet], weights: Sequence[float], fitted: Sequence[RowIds] | None = None
    ) -> None:
        self._sets, self._weights = tuple(sets), np.asarray(weights, dtype=np.float64)
        self._fitted = [rowids.empty()] * len(sets) if fitted is None else list(fitted)
        self.manifest = averaged_manifest([labels.manifest for labels in sets])
        for other in sets[1:]:
            _require_overlap(sets[0], other)
        self._maps = [_class_map(labels.manifest, self.manifest) for labels in sets]

    def labelled(self, requested: RowIds) -> RowIds:
        """Return as `LabelSet.labelled`."""
        return self._sets[0].labelled(requested)

    def read_rows(self, requested: RowIds, layers: Sequence[int] = ()) -> tuple[pa.FixedSizeBinaryArray, Signal]:
        """Read as `LabelSet.read_rows`."""
        return self._averaged(*self._sets[0].read_rows(requested, layers))

    def read(self, layers: Sequence[int] = ()) -> tuple[pa.FixedSizeBinaryArray, Signal]:
        """Read as `LabelSet.read`, unit by unit.

        A mean needs several times the memory of its inputs.
        """
        first = self._sets[0]
        with ThreadPoolExecutor(READERS, thread_name_prefix="labels") as pool:
            parts = list(pool.map(lambda unit: self._averaged(*first.read_unit(unit, layers)), first.units))
        return first.in_order(parts) if parts else self._averaged(*first.read(layers))

    def _averaged(self, ids: pa.FixedSizeBinaryArray, own: Signal) -> tuple[pa.FixedSizeBinaryArray, Signal]:
        requested, base = rowids.to_numpy(ids), self._plain(own.distributions, 0)
        parts, have = [base], [np.ones(len(requested), dtype=bool)]
        for number, labels in enumerate(self._sets[1:], start=1):
            found, signal = labels.read_rows(requested)
            place = _places(requested, rowids.to_numpy(found))
            parts.append(_instead(base, self._plain(signal.distributions, number), place))
            have.append((place >= 0) & ~rowids.is_in(requested, self._fitted[number]))
            _require_same_positions(base, parts[-1], requested, labels.ref.store)
        weights_MR = np.where(np.stack(have), self._weights[:, None], 0.0)
        return ids, signal_of(distributions=average(parts, weights_MR), hidden=own.hidden)

    def _plain(self, found: Distributions, number: int) -> Distributions:
        """Return a set's distributions over the first set's class ids, at the mean's temperatures.

        Class ids are ascending.
        """
        columns = [found.temperatures.index(temperature) for temperature in self.manifest.distributions.temperatures]
        ids, logp, to_first = found.ids, found.logp, self._maps[number]
        if to_first is not None:
            ids = to_first[ids]
            order = np.lexsort((ids, np.repeat(np.arange(len(found.position)), np.diff(found.entry_offsets))))
            ids, logp = ids[order], logp[order]
        return Distributions(
            classes=found.classes,
            temperatures=self.manifest.distributions.temperatures,
            row_offsets=found.row_offsets,
            position=found.position,
            entry_offsets=found.entry_offsets,
            ids=ids,
            logp=logp,
            log_tail=found.log_tail[:, columns],
            entropy=found.entropy,
        )


def averaged_manifest(manifests: Sequence[StoreManifest]) -> StoreManifest:
    """Return the first set's manifest, with the temperatures of the mean, for training.

    Dense distributions are averaged and the mean is softened, at any temperature that all declare. With truncated ones
    the tail of the mean is known at T = 1 alone.

    Raises:
        StoreMismatch: the sets cannot be averaged; the message names which and why.
    """
    first = manifests[0]
    for manifest in manifests:
        require_same_classes(first, manifest)
        spec = manifest.distributions
        if spec.family != "categorical":
            raise StoreMismatch(f"labels of {manifest.teacher.name} are yes or no by class: mix such sets by source")
        if spec.draws:
            raise StoreMismatch(
                f"labels of {manifest.teacher.name} were drawn ({spec.estimator}), and the mean of draws is no "
                "distribution of this store: label with dense or topk, or mix the sets by source"
            )
    specs = [manifest.distributions for manifest in manifests]
    dense = all(spec.estimator == "dense" for spec in specs)
    shared = [t for t in first.distributions.temperatures if all(t in spec.temperatures for spec in specs)]
    return first.with_distributions(temperatures=tuple(shared) if dense else (1.0,))


def require_same_classes(first: StoreManifest, other: StoreManifest) -> None:
    """Refuse label sets of another problem.

    Raises:
        StoreMismatch: names both sides.
    """
    sides = f"labels of {first.teacher.name} and of {other.teacher.name} cannot be mixed: "
    if first.task != other.task:
        raise StoreMismatch(f"{sides}they are of {first.task} and of {other.task}")
    if set(first.space.names) != set(other.space.names) or first.space.size != other.space.size:
        raise StoreMismatch(
            f"{sides}they are over {first.space.size} and {other.space.size} classes, and must be over the same"
        )
    tokens = {manifest.teacher.tokens for manifest in (first, other)} - {None}
    if len(tokens) > 1:
        raise StoreMismatch(f"{sides}the teachers have different tokenizers or chat templates")


def average(parts: Sequence[Distributions], weights_MR: npt.NDArray[np.float64]) -> Distributions:
    """Return the weighted mean of M distributions at each position.

    It has the classes that all of them store, and the likeliest.

    Args:
        parts: of the same rows and positions, class ids ascending, nothing drawn.
        weights_MR: not negative; of each row they are scaled to sum to 1. With weight 0 a part counts for nothing but
            the classes it stores.

    Returns:
        In float32; ``entropy`` is NaN where something is in the tail, for that of the whole mean is not known.
    """
    first = parts[0]
    assert first.temperatures == (1.0,) or all(np.isneginf(part.log_tail).all() for part in parts)
    weights_MP = np.repeat(weights_MR / weights_MR.sum(axis=0), np.diff(first.row_offsets), axis=1)
    owners = [np.repeat(np.arange(len(part.position)), np.diff(part.entry_offsets)) for part in parts]
    keys = [owner * first.classes + part.ids for owner, part in zip(owners, parts, strict=True)]
    masses = [
        weight_P[own] * np.exp(part.logp.astype(np.float64))
        for part, own, weight_P in zip(parts, owners, weights_MP, strict=True)
    ]
    common = reduce(lambda one, other: np.intersect1d(one, other, assume_unique=True), keys)
    kept = np.union1d(common, _likeliest(keys, masses, first.classes))
    owner, ids = kept // first.classes, (kept % first.classes).astype(np.int32)
    mean, tail_PT = np.zeros(len(kept)), np.zeros(first.log_tail.shape)
    for part, own, key, mass, weight_P in zip(parts, owners, keys, masses, weights_MP, strict=True):
        at = np.minimum(np.searchsorted(key, kept), max(len(key) - 1, 0))
        there = key[at] == kept if len(key) else np.zeros(len(kept), dtype=bool)
        mean[there] += mass[at[there]]
        left = mass.copy()
        left[at[there]] = 0  # what is not kept goes into the tail
        left_P = np.bincount(own, weights=left, minlength=len(first.position))
        tail_PT += weight_P[:, None] * np.exp(part.log_tail.astype(np.float64)) + left_P[:, None]
    with np.errstate(divide="ignore"):
        logp, log_tail = np.log(mean), np.log(tail_PT)
    sums = np.bincount(owner, weights=-mean * np.where(mean > 0, logp, 0.0), minlength=len(first.position))
    entropy = np.where(tail_PT[:, 0] > 0, np.nan, sums)
    return Distributions(
        classes=first.classes,
        temperatures=first.temperatures,
        row_offsets=first.row_offsets,
        position=first.position,
        entry_offsets=running(np.bincount(owner, minlength=len(first.position))),
        ids=ids,
        logp=logp.astype(np.float32),
        log_tail=log_tail.astype(np.float32),
        entropy=entropy.astype(np.float32),
    )


def _likeliest(keys: Sequence[Index], masses: Sequence[Weights], classes: int) -> Index:
    """Return at each position the class of the greatest stored mass; of equal ones the first."""
    every, inverse = np.unique(np.concatenate(keys), return_inverse=True)
    known = np.bincount(inverse, weights=np.concatenate(masses), minlength=len(every))
    order = np.lexsort((every, -known, every // classes))
    _, first = np.unique(every[order] // classes, return_index=True)
    best: Index = every[order][first]
    return best


def _places(requested: RowIds, found: RowIds) -> Index:
    """Return the place of each requested id among the found; -1 for an absent one."""
    order = np.argsort(found, kind="stable").astype(np.int64)
    at = rowids.find(requested, found[order])
    return np.where(at >= 0, order[at], -1) if len(found) else at


def _instead(base: Distributions, found: Distributions, place: Index) -> Distributions:
    """Return rows of ``found`` at their places, and the base's own elsewhere."""
    missing = np.flatnonzero(place < 0)
    both = Distributions.concat([part for part in (found, base.take(missing)) if part.rows] or [base])
    filled = place.copy()
    filled[missing] = np.arange(len(missing)) + found.rows
    return both.take(filled)


def _require_overlap(first: LabelSet, other: LabelSet) -> None:
    """Tell how many of the first set's rows another one has labelled, and refuse if it is none."""
    shared = int((rowids.find(first.ids, other.ids) >= 0).sum())
    if first.rows and not shared:
        raise StoreMismatch(
            f"none of the {first.rows} rows has labels in {other.ref.store}, so there is nothing to average: it is of "
            "another source, or its snapshot was redacted or keyed otherwise; mix it by source, or label the same rows"
        )
    log.info("%d of %d rows have labels of %s too", shared, first.rows, other.manifest.teacher.name)


def _require_same_positions(base: Distributions, other: Distributions, ids: RowIds, store: str) -> None:
    counts = np.diff(base.row_offsets)
    apart = np.flatnonzero(counts != np.diff(other.row_offsets))
    if not len(apart):
        apart = np.repeat(np.arange(len(counts)), counts)[base.position != other.position]
    if len(apart):
        raise StoreMismatch(
            f"row {rowids.hexadecimal(ids[apart[:1]])[0]} was labelled at other tokens in {store}: roles, max_length "
            "or template differ between the label sets; label with the same settings, or mix them by source"
        )


def _class_map(manifest: StoreManifest, first: StoreManifest) -> npt.NDArray[np.int32] | None:
    """Map each class id of a store to the first one's by name; None where they are the same."""
    if manifest.space.names == first.space.names:
        return None
    index = {name: number for number, name in enumerate(first.space.names)}
    return np.array([index[name] for name in manifest.space.names], dtype=np.int32)
