"""``compact``: gaps of ranks, probabilities in one byte, byte planes.

The ranks of class ids are stored as sorted gaps, every probability in one byte, and everything in byte planes.

Options (``spec.options``): ``lossless``; else ``power`` and ``levels`` of the bins of probabilities. The fitted
array ``ids`` (``[V]`` int32, rank to class id) puts frequent classes close together; without it, rank and id are one.

Columns, a cell a row: ``layout`` uint8 (what is implied, see the constants), ``ids`` and ``logp`` (``[E]``, in the
order of ranks), ``log_tail`` ``[P·T]``, ``entropy`` ``[P]``; where the layout requires it ``position`` ``[P]``,
``entries`` ``[P]``, ``count`` ``[E]`` and ``log_normaliser`` ``[P]``. Lossless columns are the planes of float32.

The counts of draws from p itself are stored as differences to what the bins of the probabilities lead one to expect
(`counts`), where probabilities have bins.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ray_distill.config import SignalConfig
from ray_distill.errors import CorruptStore, LabelError
from ray_distill.labels.format.codecs.base import cells, require_lengths, row_totals, uncells
from ray_distill.labels.format.codecs.counts import Bins, decode_counts, encode_counts, expected_counts
from ray_distill.labels.format.codecs.dense import require_dense
from ray_distill.labels.format.codecs.order import by_class, by_rank, rank_order
from ray_distill.labels.format.codecs.planes import (
    contexts,
    escaped,
    gaps,
    join,
    plane,
    require_offsets,
    split,
    stored_gaps,
    unescaped,
    ungaps,
)
from ray_distill.labels.format.codecs.quantise import (
    centres,
    decode_entropy,
    decode_odds,
    encode_entropy,
    encode_odds,
    log_odds,
    log_rest,
    log_share,
    quantise,
)
from ray_distill.labels.format.fitted_arrays import Fits
from ray_distill.labels.model.distributions import Distributions, Draws, Family
from ray_distill.labels.model.part_specs import DistributionsSpec
from ray_distill.labels.model.ragged import Offsets, running

#: Bits of the layout: positions count from 0; all positions have equally many entries; entries were drawn; the
#: normaliser of the draws is 0; counts are differences to what their bins lead one to expect; no position's entropy is
#: known (what is stored in its place means nothing).
COUNTED, EQUAL, DRAWN, NORMAL, EXPECTED, NO_ENTROPY = 1, 2, 4, 8, 16, 32


@dataclass(frozen=True)
class CompactCodec:
    """The codec; all its settings are in the part's ``options``."""

    name: str = "compact"
    version: int = 2
    encodings: tuple[str, ...] = ("lossless", "compact")
    families: tuple[Family, ...] = ("categorical",)
    #: Lengths of cells lie apart from their bytes, which are then one piece for zstd.
    cell_encoding: str = "DELTA_LENGTH_BYTE_ARRAY"
    compression: str = "zstd"

    def serves(self, signal: SignalConfig) -> bool:
        """Return whether this codec can store a configuration: every estimator, lossless or lossy."""
        return signal.encoding in self.encodings

    def options(self, signal: SignalConfig) -> dict[str, Any]:
        """Return the codec's settings for what is configured."""
        counted = signal.estimator == "sampled" and signal.exponent == 1
        return compact_options(signal.temperatures, signal.encoding == "lossless", drawn=counted)

    def fit(self, distributions: Distributions, spec: DistributionsSpec) -> Fits:
        """Return the order of class ids by frequency, unless every position has all classes."""
        return {} if spec.estimator == "dense" else {"ids": fit_ids(distributions, spec.space.size)}

    def encode(self, distributions: Distributions, spec: DistributionsSpec, fits: Fits) -> Mapping[str, pa.Array]:
        """Return the columns of a shard; errors as `Codec.encode`."""
        values = _encode_lossless if options(spec)[0] else _encode_lossy
        layout = _layout(distributions)
        if layout & DRAWN and layout & NORMAL and not options(spec)[0]:
            layout |= EXPECTED
        if not options(spec)[0] and _unknown_entropy(distributions):
            layout |= NO_ENTROPY
        rows = distributions.row_offsets
        entries = row_totals(rows, distributions.entry_offsets)
        columns: dict[str, pa.Array] = {"layout": pa.array(np.full(distributions.rows, layout, dtype=np.uint8))}
        if not layout & COUNTED:
            columns["position"] = cells(distributions.position.astype(np.int32), rows)
        if spec.estimator == "dense":
            require_dense(distributions, "compact")
            return columns | values(distributions, distributions.logp, spec)
        if not layout & EQUAL:
            columns |= escaped("entries", np.diff(distributions.entry_offsets), rows)
        order, steps = by_rank(distributions, rank_order(fits, spec.space.size, LabelError))
        columns |= gaps("ids", steps, entries, contexts(distributions.entry_offsets))
        columns |= values(distributions, distributions.logp[order], spec)
        return columns | _encode_draws(distributions, spec, order, layout)

    def decode(self, table: pa.Table, spec: DistributionsSpec, fits: Fits) -> Distributions:
        """Return the distributions of a shard's rows; errors as `Codec.decode`."""
        layout, rows = _read_layout(table), _rows(table)
        dense = spec.estimator == "dense"
        offsets = _entry_offsets(table, layout, rows, spec.space.size if dense else None)
        entries = row_totals(rows, offsets)
        read = _decode_lossless if options(spec)[0] else _decode_lossy
        logp, log_tail, entropy = read(table, spec, rows, offsets)
        if layout & NO_ENTROPY:
            entropy = np.full_like(entropy, np.nan)
        count = _decode_counts(table, spec, layout, entries)
        ids, per_entry = (
            (_all_classes(spec.space.size, len(offsets) - 1), [logp, count])
            if dense
            else by_class(
                ungaps(table, "ids", entries, contexts(offsets)),
                offsets,
                rank_order(fits, spec.space.size, CorruptStore),
                classes=spec.space.size,
                columns=[logp, count],
            )
        )
        return Distributions(
            family=spec.family,
            classes=spec.space.size,
            temperatures=spec.temperatures,
            row_offsets=rows,
            position=_position(table, layout, rows),
            entry_offsets=offsets,
            ids=ids,
            logp=per_entry[0],
            log_tail=log_tail,
            entropy=entropy,
            draws=_decode_draws(table, spec, layout, rows=rows, count=per_entry[1]),
        )


