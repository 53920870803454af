"""Convert hidden states to bytes and back.

They are projected on a PCA basis where one was fitted, then narrowed to the stored type.

Hidden states lie in files of their own, so that training from labels alone never reads them.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ray_distill.errors import CorruptStore, LabelError
from ray_distill.labels.format import parquet_shards
from ray_distill.labels.format.codecs.base import cells, require_lengths, uncells
from ray_distill.labels.format.dtypes import LARGEST, STORED, narrow, scaled, widen
from ray_distill.labels.format.fitted_arrays import Fits
from ray_distill.labels.model import rowids
from ray_distill.labels.model.part_specs import VectorsSpec
from ray_distill.labels.model.ragged import running
from ray_distill.labels.model.rowids import RowIds
from ray_distill.labels.model.signal import Vectors

Floats = npt.NDArray[np.float32]


def encode_hidden(ids: RowIds, hidden: Vectors, spec: VectorsSpec, fits: Fits) -> bytes:
    """Return a shard of one layer.

    Its columns are ``row_id``, ``vectors`` (how many), ``values`` (their bytes) and ``scale`` of one-byte types.

    Raises:
        LabelError: values beyond the range of the stored type.
    """
    values, dtype = project(hidden.values, spec.layer, fits), spec.dtype
    columns = {"row_id": rowids.to_arrow(ids), "vectors": pa.array(np.diff(hidden.offsets).astype(np.int32))}
    if dtype in LARGEST:
        values, scale = scaled(values, dtype)
        columns["scale"] = cells(scale, hidden.offsets)
    stored = narrow(values, dtype)
    columns["values"] = cells(stored.reshape(-1), hidden.offsets * values.shape[1])
    return parquet_shards.to_parquet(pa.table(columns))


def decode_hidden(data: bytes, spec: VectorsSpec, fits: Fits, name: str) -> tuple[RowIds, Vectors]:
    """Return row ids and hidden states of a shard, ``[N, rank]`` where the layer was projected.

    Raises:
        CorruptStore: names the file.
    """
    table = parquet_shards.from_parquet(data, name)
    try:
        return parquet_shards.ids_of(table), _decode(table, spec, fits)
    except CorruptStore as error:
        raise CorruptStore(f"{name}: {error}") from error


def _decode(table: pa.Table, spec: VectorsSpec, fits: Fits) -> Vectors:
    dtype = spec.dtype
    values, ends = uncells(table, "values", STORED[dtype])
    offsets = running(parquet_shards.column_of(table, "vectors", pa.int32()))
    width = len(values) // max(int(offsets[-1]), 1)
    basis = fits.get(basis_name(spec.layer))
    if basis is not None and len(values) and width != basis.shape[1]:
        raise CorruptStore(f"column values: vectors of {width} values, the store's basis has {basis.shape[1]}")
    require_lengths("values", len(values), int(offsets[-1]) * width)
    if not np.array_equal(ends, offsets * width):
        raise CorruptStore("columns vectors and values disagree about the rows' sizes")
    found = widen(values, dtype).reshape(int(offsets[-1]), width)
    if dtype in LARGEST:
        scale, _ = uncells(table, "scale", np.float32)
        require_lengths("scale", len(scale), len(found))
        found = found * scale[:, None]
    return Vectors(offsets=offsets, values=found)


def mean_name(layer: int) -> str:
    """Name of a layer's mean among a store's fits: ``[D]``."""
    return f"hidden.{layer}.mean"


def basis_name(layer: int) -> str:
    """Name of a layer's PCA basis among a store's fits: ``[D, rank]``, orthonormal columns."""
    return f"hidden.{layer}.basis"


def project(values_ND: Floats, layer: int, fits: Fits) -> Floats:
    """Return ``Uᵀ(h − μ)`` if the store has a basis for the layer, else h (MATHS.md §5).

    States as wide as the basis has components have been projected already, by a teacher that was given `bases`.
    """
    basis_DR = fits.get(basis_name(layer))
    if basis_DR is None or (narrows(basis_DR) and values_ND.shape[1] == basis_DR.shape[1]):
        return values_ND
    return ((values_ND - fits[mean_name(layer)]) @ basis_DR).astype(np.float32)


def narrows(basis_DR: Floats) -> bool:
    """Return whether the width of states shows if they are projected.

    Where it does not, states are projected when they are written.
    """
    return bool(basis_DR.shape[1] < basis_DR.shape[0])


def bases(layers: Sequence[int], fits: Fits) -> dict[int, tuple[Floats, Floats]]:
    """Return mean and basis of the layers that a teacher can project on its device.

    Only r numbers a vector are then copied to the host.
    """
    return {
        layer: (fits[mean_name(layer)], fits[basis_name(layer)])
        for layer in layers
        if basis_name(layer) in fits and narrows(fits[basis_name(layer)])
    }


def fit_basis(values_ND: Floats, *, rank: int = 0, variance: float = 0.0) -> tuple[Floats, Floats, float]:
    """Fit a PCA: mean ``[D]``, basis ``[D, r]``, and the share of the variance it keeps.

    Args:
        values_ND: states of the calibration split, finite.
        rank: components to keep; 0 = as many as keep ``variance``.
        variance: least share of the variance to keep.

    Raises:
        LabelError: there are too few vectors for the rank.
    """
    count, width = values_ND.shape
    if count < 2 or rank > min(count - 1, width):
        raise LabelError(
            f"a PCA basis of rank {rank or 1} needs more than {max(rank, 1)} vectors at least as wide, found {count} "
            f"of width {width} in the calibration split: enlarge it in snapshot.splits, or lower labels.hidden.rank"
        )
    mean_D = values_ND.mean(axis=0, dtype=np.float64)
    centred_ND = values_ND - mean_D
    power_D, vectors_DD = np.linalg.eigh(centred_ND.T @ centred_ND)
    share_D = np.cumsum(np.maximum(power_D[::-1], 0))
    share_D /= max(share_D[-1], np.finfo(np.float64).tiny)
    kept = rank or int(np.searchsorted(share_D, min(variance, share_D[-1]))) + 1
    basis_DR = vectors_DD[:, ::-1][:, :kept]
    # An eigenvector's sign is arbitrary: fixed, so that equal states give equal bytes.
    basis_DR = basis_DR * np.sign(basis_DR[np.abs(basis_DR).argmax(axis=0), np.arange(kept)])
    return mean_D.astype(np.float32), basis_DR.astype(np.float32), float(share_D[kept - 1])


def relative_error(values_ND: Floats, spec: VectorsSpec, fits: Fits) -> float:
    """Return the share of the states' squared size that the stored form loses.

    Projection is included; the share is measured, not estimated.
    """
    offsets = np.arange(len(values_ND) + 1, dtype=np.int64)
    ids = np.array([number.to_bytes(16) for number in range(len(values_ND))], dtype="S16")
    data = encode_hidden(ids, Vectors(offsets=offsets, values=values_ND), spec, fits)
    found = decode_hidden(data, spec, fits, "slice")[1].values
    if basis_name(spec.layer) in fits:
        found = found @ fits[basis_name(spec.layer)].T + fits[mean_name(spec.layer)]
    total = float(np.square(values_ND, dtype=np.float64).sum())
    return float(np.square((values_ND - found).astype(np.float64)).sum()) / total if total else 0.0
