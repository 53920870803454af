"""``dense``: log-probabilities of all V classes in float32, lossless; class ids and the empty tail are implied."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from ray_distill.errors import LabelError
from ray_distill.labels.format.codecs.base import cells, require_lengths, row_totals, uncells
from ray_distill.labels.format.fitted_arrays import Fits
from ray_distill.labels.model.manifest import StoreManifest
from ray_distill.labels.model.signal import Distributions


@dataclass(frozen=True)
class DenseCodec:
    """Columns ``position`` int32 ``[P]``, ``logp`` float32 ``[P·V]``, ``entropy`` float32 ``[P]``, a cell a row."""

    name: str = "dense"
    version: int = 2

    def encode(self, distributions: Distributions, manifest: StoreManifest, fits: Fits) -> Mapping[str, pa.Array]:
        """Columns of a shard.

        Raises:
            LabelError: a position lacks classes, or has mass outside them.
        """
        require_dense(distributions, f"dense/{self.version}")
        rows = distributions.row_offsets
        return {
            "position": cells(distributions.position.astype(np.int32), rows),
            "logp": cells(distributions.logp.astype(np.float32), row_totals(rows, distributions.entry_offsets)),
            "entropy": cells(distributions.entropy.astype(np.float32), rows),
        }

    def decode(self, table: pa.Table, manifest: StoreManifest, fits: Fits) -> Distributions:
        """Distributions of a shard's rows; errors as `Codec.decode`."""
        position, rows = uncells(table, "position", np.int32)
        logp, _ = uncells(table, "logp", np.float32)
        entropy, _ = uncells(table, "entropy", np.float32)
        positions, classes = len(position), manifest.class_count
        require_lengths("logp", len(logp), positions * classes)
        require_lengths("entropy", len(entropy), positions)
        return Distributions(
            family=manifest.family,
            classes=classes,
            temperatures=manifest.temperatures,
            row_offsets=rows,
            position=position,
            entry_offsets=np.arange(positions + 1, dtype=np.int64) * classes,
            ids=np.tile(np.arange(classes, dtype=np.int32), positions),
            logp=logp,
            log_tail=np.full((positions, len(manifest.temperatures)), -np.inf, dtype=np.float32),
            entropy=entropy,
        )


def require_dense(distributions: Distributions, codec: str) -> None:
    """Refuse what is not dense, in the name of a codec.

    Raises:
        LabelError: a position lacks classes, or has mass outside them.
    """
    positions, classes = len(distributions.position), distributions.classes
    ids = np.tile(np.arange(classes, dtype=np.int32), positions)
    if not np.array_equal(np.diff(distributions.entry_offsets), np.full(positions, classes)) or not np.array_equal(
        distributions.ids, ids
    ):
        raise LabelError(f"codec {codec} stores all {classes} classes at each position, in order; use topk for fewer")
    if not np.all(np.isneginf(distributions.log_tail)):
        raise LabelError(f"codec {codec} has no tail, the signal has mass outside its classes: log_tail must be -inf")
