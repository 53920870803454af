"""float32 in fewer bytes: half precision by rounding, one byte with a scale for each vector."""

from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

from ray_distill.errors import CorruptStore, LabelError

Floats = npt.NDArray[np.float32]

#: Stored type, and numpy's type of its bits.
STORED = {"float32": np.float32, "float16": np.float16, "bfloat16": np.uint16, "int8": np.int8, "float8": np.uint8}
#: Types that numpy lacks; Parquet lacks them too, so their bits are stored.
_EXTENSIONS = {"bfloat16": np.dtype(ml_dtypes.bfloat16), "float8": np.dtype(ml_dtypes.float8_e4m3fn)}

#: Types with a scale for each vector, and the number that its largest value becomes. float8 is E4M3 (OCP 8-bit
#: floating point specification, 2023): finite up to 448, eight steps from one power of two to the next.
LARGEST = {"int8": 127.0, "float8": 448.0}


def scaled(values_ND: Floats, dtype: str) -> tuple[Floats, Floats]:
    """Scale each vector so that the type can distinguish its values, and return the scales.

    A vector of zeros has scale 0.

    Raises:
        LabelError: a value is NaN or infinite.
    """
    largest = LARGEST[dtype]
    scale_N = (np.abs(values_ND).max(axis=1, initial=0) / largest).astype(np.float32)
    if not np.isfinite(scale_N).all():
        raise LabelError("a hidden state is NaN or infinite: reject the row before it is stored")
    safe_N = np.where(scale_N > 0, scale_N, np.float32(1))
    return np.clip(values_ND / safe_N[:, None], -largest, largest), scale_N


def narrow(values: Floats, dtype: str) -> npt.NDArray[Any]:
    """Convert float32 values to the stored type, rounded to the nearest, ties to even.

    Values of `LARGEST` are converted after `scaled`.

    Raises:
        LabelError: a finite value becomes infinite.
    """
    with np.errstate(over="ignore"):
        if dtype in _EXTENSIONS:
            stored: npt.NDArray[Any] = values.astype(_EXTENSIONS[dtype]).view(STORED[dtype])
        else:
            stored = (np.rint(values) if dtype == "int8" else values).astype(STORED[dtype])
    if not np.isfinite(widen(stored, dtype)).all():
        raise LabelError(
            f"a hidden state of {np.abs(values).max():g} does not fit {dtype}: set labels.hidden.dtype to float32"
            + ("" if dtype == "bfloat16" else " or bfloat16")
        )
    return stored


def widen(stored: npt.NDArray[Any], dtype: str) -> Floats:
    """Return the float32 values of what `narrow` stored; exact.

    Raises:
        CorruptStore: a code stands for no number.
    """
    if dtype in _EXTENSIONS:
        stored = np.ascontiguousarray(stored).view(_EXTENSIONS[dtype])
    found: Floats = stored.astype(np.float32, copy=False)
    if dtype == "float8" and np.isnan(found).any():
        raise CorruptStore("column values: a code of float8 that stands for no number")
    return found
