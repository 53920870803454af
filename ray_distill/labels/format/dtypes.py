"""float32 in fewer bytes: half precision by rounding, one byte with a scale for each vector."""

from typing import Any

import numpy as np
import numpy.typing as npt

from ray_distill.errors import CorruptStore, LabelError

Vectors = npt.NDArray[np.float32]

#: Stored type, and numpy's type that holds its bits.
STORED = {"float32": np.float32, "float16": np.float16, "bfloat16": np.uint16, "int8": np.int8, "float8": np.uint8}

#: Types with a scale for each vector, and the number that its largest value becomes. float8 is E4M3 (OCP 8-bit
#: floating point specification, 2023): finite up to 448, eight steps from one power of two to the next.
LARGEST = {"int8": 127.0, "float8": 448.0}


def _float8_values() -> Vectors:
    """What the codes 0..126 stand for: exponent bias 7, three bits of mantissa, no infinity; 127 is NaN."""
    code = np.arange(127)
    exponent, mantissa = code >> 3, code & 7
    values = np.where(exponent > 0, (1 + mantissa / 8) * 2.0 ** (exponent - 7), mantissa / 8 * 2.0**-6)
    return values.astype(np.float32)


_FLOAT8 = _float8_values()
_FLOAT8_BETWEEN = (_FLOAT8[1:] + _FLOAT8[:-1]) / 2
_FLOAT8_WIDE = np.concatenate([_FLOAT8, [np.float32(np.nan)], -_FLOAT8, [np.float32(np.nan)]]).astype(np.float32)


def scaled(values_ND: Vectors, dtype: str) -> tuple[Vectors, Vectors]:
    """Values that the type can tell apart, and each vector's scale; a vector of zeros has scale 0.

    Raises:
        LabelError: a value is NaN or infinite.
    """
    largest = LARGEST[dtype]
    scale_N = (np.abs(values_ND).max(axis=1, initial=0) / largest).astype(np.float32)
    if not np.isfinite(scale_N).all():
        raise LabelError("a hidden state is NaN or infinite: reject the row before it is stored")
    safe_N = np.where(scale_N > 0, scale_N, np.float32(1))
    return np.clip(values_ND / safe_N[:, None], -largest, largest), scale_N


def narrow(values: Vectors, dtype: str) -> npt.NDArray[Any]:
    """float32 values in the stored type, rounded to the nearest, ties to even; those of `LARGEST` after `scaled`.

    Raises:
        LabelError: a finite value becomes infinite.
    """
    if dtype == "float8":
        return _float8(values)
    if dtype == "bfloat16":
        bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
        rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
        stored: npt.NDArray[Any] = rounded.astype(np.uint16)
    else:
        with np.errstate(over="ignore"):
            stored = (np.rint(values) if dtype == "int8" else values).astype(STORED[dtype])
    if not np.isfinite(widen(stored, dtype)).all():
        raise LabelError(
            f"a hidden state of {np.abs(values).max():g} does not fit {dtype}: set labels.hidden.dtype to float32"
            + ("" if dtype == "bfloat16" else " or bfloat16")
        )
    return stored


def _float8(values: Vectors) -> npt.NDArray[np.uint8]:
    size = np.abs(values)
    code = np.searchsorted(_FLOAT8_BETWEEN, size)
    tie = size == _FLOAT8_BETWEEN[np.minimum(code, len(_FLOAT8_BETWEEN) - 1)]
    code = code + (tie & (code % 2 == 1))
    signed: npt.NDArray[np.uint8] = (code | (np.signbit(values).astype(np.int64) << 7)).astype(np.uint8)
    return signed


def widen(stored: npt.NDArray[Any], dtype: str) -> Vectors:
    """float32 values of what `narrow` stored; exact.

    Raises:
        CorruptStore: a code stands for no number.
    """
    if dtype == "bfloat16":
        return (stored.astype(np.uint32) << np.uint32(16)).view(np.float32)
    if dtype != "float8":
        return stored.astype(np.float32, copy=False)
    found: Vectors = _FLOAT8_WIDE[stored]
    if np.isnan(found).any():
        raise CorruptStore("column values: a code of float8 that stands for no number")
    return found
