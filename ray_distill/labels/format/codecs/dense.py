"""``dense``: numbers of all V classes, lossless; class ids and the empty tail are implied.

Categorical distributions have log-probabilities in float32. Bernoulli classes have log-odds z, from which
σ(z/T) and σ(−z/T) follow exactly at every temperature: float32, or float16 where the teacher's own logits are half
precision (option ``dtype``).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ray_distill.config import SignalConfig
from ray_distill.errors import LabelError
from ray_distill.labels.format.codecs.base import cells, require_lengths, row_totals, uncells
from ray_distill.labels.format.fitted_arrays import Fits
from ray_distill.labels.model.distributions import Distributions, Family, bernoulli
from ray_distill.labels.model.part_specs import DistributionsSpec

#: Types of log-odds, by the option ``dtype``.
DTYPES: Mapping[str, npt.DTypeLike] = {"float32": np.float32, "float16": np.float16}


@dataclass(frozen=True)
class DenseCodec:
    """Store one cell a row and column, with every class of each position.

    ``position`` is int32 ``[P]``. Categorical distributions have float32 ``logp`` ``[P·V]`` and ``entropy`` ``[P]``,
    Bernoulli classes ``log_odds`` ``[P·V]``.
    """

    name: str = "dense"
    version: int = 2
    encodings: tuple[str, ...] = ("lossless",)
    families: tuple[Family, ...] = ("categorical", "bernoulli")
    #: Training unpacks these numbers again in every epoch: LZ4 is read three to five times as fast as zstd, with 1.3 to
    #: 1.4 times the bytes.
    cell_encoding: str = "PLAIN"
    compression: str = "lz4"

    def serves(self, signal: SignalConfig) -> bool:
        """Return whether this codec can store a configuration: the estimator ``dense``, lossless."""
        return signal.estimator == "dense" and signal.encoding == "lossless"

    def options(self, signal: SignalConfig) -> dict[str, Any]:
        """Return the codec's settings for what is configured: none."""
        return {}

    def fit(self, distributions: Distributions, spec: DistributionsSpec) -> Fits:
        """Return the fitted arrays: none."""
        return {}

    def encode(self, distributions: Distributions, spec: DistributionsSpec, fits: Fits) -> Mapping[str, pa.Array]:
        """Return the columns of a shard.

        Raises:
            LabelError: a position lacks classes, has mass outside them, or log-odds that do not fit the type exactly.
        """
        require_dense(distributions, f"dense/{self.version}")
        rows = distributions.row_offsets
        entries = row_totals(rows, distributions.entry_offsets)
        columns = {"position": cells(distributions.position.astype(np.int32), rows)}
        if distributions.log_odds is not None:
            return columns | {"log_odds": cells(_exactly(distributions.log_odds, log_odds_dtype(spec)), entries)}
        return columns | {
            "logp": cells(distributions.logp.astype(np.float32), entries),
            "entropy": cells(distributions.entropy.astype(np.float32), rows),
        }

    def decode(self, table: pa.Table, spec: DistributionsSpec, fits: Fits) -> Distributions:
        """Return the distributions of a shard's rows; errors as `Codec.decode`."""
        position, rows = uncells(table, "position", np.int32)
        positions, classes = len(position), spec.space.size
        if spec.family == "bernoulli":
            log_odds, _ = uncells(table, "log_odds", log_odds_dtype(spec))
            require_lengths("log_odds", len(log_odds), positions * classes)
            return bernoulli(
                log_odds.reshape(positions, classes),
                row_offsets=rows,
                position=position,
                temperatures=spec.temperatures,
            )
        logp, _ = uncells(table, "logp", np.float32)
        entropy, _ = uncells(table, "entropy", np.float32)
        require_lengths("logp", len(logp), positions * classes)
        require_lengths("entropy", len(entropy), positions)
        return Distributions(
            family=spec.family,
            classes=classes,
            temperatures=spec.temperatures,
            row_offsets=rows,
            position=position,
            entry_offsets=np.arange(positions + 1, dtype=np.int64) * classes,
            ids=np.tile(np.arange(classes, dtype=np.int32), positions),
            logp=logp,
            log_tail=np.full((positions, len(spec.temperatures)), -np.inf, dtype=np.float32),
            entropy=entropy,
        )


def log_odds_dtype(spec: DistributionsSpec) -> npt.DTypeLike:
    """Return the stored type of log-odds.

    Raises:
        LabelError: the part names another one.
    """
    name = spec.options.get("dtype", "float32")
    if name not in DTYPES:
        raise LabelError(f"codec dense stores log-odds as {' or '.join(DTYPES)}, found the option dtype {name!r}")
    return DTYPES[name]


def _exactly(log_odds: npt.NDArray[Any], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    """Return log-odds in the stored type.

    Raises:
        LabelError: one of them is not a number of that type.
    """
    with np.errstate(over="ignore"):
        stored = log_odds.astype(dtype)
    if not np.array_equal(stored.astype(log_odds.dtype), log_odds, equal_nan=True):
        raise LabelError(
            f"codec dense stores log-odds without loss, and some are not numbers of {np.dtype(dtype).name}: set the "
            "option dtype to float32"
        )
    return stored


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
