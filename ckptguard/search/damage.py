"""The damage table: what a flip of every bit of every tensor is expected to cost.

D(tensor, j) = 1/2 sum_i P(bit j of word i is read wrong | its value, its device) F_i delta_ij^2, where delta_ij is the
exact change of the number after representation and guard, and F_i the curvature of the loss (see `curvature`).
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
from ckptguard.campaign.guard import TensorGuard
from ckptguard.errors import UsageError
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
        guard: what readers hold restored words against.
    """
    if encoding.values(encoding.words[:0]) is None:
        return _of_unknown(encoding, rates)
    if encoding.bits <= _TABLE_BITS:
        return _by_code(encoding, rates, curvature, guard)
    if isinstance(encoding, NativeWords) and encoding.dtype.name in ("F32", "C64"):
        return _of_float32(encoding, rates, curvature, guard)
    return _by_chunks(encoding, rates, curvature, guard)


def _of_unknown(encoding: Encoding, rates: Rates) -> tuple[float, ...]:
    damage = math.inf if rates.worst else 0.0
    return (damage,) * encoding.bits


def _by_code(encoding: Encoding, rates: Rates, curvature: Weights, guard: TensorGuard | None) -> tuple[float, ...]:
    """For short words: the curvature of all elements with the same code is added up first."""
    codes = np.arange(1 << encoding.bits, dtype=encoding.words.dtype)
    weights = _by_word(encoding.words, curvature, codes.size)
    used = np.flatnonzero(weights)
    return _sums(encoding, rates, encoding.words.dtype.type(0) + codes[used], weights[used], guard)


def _by_word(words: Words, curvature: Weights, count: int) -> Floats:
    if isinstance(curvature, float):
        return np.bincount(words, minlength=count).astype(np.float64) * curvature
    return np.bincount(words, curvature.astype(np.float64), minlength=count).astype(np.float64)


def _by_chunks(encoding: Encoding, rates: Rates, curvature: Weights, guard: TensorGuard | None) -> tuple[float, ...]:
    total = np.zeros(encoding.bits)
    for start in range(0, encoding.elements, _CHUNK):
        words = encoding.words[start : start + _CHUNK]
        part = curvature[start : start + _CHUNK] if not isinstance(curvature, float) else np.full(words.size, curvature)
        total += _sums(encoding, rates, words, np.asarray(part, np.float64), guard)
    return tuple(total.tolist())


def _sums(
    encoding: Encoding, rates: Rates, words: Words, weights: Floats, guard: TensorGuard | None
) -> tuple[float, ...]:
    before = _values(encoding, words, None)
    result = []
    for bit in range(encoding.bits):
        place = encoding.words.dtype.type(1 << (encoding.bits - 1 - bit))
        chance = np.where(words & place, rates.of_1, rates.of_0)
        with np.errstate(over="ignore", invalid="ignore"):
            squares = (_values(encoding, words ^ place, guard) - before) ** 2
            terms = np.where((chance > 0) & (weights > 0), 0.5 * chance * weights * squares, 0.0)
        total = float(terms.sum())
        result.append(total if math.isfinite(total) else math.inf)
    return tuple(result)


def _values(encoding: Encoding, words: Words, guard: TensorGuard | None) -> Floats:
    """Numbers that stored words come to."""
    restored = encoding.restore(words)
    if guard is not None:
        restored = guard.apply(restored)[0]
    values = floats_of(encoding.dtype.name, restored)
    assert values is not None
    return values


def _of_float32(encoding: Encoding, rates: Rates, curvature: Weights, guard: TensorGuard | None) -> tuple[float, ...]:
    from ckptguard.kernels import damage as kernel

    weights = np.full(1, curvature) if isinstance(curvature, float) else curvature
    zeros, ones, largest = 0, 0, 0xFFFFFFFF
    if guard is not None:
        zeros, ones = guard.zeros, guard.ones
        largest = largest if guard.largest is None else guard.largest
    result = np.zeros(32)
    kernel.of_float32(
        np.ascontiguousarray(encoding.words, np.uint32),
        weights,
        rates.of_0,
        rates.of_1,
        np.uint32(ones),
        np.uint32(zeros),
        np.uint32(largest),
        result,
    )
    return tuple(value if math.isfinite(value) else math.inf for value in result.tolist())


def damage_table(
    encodings: Mapping[str, Encoding],
    rates: Mapping[str, Rates],
    curvature: Curvature,
    guarded: bool = True,
) -> dict[str, tuple[float, ...]]:
    """Damage by tensor and bit position. Tensors of unknown curvature are infinitely damaging."""
    table = {}
    for name, encoding in encodings.items():
        found = curvature.of(name, encoding.elements)
        guard = None
        if guarded:
            restored = encoding.restore(encoding.words)
            guard = TensorGuard.of(encoding.dtype, restored.view(np.uint8))
        table[name] = (
            _of_unknown(encoding, rates[name]) if found is None else tensor_damage(encoding, rates[name], found, guard)
        )
    return table