def fit_ids(distributions: Distributions, class_count: int) -> npt.NDArray[np.int32]:
    """Return class ids ``[V]`` by how often they are stored, most often first; equals by id."""
    counts = np.bincount(distributions.ids, minlength=class_count)
    return np.argsort(-counts, kind="stable").astype(np.int32)


def compact_options(temperatures: Sequence[float], lossless: bool, *, drawn: bool = False) -> dict[str, Any]:
    """Return options of ``compact`` for the declared temperatures.

    The bins are chosen so that they add about 1e-4 nats on a language model.

    The power is 1/(2T) of the largest T (MATHS.md §1), a little less at T = 1 alone: fewer levels then add as little,
    and small probabilities move less. Where all entries are ``drawn``, the target at T = 1 is made of the counts, which
    are exact, and fewer levels do.
    """
    highest = max(max(temperatures), 1.25)
    levels = 208 if max(temperatures) > 1 else 112 if drawn else 160
    return {"lossless": lossless, "power": 1 / (2 * highest), "levels": levels}


def options(spec: DistributionsSpec) -> tuple[bool, float, int]:
    """Return ``lossless, power, levels`` of a part.

    Raises:
        LabelError: an option is missing or not usable.
    """
    given = spec.options
    lossless, power, levels = given.get("lossless", False), given.get("power", 0.5), given.get("levels", DEFAULT_LEVELS)
    usable = isinstance(lossless, bool) and isinstance(levels, int) and isinstance(power, (int, float))
    if not usable or not 0 < power <= 1 or not 2 <= levels <= 65535:
        raise LabelError(
            f"codec compact needs options lossless (true or false), power (0 to 1) and levels "
            f"(2 to 65535), found {dict(given)}"
        )
    return lossless, float(power), levels


#: Levels of a part that does not give them: one byte.
DEFAULT_LEVELS = 255


def _layout(distributions: Distributions) -> int:
    draws, counts = distributions.draws, np.diff(distributions.entry_offsets)
    counted = np.array_equal(distributions.position, _from_zero(distributions.row_offsets))
    equal = len(counts) > 0 and bool(np.all(counts == counts[0]))
    normal = draws is not None and not np.any(draws.log_normaliser)
    return COUNTED * counted + EQUAL * equal + DRAWN * (draws is not None) + NORMAL * normal


def _unknown_entropy(distributions: Distributions) -> bool:
    """Return whether the entropy of every position is unknown.

    Raises:
        LabelError: that of some positions is.
    """
    unknown = np.isnan(distributions.entropy)
    if not unknown.any():
        return False
    if not unknown.all():
        raise LabelError(
            f"codec compact cannot store the entropy of {unknown.sum()} of {len(unknown)} positions, which is not "
            "known: all positions of a shard have it, or none; use another store for this teacher"
        )
    return True


