"""Posterior restorers: what a damaged floating-point word most likely was, from how the tensor's magnitudes are spread.

A range guard only knows what is impossible. Trained weights tell more: nearly all of a tensor's words lie in a few
binades (exponents), so an exponent that hardly any word has is far more often a damaged common one. From the counts of
words per binade, to a factor of two, and the error rate follows what a word of any exponent was in the mean: the
estimate of least squared error. Two corrections keep the errors that remain from adding up in one direction: a gain
that undoes the common pull towards zero, and sums of rows (`row_sums`).

Nothing here is exact: it is for words that a code left damaged or did not protect. Containers carry what is needed for
it (`pipeline.posteriors`); methods in plain numpy are what the kernels are held against.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from ckptguard.dtypes import DType
from ckptguard.errors import ContainerError, UsageError

Words = npt.NDArray[np.unsignedinteger[Any]]
Floats = npt.NDArray[np.float64]

FIELDS = {"F32": (8, 23), "BF16": (8, 7), "F16": (5, 10)}
"""Bits of the exponent and of the fraction, by dtype that has restorers."""
NEVER = 15
"""The level of binades without words."""
POSITIVE, NEGATIVE, MIXED = 0, 1, 2
_CHUNK = 1 << 18
_HEADER = struct.Struct("<BBB")
LARGEST = {"F32": 3.4028234663852886e38, "BF16": 3.3895313892515355e38, "F16": 65504.0}
"""Finite numbers, by dtype."""

Indices = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Spread:
    """How many words of a tensor lie in which binade, to a factor of two.

    Attributes:
        dtype: of the tensor; one of `FIELDS`.
        first: the smallest exponent field, above 0, that is listed.
        levels: from `first` on, -log2 of the count over the largest count, rounded; NEVER = no words, or fewer than
            2^-14.5 of the largest.
        zeros: the same for words of the exponent field 0, all of which count as zero.
        sign: of the words: POSITIVE, NEGATIVE or MIXED.
    """

    dtype: DType
    first: int
    levels: tuple[int, ...]
    zeros: int
    sign: int

    @classmethod
    def of(cls, dtype: DType, words: Words) -> Spread:
        """Of a tensor's words; infinities and NaN are not counted. Raises UsageError for other dtypes."""
        return cls.of_counts(dtype, field_counts(dtype, words))

    @classmethod
    def of_counts(cls, dtype: DType, fields: npt.NDArray[np.int64]) -> Spread:
        """Of a tensor whose words have these fields; see `field_counts`."""
        top = fields.shape[1] - 1
        counts = fields.sum(0)[:top]
        used = np.flatnonzero(fields.sum(1))
        sign = MIXED if used.size > 1 else int(used[0]) if used.size else POSITIVE
        levels = _levels(counts)
        listed = np.flatnonzero(levels[1:] < NEVER) + 1
        if not listed.size:
            return cls(dtype, 1, (), int(levels[0]), sign)
        first, last = int(listed[0]), int(listed[-1])
        return cls(dtype, first, tuple(levels[first : last + 1].tolist()), int(levels[0]), sign)

    def pack(self) -> bytes:
        """As metadata: 3 bytes and half a byte per binade."""
        nibbles = [*self.levels, NEVER] if len(self.levels) % 2 else list(self.levels)
        pairs = bytes(a | b << 4 for a, b in zip(nibbles[::2], nibbles[1::2], strict=True))
        return _HEADER.pack(self.first, len(self.levels), self.zeros | self.sign << 4) + pairs

    @classmethod
    def unpack(cls, dtype: DType, data: bytes) -> tuple[Spread, int]:
        """Inverse of `pack`: the spread, and the bytes it took. Raises ContainerError where it makes no sense."""
        if len(data) < _HEADER.size:
            raise ContainerError(f"a spread has at least {_HEADER.size} bytes, found {len(data)}")
        first, count, last = _HEADER.unpack_from(data)
        size = _HEADER.size + -(-count // 2)
        sign, zeros = last >> 4, last & 15
        fits = dtype.name in FIELDS and first >= 1 and first + count < 1 << FIELDS[dtype.name][0]
        if not fits or len(data) < size or sign > MIXED:
            raise ContainerError(f"a spread of {count} binades from {first} does not fit {dtype.name} words")
        nibbles = [part for byte in data[_HEADER.size : size] for part in (byte & 15, byte >> 4)]
        return cls(dtype, first, tuple(nibbles[:count]), zeros, sign), size

    @cached_property
    def weights(self) -> Floats:
        """(exponents,) relative number of words by exponent field; field 0 is that of zeros."""
        result = np.zeros(1 << FIELDS[self.dtype.name][0])
        for exponent, level in enumerate(self.levels, self.first):
            result[exponent] = 2.0**-level if level < NEVER else 0.0
        result[0] = 2.0**-self.zeros if self.zeros < NEVER else 0.0
        return result


def field_counts(dtype: DType, words: Words) -> npt.NDArray[np.int64]:
    """(2, exponents) how many words have a sign and an exponent field. Raises UsageError for other dtypes."""
    if dtype.name not in FIELDS:
        raise UsageError(f"posterior restorers are for {', '.join(FIELDS)}, not for {dtype.name}")
    exponent_bits, fraction_bits = FIELDS[dtype.name]
    fields = (words >> fraction_bits).astype(np.int64)
    return np.bincount(fields, minlength=2 << exponent_bits).reshape(2, -1)


def all_finite(fields: npt.NDArray[np.int64]) -> bool:
    """Whether words with these fields hold no infinity and no NaN, which an estimate would spoil."""
    return not fields[:, -1].any()


def _levels(counts: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    most = counts.max(initial=0)
    levels = np.full(counts.size, NEVER)
    some = counts > 0
    levels[some] = np.minimum(np.rint(-np.log2(counts[some] / most)), NEVER).astype(np.int64)
    return levels


@dataclass(frozen=True, eq=False)
class Restorer:
    """What words of every exponent field become.

    Attributes:
        scale: (exponents,) magnitude of a word with fraction zero; the fraction stays as read.
        gain: that is part of `scale`.
        sign: as of the spread; words of one sign get it back.
    """

    dtype: DType
    scale: Floats
    gain: float
    sign: int

    @classmethod
    def of(cls, spread: Spread, mask: str, of_0: float, of_1: float, gain: bool = True) -> Restorer:
        """The estimate of least squared error.

        Args:
            mask: protected bits, which are taken to be right, most significant first.
            of_0, of_1: probabilities that a stored 0, a stored 1 is read wrong.
            gain: undo the mean pull towards zero, in the direction of the weights themselves.
        """
        used = np.flatnonzero(spread.weights)
        chances, weights = transitions(spread.dtype, mask, of_0, of_1, used), spread.weights[used]
        sign_flips = 0.0 if mask[0] == "1" or spread.sign != MIXED else min((of_0 + of_1) / 2, 0.5)
        magnitudes = magnitudes_of(spread.dtype)[used]
        joint = weights[:, None] * chances  # (was, read)
        total = joint.sum(0)
        mean = (magnitudes[:, None] * joint).sum(0) * (1 - 2 * sign_flips)
        scale = np.divide(mean, total, out=np.zeros_like(mean), where=total > 0)
        factor = 1.0
        if gain:
            kept = (magnitudes * (joint * scale).sum(1)).sum() * (1 - 2 * sign_flips)
            whole = (weights * magnitudes**2).sum()
            factor = float(whole / kept) if kept > 0 else 1.0
        return cls(spread.dtype, scale * factor, factor, spread.sign)

    def apply(self, words: Words) -> Words:
        """What words that may be damaged are read as; a new array."""
        result = np.empty_like(words)
        for start in range(0, words.size, _CHUNK):
            result[start : start + _CHUNK] = self._apply(words[start : start + _CHUNK])
        return result

    def apply_in_place(self, words: Words) -> None:
        """As `apply`, in place and fast; the same bits."""
        if self.dtype.name != "F32":
            words[:] = self._table[words]
            return
        from ckptguard.kernels import posterior as kernel

        kernel.restore(words.view("<u4"), self.scale, self.sign, LARGEST["F32"], words.view("<f4"))

    @cached_property
    def _table(self) -> Words:
        """(65536,) what every word of 16 bits is read as."""
        return self.apply(np.arange(1 << 16, dtype=np.uint32).astype("<u2"))

    def _apply(self, words: Words) -> Words:
        exponent_bits, fraction_bits = FIELDS[self.dtype.name]
        kind = words.dtype.type
        exponent = (words >> kind(fraction_bits) & kind((1 << exponent_bits) - 1)).astype(np.int64)
        fraction = (words & kind((1 << fraction_bits) - 1)).astype(np.float64)
        values = (1.0 + fraction / (1 << fraction_bits)) * self.scale[exponent]
        signs = words >> kind(exponent_bits + fraction_bits)
        if self.sign != MIXED:
            signs = np.full_like(signs, self.sign)
        return encode(self.dtype, values) | signs << kind(exponent_bits + fraction_bits)


def transitions(dtype: DType, mask: str, of_0: float, of_1: float, fields: Indices) -> Floats:
    """(fields, exponents) probability that an exponent field is read as any other."""
    exponent_bits = FIELDS[dtype.name][0]
    result = np.ones((fields.size, 1))
    for place in range(1, 1 + exponent_bits):
        wrong = (0.0, 0.0) if mask[place] == "1" else (of_0, of_1)
        chances = np.array([[1 - wrong[0], wrong[0]], [wrong[1], 1 - wrong[1]]])[fields >> exponent_bits - place & 1]
        result = (result[:, :, None] * chances[:, None, :]).reshape(fields.size, -1)
    return result


def means(spread: Spread, mask: str, of_0: float, of_1: float) -> Floats:
    """(exponents,) the magnitude of words read with a field as it was in the mean, signs left out; as `Restorer.of`."""
    used = np.flatnonzero(spread.weights)
    joint = spread.weights[used, None] * transitions(spread.dtype, mask, of_0, of_1, used)
    total = joint.sum(0)
    found: Floats = np.divide(magnitudes_of(spread.dtype)[used] @ joint, total, out=total.copy(), where=total > 0)
    return found


def magnitudes_of(dtype: DType) -> Floats:
    """(exponents,) of words with fraction zero; subnormal ones count as zero, infinity as nothing."""
    exponent_bits = FIELDS[dtype.name][0]
    bias = (1 << (exponent_bits - 1)) - 1
    result = np.exp2(np.arange(1 << exponent_bits, dtype=np.float64) - bias)
    result[[0, -1]] = 0.0
    return result


def encode(dtype: DType, values: Floats) -> Words:
    """Words of numbers that are not negative, each rounded once, half to even."""
    values = np.minimum(values, LARGEST[dtype.name])
    if dtype.name != "BF16":
        return values.astype("<f4" if dtype.name == "F32" else "<f2").view("<u4" if dtype.name == "F32" else "<u2")
    return narrowed(values.astype("<f4").view("<u4"))


def narrowed(wide: Words) -> Words:
    """Words of BF16 from those of finite float32, rounded half to even."""
    rounded: Words = ((wide + np.uint32(0x7FFF) + (wide >> 16 & 1)) >> 16).astype("<u2")
    return rounded
