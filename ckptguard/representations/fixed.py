"""Floating-point tensors stored as fixed-point numbers of few bits, in bit planes."""

from __future__ import annotations

import functools
import math
import re
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from ckptguard.dtypes import DTYPES, SIGN_MAGNITUDE, TWOS_COMPLEMENT, DType
from ckptguard.errors import CheckpointError, SpecError
from ckptguard.representations.base import Bytes, Losses, Representation, Selection, Words
from ckptguard.representations.native import check_mask

_GROUP = 64
_Q_FORMAT = re.compile(r"([0-9]{1,2})\.([0-9]{1,2})", re.ASCII)
_BLOCK = 1 << 15  # elements worked on at once, so that intermediate arrays stay in the cache
_LARGEST = {
    "F64": float(np.finfo(np.float64).max),
    "F32": float(np.finfo(np.float32).max),
    "F16": float(np.finfo(np.float16).max),
    "BF16": (2 - 2**-7) * 2.0**127,
}

_Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class FixedPoint(Representation):
    """q = w / s rounded half to even and clipped to +-L, L = 2^(bits - 1) - 1 and s = c / L, all in float64.

    c is `limit`, or the largest magnitude of the tensor. A restored element is s * q, rounded once to the dtype and
    held within its finite range, so that -L - 1, which only corruption makes, is finite too.

    Stored are groups of 64 elements, each `bits` little-endian 64-bit words: word j holds bit j of all elements (0 =
    most significant, the sign), element i in bit i, counted from the least significant. The last group is padded with
    zeros.

    Attributes:
        bits: of a stored number, 2 to 16.
        encoding: 'twos-complement' or 'sign-magnitude'.
        limit: c for all tensors, or None.
    Source: Peng et al. (selective protection) for the scale and two's complement.
    """

    name: ClassVar[str] = "fixed"
    bits: int
    encoding: str = TWOS_COMPLEMENT
    limit: float | None = None
    spec: str = field(init=False, default="")
    group: int = field(init=False, default=_GROUP)

    def __post_init__(self) -> None:
        if not 2 <= self.bits <= 16:
            raise SpecError(f"fixed:{self.bits}: a fixed-point number has 2 to 16 bits")
        if self.encoding not in (TWOS_COMPLEMENT, SIGN_MAGNITUDE):
            raise SpecError(f"fixed: unknown encoding {self.encoding!r}; known: {SIGN_MAGNITUDE}, {TWOS_COMPLEMENT}")
        if self.limit is not None and not 0 < self.limit < math.inf:
            raise SpecError(f"fixed: c={self.limit!r} is no largest magnitude; expected a finite number above 0")
        encoding = f",{self.encoding}" if self.encoding != TWOS_COMPLEMENT else ""
        limit = f",c={self.limit!r}" if self.limit is not None else ""
        object.__setattr__(self, "spec", f"fixed:{self.bits}{encoding}{limit}")

    @classmethod
    def from_q_settings(cls, settings: tuple[str, ...]) -> FixedPoint:
        """From `i.f[,twos-complement|sign-magnitude]`: Qi.f, i integer bits with the sign among them, f fraction bits.

        The step is 2^-f exactly. It is `fixed:i+f` with c = (2^(i + f - 1) - 1) * 2^-f, and its spec says so; the range
        is symmetric, so that -2^(i - 1), which two's complement has, is read but never written. Raises SpecError.
        """
        found = _Q_FORMAT.fullmatch(settings[0]) if settings else None
        if found is None or len(settings) > 2:
            raise SpecError(
                "q is written q:i.f with i integer bits (the sign is one of them) and f fraction bits, as in 'q:2.6' "
                f"or 'q:2.6,sign-magnitude', not {','.join(settings)!r}"
            )
        whole, fraction = int(found[1]), int(found[2])
        if whole < 1 or not 2 <= whole + fraction <= 16:
            raise SpecError(f"q:{settings[0]}: there is at least 1 integer bit, the sign, and 2 to 16 bits in all")
        bits = whole + fraction
        return cls(bits, settings[1] if len(settings) > 1 else TWOS_COMPLEMENT, (2 ** (bits - 1) - 1) * 2.0**-fraction)

    @classmethod
    def from_settings(cls, settings: tuple[str, ...]) -> FixedPoint:
        """From `m[,twos-complement|sign-magnitude][,c=VALUE]`. Raises SpecError."""
        if not settings or not (settings[0].isascii() and settings[0].isdigit() and len(settings[0]) <= 2):
            raise SpecError("fixed needs the number of bits first, as in 'fixed:8' or 'fixed:8,sign-magnitude,c=1.5'")
        encoding, limit = None, None
        for setting in settings[1:]:
            if setting.startswith("c=") and limit is None:
                limit = _number(setting)
            elif not setting.startswith("c=") and encoding is None:
                encoding = setting
            else:
                raise SpecError(f"fixed: {setting!r} sets again what is set already")
        return cls(int(settings[0]), TWOS_COMPLEMENT if encoding is None else encoding, limit)

    def applies(self, dtype: DType) -> bool:
        return dtype.name in _LARGEST

    def word_bits(self, dtype: DType) -> int:
        return self.bits

    def stored_bytes(self, dtype: DType, size: int) -> int:
        return -(-dtype.words(size) // _GROUP) * self.bits * 8

    def select(self, dtype: DType, mask: str) -> Selection:
        """Whole words, those of the planes that the mask keeps."""
        check_mask(mask, self.bits, dtype)
        keep = int(mask[::-1], 2)
        return Selection(2**64 - 1 if keep else 0, self.bits, keep)

    def magnitude(self, dtype: DType, data: Bytes) -> float:
        largest = 0.0
        for start in range(0, dtype.words(len(data)), _BLOCK):
            found = float(np.abs(_decode(dtype, data, start)).max())
            if not found < math.inf:  # NaN too
                raise self._refusal(dtype, data)
            largest = max(largest, found)
        return largest if self.limit is None else self.limit

    def store(self, dtype: DType, data: Bytes, magnitude: float) -> tuple[Bytes, Losses]:
        limit, scale = self._limit(magnitude), self._scale(magnitude)
        values = _values(self.bits, self.encoding, dtype.name, scale)[1]
        codes = np.zeros(-(-dtype.words(len(data)) // _GROUP) * _GROUP, dtype=np.uint16)
        rounded, clipped, max_error = 0, 0, 0.0
        for start in range(0, dtype.words(len(data)), _BLOCK):
            elements = _decode(dtype, data, start)
            block = codes[start : start + len(elements)]
            block[:] = self._codes(elements, scale)
            error = np.abs(values[block] - elements)
            worst = float(error.max())
            if not worst < math.inf:
                raise self._refusal(dtype, data)
            rounded += int(np.count_nonzero(error))
            clipped += int(np.count_nonzero(np.abs(elements) > limit))
            max_error = max(max_error, worst)
        return self.pack(codes), Losses(rounded, clipped, max_error)

    def restore(self, dtype: DType, stored: Bytes, magnitude: float, size: int) -> Bytes:
        words = _values(self.bits, self.encoding, dtype.name, self._scale(magnitude))[0]
        restored = words[self.unpack(stored, dtype.words(size))]
        return restored.view(np.uint8)

    def order(self, dtype: DType) -> str:
        return self.encoding

    def words(self, dtype: DType, stored: Bytes, size: int) -> Words:
        return self.unpack(stored, dtype.words(size))

    def from_words(self, dtype: DType, words: Words) -> Bytes:
        codes = np.zeros(-(-words.size // _GROUP) * _GROUP, np.uint16)
        codes[: words.size] = words
        return self.pack(codes)

    def table(self, dtype: DType, magnitude: float) -> npt.NDArray[np.unsignedinteger]:
        """(2^bits,) what every encoded number restores to, as words of the dtype; read-only."""
        return _values(self.bits, self.encoding, dtype.name, self._scale(magnitude))[0]

    def encode(self, values: _Floats, magnitude: float) -> npt.NDArray[np.uint16]:
        """Encoded numbers of finite values."""
        return self._codes(values, self._scale(magnitude))

    def touched(self, dtype: DType, bits: Bytes, size: int) -> npt.NDArray[np.bool_]:
        planes = bits.view("<u8").reshape(-1, self.bits)
        any_plane = np.bitwise_or.reduce(planes, axis=1).astype("<u8", copy=False)
        touched = np.unpackbits(any_plane.view(np.uint8), bitorder="little")[: dtype.words(size)]
        return touched.view(np.bool_)

    def null(self, dtype: DType, stored: Bytes, elements: npt.NDArray[np.bool_]) -> None:
        """Clear the chosen elements in every plane; zero is the code 0 in both encodings."""
        planes = stored.view("<u8").reshape(-1, self.bits)
        chosen = np.zeros(len(planes) * 8, dtype=np.uint8)
        packed = np.packbits(elements, bitorder="little")
        chosen[: len(packed)] = packed
        planes &= ~chosen.view("<u8")[:, np.newaxis]

    def _refusal(self, dtype: DType, data: Bytes) -> CheckpointError:
        count = dtype.words(len(data))
        elements = (_decode(dtype, data, start) for start in range(0, count, _BLOCK))
        bad = sum(int(np.count_nonzero(~np.isfinite(block))) for block in elements)
        return CheckpointError(
            f"{bad} of {count} elements are NaN or infinite and cannot be stored as {self.spec}; "
            "store this tensor as native"
        )

    def _limit(self, magnitude: float) -> float:
        """c; a magnitude that is no number, as damaged metadata may hold, is refused."""
        limit = magnitude if self.limit is None else self.limit
        if not 0 <= limit < math.inf:
            raise CheckpointError(f"{limit!r} is no largest magnitude of a tensor stored as {self.spec}")
        return limit

    def _scale(self, magnitude: float) -> float:
        return self._limit(magnitude) / self._largest_number

    @property
    def _largest_number(self) -> int:
        return int(2 ** (self.bits - 1)) - 1

    def _codes(self, elements: _Floats, scale: float) -> npt.NDArray[np.uint16]:
        """Encoded numbers, each in the `bits` least significant bits."""
        if scale == 0:  # zeros only, or numbers so small that the scale is zero too
            return np.zeros(len(elements), dtype=np.uint16)
        largest = self._largest_number
        with np.errstate(over="ignore", invalid="ignore"):  # NaN is refused by the caller
            numbers = elements / scale
            np.rint(numbers, out=numbers)
            np.clip(numbers, -largest, largest, out=numbers)
            whole = numbers.astype(np.int16)
        if self.encoding == SIGN_MAGNITUDE:
            sign = (whole < 0).astype(np.uint16) << np.uint16(self.bits - 1)
            return np.abs(whole).view(np.uint16) | sign
        return whole.view(np.uint16) & np.uint16(2**self.bits - 1)

    def pack(self, codes: npt.NDArray[np.uint16]) -> Bytes:
        """Stored bytes of encoded numbers, a whole number of groups of them."""
        stored = np.empty((len(codes) // _GROUP, self.bits, 8), dtype=np.uint8)
        for start in range(0, len(codes), _BLOCK):
            block = codes[start : start + _BLOCK]
            halves = (block & 0xFF).astype(np.uint8), (block >> 8).astype(np.uint8)
            groups = slice(start // _GROUP, start // _GROUP + len(block) // _GROUP)
            for bit in range(self.bits):
                plane = np.packbits(halves[bit // 8] & (1 << bit % 8), bitorder="little")  # anything but 0 packs as 1
                stored[groups, self.bits - 1 - bit] = plane.reshape(-1, 8)
        return stored.reshape(-1)

    def unpack(self, stored: Bytes, count: int) -> npt.NDArray[np.uint16]:
        """The first `count` encoded numbers of stored bytes, each in the `bits` least significant bits."""
        planes = stored.reshape(-1, self.bits, 8)
        codes = np.zeros(len(planes) * _GROUP, dtype=np.uint16)
        for start in range(0, len(codes), _BLOCK):
            block = codes[start : start + _BLOCK]
            groups = slice(start // _GROUP, start // _GROUP + len(block) // _GROUP)
            for half in range(0, self.bits, 8):
                byte = np.zeros(len(block), dtype=np.uint8)
                for bit in range(half, min(half + 8, self.bits)):
                    plane = np.ascontiguousarray(planes[groups, self.bits - 1 - bit])
                    byte |= np.unpackbits(plane, bitorder="little") << (bit - half)
                block |= byte.astype(np.uint16) << half
        return codes[:count]


@functools.lru_cache(maxsize=16)
def _values(bits: int, encoding: str, name: str, scale: float) -> tuple[npt.NDArray[np.unsignedinteger], _Floats]:
    """What every code restores to: (2^bits,) words of the dtype, and the same as float64; both read-only."""
    codes = np.arange(2**bits, dtype=np.int64)
    half = 2 ** (bits - 1)
    if encoding == SIGN_MAGNITUDE:
        numbers = np.where(codes < half, codes, half - codes)
    else:
        numbers = np.where(codes < half, codes, codes - 2 * half)
    with np.errstate(over="ignore"):
        values = np.clip(numbers * scale, -_LARGEST[name], _LARGEST[name])
    if name == "BF16":
        words = to_bfloat16(values)
    else:
        words = values.astype(f"<f{DTYPES[name].bits // 8}").view(f"<u{DTYPES[name].bits // 8}")
    floats = _decode(DTYPES[name], words.view(np.uint8), 0, len(words))
    words.setflags(write=False)
    floats.setflags(write=False)
    return words, floats


def _decode(dtype: DType, data: Bytes, start: int, count: int = _BLOCK) -> _Floats:
    """At most `count` elements from `start` on, as float64, which holds each exactly."""
    size = dtype.bits // 8
    part = data[start * size : (start + count) * size]
    with np.errstate(invalid="ignore"):  # converting a signalling NaN is no concern of this function
        if dtype.name == "BF16":
            return (part.view("<u2").astype(np.uint32) << 16).view(np.float32).astype(np.float64)
        return part.view(f"<f{size}").astype(np.float64)


def to_bfloat16(values: _Floats) -> npt.NDArray[np.uint16]:
    """Finite float64 rounded once, half to even: through float32 rounded to odd, which keeps what decides a tie."""
    single = values.astype(np.float32)
    wide = single.astype(np.float64)
    words = single.view(np.uint32) - (np.abs(wide) > np.abs(values))  # towards zero
    words = (words | (wide != values)).astype(np.uint32)
    rounded: npt.NDArray[np.uint16] = ((words + np.uint32(0x7FFF) + ((words >> 16) & 1)) >> 16).astype("<u2")
    return rounded


def _number(setting: str) -> float:
    try:
        return float(setting.removeprefix("c="))
    except ValueError:
        raise SpecError(f"fixed: {setting!r} is no number; expected for example 'c=1.5'") from None