def _read_layout(table: pa.Table) -> int:
    if (
        "layout" not in table.column_names
        or table.column("layout").type != pa.uint8()
        or (table.column("layout").null_count)
    ):
        raise CorruptStore("column layout is missing or not uint8 without nulls")
    found = np.unique(table.column("layout").to_numpy())
    if len(found) > 1 or (len(found) and found[0] >= 2 * NO_ENTROPY):
        raise CorruptStore(f"column layout: found {found.tolist()}, expected one known value for the whole shard")
    return int(found[0]) if len(found) else COUNTED


def _rows(table: pa.Table) -> Offsets:
    """Return offsets of the rows' positions: every position has an entropy."""
    return uncells(table, "entropy.0", np.uint8)[1]


def _from_zero(rows: Offsets) -> npt.NDArray[np.int32]:
    return (np.arange(rows[-1]) - np.repeat(rows[:-1], np.diff(rows))).astype(np.int32)


def _position(table: pa.Table, layout: int, rows: Offsets) -> npt.NDArray[np.int32]:
    if layout & COUNTED:
        return _from_zero(rows)
    values, found = uncells(table, "position", np.int32)
    require_offsets("position", found, rows)
    return values


def _entry_offsets(table: pa.Table, layout: int, rows: Offsets, width: int | None) -> Offsets:
    """Return offsets of the positions' entries, from ``width`` or else from the shard's counts."""
    positions = int(rows[-1])
    stored = positions * width if width is not None else stored_gaps(table, "ids")
    if width is None and not layout & EQUAL:
        offsets = running(unescaped(table, "entries", rows))
        require_lengths("ids", stored, int(offsets[-1]))
        return offsets
    width = stored // max(positions, 1) if width is None else width
    require_lengths("ids", stored, positions * width)
    return np.arange(positions + 1, dtype=np.int64) * width


def _all_classes(classes: int, positions: int) -> npt.NDArray[np.int32]:
    return np.tile(np.arange(classes, dtype=np.int32), positions)


def _encode_lossless(
    distributions: Distributions, logp: npt.NDArray[Any], spec: DistributionsSpec
) -> dict[str, pa.Array]:
    rows = distributions.row_offsets
    columns = split("logp", logp.astype(np.float32), row_totals(rows, distributions.entry_offsets))
    columns |= split("entropy", distributions.entropy.astype(np.float32), rows)
    if spec.estimator != "dense":
        temperatures = len(distributions.temperatures)
        columns |= split("log_tail", distributions.log_tail.astype(np.float32).reshape(-1), rows * temperatures)
    return columns


def _decode_lossless(table: pa.Table, spec: DistributionsSpec, rows: Offsets, offsets: Offsets) -> tuple[Any, Any, Any]:
    logp = join(table, "logp", np.float32, row_totals(rows, offsets))
    entropy = join(table, "entropy", np.float32, rows)
    return logp, _tails(table, spec, rows, dtype=np.float32, read=lambda words: words), entropy


def _tails(
    table: pa.Table, spec: DistributionsSpec, rows: Offsets, *, dtype: npt.DTypeLike, read: Callable[[Any], Any]
) -> npt.NDArray[Any]:
    """Return the tails ``[P, T]`` that ``read`` decodes; -inf for an estimator without a tail."""
    shape = (int(rows[-1]), len(spec.temperatures))
    if spec.estimator == "dense":
        return np.full(shape, -np.inf, dtype=np.float32)
    return np.asarray(read(join(table, "log_tail", dtype, rows * shape[1]))).reshape(shape)


def _encode_lossy(distributions: Distributions, logp: npt.NDArray[Any], spec: DistributionsSpec) -> dict[str, pa.Array]:
    if np.isnan(logp).any() or np.isnan(distributions.log_tail).any():
        raise LabelError("codec compact cannot store NaN lossy: rows like these belong in quarantine")
    _, power, levels = options(spec)
    rows, offsets = distributions.row_offsets, distributions.entry_offsets
    bins = quantise(logp, power, levels)
    columns = _bins(bins, levels, row_totals(rows, offsets))
    entropy = np.nan_to_num(distributions.entropy, nan=0.0)  # the layout marks it as unknown
    columns |= split("entropy", encode_entropy(entropy, distributions.classes), rows)
    if spec.estimator == "dense":
        return columns
    tail = distributions.log_tail.astype(np.float64)
    head = log_rest(tail)
    head[:, spec.temperatures.index(1.0)] = _log_sums(np.exp(logp.astype(np.float64)), offsets)
    return columns | split("log_tail", encode_odds(log_odds(tail, head)).reshape(-1), rows * tail.shape[1])


