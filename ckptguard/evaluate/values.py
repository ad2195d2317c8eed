"""Numeric values of raw bytes, for every dtype that has them; bit arithmetic where numpy has no such type."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import numpy.typing as npt

from ckptguard.dtypes import DType

Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float64]


def to_float64(dtype: DType, data: Bytes) -> Floats | None:
    """(elements,) float64 values of little-endian bytes; two per element for C64; None for opaque dtypes (F4, F6)."""
    if dtype.name == "BF16":
        wide = data.view("<u2").astype(np.uint32) << np.uint32(16)
        with np.errstate(invalid="ignore"):
            return wide.view(np.float32).astype(np.float64)
    if dtype.name.startswith("F8"):
        return float8_values(dtype.name)[data]
    if dtype.name == "C64":
        with np.errstate(invalid="ignore"):
            return data.view("<f4").astype(np.float64)
    if dtype.numpy is None:
        return None
    if dtype.name == "BOOL":
        return data.astype(np.float64)
    with np.errstate(invalid="ignore"):  # signalling NaNs
        return data.view(dtype.numpy).astype(np.float64)


@lru_cache
def float8_values(name: str) -> Floats:
    """(256,) float64: the value of every byte of an 8-bit float.

    Source: OCP 8-bit Floating Point Specification 1.0 (E4M3, E5M2), OCP Microscaling Formats 1.0 (E8M0); the FNUZ
    variants have one zero, one NaN (0x80), no infinity and a bias larger by one.
    """
    codes = np.arange(256)
    if name == "F8_E8M0":
        return np.where(codes == 255, np.nan, np.exp2(codes - 127.0))
    exponent_bits = 4 if "E4M3" in name else 5
    fraction_bits = 7 - exponent_bits
    fnuz = name.endswith("FNUZ")
    bias = (1 << (exponent_bits - 1)) - (0 if fnuz else 1)
    exponent = codes >> fraction_bits & ((1 << exponent_bits) - 1)
    fraction = (codes & ((1 << fraction_bits) - 1)) / (1 << fraction_bits)
    subnormal, normal = np.exp2(1.0 - bias) * fraction, np.exp2(exponent - float(bias)) * (1 + fraction)
    magnitude = np.where(exponent == 0, subnormal, normal)
    if fnuz:
        magnitude[0x80] = np.nan
    elif exponent_bits == 4:
        magnitude[codes & 0x7F == 0x7F] = np.nan
    else:
        top = codes & 0x7F
        magnitude[top == 0x7C] = np.inf
        magnitude[top > 0x7C] = np.nan
    result: Floats = np.where(codes >= 128, -magnitude, magnitude)
    return result
