"""What flips of every bit of float32 words change, after a range guard, weighted and squared."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from numba import njit

F64 = npt.NDArray[np.float64]
U32 = npt.NDArray[np.uint32]


@njit(cache=True, nogil=True)
def _magnitude(word: Any) -> float:
    """The number that a word without sign stands for; inf where it is not finite."""
    exponent = np.int64(word >> np.uint32(23)) & 255
    fraction = np.float64(word & np.uint32(0x7FFFFF)) / 8388608.0
    if exponent == 255:
        return float(np.inf)
    if exponent == 0:
        return float(fraction * 2.0**-126)
    return float((1.0 + fraction) * 2.0 ** (exponent - 127))


@njit(cache=True, nogil=True)
def of_float32(
    words: U32,
    weights: npt.NDArray[np.floating[Any]],
    of_0: float,
    of_1: float,
    ones: Any,
    zeros: Any,
    largest: Any,
    result: F64,
) -> None:
    """Add to `result` (32 numbers, by position from the most significant bit) 1/2 P F (change)^2 of all words.

    Args:
        weights: F, one per word or one for all.
        of_0, of_1: probabilities that a stored 0, a stored 1 is read wrong.
        ones, zeros: bits that a guard sets, and clears.
        largest: magnitudes above become zero.
    Twin: `search.damage._sums`.
    """
    for i in range(words.size):
        word = words[i]
        weight = 0.5 * (weights[i] if weights.size > 1 else weights[0])
        if weight == 0.0:
            continue
        magnitude = _magnitude(word & np.uint32(0x7FFFFFFF))
        value = -magnitude if word >> np.uint32(31) else magnitude
        for bit in range(32):
            place = np.uint32(1) << np.uint32(31 - bit)
            chance = of_1 if word & place else of_0
            if chance == 0.0:
                continue
            read = ((word ^ place) | ones) & ~zeros
            if read == word:
                continue
            size = read & np.uint32(0x7FFFFFFF)
            after = 0.0
            if size <= largest:
                after = _magnitude(size)
                if read >> np.uint32(31):
                    after = -after
            change = after - value
            result[bit] += chance * weight * change * change
