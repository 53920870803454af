"""Find the views on which the teacher is unsure: these teach nobody."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from ray_distill.labels.model import rowids
from ray_distill.labels.model.distributions import Distributions
from ray_distill.labels.model.rowids import RowIds
from ray_distill.snapshots.augment.views import PARENT
from ray_distill.snapshots.manifest import Shard
from ray_distill.snapshots.reader import Snapshot
from ray_distill.students.data.streaming import LabelSource, units_of


@dataclass(frozen=True, kw_only=True)
class FilteredViews:
    """The views of a snapshot, by whether they teach."""

    kept: int
    unsure: RowIds
    """Ids of those on which the teacher's entropy is too large, ascending."""


def filter_views(snapshot: Snapshot, labels: LabelSource, most_entropy: float | None) -> FilteredViews:
    """Compare the teacher's entropy on each view with its limit.

    A view without labels, or whose entropy is not known, is kept.
    Labels are read unit by unit, so that memory does not depend on the number of views.

    Args:
        snapshot: one with views or without.
        labels: of the snapshot.
        most_entropy: share of the largest entropy; None = every view teaches.
    """
    counts = snapshot.manifest.view_counts
    if counts is None or most_entropy is None:
        return FilteredViews(kept=0 if counts is None else sum(counts["kept"].values()), unsure=rowids.empty())
    spec, views, found = labels.manifest.distributions, 0, [rowids.empty()]
    limit = most_entropy * spec.largest_entropy
    for unit in units_of(snapshot, "train", labels.manifest.rows_a_unit):
        ids = _views_in(snapshot, unit.shard, unit.start, stop=unit.stop)
        views += len(ids)
        read, signal = labels.read_rows(ids)
        found.append(rowids.to_numpy(read)[row_entropies(signal.distributions) > limit])
    unsure = np.sort(np.concatenate(found))
    return FilteredViews(kept=views - len(unsure), unsure=unsure)


def row_entropies(distributions: Distributions) -> npt.NDArray[np.float64]:
    """Return ``[R]``: the mean entropy over a row's positions, nats; NaN where it is not known."""
    counts = np.diff(distributions.row_offsets)
    owner = np.repeat(np.arange(len(counts)), counts)
    sums = np.bincount(owner, weights=distributions.entropy.astype(np.float64), minlength=len(counts))
    with np.errstate(invalid="ignore"):  # a row without positions gives 0 / 0
        found: npt.NDArray[np.float64] = sums / counts
    return found


def _views_in(snapshot: Snapshot, shard: Shard, start: int, *, stop: int) -> RowIds:
    rows: pa.Table = snapshot.read_range(shard, start, stop, ["row_id", PARENT])
    return rowids.to_numpy(rows.filter(pc.is_valid(rows[PARENT]))["row_id"])
