"""Fit arrays once, before the first unit: id orders of codecs, PCA bases of hidden layers.

They lie in ``fits/`` under the digest of their bytes, which the manifest names: a store keeps the fits it began with,
and two labellers that fit at the same time cannot overwrite each other's.
"""

import contextlib
import functools
import io
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from ray_distill.errors import AlreadyExists, CorruptStore, StorageError
from ray_distill.fingerprint import sha256
from ray_distill.storage import files

#: Fitted arrays by name, e.g. ``ids``, ``hidden.4.mean``.
Fits = Mapping[str, npt.NDArray[Any]]

FOLDER = "fits"


def write_fits(store_url: str, fits: Fits) -> dict[str, str]:
    """Store arrays; returns the digest of each, for the manifest."""
    return {name: _write(store_url, array) for name, array in sorted(fits.items())}


def _write(store_url: str, array: npt.NDArray[Any]) -> str:
    sink = io.BytesIO()
    np.lib.format.write_array(sink, np.ascontiguousarray(array), version=(1, 0), allow_pickle=False)
    data = sink.getvalue()
    digest = sha256(data)
    with contextlib.suppress(AlreadyExists):  # the name is the content
        files.create_exclusive(_url(store_url, digest), data)
    return digest


def read_fits(store_url: str, digests: Mapping[str, str]) -> Fits:
    """Return the arrays that a manifest names, verified; read once a process.

    Raises:
        CorruptStore: a file is missing or was changed; names it.
    """
    return {name: _read(store_url, digest) for name, digest in digests.items()}


@functools.lru_cache(maxsize=64)
def _read(store_url: str, digest: str) -> npt.NDArray[Any]:
    url = _url(store_url, digest)
    try:
        data = files.read_bytes(url)
    except StorageError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            raise CorruptStore(f"{url}: the manifest names this file, but it is missing; restore it") from error
        raise
    if sha256(data) != digest:
        raise CorruptStore(f"{url}: found {sha256(data)}, the manifest names {digest}; restore the file")
    array = np.lib.format.read_array(io.BytesIO(data), allow_pickle=False)
    array.flags.writeable = False
    return array


def _url(store_url: str, digest: str) -> str:
    return files.join(store_url, FOLDER, f"{digest.removeprefix('sha256:')}.npy")