def _bins(bins: npt.NDArray[np.uint16], levels: int, entries: Offsets) -> dict[str, pa.Array]:
    if levels > 255:
        return split("logp", bins, entries)
    return {"logp": cells(bins.astype(np.uint8), entries)}


def _decode_lossy(table: pa.Table, spec: DistributionsSpec, rows: Offsets, offsets: Offsets) -> tuple[Any, Any, Any]:
    _, power, levels = options(spec)
    bins = _read_bins(table, levels, row_totals(rows, offsets))
    odds = _tails(table, spec, rows, dtype=np.uint16, read=lambda words: decode_odds(words))
    ones = spec.temperatures.index(1.0)
    centre = centres(power, levels)
    scale = log_share(-odds[:, ones]) - _log_sums(np.exp(centre).astype(np.float32)[bins], offsets)
    shift: npt.NDArray[np.float32] = np.where(np.isfinite(scale), scale, 0).astype(np.float32)
    logp = np.minimum(centre.astype(np.float32)[bins] + np.repeat(shift, np.diff(offsets)), np.float32(0))
    tail = log_share(odds).astype(np.float32)
    return logp, tail, decode_entropy(join(table, "entropy", np.uint16, rows), spec.space.size)


def _read_bins(table: pa.Table, levels: int, entries: Offsets) -> Bins:
    bins: Bins = join(table, "logp", np.uint16, entries) if levels > 255 else plane(table, "logp", entries)
    if len(bins) and int(bins.max()) > levels:
        raise CorruptStore(f"column logp: found bin {bins.max()}, expected at most {levels}")
    return bins


def _width(offsets: Offsets) -> int:
    """Return the number of entries of every position, 0 if positions differ."""
    width = int(offsets[1]) if len(offsets) > 1 else 0
    return width if np.array_equal(offsets, np.arange(len(offsets)) * width) else 0


def _log_sums(values: npt.NDArray[Any], offsets: Offsets) -> npt.NDArray[np.float64]:
    """Log of each position's sum; -inf where a position has nothing."""
    width = _width(offsets)
    if width:
        sums = values.reshape(-1, width).sum(axis=1, dtype=np.float64)
    else:
        sums = np.add.reduceat(np.append(values, 0).astype(np.float64), offsets[:-1])
        sums = np.where(np.diff(offsets) > 0, sums, 0)
    with np.errstate(divide="ignore"):
        logs: npt.NDArray[np.float64] = np.log(sums)
    return logs


def _encode_draws(
    distributions: Distributions, spec: DistributionsSpec, order: npt.NDArray[Any] | slice, layout: int
) -> dict[str, pa.Array]:
    draws, rows = distributions.draws, distributions.row_offsets
    if draws is None:
        return {}
    entries, count = row_totals(rows, distributions.entry_offsets), draws.count[order]
    if layout & EXPECTED:
        _, power, levels = options(spec)
        bins = quantise(distributions.logp[order], power, levels)
        columns = encode_counts(count, bins, expected_counts(power, levels, spec.draws), entries)
    else:
        columns = escaped("count", count, entries)
    return (
        columns if layout & NORMAL else columns | split("log_normaliser", draws.log_normaliser.astype(np.float32), rows)
    )


def _decode_counts(
    table: pa.Table, spec: DistributionsSpec, layout: int, entries: Offsets
) -> npt.NDArray[np.int32] | None:
    if not layout & DRAWN:
        return None
    if not layout & EXPECTED:
        return unescaped(table, "count", entries).astype(np.int32)
    lossless, power, levels = options(spec)
    if lossless:
        raise CorruptStore("column layout: counts cannot follow bins in a lossless store")
    return decode_counts(table, _read_bins(table, levels, entries), expected_counts(power, levels, spec.draws), entries)


def _decode_draws(
    table: pa.Table, spec: DistributionsSpec, layout: int, *, rows: Offsets, count: npt.NDArray[Any] | None
) -> Draws | None:
    if count is None:
        return None
    normaliser = (
        np.zeros(int(rows[-1]), dtype=np.float32)
        if layout & NORMAL
        else join(table, "log_normaliser", np.float32, rows)
    )
    return Draws(number=spec.draws, exponent=spec.exponent, count=count, log_normaliser=normaliser)
