"""``topk``: class ids and log-probabilities, lossless, and the log tail by temperature.

Class ids are int32 and log-probabilities float32.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from ray_distill.config import SignalConfig
from ray_distill.errors import CorruptStore
from ray_distill.labels.format.codecs.base import cells, require_lengths, row_totals, uncells
from ray_distill.labels.format.fitted_arrays import Fits
from ray_distill.labels.model.distributions import Distributions, Family
from ray_distill.labels.model.part_specs import DistributionsSpec
from ray_distill.labels.model.ragged import running


@dataclass(frozen=True)
class TopKCodec:
    """Store one cell a row and column, with the likeliest classes of each position.

    ``position`` and ``entries`` are int32 ``[P]``, ``ids`` int32 and ``logp`` float32 ``[E]``, ``log_tail`` float32
    ``[P·T]``, ``entropy`` float32 ``[P]``.
    """

    name: str = "topk"
    version: int = 2
    encodings: tuple[str, ...] = ("lossless",)
    families: tuple[Family, ...] = ("categorical",)
    #: Training unpacks these numbers again in every epoch: LZ4 is read three to five times as fast as zstd, with 1.3 to
    #: 1.4 times the bytes.
    cell_encoding: str = "PLAIN"
    compression: str = "lz4"

    def serves(self, signal: SignalConfig) -> bool:
        """Return whether this codec can store a configuration: the estimator ``topk``, lossless."""
        return signal.estimator == "topk" and signal.encoding == "lossless"

    def options(self, signal: SignalConfig) -> dict[str, Any]:
        """Return the codec's settings for what is configured: none."""
        return {}

    def fit(self, distributions: Distributions, spec: DistributionsSpec) -> Fits:
        """Return the fitted arrays: none."""
        return {}

    def encode(self, distributions: Distributions, spec: DistributionsSpec, fits: Fits) -> Mapping[str, pa.Array]:
        """Return the columns of a shard."""
        rows, temperatures = distributions.row_offsets, len(distributions.temperatures)
        entries = row_totals(rows, distributions.entry_offsets)
        return {
            "position": cells(distributions.position.astype(np.int32), rows),
            "entries": cells(np.diff(distributions.entry_offsets).astype(np.int32), rows),
            "ids": cells(distributions.ids.astype(np.int32), entries),
            "logp": cells(distributions.logp.astype(np.float32), entries),
            "log_tail": cells(distributions.log_tail.astype(np.float32).reshape(-1), rows * temperatures),
            "entropy": cells(distributions.entropy.astype(np.float32), rows),
        }

    def decode(self, table: pa.Table, spec: DistributionsSpec, fits: Fits) -> Distributions:
        """Return the distributions of a shard's rows; errors as `Codec.decode`."""
        position, rows = uncells(table, "position", np.int32)
        entries, _ = uncells(table, "entries", np.int32)
        ids, _ = uncells(table, "ids", np.int32)
        logp, _ = uncells(table, "logp", np.float32)
        log_tail, _ = uncells(table, "log_tail", np.float32)
        entropy, _ = uncells(table, "entropy", np.float32)
        positions, classes, temperatures = len(position), spec.space.size, len(spec.temperatures)
        _require_counts(entries)
        for name, found, expected in (
            ("entries", len(entries), positions),
            ("ids", len(ids), int(entries.sum())),
            ("logp", len(logp), len(ids)),
            ("log_tail", len(log_tail), positions * temperatures),
            ("entropy", len(entropy), positions),
        ):
            require_lengths(name, found, expected)
        _require_ids(ids, classes)
        return Distributions(
            family=spec.family,
            classes=classes,
            temperatures=spec.temperatures,
            row_offsets=rows,
            position=position,
            entry_offsets=running(entries),
            ids=ids,
            logp=logp,
            log_tail=log_tail.reshape(positions, temperatures),
            entropy=entropy,
        )


def _require_counts(entries: np.ndarray) -> None:
    if len(entries) and entries.min() < 0:
        raise CorruptStore(f"column entries: found {entries.min()}, expected counts of at least 0")


def _require_ids(ids: np.ndarray, classes: int) -> None:
    if len(ids) and int(ids.view(np.uint32).max()) >= classes:  # as unsigned, negative ones are found too
        raise CorruptStore(f"column ids: found class {ids.min()}..{ids.max()}, expected 0..{classes - 1}")
