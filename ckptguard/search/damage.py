"""The damage table: what a flip of every bit of every tensor is expected to cost.

D(tensor, j) = 1/2 sum_i P(bit j of word i is read wrong | its value, its device) F_i delta_ij^2, where delta_ij is the
exact change of the number after guard and representation, and F_i the curvature of the loss (see `curvature`).
Guards are those of containers: bits that never vary are set back, words outside of their interval replaced, as readers
do who know of no right bit in the word.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ckptguard.campaign.encodings import Encoding, NativeWords, floats_of
from ckptguard.campaign.faults import RATES, Fault
from ckptguard.campaign.guarding import Guards
from ckptguard.errors import UsageError
from ckptguard.guards import TensorGuard
from ckptguard.search.curvature import Curvature

Floats = npt.NDArray[np.float64]
Weights = npt.NDArray[np.floating[Any]] | float
"""Curvature: one number per element, or one for all."""
Words = npt.NDArray[np.unsignedinteger[Any]]

_CHUNK = 1 << 18
_TABLE_BITS = 16


@dataclass(frozen=True)
class Rates:
    """Probabilities that a stored 0, and a stored 1, of a tensor are read wrong."""

    of_0: float
    of_1: float

    @classmethod
    def of(cls, fault: Fault) -> Rates:
        """Of faults that are rates of bits; channels that are not independent count with their mean rate.

        Raises UsageError for faults that have no rate.
        """
        if fault.kind == RATES:
            return cls(fault.of_0, fault.of_1)
        rate = fault.bit_error_rate
        if rate is None:
            raise UsageError(f"a search needs faults that are a rate of bits, such as bsc:1e-3; {fault.spec!r} is none")
        return cls(rate, rate)

    @property
    def worst(self) -> float:
        """What codes are judged by."""
        return max(self.of_0, self.of_1)


def tensor_damage(
    encoding: Encoding, rates: Rates, curvature: Weights, guard: TensorGuard | None = None
) -> tuple[float, ...]:
    """Expected damage of every bit position, 0 = most significant; infinite where a flip can give no number.

    Args:
        curvature: (elements,) or one number for all.
        guard: what readers hold stored words against.
    """
    if encoding.values(encoding.words[:0]) is None:
        return _of_unknown(encoding, rates, guard)
    whole = guard is None or guard.groups <= 1
    if whole and encoding.bits <= _TABLE_BITS:
        return _by_code(encoding, rates, curvature, guard)
    if whole and isinstance(encoding, NativeWords) and encoding.dtype.name in ("F32", "C64"):
        return _of_float32(encoding, rates, curvature, guard)
    return _by_chunks(encoding, rates, curvature, guard)


def _of_unknown(encoding: Encoding, rates: Rates, guard: TensorGuard | None) -> tuple[float, ...]:
    """Infinite, but for bits that a guard sets back."""
    damage = math.inf if rates.worst else 0.0
    if guard is None:
        return (damage,) * encoding.bits
    varying = int(np.bitwise_or.reduce(guard.ever ^ guard.always)) if guard.groups else 0
    return tuple(damage if varying >> (encoding.bits - 1 - bit) & 1 else 0.0 for bit in range(encoding.bits))


def _by_code(encoding: Encoding, rates: Rates, curvature: Weights, guard: TensorGuard | None) -> tuple[float, ...]:
    """For short words: the curvature of all elements with the same code is added up first."""
    codes = np.arange(1 << encoding.bits, dtype=encoding.words.dtype)
    weights = _by_word(encoding.words, curvature, codes.size)
    used = np.flatnonzero(weights)
    elements = np.zeros(used.size, np.int64)  # any: all share one guard
    return _sums(encoding, rates, codes[used], elements, weights[used], guard)


def _by_word(words: Words, curvature: Weights, count: int) -> Floats:
    if isinstance(curvature, float):
        return np.bincount(words, minlength=count).astype(np.float64) * curvature
    return np.bincount(words, curvature.astype(np.float64), minlength=count).astype(np.float64)


def _by_chunks(encoding: Encoding, rates: Rates, curvature: Weights, guard: TensorGuard | None) -> tuple[float, ...]:
    total = np.zeros(encoding.bits)
    for start in range(0, encoding.elements, _CHUNK):
        words = encoding.words[start : start + _CHUNK]
        part = curvature[start : start + _CHUNK] if not isinstance(curvature, float) else np.full(words.size, curvature)
        elements = np.arange(start, start + words.size)
        total += _sums(encoding, rates, words, elements, np.asarray(part, np.float64), guard)
    return tuple(total.tolist())


def _sums(
    encoding: Encoding,
    rates: Rates,
    words: Words,
    elements: npt.NDArray[np.int64],
    weights: Floats,
    guard: TensorGuard | None,
) -> tuple[float, ...]:
    before = _values(encoding, words)
    result = []
    for bit in range(encoding.bits):
        place = encoding.words.dtype.type(1 << (encoding.bits - 1 - bit))
        chance = np.where(words & place, rates.of_1, rates.of_0)
        with np.errstate(over="ignore", invalid="ignore"):
            read = words ^ place if guard is None else guard.apply(words ^ place, elements).words
            squares = (_values(encoding, read) - before) ** 2
            terms = np.where((chance > 0) & (weights > 0), 0.5 * chance * weights * squares, 0.0)
        total = float(terms.sum())
        result.append(total if math.isfinite(total) else math.inf)
    return tuple(result)


def _values(encoding: Encoding, words: Words) -> Floats:
    """Numbers that stored words come to."""
    values = floats_of(encoding.dtype.name, encoding.restore(words))
    assert values is not None
    return values


def _of_float32(encoding: Encoding, rates: Rates, curvature: Weights, guard: TensorGuard | None) -> tuple[float, ...]:
    from ckptguard.kernels import damage as kernel

    weights = np.full(1, curvature) if isinstance(curvature, float) else curvature
    limits = np.array([0, 0xFFFFFFFF, 0, 0xFFFFFFFF, 0], np.uint32)
    if guard is not None and guard.groups:
        columns = (guard.always, guard.ever, guard.low, guard.high, guard.nearest_to_zero)
        limits = np.array([column[0] for column in columns], np.uint32)
    result = np.zeros(32)
    words = np.ascontiguousarray(encoding.words, np.uint32)
    kernel.of_float32(words, weights, rates.of_0, rates.of_1, limits, result)
    return tuple(value if math.isfinite(value) else math.inf for value in result.tolist())


def damage_table(
    encodings: Mapping[str, Encoding],
    rates: Mapping[str, Rates],
    curvature: Curvature,
    guards: Guards | None = None,
) -> dict[str, tuple[float, ...]]:
    """Damage by tensor and bit position. Tensors of unknown curvature are infinitely damaging."""
    table = {}
    for name, encoding in encodings.items():
        found = curvature.of(name, encoding.elements)
        guard = None if guards is None else guards.of(name)
        if found is None:
            table[name] = _of_unknown(encoding, rates[name], guard)
        else:
            table[name] = tensor_damage(encoding, rates[name], found, guard)
    return table
